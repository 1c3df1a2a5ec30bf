"""The writer: lanes that group-commit the writes of many sessions.

A lane flushes as soon as its previous flush has ended. A lone write goes at once; while a flush is
under way, what arrives waits and becomes the next one, so batches grow with the load by themselves
(natural batching; compare group commit in databases). The writes of one session stay on one lane
and in one flush at a time, which keeps their order.

Where a store makes one commit after the other anyway, a large flush is handed over while the one
before it is still under way, so that the store goes on without a pause.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

import anyio
import msgspec

from holdfast.backends.base import Backend
from holdfast.backends.breaker import Breaker
from holdfast.backends.flusher import Counts, Flusher, Part, WriteSource
from holdfast.clock import Clock
from holdfast.config import WriterConfig
from holdfast.model import Durability
from holdfast.waiting import Ack, Signal

__all__ = ["LaneStatistics", "WriteSource", "Writer"]

_LARGE_FLUSH: Final = 64
"""Sources in a flush that is worth handing over behind another one."""


class LaneStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the lane started. Times in seconds."""

    queued: int
    flushes: int
    writes: int
    events: int
    largest_batch: int
    retries: int
    bisections: int
    resolved: int
    """Commits whose outcome was unknown and then found out."""
    failed_writes: int
    busy_s: float
    """Time spent in commits."""


class _Worker:
    """A flusher, what it has under way, and how it learns that there is more to do."""

    __slots__ = ("flusher", "ids", "part", "work")

    def __init__(self, flusher: Flusher, new_ack: Callable[[], Ack]) -> None:
        self.flusher: Final = flusher
        self.work: Final = Signal(new_ack)
        self.part: Part | None = None
        self.ids: set[str] = set()


class Lane:
    """A queue of sources, and who flushes from it: one worker, or two where one commit waits behind another."""

    def __init__(self, writer: Writer, numbers: Iterable[int]) -> None:
        self._writer = writer
        self._ready: deque[WriteSource] = deque()
        self._wanted = 1
        """With so many sources in the queue, a free worker is called."""
        self._counts = Counts()
        self._workers = [_Worker(Flusher(writer, number, self._counts), writer.new_ack) for number in numbers]

    def schedule(self, source: WriteSource) -> None:
        ready = self._ready
        ready.append(source)
        if len(ready) >= self._wanted:
            self._call_worker()

    def _call_worker(self) -> None:
        self._wanted = sys.maxsize  # until it has looked
        next(worker for worker in self._workers if worker.part is None).work.set()

    @property
    def idle(self) -> bool:
        return not self._ready and all(worker.part is None for worker in self._workers)

    async def run(self) -> None:
        """Flush until cancelled, which ends the flushes under way as `Flusher.flush` says."""
        async with anyio.create_task_group() as tasks:
            for worker in self._workers:
                tasks.start_soon(self._work, worker)

    async def _work(self, worker: _Worker) -> None:
        while True:
            self._wanted = self._enough()
            if len(self._ready) < self._wanted:
                await worker.work.wait()
            else:
                await self._turn(worker)

    def _enough(self) -> int:
        """How many sources make a flush worth handing over now."""
        under_way = [len(worker.part.sources) for worker in self._workers if worker.part is not None]
        if not under_way:
            return 1
        return sys.maxsize if len(under_way) == len(self._workers) else max(_LARGE_FLUSH, under_way[0] // 2)

    async def _turn(self, worker: _Worker) -> None:
        if self._writer.config.linger_s:
            await self._writer.clock.sleep(self._writer.config.linger_s)
        part = self._gather(worker)
        if not part.sources:
            if self._ready and self._enough() > 1:  # they wait for what another worker has under way
                self._wanted = len(self._ready) + 1
                await worker.work.wait()
            return
        worker.part = part
        self._wanted = self._enough()
        if len(self._ready) >= self._wanted:
            self._call_worker()
        try:
            await worker.flusher.flush(part)
        finally:
            worker.part = None

    def _gather(self, worker: _Worker) -> Part:
        """One write each from as many sources as a batch may hold, in round-robin order."""
        writer, ready = self._writer, self._ready
        room, bound, max_units = writer.max_batch_bytes, writer.max_write_bytes, writer.config.max_session_units
        part = Part([], [], Durability.MEMORY)
        sources, writes, level = part
        ids = worker.ids = set[str]()
        taken = [other.ids for other in self._workers if other.part is not None]
        later: list[WriteSource] = []
        while ready and len(writes) < writer.max_batch_sessions and room > 0:
            source = ready.popleft()
            session_id = source.id
            if session_id in ids or (taken and session_id in taken[0]):
                later.append(source)  # another incarnation of the same id: one after the other
                continue
            try:
                turn = source.take(max_units, bound if bound < room else room)  # noqa: FURB136 - a call a write
            except Exception as exc:
                source.crashed(exc)
                continue
            if turn is not None:
                write, needed, size = turn
                ids.add(session_id)
                sources.append(source)
                writes.append(write)
                room -= size
                if needed is not level and needed.rank > level.rank:
                    level = needed
        ready.extend(later)
        return part._replace(durability=level)

    def abandon(self, error: Exception) -> None:
        """Tell all that is queued that it will not be flushed."""
        while self._ready:
            self._ready.popleft().fail_waiting(error)

    def statistics(self) -> LaneStatistics:
        counts = self._counts
        return LaneStatistics(
            queued=len(self._ready),
            flushes=counts.flushes,
            writes=counts.writes,
            events=counts.events,
            largest_batch=counts.largest,
            retries=counts.retries,
            bisections=counts.bisections,
            resolved=counts.resolved,
            failed_writes=counts.failed,
            busy_s=counts.busy_s,
        )


class Writer:
    """All lanes to one backend. ``name`` is unique to this run of this process."""

    def __init__(
        self,
        backend: Backend,
        config: WriterConfig,
        *,
        name: str,
        clock: Clock,
        breaker: Breaker,
        new_ack: Callable[[], Ack],
        max_events: int | None,
    ) -> None:
        self.backend = backend
        self.config = config
        self.name = name
        self.clock = clock
        self.breaker = breaker
        self.new_ack = new_ack
        self.max_events = max_events
        capabilities = backend.capabilities
        own_bound = capabilities.max_batch_sessions or config.max_batch_sessions
        self.max_batch_sessions = min(config.max_batch_sessions, own_bound)
        self.max_batch_bytes = config.max_batch_bytes
        self.max_write_bytes = min(config.max_batch_bytes, capabilities.max_unit_bytes or config.max_batch_bytes)
        lanes = config.lanes or capabilities.preferred_lanes
        workers = 2 if capabilities.commits_queue else 1
        self.lanes = [Lane(self, range(number, lanes * workers, lanes)) for number in range(lanes)]
        self._schedules: list[Callable[[WriteSource], None]] = [lane.schedule for lane in self.lanes]

    def schedule_of(self, session_id: str) -> Callable[[WriteSource], None]:
        """What queues a source of that id for its next turn. Not while it is queued or taken already."""
        return self._schedules[hash(session_id) % len(self._schedules)]

    @property
    def idle(self) -> bool:
        return all(lane.idle for lane in self.lanes)
