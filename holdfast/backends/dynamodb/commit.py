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
import itertools
import random
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from msgspec import structs

from holdfast.backends.base import Batch, Marker, Outcome, SessionWrite, Status
from holdfast.backends.dynamodb.errors import ConditionFailed
from holdfast.backends.dynamodb.heads import Heads
from holdfast.backends.dynamodb.items import Stored, lane_name, marks_are_lost
from holdfast.backends.dynamodb.journal import ENTRY_BYTES, SLOT_BYTES, TAIL_BYTES, Entry, draft, entry_bytes
from holdfast.backends.dynamodb.journals import Journal, Member, Pending
from holdfast.backends.dynamodb.limits import check_size
from holdfast.backends.dynamodb.plan import Flush, Plan, decide
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

    def __init__(self, heads: Heads, journal_from: int) -> None:
        self._heads: Final = heads
        self._journal_from: Final = journal_from
        self._attempts: Final[dict[tuple[str, int], Attempt]] = {}

    async def commit(self, batch: Batch) -> list[Outcome]:
        """`Backend.commit`. Cancelled, it can be resolved."""
        for write in batch.writes:
            check_size(write)
        lane = (batch.marker.writer, batch.marker.lane)
        attempt = self._attempts[lane] = Attempt(self._heads, self._journal_from, batch, self._attempts.get(lane))
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


class _Sent(NamedTuple):
    """What was put into a journal, and may be there."""

    journal: Journal
    pending: list[Pending]
    """One, once it has been sent."""
    outcomes: dict[int, Outcome]
    """By number, if it is there."""


def _fits_a_journal(write: SessionWrite) -> bool:
    """Appends, touches and small state; all else is between the session and its head."""
    return (
        write.create is None
        and not (write.delete or write.close or write.cleared or write.floor_seq)
        and write.metadata is None
    )


async def _ends(work: Iterable[Awaitable[list[BaseException] | None]]) -> list[BaseException]:
    """Do it side by side, to the end of the last; all that it raised, or returned as raised within."""
    errors: list[BaseException] = []
    for end in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(end, BaseException):
            errors.append(end)
        else:
            errors += end or ()
    return errors


