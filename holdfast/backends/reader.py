"""The reader: batched loads, the read side's group commit.

Loads that arrive while a batch is being read wait for the next one, never for the running one: so
each sees all that was acknowledged, anywhere, before it was asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio
import msgspec

from holdfast.backends.base import Backend, LoadRequest, Snapshot
from holdfast.backends.breaker import Breaker
from holdfast.config import Config
from holdfast.errors import HoldfastError, Overloaded, StoreClosed, Unavailable, copy_for_caller
from holdfast.waiting import Ack

__all__ = ["Reader", "ReaderStatistics"]


class ReaderStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the reader started."""

    waiting: int
    batches: int
    loads: int
    largest_batch: int


class _Load:
    """One caller's load, and where its answer goes."""

    __slots__ = ("ack", "request", "snapshot")

    def __init__(self, request: LoadRequest, ack: Ack) -> None:
        self.request = request
        self.ack = ack
        self.snapshot: Snapshot | None = None


class Reader:
    """Reads sessions in batches, one batch at a time."""

    def __init__(self, backend: Backend, config: Config, *, breaker: Breaker, new_ack: Callable[[], Ack]) -> None:
        self._backend = backend
        self._max_batch = config.writer.max_batch_sessions
        self._max_waiting = config.actors.max_hydrations
        self._overload_wait_s = config.actors.overload_wait_s
        self._timeout_s = config.writer.read_timeout_s
        self._breaker = breaker
        self._new_ack = new_ack
        self._waiting: deque[_Load] = deque()
        self._room = anyio.Event()
        self._idle_ack: Ack | None = None
        self._closed: HoldfastError | None = None
        self._batches = self._loads = self._largest = 0

    async def load(self, request: LoadRequest) -> Snapshot | None:
        """The session as committed now; None if there is no such id.

        Raises: `Unavailable`, `Overloaded`. A cancellation leaves nothing behind.
        """
        if self._closed is not None:
            raise copy_for_caller(self._closed)
        self._breaker.check()
        if len(self._waiting) >= self._max_waiting:
            await self._wait_for_room()
            if self._closed is not None:
                raise copy_for_caller(self._closed)
        load = _Load(request, self._new_ack())
        self._waiting.append(load)
        if self._idle_ack is not None and not self._idle_ack.done():
            self._idle_ack.set_result(None)
        await load.ack
        return load.snapshot

    async def _wait_for_room(self) -> None:
        with anyio.move_on_after(self._overload_wait_s):
            while len(self._waiting) >= self._max_waiting:
                await self._room.wait()
            return
        raise Overloaded("max_hydrations", limit=self._max_waiting)

    async def run(self) -> None:
        """Serve until cancelled; those who wait then are cancelled with it."""
        while True:
            while not self._waiting:
                self._idle_ack = self._new_ack()
                await self._idle_ack
                self._idle_ack = None
            await self._read_batch()

    async def _read_batch(self) -> None:
        waiting = self._waiting
        batch: list[_Load] = []
        while waiting and len(batch) < self._max_batch:
            load = waiting.popleft()
            if not load.ack.done():
                batch.append(load)
        self._room.set()
        self._room = anyio.Event()
        if not batch:
            return
        try:
            with anyio.fail_after(self._timeout_s):
                snapshots = await self._backend.load([load.request for load in batch])
            if len(snapshots) != len(batch):
                raise Unavailable(f"the backend gave {len(snapshots)} sessions for {len(batch)}")
        except Exception as exc:  # whatever it was, its callers must hear of it
            self._breaker.failure(exc)
            self._fail(batch, exc)
            return
        except BaseException:  # the engine stops
            self._fail(batch, StoreClosed("the store was closed during the read"))
            raise
        self._breaker.success()
        self._batches += 1
        self._loads += len(batch)
        self._largest = max(self._largest, len(batch))
        for load, snapshot in zip(batch, snapshots, strict=True):
            if not load.ack.done():
                load.snapshot = snapshot
                load.ack.set_result(None)

    def abandon(self, error: HoldfastError) -> None:
        """After `run` has ended: tell everybody who still waits, or comes later."""
        self._closed = error
        for load in self._waiting:
            if not load.ack.done():
                load.ack.set_exception(copy_for_caller(error))
        self._waiting.clear()
        self._room.set()

    def _fail(self, batch: list[_Load], error: Exception) -> None:
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        for load in batch:
            if not load.ack.done():
                failure = error if isinstance(error, HoldfastError) else Unavailable(f"the read failed: {reason}")
                load.ack.set_exception(copy_for_caller(failure))

    def statistics(self) -> ReaderStatistics:
        return ReaderStatistics(
            waiting=len(self._waiting), batches=self._batches, loads=self._loads, largest_batch=self._largest
        )
