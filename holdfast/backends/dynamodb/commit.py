"""Commits: each session's write is one conditional request, and a batch is many of them at once.

There is no transaction over several sessions, and none is needed: each write is all or nothing by
itself. What makes a batch safe is that it can be sent again. A head's condition names the very state
that it was built on, so a request takes effect once at most; and the head remembers, for each lane
that wrote to it lately, the last flush and its outcome, so that what has taken effect can be told from
what has not, whoever wrote in between. An `Attempt` keeps the batch until every write of it has an
outcome: `resolve` goes on where the commit broke off.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from msgspec import structs

from holdfast.backends.base import Batch, Marker, Outcome, SessionWrite, Status
from holdfast.backends.dynamodb.cache import HeadCache
from holdfast.backends.dynamodb.client import Table
from holdfast.backends.dynamodb.errors import ConditionFailed
from holdfast.backends.dynamodb.items import Stored, decode_head, lane_name
from holdfast.backends.dynamodb.limits import check_size
from holdfast.backends.dynamodb.plan import Flush, Plan, decide, marks_are_lost
from holdfast.backends.dynamodb.sweep import bury, sweep_up
from holdfast.errors import HoldfastError, OutcomeUnknown, Rejected

__all__ = ["Committer"]

_PATIENT_AFTER: Final = 2
"""Lost races in a row, after which a write steps back before it tries again."""
_STEP_BACK_S: Final = 0.02
_SWEPT_AT_ONCE: Final = 100
"""Items that a commit deletes itself, when it makes them invisible; upkeep deletes the rest."""


class Committer:
    """The commits of all lanes of one backend object, and their resolution."""

    def __init__(self, table: Table, cache: HeadCache) -> None:
        self._table: Final = table
        self._cache: Final = cache
        self._attempts: Final[dict[tuple[str, int], Attempt]] = {}

    async def commit(self, batch: Batch) -> list[Outcome]:
        """`Backend.commit`. Cancelled, it can be resolved."""
        for write in batch.writes:
            check_size(write)
        lane = (batch.marker.writer, batch.marker.lane)
        attempt = self._attempts[lane] = Attempt(self._table, self._cache, batch, self._attempts.get(lane))
        return await attempt.run()

    def attempt(self, marker: Marker) -> Attempt | None:
        """The one that the marker names, if it was made here and is its lane's last."""
        attempt = self._attempts.get((marker.writer, marker.lane))
        return attempt if attempt is not None and attempt.batch.marker == marker else None

    def forget(self, writer: str | None, before_us: int) -> None:
        for lane, attempt in list(self._attempts.items()):
            if lane[0] == writer or attempt.batch.now_us < before_us:
                del self._attempts[lane]


class _Rejected:
    """A batch that is being bisected, and what of it is done: that comes again, and must not be done again."""

    def __init__(self) -> None:
        self._writes: Final[dict[int, tuple[SessionWrite, Outcome | None]]] = {}

    def note(self, batch: Batch, outcomes: Sequence[Outcome | None]) -> None:
        for write, outcome in zip(batch.writes, outcomes, strict=True):
            self._writes[id(write)] = (write, outcome)

    def holds(self, batch: Batch) -> bool:
        """Whether ``batch`` is a part of it."""
        return any(id(write) in self._writes for write in batch.writes)

    def outcome_of(self, write: SessionWrite) -> Outcome | None:
        return self._writes.get(id(write), (write, None))[1]


