"""Copying chunks of sessions: small ones together in a commit, a large one in as many as it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from holdfast.backends.base import Head, LoadRequest, Outcome, SessionWrite, Snapshot, Status, TrimPolicy
from holdfast.copying.access import Access, Lane
from holdfast.copying.log import Log, Moved
from holdfast.copying.plan import (
    USED,
    Assembly,
    Bounds,
    Diverged,
    TooLarge,
    Verdict,
    compare,
    event_bytes,
    state_difference,
    value_bytes,
)
from holdfast.copying.report import Phase, ProblemKind, Report
from holdfast.errors import Rejected, StoreError

__all__ = ["Transfer"]

_ATTEMPTS: Final = 4
"""How often a session that moves while it is copied is looked at again."""
_STATES_AT_ONCE: Final = 8
"""Sessions whose state is loaded at once."""
_TRIM_ROWS: Final = 5_000
"""Events deleted in one transaction."""

_CONTINUED: Final = (Verdict.BEHIND, Verdict.CUT_OFF)

_IN_USE: Final = "it is being written to at the target"
_DELETED: Final = "it was deleted at the source during the copy; the target may have a part of it"


class _CutOff(Exception):
    """The copy cannot be continued, only made anew."""


class Transfer:
    """One pass over the sessions. ``done`` is told of sessions and events as they are dealt with."""

    def __init__(
        self, source: Access, target: Access, report: Report, *, phase: Phase, done: Callable[[int, int], None]
    ) -> None:
        self.source: Final = source
        self.target: Final = target
        self.report: Final = report
        self.done: Final = done
        self.first_pass: Final = phase == "copying"
        capabilities = target.backend.capabilities
        self.bounds: Final = Bounds.of(capabilities, target.config)
        self.must_look_ahead: Final = not self.bounds.take_all_events_of(source.backend.capabilities)
        most = target.config.max_batch_sessions
        self.batch_sessions: Final = min(most, capabilities.max_batch_sessions or most)

    async def copy(self, lane: Lane, heads: Sequence[Head]) -> None:
        """Bring the copies of these sessions up to date. What cannot be is reported, once for each session."""
        heads = [head for head in heads if head.id not in self.report.problems]
        moved: dict[str, str] = {}
        for _ in range(_ATTEMPTS):
            moved = await _Attempt(self, lane).copy(heads)
            if not moved:
                return
            heads = await self._look_again([head for head in heads if head.id in moved])
        for head in heads:
            self.report.add(head.id, "changing", moved[head.id])
            self.done(1, 0)

    async def _look_again(self, heads: Sequence[Head]) -> list[Head]:
        """The sessions as they are now; those that have gone are done with."""
        snapshots = await self.source.read(
            self.source.backend.load, [LoadRequest(head.id, head_only=True) for head in heads]
        )
        now_us = self.source.clock.now_us()
        still_there: list[Head] = []
        for head, snapshot in zip(heads, snapshots, strict=True):
            if snapshot is None or snapshot.head.incarnation != head.incarnation:
                self.report.add(head.id, "changing", _DELETED)
                self.done(1, 0)
            elif snapshot.head.expires_us is not None and snapshot.head.expires_us <= now_us:
                self.done(1, 0)  # and what there is of the copy has expired with it
            else:
                still_there.append(snapshot.head)
        return still_there


class _Last(NamedTuple):
    """The write that completes a session's copy."""

    write: SessionWrite
    is_new: bool
    size: int


