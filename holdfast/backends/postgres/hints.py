"""Hints of commits between instances, by LISTEN and NOTIFY, each on a connection of its own.

Not in the transaction of the commit: a transaction with a NOTIFY takes a lock of the whole database
cluster while it commits, so all instances would flush one after the other. Hints are sent behind the
commits, all that have gathered while the last ones were on their way, and may be lost: whoever needs to be
sure reads the tables.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import secrets
import struct
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final

import structlog

from holdfast.backends.postgres.driver import Connection
from holdfast.backends.postgres.errors import DRIVER_ERRORS
from holdfast.backends.postgres.pool import guarded

__all__ = ["Listener", "Notifier", "pack", "unpack"]

_log: Final = structlog.get_logger("holdfast.postgres")

_PER_MESSAGE: Final = 700
"""Incarnations in a payload, which must stay below 8,000 bytes."""
_MAX_MESSAGES: Final = 8
_ANYTHING: Final = "*"
_MANY: Final = 64
_PAUSE_S: Final = 0.01
"""After a hint of many sessions: an instance that is so busy would spend a twentieth of its time on hints."""
_RETRY_INITIAL_S: Final = 0.1
_RETRY_MAX_S: Final = 5.0
_PROBE_S: Final = 10.0
"""How often to see whether a silent connection is alive."""

Connect = Callable[[], Awaitable[Connection]]


def pack(instance: str, incarnations: Sequence[int]) -> list[str]:
    """The payloads that name them, or one that says "anything" where they are too many."""
    if len(incarnations) > _PER_MESSAGE * _MAX_MESSAGES:
        return [f"{instance} {_ANYTHING}"]
    pages = (incarnations[start : start + _PER_MESSAGE] for start in range(0, len(incarnations), _PER_MESSAGE))
    return [f"{instance} {base64.b64encode(struct.pack(f'>{len(page)}q', *page)).decode()}" for page in pages]


def unpack(payload: str) -> tuple[str, list[int] | None]:
    """Who sent it, and which sessions it names; None: it cannot tell."""
    instance, _, encoded = payload.partition(" ")
    try:
        packed = base64.b64decode(encoded, validate=True)
        return instance, list(struct.unpack(f">{len(packed) // 8}q", packed))
    except (ValueError, struct.error):
        return instance, None


class _Delays:
    """Between attempts: growing, jittered."""

    def __init__(self) -> None:
        self._next_s = _RETRY_INITIAL_S

    def reset(self) -> None:
        """One has succeeded. To be connected is not enough: what comes next may be refused each time."""
        self._next_s = _RETRY_INITIAL_S

    async def wait(self) -> None:
        await asyncio.sleep(self._next_s * random.uniform(0.5, 1.0))
        self._next_s = min(self._next_s * 2, _RETRY_MAX_S)


class Notifier:
    """Sends hints behind the commits. Its failures are nobody else's."""

    def __init__(self, connect: Connect, channel: str, *, timeout_s: float) -> None:
        self.instance: Final = secrets.token_hex(8)
        self._connect: Final = connect
        self._channel: Final = channel
        self._timeout_s: Final = timeout_s
        self._pending: set[int] = set()
        self._wake: Final = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def tell(self, incarnations: Collection[int]) -> None:
        """Sessions that have just been committed to."""
        if len(self._pending) <= _PER_MESSAGE * _MAX_MESSAGES:  # else the hint will be "anything" already
            self._pending.update(incarnations)
        self._wake.set()

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        delays = _Delays()
        while True:
            await self._wake.wait()
            connection: Connection | None = None
            try:
                connection = await self._connect()
                await self._send_all(connection, delays)
            except DRIVER_ERRORS as exc:
                _log.warning("postgres.notify_failed", error=type(exc).__name__)
                await delays.wait()
            finally:
                if connection is not None:
                    connection.terminate()

    async def _send_all(self, connection: Connection, delays: _Delays) -> None:
        """One statement at a time; what comes meanwhile goes with the next. Until the connection is found closed."""
        while True:
            await self._wake.wait()
            if connection.is_closed():  # while nothing was sent, by the server or whatever is in between
                return
            self._wake.clear()
            pending, self._pending = self._pending, set()
            payloads = pack(self.instance, tuple(pending))
            statement = "SELECT pg_notify($1, p) FROM unnest($2::text[]) AS p"
            try:
                await guarded(connection, connection.execute(statement, self._channel, payloads), self._timeout_s)
            except DRIVER_ERRORS:
                self.tell(pending)
                raise
            delays.reset()
            if len(pending) >= _MANY:
                await asyncio.sleep(_PAUSE_S)


class Listener:
    """Receives hints. `next` waits for some; it connects, and connects again, by itself."""

    def __init__(self, connect: Connect, channel: str, *, own: str, timeout_s: float) -> None:
        self._connect: Final = connect
        self._channel: Final = channel
        self._own: Final = own
        self._timeout_s: Final = timeout_s
        self._changed: set[int] = set()
        self._anything = False
        self._wake: Final = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def next(self) -> Collection[int] | None:
        """The sessions changed since the last call; None: any, which is so after each new connection."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        await self._wake.wait()
        self._wake.clear()
        changed, self._changed = self._changed, set()
        anything, self._anything = self._anything, False
        return None if anything else changed

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        delays = _Delays()
        while True:
            try:
                connection = await self._connect()
            except DRIVER_ERRORS as exc:
                _log.warning("postgres.listen_failed", error=type(exc).__name__)
            else:
                await self._listen(connection, delays)
            await delays.wait()

    async def _listen(self, connection: Connection, delays: _Delays) -> None:
        """Until the connection is lost."""
        lost = asyncio.Event()

        def on_lost(_connection: object) -> None:
            lost.set()

        connection.add_termination_listener(on_lost)
        try:
            await guarded(connection, connection.add_listener(self._channel, self._receive), self._timeout_s)
            delays.reset()
            self._hint(None)
            while not lost.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_PROBE_S):
                        await lost.wait()
                if not lost.is_set():
                    await guarded(connection, connection.execute("SELECT 1"), self._timeout_s)
        except DRIVER_ERRORS as exc:
            _log.warning("postgres.listen_failed", error=type(exc).__name__)
        finally:
            connection.terminate()

    def _receive(self, _connection: object, _pid: int, _channel: str, payload: str) -> None:
        instance, changed = unpack(payload)
        if instance != self._own:
            self._hint(changed)

    def _hint(self, changed: Collection[int] | None) -> None:
        if changed is None:
            self._anything = True
        else:
            self._changed.update(changed)
        self._wake.set()