class Attempt:
    """One batch on its way. It can be run again, until all is known."""

    def __init__(self, table: Table, cache: HeadCache, batch: Batch, last: Attempt | None) -> None:
        self.batch: Final = batch
        self._table: Final = table
        self._cache: Final = cache
        marker = batch.marker
        now_s = batch.now_us // 1_000_000
        self._flush: Final = Flush(lane_name(marker.writer, marker.lane), marker.flush, now_s, batch.max_events)
        self._first_sent: Final[dict[int, int]] = {}
        """Writes that may have taken effect unnoticed, and the revision on which each was first built."""
        self.rejected: _Rejected = last.rejected if last is not None and last.rejected.holds(batch) else _Rejected()
        self._outcomes: Final = [self.rejected.outcome_of(write) for write in batch.writes]

    async def run(self) -> list[Outcome]:
        """Every write's outcome.

        Raises: `Rejected` or `Unavailable` if nothing is done (but what the next attempt of the lane
        knows of); `OutcomeUnknown` if some is done, or may be: run it again.
        """
        missing = [number for number, outcome in enumerate(self._outcomes) if outcome is None]
        ended = await asyncio.gather(*map(self._write, missing), return_exceptions=True)
        errors = [error for error in ended if error is not None]
        if errors:
            self._raise(errors)
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _raise(self, errors: Sequence[BaseException]) -> None:
        passing = [error for error in errors if not isinstance(error, Rejected)]
        if not self._first_sent and (not passing or not self._something_is_done):
            if len(passing) < len(errors):
                self.rejected.note(self.batch, self._outcomes)
            raise next((error for error in errors if isinstance(error, Rejected)), errors[0])
        if isinstance(passing[0], HoldfastError):
            raise OutcomeUnknown(f"the batch is done in part: {passing[0]}") from passing[0]
        raise passing[0]

    @property
    def _something_is_done(self) -> bool:
        return any(outcome is not None and outcome.status is Status.COMMITTED for outcome in self._outcomes)

    async def _write(self, number: int) -> None:
        """Bring one write to its outcome.

        A refusal is believed only of a head that was read for it; a head from the cache is good enough
        to try on, for the condition proves it.
        """
        write = self.batch.writes[number]
        found = self._cache.get(write.id)
        fresh = found is None and write.create is None  # a new session's id is hardly ever taken
        if fresh:
            found = await self._table.get_head(write.id)
        races = 0
        while True:
            decided = decide(found, write, self._flush)
            if isinstance(decided, Plan):
                if fresh:
                    self._check_not_done(number, found)
                try:
                    await self._send(number, found, decided)
                except ConditionFailed as exc:
                    found, fresh = decode_head(exc.item) if exc.item else None, True
                    races += 1
                    if races > _PATIENT_AFTER:
                        await asyncio.sleep(random.uniform(0, _STEP_BACK_S))
                    continue
                self._finish(number, decided.outcome, decided.head)
                if decided.head.record.debris and (found is None or not found.record.debris):
                    await self._sweep(decided.head)
                return
            if fresh or decided.status is Status.COMMITTED:
                if fresh and decided.status is not Status.COMMITTED:
                    self._check_not_done(number, found)
                self._finish(number, decided, found)
                return
            found, fresh = await self._table.get_head(write.id), True

    def _check_not_done(self, number: int, found: Stored | None) -> None:
        """The head, as it is, has no mark of this flush: so the write has not taken effect, and cannot any more.

        A request that may still be on its way was built on an earlier state of the head.
        Raises: `OutcomeUnknown` if so many others wrote since that the mark may have been pushed out.
        """
        rev = self._first_sent.get(number)
        if rev is None:
            return
        if found is not None and marks_are_lost(found, rev):
            raise OutcomeUnknown("the session was written to so often since that its marks do not tell any more")
        if found is None or found.rev > rev:
            del self._first_sent[number]

    async def _send(self, number: int, found: Stored | None, plan: Plan) -> None:
        table = self._table
        if plan.copy is not None:
            await table.put_copy(plan.copy)
        first = number not in self._first_sent
        if first:
            self._first_sent[number] = 0 if found is None else found.rev
        try:
            if plan.puts or plan.deletes:
                await table.transact(plan.head, found, plan.puts, plan.deletes)
            else:
                await table.put_head(plan.head, found)
        except OutcomeUnknown:
            raise
        except HoldfastError:
            if first:
                del self._first_sent[number]
            raise

    def _finish(self, number: int, outcome: Outcome, head: Stored | None) -> None:
        self._outcomes[number] = outcome
        self._first_sent.pop(number, None)
        if head is not None:
            self._cache.put(head)

    async def _sweep(self, head: Stored) -> None:
        """Remove what this write made invisible, if it is not much. The write is done, whatever becomes of this."""
        with suppress(HoldfastError, ConditionFailed):
            if await sweep_up(self._table, head, _SWEPT_AT_ONCE) < _SWEPT_AT_ONCE:
                if head.record.dead:
                    head = await bury(self._table, head)
                else:  # the next write of the head says so
                    head = head._replace(record=structs.replace(head.record, debris=False))
                self._cache.replace(head)
