"""The writer: lanes that group-commit the writes of many sessions.

A lane flushes as soon as its previous flush has ended. A lone write goes at once; while a flush is
under way, what arrives waits and becomes the next one, so batches grow with the load by themselves
(natural batching; compare group commit in databases). The writes of one session stay on one lane
and in one flush at a time, which keeps their order.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import anyio
import msgspec
import structlog

from holdfast.backends.base import Backend, Batch, Marker, Outcome, SessionWrite
from holdfast.backends.breaker import Breaker
from holdfast.clock import Clock
from holdfast.config import WriterConfig
from holdfast.errors import HoldfastError, OutcomeUnknown, Rejected, StoreClosed, Unavailable
from holdfast.model import Durability
from holdfast.waiting import Ack, Signal

__all__ = ["LaneStatistics", "WriteSource", "Writer"]

_log = structlog.stdlib.get_logger("holdfast.writer")

_T = TypeVar("_T")

_LARGE_FLUSH = 64
"""Sources in a flush that is worth handing over before the last one is settled."""


class WriteSource(Protocol):
    """Where a lane gets its writes from: a session actor. None of these may block."""

    @property
    def id(self) -> str: ...

    def take(self, max_units: int, max_bytes: int) -> tuple[SessionWrite, Durability, int] | None:
        """The next write, the level it needs and its size in bytes; None if there is nothing to write now."""
        ...

    def settle(self, outcome: Outcome) -> None: ...

    def fail(self, error: Exception) -> None:
        """The write was not stored, or (`OutcomeUnknown`) may be."""
        ...

    def reject(self, error: Exception) -> None:
        """The store refuses this very write for good."""
        ...

    def crashed(self, error: Exception) -> None:
        """One of these methods raised."""
        ...

    def fail_waiting(self, error: Exception) -> None:
        """What is not taken will not be."""
        ...


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


class _BackendCrashed(OutcomeUnknown):
    """A bug in the backend, met on these very writes: if nothing was stored, they are treated as poison."""


class _Part(NamedTuple):
    """What is committed at once: a write of each source, and the highest level that one of them needs."""

    sources: list[WriteSource]
    writes: list[SessionWrite]
    durability: Durability

    def halves(self) -> tuple[_Part, _Part]:
        middle = len(self.sources) // 2
        return (
            _Part(self.sources[:middle], self.writes[:middle], self.durability),
            _Part(self.sources[middle:], self.writes[middle:], self.durability),
        )


class Lane:
    """One flush at a time, from a queue of sources."""

    def __init__(self, writer: Writer, number: int) -> None:
        self._writer = writer
        self._number = number
        self._flush_number = 0
        self._ready: deque[WriteSource] = deque()
        self._work = Signal(writer.new_ack)
        self._flushing = False
        self._committed: tuple[_Part, list[Outcome]] | None = None
        """The last flush, if it is not settled yet."""
        self._next_begun = Signal(writer.new_ack)
        self._flushes = self._writes = self._events = self._largest = 0
        self._retries = self._bisections = self._resolved = self._failed = 0
        self._busy_s = 0.0

    def schedule(self, source: WriteSource) -> None:
        if not self._ready:
            self._work.set()
        self._ready.append(source)

    @property
    def idle(self) -> bool:
        return not (self._ready or self._flushing or self._committed)

    async def run(self) -> None:
        """Flush until cancelled. A cancellation fails what is being flushed with `OutcomeUnknown`."""
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._settle_behind)
                while True:
                    await self._turn()
        finally:
            self._settle()

    async def _turn(self) -> None:
        """One flush, or a wait for something to flush."""
        if not self._settles_behind:
            self._settle()
        if not self._ready:
            await self._work.wait()
            return
        if self._writer.config.linger_s:
            await self._writer.clock.sleep(self._writer.config.linger_s)
        part = self._gather()
        if not part.sources:
            return
        self._flushing = True
        self._next_begun.set()
        try:
            await self._flush(part)
        finally:
            self._flushing = False

    @property
    def _settles_behind(self) -> bool:
        """Whether the next flush is large enough without the sources of the last, which may have more to write."""
        if self._committed is None or self._writer.config.linger_s:
            return False
        return len(self._ready) >= max(_LARGE_FLUSH, len(self._committed[0].sources) // 2)

    async def _settle_behind(self) -> None:
        """Settle a flush when the next one has been handed over, so that the store need not wait for that."""
        while True:
            await self._next_begun.wait()
            self._settle()

    def _gather(self) -> _Part:
        """One write each from as many sources as a batch may hold, in round-robin order."""
        writer, ready = self._writer, self._ready
        room, max_units = writer.max_batch_bytes, writer.config.max_session_units
        part = _Part([], [], Durability.MEMORY)
        sources, writes, level = part
        ids = set[str]()
        later: list[WriteSource] = []
        while ready and len(writes) < writer.max_batch_sessions and room > 0:
            source = ready.popleft()
            if source.id in ids:  # another incarnation of the same id: one after the other
                later.append(source)
                continue
            try:
                taken = source.take(max_units, min(room, writer.max_write_bytes))
            except Exception as exc:
                source.crashed(exc)
                continue
            if taken is not None:
                write, needed, size = taken
                ids.add(source.id)
                sources.append(source)
                writes.append(write)
                room -= size
                if needed is not level and needed.rank > level.rank:
                    level = needed
        ready.extend(later)
        return part._replace(durability=level)

    async def _flush(self, part: _Part) -> None:
        """Commit, and give every source its outcome, whatever happens.

        A batch that the store refuses for good holds poison somewhere, and nothing of it was stored:
        find it by halves, and save the others.
        """
        parts = [part]
        while parts:
            part = parts.pop()
            try:
                outcomes = await self._commit(part)
            except Rejected as exc:
                if len(part.sources) > 1:
                    self._bisections += 1
                    parts += reversed(part.halves())
                else:
                    self._failed += 1
                    _log.error("writer.rejected", session_id=part.writes[0].id, error=str(exc))
                    _tell(part.sources[0], part.sources[0].reject, exc)
            except HoldfastError as exc:
                _log.error("writer.flush_failed", lane=self._number, writes=len(part.sources), error=str(exc))
                self._fail(part, exc)
            except BaseException:  # cancelled: shutting down past the deadline
                self._fail(part, OutcomeUnknown("the engine was stopped during the commit"))
                for other in parts:
                    self._fail(other, StoreClosed("the store was closed before this was stored"))
                raise
            else:
                self._settle()
                self._committed = part, outcomes
                if parts:
                    self._settle()

    def _fail(self, part: _Part, error: Exception) -> None:
        self._failed += len(part.sources)
        for source in part.sources:
            _tell(source, source.fail, error)

    def _settle(self) -> None:
        """Give the sources of the last flush their outcomes, if they do not have them."""
        if self._committed is None:
            return
        (part, outcomes), self._committed = self._committed, None
        self._flushes += 1
        self._writes += len(outcomes)
        self._largest = max(self._largest, len(outcomes))
        for source, write, outcome in zip(part.sources, part.writes, outcomes, strict=True):
            self._events += len(write.events)
            try:
                source.settle(outcome)
            except Exception as exc:
                source.crashed(exc)

    async def _commit(self, part: _Part) -> list[Outcome]:
        """One commit, tried again on passing errors; unknown outcomes are found out.

        Raises: `Rejected`, `Unavailable` (nothing is stored) or `OutcomeUnknown`.
        """
        writer = self._writer
        backoff = writer.backoff()
        started = writer.clock.monotonic()
        try:
            while True:
                self._flush_number += 1
                marker = Marker(writer.name, self._number, self._flush_number)
                try:
                    return await self._attempt(part, marker)
                except OutcomeUnknown as exc:
                    outcomes = await self._resolve(marker, exc)
                    if outcomes is not None:
                        return outcomes
                    if isinstance(exc, _BackendCrashed):
                        raise Rejected(str(exc)) from exc
                    await backoff.wait_or_raise(Unavailable(f"{exc}; it was not done"))
                except Unavailable as exc:
                    await backoff.wait_or_raise(exc)
                self._retries += 1
        finally:
            self._busy_s += writer.clock.monotonic() - started

    async def _attempt(self, part: _Part, marker: Marker) -> list[Outcome]:
        writer = self._writer
        batch = Batch(
            writes=part.writes,
            marker=marker,
            durability=part.durability,
            now_us=writer.clock.now_us(),
            max_events=writer.max_events,
        )
        try:
            with anyio.fail_after(writer.config.commit_timeout_s):
                outcomes = await writer.backend.commit(batch)
        except TimeoutError as exc:
            error = OutcomeUnknown(f"the commit was not answered within {writer.config.commit_timeout_s:g} s")
            writer.breaker.failure(error)
            raise error from exc
        except Rejected:
            writer.breaker.success()
            raise
        except HoldfastError as exc:
            writer.breaker.failure(exc)
            raise
        except Exception as exc:
            _log.error("backend.commit_crashed", exc_info=exc)
            raise _BackendCrashed(f"the backend failed in a way it does not document: {exc!r}") from exc
        if len(outcomes) != len(part.writes):
            raise _BackendCrashed(f"the backend gave {len(outcomes)} outcomes for {len(part.writes)} writes")
        writer.breaker.success()
        return outcomes

    async def _resolve(self, marker: Marker, unknown: OutcomeUnknown) -> list[Outcome] | None:
        """Ask until the store answers. Raises: ``unknown`` if it does not, for ``retry_for_s``."""
        writer = self._writer
        backoff = writer.backoff()
        while True:
            try:
                with anyio.fail_after(writer.config.read_timeout_s):
                    outcomes = await writer.backend.resolve(marker)
            except Exception as exc:  # bugs of the backend too: the lane must live
                writer.breaker.failure(exc)
                if not await backoff.wait():
                    raise unknown from exc
            else:
                self._resolved += 1
                _log.warning("writer.outcome_resolved", lane=self._number, committed=outcomes is not None)
                return outcomes

    def abandon(self, error: Exception) -> None:
        """Tell all that is queued that it will not be flushed."""
        while self._ready:
            self._ready.popleft().fail_waiting(error)

    def statistics(self) -> LaneStatistics:
        return LaneStatistics(
            queued=len(self._ready),
            flushes=self._flushes,
            writes=self._writes,
            events=self._events,
            largest_batch=self._largest,
            retries=self._retries,
            bisections=self._bisections,
            resolved=self._resolved,
            failed_writes=self._failed,
            busy_s=self._busy_s,
        )


def _tell(source: WriteSource, method: Callable[[_T], None], argument: _T) -> None:
    """Call a source; an error in it is its own crash, and no other's."""
    try:
        method(argument)
    except Exception as exc:
        source.crashed(exc)


