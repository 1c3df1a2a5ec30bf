"""A pool of connections that never waits for a dead one.

Not asyncpg's own: that asks the server to reset each connection it takes back (a round trip a
statement), to cancel what has timed out, and waits for the answers, which a black-holed server does
not give. Here a statement without a reply in time costs its connection, and all idle ones with it:
they go the same way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from holdfast.backends.postgres.driver import Connection
from holdfast.backends.postgres.errors import DRIVER_ERRORS, translated
from holdfast.errors import OutcomeUnknown, Overloaded, StoreClosed

__all__ = ["Pool", "guarded"]

T = TypeVar("T")

_MAX_IDLE_S: Final = 300.0
"""Firewalls and poolers forget connections that were silent for longer; a frozen process wakes up later still."""
_CLOSE_S: Final = 5.0


class Pool:
    """Up to ``size`` connections, made when they are needed. For one event loop."""

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], *, size: int, wait_s: float, reply_timeout_s: float
    ) -> None:
        self._connect: Final = connect
        self._size: Final = size
        self._wait_s: Final = wait_s
        self._reply_timeout_s: Final = reply_timeout_s
        self._free: Final = asyncio.Semaphore(size)
        self._freed_at = 0.0
        self._idle: list[tuple[Connection, float]] = []
        self._open: Final[set[Connection]] = set()
        self._running: Final[set[asyncio.Task[object]]] = set()
        self._closed = False

    async def run(self, function: Callable[[Connection], Awaitable[T]], *, commits: bool = False) -> T:
        """``function(connection)``, with a time limit on the whole.

        A cancelled caller leaves at once; what was begun goes on to its end nevertheless, and what still waits
        for a connection is given up. ``commits``: an error after it began leaves its outcome open, if the error
        does not say otherwise.

        Raises: `Overloaded` if no connection becomes free at all, and what driver errors mean.
        """
        if self._closed:
            raise StoreClosed("the store is closed")
        placed = asyncio.Event()
        task = asyncio.ensure_future(self._run(function, commits, placed))
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError as exc:
            if task.cancelled():  # by `close`, and not the caller
                kind = OutcomeUnknown if commits else StoreClosed
                raise kind("the store was closed during the call") from exc
            if not placed.is_set():
                task.cancel()
            raise

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # asked for, so that asyncio does not log it where the caller has left

    async def _run(
        self,
        function: Callable[[Connection], Awaitable[T]],
        commits: bool,  # noqa: FBT001
        placed: asyncio.Event,
    ) -> T:
        await self._wait_for_place()
        placed.set()
        try:
            with translated():
                connection = await self._take()
            with translated(sent=commits):
                return await self._use(connection, function)
        finally:
            self._freed_at = asyncio.get_running_loop().time()
            self._free.release()

    async def _wait_for_place(self) -> None:
        """In the order of the callers, for as long as places become free at all: a queue that moves is no exhaustion.

        Raises: `Overloaded` if none has become free for ``wait_s``.
        """
        if not self._free.locked():
            await self._free.acquire()
            return
        now = asyncio.get_running_loop().time
        came_at = now()
        place = asyncio.ensure_future(self._free.acquire())
        try:
            while not place.done():
                left_s = max(came_at, self._freed_at) + self._wait_s - now()
                if left_s <= 0:
                    raise Overloaded("the pool of connections to PostgreSQL (pool_max)", limit=self._size)
                await asyncio.wait([place], timeout=left_s)
        except BaseException:
            if not place.cancel():
                self._free.release()
            raise

    async def _use(self, connection: Connection, function: Callable[[Connection], Awaitable[T]]) -> T:
        healthy = True
        try:
            return await guarded(connection, function(connection), self._reply_timeout_s)
        except TimeoutError:
            healthy = False
            self.discard_idle()
            raise
        except DRIVER_ERRORS as exc:
            # Read-only: this was the primary once. Let the next connection look for the one that is.
            healthy = getattr(exc, "sqlstate", None) != "25006"
            raise
        finally:
            self._give_back(connection, healthy=healthy)

    async def _take(self) -> Connection:
        oldest = asyncio.get_running_loop().time() - _MAX_IDLE_S
        while self._idle:
            connection, since = self._idle.pop()
            if since >= oldest and not connection.is_closed():
                return connection
            self._drop(connection)
        connection = await self._connect()
        self._open.add(connection)
        if self._closed:
            self._drop(connection)
            raise StoreClosed("the store is closed")
        return connection

    def _give_back(self, connection: Connection, *, healthy: bool) -> None:
        if healthy and not self._closed and not connection.is_closed():
            self._idle.append((connection, asyncio.get_running_loop().time()))
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        self._open.discard(connection)
        connection.terminate()

    def discard_idle(self) -> None:
        """Let the next calls make connections of their own."""
        while self._idle:
            self._drop(self._idle.pop()[0])

    async def warm(self, count: int) -> None:
        """Have so many connections. Raises: `Unavailable`."""
        with translated():
            made = [await self._take() for _ in range(count)]
        for connection in made:
            self._give_back(connection, healthy=True)

    async def close(self) -> None:
        """Wait for what runs, but not for long; then end all connections."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running, timeout=_CLOSE_S)
        idle = [connection for connection, _ in self._idle]
        await asyncio.gather(*(_part(connection) for connection in idle))
        self.discard_idle()
        for connection in list(self._open):
            self._drop(connection)
        for task in list(self._running):
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        await asyncio.sleep(0)  # let the transports close

    @property
    def connections(self) -> int:
        return len(self._open)


async def guarded(connection: Connection, work: Awaitable[T], timeout_s: float) -> T:
    """``await work``, which uses the connection; it is ended when time is up, without asking the server.

    Raises: TimeoutError then.
    """
    expired = False

    def expire() -> None:
        nonlocal expired
        expired = True
        connection.terminate()

    timer = asyncio.get_running_loop().call_later(timeout_s, expire)
    try:
        return await work
    except DRIVER_ERRORS as exc:
        if expired:
            raise TimeoutError(f"no reply within {timeout_s:g} s") from exc
        raise
    except asyncio.CancelledError:
        connection.terminate()
        raise
    finally:
        timer.cancel()


async def _part(connection: Connection) -> None:
    """Say goodbye, so that the server logs no lost connection."""
    try:
        await connection.close(timeout=1.0)
    except DRIVER_ERRORS:
        connection.terminate()