class _Attempt:
    """One look at a chunk of sessions, and what follows from it. Used once."""

    def __init__(self, transfer: Transfer, lane: Lane) -> None:
        self._transfer: Final = transfer
        self._source: Final = transfer.source
        self._target: Final = transfer.target
        self._report: Final = transfer.report
        self._lane: Final = lane
        self._batch: list[_Last] = []
        self._batch_bytes = 0
        self._moved: dict[str, str] = {}

    async def copy(self, heads: Sequence[Head]) -> dict[str, str]:
        """Copy; the ids of sessions that moved meanwhile, in which way."""
        verdicts = await self._examine(heads)
        await self._clear_remains([head for head in heads if verdicts.get(head.id) is Verdict.ABSENT])
        wanted = [head for head in heads if head.id in verdicts]
        for start in range(0, len(wanted), _STATES_AT_ONCE):
            requests = [LoadRequest(head.id) for head in wanted[start : start + _STATES_AT_ONCE]]
            for request, snapshot in zip(
                requests, await self._source.read(self._source.backend.load, requests), strict=True
            ):
                await self._copy_one(request.id, snapshot, verdicts[request.id])
        await self._flush()
        return self._moved

    async def _examine(self, heads: Sequence[Head]) -> dict[str, Verdict]:
        """What is to be done, by session id. The others are done with."""
        requests = [LoadRequest(head.id, head_only=True) for head in heads]
        copies = await self._target.read(self._target.backend.load, requests)
        now_us = self._target.clock.now_us()
        wanted: dict[str, Verdict] = {}
        for head, copy in zip(heads, copies, strict=True):
            verdict, reason = compare(head, copy.head if copy is not None else None, now_us)
            if verdict is Verdict.SAME:
                if self._transfer.first_pass:
                    self._report.already_there += 1
                self._transfer.done(1, 0)
            elif verdict is Verdict.CONFLICT:
                self._give_up(head.id, "conflict", reason)
            else:
                wanted[head.id] = verdict
        return wanted

    async def _clear_remains(self, heads: Sequence[Head]) -> None:
        """Delete events that a removed copy of the same incarnation may have left: new ones must not meet them."""
        pairs = [(head.id, head.incarnation) for head in heads]
        while pairs:
            if await self._target.read(self._target.backend.trim, pairs, TrimPolicy(), _TRIM_ROWS) < _TRIM_ROWS:
                return

    async def _copy_one(self, session_id: str, source: Snapshot | None, verdict: Verdict) -> None:
        try:
            if source is None or source.state is None:
                raise Moved("it was deleted at the source")
            try:
                copy = None if verdict is Verdict.ABSENT else await self._load_copy(source.head)
                last = await self._prepare(source, copy)
            except _CutOff:
                await self._look_ahead(source.head, source.head.first_seq - 1)
                await self._remove_copy(source.head)
                last = await self._prepare(source, None)
        except TooLarge as exc:
            self._give_up(session_id, "too large", str(exc))
        except Rejected as exc:
            self._give_up(session_id, "rejected", str(exc))
        except Diverged:
            self._give_up(session_id, "conflict", USED)
        except Moved as exc:
            self._moved[session_id] = str(exc)
        else:
            await self._add_to_batch(last)

    def _give_up(self, session_id: str, kind: ProblemKind, detail: str) -> None:
        self._report.add(session_id, kind, detail)
        self._transfer.done(1, 0)

    async def _load_copy(self, head: Head) -> Snapshot:
        [copy] = await self._target.read(self._target.backend.load, [LoadRequest(head.id)])
        if copy is None or compare(head, copy.head, self._target.clock.now_us())[0] not in _CONTINUED:
            raise Moved(_IN_USE)
        return copy

    async def _prepare(self, source: Snapshot, copy: Snapshot | None) -> _Last:
        """The last write of the session; those before it are committed already.

        Raises: `TooLarge` and `Diverged` (then nothing is), `Moved`, `Rejected`, `_CutOff`.
        """
        head, bounds = source.head, self._transfer.bounds
        state = source.state or {}
        for key, value in state.items():
            bounds.check_value(key, value.raw)
        removed, changed = state_difference(state, (copy.state if copy is not None else None) or {})
        seq = copy.head.last_seq if copy is not None else head.first_seq - 1
        if seq + 1 < head.first_seq:
            raise _CutOff
        if copy is not None:
            await self._compare_last_event(head, copy.head)
        assembly = Assembly(
            head,
            copy.head if copy is not None else None,
            bounds,
            items=len(removed) + len(changed) + head.last_seq - seq,
            now_us=self._target.clock.now_us(),
        )
        for key in removed:
            await self._make_room(assembly, len(key.encode()), head, seq)
            assembly.remove(key)
        for key, value in changed:
            await self._make_room(assembly, value_bytes(key, value.raw), head, seq)
            assembly.set(key, value)
        log = Log(self._source, head, seq)
        while (event := await log.next()) is not None:
            bounds.check_event(event)
            await self._make_room(assembly, event_bytes(event), head, event.seq)
            assembly.append(event)
        return _Last(assembly.finish(), copy is None and assembly.is_first, assembly.size)

    async def _compare_last_event(self, head: Head, copy: Head) -> None:
        """Raise `Diverged` if the log of the copy does not end as the session's did."""
        seq = copy.last_seq
        if seq >= max(head.first_seq, copy.first_seq):
            last = await Log(self._target, copy, seq - 1).next()
            if last != await Log(self._source, head, seq - 1).next():
                raise Diverged

    async def _make_room(self, assembly: Assembly, size: int, head: Head, seq: int) -> None:
        """Commit what has been assembled if ``size`` more does not fit. Events up to ``seq`` have been checked."""
        if assembly.has_room(size):
            return
        if not assembly.has_versions:
            raise _CutOff
        if assembly.is_first:
            await self._look_ahead(head, seq)
        write = assembly.take()
        [outcome] = await self._lane.commit([write])
        self._settle(write, outcome)

    async def _look_ahead(self, head: Head, seq: int) -> None:
        """Before anything of the session is changed: raise `TooLarge` if an event after ``seq`` is."""
        if self._transfer.must_look_ahead:
            log = Log(self._source, head, seq)
            while (event := await log.next()) is not None:
                self._transfer.bounds.check_event(event)

    async def _remove_copy(self, head: Head) -> None:
        """Make place for a new copy of the same incarnation. Raises: `Moved`."""
        copy = (await self._load_copy(head)).head
        write = SessionWrite(
            id=copy.id,
            incarnation=copy.incarnation,
            accepted_us=copy.created_us,
            active_us=copy.active_us,
            version=copy.version,
            base_seq=copy.last_seq,
            base_first_seq=copy.first_seq,
            fenced=True,
            delete=True,
        )
        [outcome] = await self._lane.commit([write])
        self._settle(write, outcome)
        await self._clear_remains([head])

    async def _add_to_batch(self, last: _Last) -> None:
        if len(self._batch) >= self._transfer.batch_sessions or (
            self._batch and self._batch_bytes + last.size > self._target.config.max_batch_bytes
        ):
            await self._flush()
        self._batch.append(last)
        self._batch_bytes += last.size

    async def _flush(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        if not batch:
            return
        for last, outcome in zip(batch, await self._lane.commit_each([last.write for last in batch]), strict=True):
            try:
                if isinstance(outcome, Rejected):
                    self._report.add(last.write.id, "rejected", str(outcome))
                else:
                    self._settle(last.write, outcome)
                    self._count(last)
            except Moved as exc:
                self._moved[last.write.id] = str(exc)
            else:
                self._transfer.done(1, 0)

    def _count(self, last: _Last) -> None:
        if self._transfer.first_pass or last.is_new:
            self._report.copied += 1
        else:
            self._report.caught_up += 1

    def _settle(self, write: SessionWrite, outcome: Outcome) -> None:
        """Check that the write met the row that it was made for. Raises: `Moved`, `StoreError`."""
        if outcome.status is not Status.COMMITTED:
            raise Moved(_IN_USE)
        if write.units and (outcome.base_version, outcome.base_seq) != (write.version, write.base_seq):
            raise StoreError(
                f"the target put session {write.id!r} behind event {outcome.base_seq:,} and version "
                f"{outcome.base_version:,}, not behind {write.base_seq:,} and {write.version:,}: it cannot be copied to"
            )
        self._report.events += len(write.events)
        self._transfer.done(0, len(write.events))
