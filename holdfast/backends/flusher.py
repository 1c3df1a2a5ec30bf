"""One flush at a time: committed, tried again, cut in halves, found out, and told to its sources."""

from __future__ import annotations

import random
from collections.abc import Callable
from operator import attrgetter
from typing import Final, NamedTuple, Protocol, TypeVar

import anyio
import structlog

from holdfast.backends.base import Backend, Batch, Marker, Outcome, SessionWrite
from holdfast.backends.breaker import Breaker
from holdfast.clock import Clock
from holdfast.config import WriterConfig
from holdfast.errors import HoldfastError, OutcomeUnknown, Rejected, StoreClosed, Unavailable
from holdfast.model import Durability

__all__ = ["Counts", "Flusher", "Part", "WriteSource", "WriterParts"]

_log = structlog.stdlib.get_logger("holdfast.writer")

_T = TypeVar("_T")

_events_of: Final = attrgetter("events")


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


class WriterParts(Protocol):
    """What flushers share: see `Writer`."""

    backend: Backend
    config: WriterConfig
    name: str
    clock: Clock
    breaker: Breaker
    max_events: int | None


class Part(NamedTuple):
    """What is committed at once: a write of each source, and the highest level that one of them needs."""

    sources: list[WriteSource]
    writes: list[SessionWrite]
    durability: Durability

    def halves(self) -> tuple[Part, Part]:
        middle = len(self.sources) // 2
        return (
            Part(self.sources[:middle], self.writes[:middle], self.durability),
            Part(self.sources[middle:], self.writes[middle:], self.durability),
        )


class Counts:
    """Of a lane, since it started."""

    __slots__ = ("bisections", "busy_s", "events", "failed", "flushes", "largest", "resolved", "retries", "writes")

    def __init__(self) -> None:
        self.flushes = self.writes = self.events = self.largest = 0
        self.retries = self.bisections = self.resolved = self.failed = 0
        self.busy_s = 0.0


class _BackendCrashed(OutcomeUnknown):
    """A bug in the backend, met on these very writes: if nothing was stored, they are treated as poison."""


class Flusher:
    """Sees a flush through. ``number`` is unique among the writer's: its markers bear it as their lane."""

    def __init__(self, writer: WriterParts, number: int, counts: Counts) -> None:
        self._writer = writer
        self._number = number
        self._counts = counts
        self._flush_number = 0
        self._in_doubt = False
        """The store has been handed something of which the outcome is not known."""
        self.unsettled = False
        """Nobody could say what became of a flush. It may still get to the store, until a later one has."""

    async def flush(self, part: Part) -> None:
        """Commit, and give every source its outcome, whatever happens.

        A batch that the store refuses for good holds poison somewhere, and nothing of it was stored:
        find it by halves, and save the others. A cancellation fails what the store was handed, and has
        not answered, with `OutcomeUnknown`, and the rest of the flush with `StoreClosed`.
        """
        counts = self._counts
        parts = [part]
        while parts:
            part = parts.pop()
            try:
                outcomes = await self._commit(part)
            except Rejected as exc:
                if len(part.sources) > 1:
                    counts.bisections += 1
                    parts += reversed(part.halves())
                else:
                    counts.failed += 1
                    _log.error("writer.rejected", session_id=part.writes[0].id, error=str(exc))
                    _tell(part.sources[0], part.sources[0].reject, exc)
            except HoldfastError as exc:
                _log.error("writer.flush_failed", lane=self._number, writes=len(part.sources), error=str(exc))
                self.unsettled |= isinstance(exc, OutcomeUnknown)
                self._fail(part, exc)
            except BaseException:  # cancelled: shutting down past the deadline
                not_stored = StoreClosed("the store was closed before this was stored")
                unknown = OutcomeUnknown("the engine was stopped during the commit")
                self._fail(part, unknown if self._in_doubt else not_stored)
                for other in parts:
                    self._fail(other, not_stored)
                raise
            else:
                self.unsettled = False
                self._settle(part, outcomes)

    def _fail(self, part: Part, error: Exception) -> None:
        self._counts.failed += len(part.sources)
        for source in part.sources:
            _tell(source, source.fail, error)

    def _settle(self, part: Part, outcomes: list[Outcome]) -> None:
        counts = self._counts
        counts.flushes += 1
        counts.writes += len(outcomes)
        counts.largest = max(counts.largest, len(outcomes))
        counts.events += sum(map(len, map(_events_of, part.writes)))
        for source, outcome in zip(part.sources, outcomes, strict=True):
            try:
                source.settle(outcome)
            except Exception as exc:
                source.crashed(exc)

    async def _commit(self, part: Part) -> list[Outcome]:
        """One commit, tried again on passing errors; unknown outcomes are found out.

        Raises: `Rejected`, `Unavailable` (nothing is stored) or `OutcomeUnknown`.
        """
        writer = self._writer
        backoff = self._backoff()
        started = writer.clock.monotonic()
        try:
            while True:
                self._flush_number += 1
                marker = Marker(writer.name, self._number, self._flush_number)
                self._in_doubt = True
                try:
                    return await self._attempt(part, marker)
                except OutcomeUnknown as exc:
                    outcomes = await self._resolve(part, marker, exc)
                    if outcomes is not None:
                        return outcomes
                    if isinstance(exc, _BackendCrashed):
                        raise Rejected(str(exc)) from exc
                    self._in_doubt = False
                    await backoff.wait_or_raise(Unavailable(f"{exc}; it was not done"))
                except Unavailable as exc:
                    self._in_doubt = False
                    await backoff.wait_or_raise(exc)
                self._counts.retries += 1
        finally:
            self._counts.busy_s += writer.clock.monotonic() - started

    async def _attempt(self, part: Part, marker: Marker) -> list[Outcome]:
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
        _check_count(part, outcomes)
        writer.breaker.success()
        return outcomes

    async def _resolve(self, part: Part, marker: Marker, unknown: OutcomeUnknown) -> list[Outcome] | None:
        """Ask until the store answers. Raises: ``unknown`` if it does not, for ``retry_for_s``."""
        writer = self._writer
        backoff = self._backoff()
        while True:
            try:
                with anyio.fail_after(writer.config.read_timeout_s):
                    outcomes = await writer.backend.resolve(marker)
                if outcomes is not None:
                    _check_count(part, outcomes)
            except Exception as exc:  # bugs of the backend too: the lane must live
                writer.breaker.failure(exc)
                if not await backoff.wait():
                    raise unknown from exc
            else:
                if outcomes is not None:  # else the commit has failed, whatever can be read
                    writer.breaker.success()
                self._counts.resolved += 1
                _log.warning("writer.outcome_resolved", lane=self._number, committed=outcomes is not None)
                return outcomes

    def _backoff(self) -> _Backoff:
        return _Backoff(self._writer.config, self._writer.clock, self._writer.breaker)


def _check_count(part: Part, outcomes: list[Outcome]) -> None:
    if len(outcomes) != len(part.writes):
        raise _BackendCrashed(f"the backend gave {len(outcomes)} outcomes for {len(part.writes)} writes")


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
