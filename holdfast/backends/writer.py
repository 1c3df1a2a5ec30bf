"""The writer: group-commits the writes of many sessions, over one or more lanes.

Sessions with something to write wait in one queue. A lane that is free takes a write of each of them and commits
these at once; while it does, what arrives waits and becomes the next flush, so batches grow with the load by
themselves (natural batching; compare group commit in databases). A session is in one flush at a time, which keeps
the order of its writes.

Lanes are so many flushes that may be under way at once. A free one does not begin a flush that is small beside
those under way: these end soon, and the store does more work for two small commits than for one. One that takes
unusually long (another instance holds a row, or the connection is dead) holds up nobody but its own sessions.

A flush that nobody can tell the outcome of may get to the store late. The store refuses it once it has a later one of
the same lane; so its sessions are bound to that lane until then, and what they write next cannot be overtaken.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
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

_WORTH_QUEUING: Final = 64
"""Sources in a flush that is worth handing over to a store that will begin it when the one before is done."""
_SLOW_S: Final = 0.05
"""A flush that takes longer is not waited for."""


class LaneStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the lane started. Times in seconds."""

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


class Lane:
    """Sees one flush at a time through. ``number`` is its name in the markers."""

    def __init__(self, writer: Writer, number: int) -> None:
        self._writer = writer
        self._counts = Counts()
        self._flusher = Flusher(writer, number, self._counts)
        self.work: Final = Signal(writer.new_ack)
        """There may be enough for a flush."""
        self.part: Part | None = None
        """What it has under way."""
        self.slow = False
        """That takes unusually long."""

    async def run(self) -> None:
        """Flush until cancelled, which ends the flush under way as `Flusher.flush` says."""
        writer = self._writer
        while True:
            if not writer.has_enough():
                await self.work.wait()
                continue
            if writer.config.linger_s:
                await writer.clock.sleep(writer.config.linger_s)
            part, ids = writer.gather(self)
            if not part.sources:
                if writer.only_held_back():
                    await self.work.wait()
                continue
            await self._flush(part, ids)

    async def _flush(self, part: Part, ids: set[str]) -> None:
        writer = self._writer
        self.part = part
        writer.begun(ids)
        try:
            await self._flusher.flush(part)
        finally:
            self.part, self.slow = None, False
            writer.ended(self, ids)

    @property
    def unsettled(self) -> bool:
        """See `Flusher.unsettled`."""
        return self._flusher.unsettled

    def statistics(self) -> LaneStatistics:
        counts = self._counts
        return LaneStatistics(
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
    """The queue, and the lanes to one backend. ``name`` is unique to this run of this process."""

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
        self._max_batch_sessions = min(config.max_batch_sessions, own_bound)
        self._max_write_bytes = min(config.max_batch_bytes, capabilities.max_unit_bytes or config.max_batch_bytes)
        self._queues = capabilities.commits_queue
        self._ready: deque[WriteSource] = deque()
        self._wanted = 1
        """With so many sources in the queue, a free lane is called."""
        self._under_way: set[str] = set()
        """Ids of the sessions in all flushes."""
        self._bound: dict[str, Lane] = {}
        """Sessions that only one lane may take, since a flush of it may still be on its way to the store."""
        self._waited_for = Signal(new_ack)
        """Set when sources may have to wait for the end of a flush."""
        self.lanes = [Lane(self, number) for number in range(config.lanes or capabilities.preferred_lanes)]

    async def run(self) -> None:
        """Flush until cancelled."""
        async with anyio.create_task_group() as tasks:
            for lane in self.lanes:
                tasks.start_soon(lane.run)
            tasks.start_soon(self._find_slow_ones)

    def schedule(self, source: WriteSource) -> None:
        """Queue it for a turn. Not while it is queued or taken already."""
        ready = self._ready
        ready.append(source)
        if len(ready) >= self._wanted:
            self._call_lane()

    def _call_lane(self) -> None:
        self._wanted = sys.maxsize  # until it has looked
        next(lane for lane in self.lanes if lane.part is None).work.set()

    @property
    def queued(self) -> int:
        """Sessions that wait for a lane."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        return not self._ready and all(lane.part is None for lane in self.lanes)

    def abandon(self, error: Exception) -> None:
        """Tell all that is queued that it will not be flushed."""
        while self._ready:
            self._ready.popleft().fail_waiting(error)

    # --- for the lanes -------------------------------------------------------

    def has_enough(self) -> bool:
        """Whether to begin a flush now. If not, a lane is called when there is enough."""
        self._wanted = self._enough()
        if not self._queues and 1 < self._wanted < sys.maxsize:
            self._waited_for.set()
        return len(self._ready) >= self._wanted

    def _enough(self) -> int:
        """How many sources make a flush worth beginning now."""
        busy, waited_for = 0, 0
        for lane in self.lanes:
            if lane.part is not None:
                busy += 1
                if not lane.slow:
                    waited_for += len(lane.part.sources)
        if busy == len(self.lanes):
            return sys.maxsize
        return max(_WORTH_QUEUING if self._queues and busy else 1, waited_for // 2)

    def only_held_back(self) -> bool:
        """Whether all that is queued waits for another lane, or what it has under way."""
        return bool(self._ready and (self._under_way or self._bound))

    def gather(self, lane: Lane) -> tuple[Part, set[str]]:
        """One write each from as many sources as a batch may hold, in round-robin order; and their ids."""
        config, ready, under_way, bound_to = self.config, self._ready, self._under_way, self._bound
        room, bound, max_units = config.max_batch_bytes, self._max_write_bytes, config.max_session_units
        part = Part([], [], Durability.MEMORY)
        sources, writes, level = part
        ids = set[str]()
        held_back: list[WriteSource] = []
        while ready and len(writes) < self._max_batch_sessions and room > 0:
            source = ready.popleft()
            session_id = source.id
            if session_id in ids or session_id in under_way:
                held_back.append(source)  # another incarnation of the same id: one after the other
                continue
            if bound_to and (other := bound_to.get(session_id, lane)) is not lane:
                held_back.append(source)
                other.work.set()
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
        ready.extend(held_back)
        return part._replace(durability=level), ids

    def begun(self, ids: set[str]) -> None:
        """A flush of these sessions is under way; what is left may be enough for another lane."""
        self._under_way |= ids
        if self.has_enough():
            self._call_lane()

    def ended(self, lane: Lane, ids: set[str]) -> None:
        """The flush of these sessions is over; its lane looks what to do next."""
        self._under_way -= ids
        if lane.unsettled:
            self._bound |= dict.fromkeys(ids, lane)
        elif self._bound:
            self._bound = {session_id: other for session_id, other in self._bound.items() if other is not lane}

    async def _find_slow_ones(self) -> None:
        """See that nobody waits long for a flush that is not his. Where commits queue, all have to."""
        while True:
            await self._waited_for.wait()
            while pending := [(lane, lane.part) for lane in self.lanes if lane.part is not None]:
                await self.clock.sleep(_SLOW_S)
                for lane, part in pending:
                    lane.slow = lane.part is part
                if self.has_enough():
                    self._call_lane()