class _Backoff:
    """Exponential delays with full jitter, until the store has been failing for ``retry_for_s``.

    Counted from when the store began to fail, so that what queues up behind the first failing flush
    does not wait as long again.
    """

    def __init__(self, config: WriterConfig, clock: Clock, breaker: Breaker) -> None:
        self._config = config
        self._clock = clock
        self._breaker = breaker
        self._started = clock.monotonic()
        self._delay_s = config.backoff_initial_s

    async def wait_or_raise(self, error: Exception) -> None:
        """Wait before the next attempt. Raises: ``error`` if time is up."""
        if not await self.wait():
            raise error

    async def wait(self) -> bool:
        """Wait before the next attempt. False, at once: time is up."""
        since = self._breaker.failing_since
        started = self._started if since is None else min(since, self._started)
        if self._clock.monotonic() - started >= self._config.retry_for_s:
            return False
        await self._clock.sleep(self._delay_s * random.uniform(0.5, 1.0))
        self._delay_s = min(self._delay_s * 2, self._config.backoff_max_s)
        return True


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
        self.schedule: Callable[[WriteSource], None] = self._schedule
        """Queue a source for its next turn. Not while it is queued or taken already."""
        self.lanes = [Lane(self, number) for number in range(config.lanes or capabilities.preferred_lanes)]
        if len(self.lanes) == 1:
            self.schedule = self.lanes[0].schedule

    def _schedule(self, source: WriteSource) -> None:
        self.lanes[hash(source.id) % len(self.lanes)].schedule(source)

    def backoff(self) -> _Backoff:
        return _Backoff(self.config, self.clock, self.breaker)

    @property
    def idle(self) -> bool:
        return all(lane.idle for lane in self.lanes)