class Attempt:
    """One batch on its way. It can be run again, until all is known."""

    def __init__(self, heads: Heads, journal_from: int, batch: Batch, last: Attempt | None) -> None:
        self.batch: Final = batch
        self._heads: Final = heads
        self._journals: Final = heads.journals
        self._journal_from: Final = journal_from
        marker = batch.marker
        now_s = batch.now_us // 1_000_000
        self._flush: Final = Flush(lane_name(marker.writer, marker.lane), marker.flush, now_s, batch.max_events)
        self._first_sent: Final[dict[int, int]] = {}
        """Writes that may have taken effect unnoticed, and the revision on which each was first built."""
        self._sent: Final[list[_Sent]] = []
        """The same of what was put into journals."""
        self._uses_journals = False
        self.rejected: _Rejected = last.rejected if last is not None and last.rejected.holds(batch) else _Rejected()
        self._outcomes: Final = [self.rejected.outcome_of(write) for write in batch.writes]

    async def run(self) -> list[Outcome]:
        """Every write's outcome.

        Raises: `Rejected` or `Unavailable` if nothing is done (but what the next attempt of the lane
        knows of); `OutcomeUnknown` if some is done, or may be: run it again.
        """
        await self._settle()
        missing = [number for number, outcome in enumerate(self._outcomes) if outcome is None]
        journalled, direct = self._divide(missing)
        errors = await _ends([*itertools.starmap(self._append, journalled.items()), *map(self._write, direct)])
        if errors:
            self._raise(errors)
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _raise(self, errors: Sequence[BaseException]) -> None:
        passing = [error for error in errors if not isinstance(error, Rejected)]
        in_doubt = self._first_sent or self._sent
        if not in_doubt and (not passing or not self._something_is_done):
            if len(passing) < len(errors):
                self.rejected.note(self.batch, self._outcomes)
            raise next((error for error in errors if isinstance(error, Rejected)), errors[0])
        first = (passing or errors)[0]
        if isinstance(first, HoldfastError):
            raise OutcomeUnknown(f"the batch is done in part: {first}") from first
        raise first

    @property
    def _something_is_done(self) -> bool:
        return any(outcome is not None and outcome.status is Status.COMMITTED for outcome in self._outcomes)

    # --- through journals ----------------------------------------------------

    def _divide(self, numbers: Sequence[int]) -> tuple[dict[Journal, list[int]], list[int]]:
        """Which writes go into which journal, and which to their heads."""
        may_go = [number for number in numbers if _fits_a_journal(self.batch.writes[number])]
        self._uses_journals = 0 < self._journal_from <= len(may_go)
        if not self._uses_journals:
            return {}, list(numbers)
        journalled: dict[Journal, list[int]] = {}
        direct = sorted(set(numbers) - set(may_go))
        for number in may_go:
            member = self._journals.member(self.batch.writes[number].id)
            if member is None or not self._may_take_entries(member):
                direct.append(number)
            else:
                journalled.setdefault(member.journal, []).append(number)
        return journalled, direct

    def _may_take_entries(self, member: Member) -> bool:
        journal = member.journal
        return (
            not member.in_doubt
            and (not member.since or journal.position + 1 < member.due)
            and self._journals.may_put(journal, self._flush.now_s)
        )

    async def _append(self, journal: Journal, numbers: Sequence[int]) -> list[BaseException]:
        """Put what can go there into the journal, and write the rest to its heads. What that raised."""
        await journal.settle()
        try:
            await self._heads.make_room(journal)
        except HoldfastError:  # perhaps of one member's only: the others shall not wait for it
            if not journal.is_settled:
                raise
            self._journals.give_up(journal)
        held = [number for number in numbers if self._journals.holds.try_take(self.batch.writes[number].id)]
        try:
            await journal.settle()
            await self._put(journal, held)
        except Rejected:  # the heads will tell whose fault it is
            pass
        finally:
            for number in held:
                self._journals.holds.release(self.batch.writes[number].id)
        return await _ends(self._write(number) for number in numbers if self._outcomes[number] is None)

    async def _put(self, journal: Journal, numbers: Sequence[int]) -> None:
        """Of sessions that are held. Writes that do not fit have no outcome then. Raises: as `Journal.put`."""
        entries, sizes, outcomes, room = list[Entry](), list[int](), dict[int, Outcome](), SLOT_BYTES
        for number in numbers:
            write = self.batch.writes[number]
            member = self._journals.member(write.id)
            if member is None or member.journal is not journal or member.in_doubt:
                continue
            entry = draft(member.head, write, self._flush)
            if isinstance(entry, Outcome) and entry.status is Status.COMMITTED:
                self._outcomes[number] = entry
            if not isinstance(entry, Entry):
                continue
            size = entry_bytes(entry)
            if size > min(ENTRY_BYTES, TAIL_BYTES - member.tail_bytes, room):
                continue
            room -= size
            entries.append(entry)
            sizes.append(size)
            before = member.head.record
            outcomes[number] = Outcome(
                Status.COMMITTED, before.version, before.last_seq, before.first_seq, entry.first_seq
            )
        if entries:
            sent = _Sent(journal, [], outcomes)
            self._sent.append(sent)
            try:
                await journal.put(self._flush, entries, sizes, sent.pending)
            finally:
                self._learn(sent)

    async def _settle(self) -> None:
        """Learn what became of what was put into journals. Raises: `OutcomeUnknown`."""
        for sent in list(self._sent):
            try:
                await sent.journal.settle()
            except HoldfastError as exc:
                raise OutcomeUnknown(f"it is not known what is in a journal: {exc}") from exc
            self._learn(sent)
        if self._sent:
            raise OutcomeUnknown("a journal was removed before it told what is in it")

    def _learn(self, sent: _Sent) -> None:
        """Take over the outcomes, if they are known."""
        applied = sent.pending[0].applied if sent.pending else False
        if applied:
            for number, outcome in sent.outcomes.items():
                self._outcomes[number] = outcome
        if applied is not None:
            self._sent.remove(sent)

    # --- to heads ------------------------------------------------------------

    async def _write(self, number: int) -> None:
        async with self._journals.holds.of(self.batch.writes[number].id):
            await self._write_held(number)

    async def _write_held(self, number: int) -> None:
        """Bring one write to its outcome.

        A refusal is believed only of a head that was read for it; a head from the cache is good enough
        to try on, for the condition proves it.
        """
        write, heads = self.batch.writes[number], self._heads
        found = await self._journals.known(write.id)
        fresh = found is None and write.create is None  # a new session's id is hardly ever taken
        if fresh:
            found = await heads.get(write.id, held=True)
        races = 0
        while True:
            decided = decide(found, write, self._flush)
            if isinstance(decided, Plan):
                if fresh:
                    self._check_not_done(number, found)
                since = heads.rings_read
                plan = self._placed(decided)
                try:
                    await self._send(number, found, plan)
                except ConditionFailed as exc:
                    found, fresh = await heads.of_item(write.id, exc.item, since), True
                    races += 1
                    if races > _PATIENT_AFTER:
                        await asyncio.sleep(random.uniform(0, _STEP_BACK_S))
                    continue
                self._finish(number, plan.outcome, plan.head)
                if plan.head.record.debris and (found is None or not found.record.debris):
                    await self._sweep(plan.head)
                return
            if fresh or decided.status is Status.COMMITTED:
                if fresh and decided.status is not Status.COMMITTED:
                    self._check_not_done(number, found)
                self._finish(number, decided, found)
                return
            found, fresh = await heads.get(write.id, held=True), True

    def _placed(self, plan: Plan) -> Plan:
        """With the head in a journal, if it is to be in one."""
        head = plan.head
        if not self._uses_journals or head.record.dead or head.record.closed:
            return plan
        journal = self._journals.to_join(head.id, self._flush)
        return plan if journal is None else plan._replace(head=head._replace(place=journal.place))

    def _check_not_done(self, number: int, found: Stored | None) -> None:
        """The head, as it is, has no mark of this flush: so the write has not taken effect, and cannot any more.

        A request that may still be on its way was built on an earlier state of the head.
        Raises: `OutcomeUnknown` if so many others wrote since that the mark may have been pushed out.
        """
        rev = self._first_sent.get(number)
        if rev is None:
            return
        if found is not None and marks_are_lost(found.record.marks, rev):
            raise OutcomeUnknown("the session was written to so often since that its marks do not tell any more")
        if found is None or found.rev > rev:
            del self._first_sent[number]

    async def _send(self, number: int, found: Stored | None, plan: Plan) -> None:
        first = number not in self._first_sent
        if first:
            self._first_sent[number] = 0 if found is None else found.rev
        try:
            await self._heads.send(plan, found)
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
            self._heads.cache.put(head)

    async def _sweep(self, head: Stored) -> None:
        """Remove what this write made invisible, if it is not much. The write is done, whatever becomes of this."""
        with suppress(HoldfastError, ConditionFailed):
            if await sweep_up(self._heads.table, head, _SWEPT_AT_ONCE) < _SWEPT_AT_ONCE:
                if head.record.dead:
                    head = await bury(self._heads.table, head)
                else:  # the next write of the head says so
                    head = head._replace(record=structs.replace(head.record, debris=False))
                self._heads.cache.replace(head)
