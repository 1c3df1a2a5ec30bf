"""Commits: what is sent, in which order, and what is known if an answer does not come.

A script applies the writes and leaves a marker with their outcomes in one atomic step. A second call for
the same flush finds the marker, changes nothing and gives the same answer; a call that comes late, after a
later flush of its lane, is refused. So a commit whose outcome is unknown is settled by sending it again.

On one server that is one call for the whole batch. In a cluster it is a call for each session, with a marker beside
it; when all are done, the outcomes of the batch are put into the lane's marker. There, nothing undoes what is done:
that every session can be written to is looked at before, and one that is refused for good nevertheless, beside others
that are done, is a `Status.CONFLICT`: nothing of it is done, and tried again it is refused before.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

import structlog

from holdfast.backends.base import Batch, Marker, Outcome, SessionWrite, Status
from holdfast.backends.redis.config import RedisConfig
from holdfast.backends.redis.errors import BrokenOff, code_of, is_of_script, translate
from holdfast.backends.redis.index import Index, checked
from holdfast.backends.redis.keys import Entry, Keys, companions, marker_member, parse_marker_member
from holdfast.backends.redis.link import Command, Link, Reply
from holdfast.backends.redis.rows import ROW_BYTES, incarnation_bytes
from holdfast.backends.redis.scripts import COMMIT, FORGET, FREE, PUT, Script, call, run
from holdfast.backends.redis.writes import decode_outcomes, encode_batch, encode_refusal, encode_write
from holdfast.errors import HoldfastError, OutcomeUnknown, Rejected, StoreError, Unavailable

__all__ = ["Committer"]

_log: Final = structlog.stdlib.get_logger("holdfast.redis")

_MARKER: Final = Struct(">16sdd")
"""The backend's instance, flush and now_us; behind them the outcomes, or `_BROKEN`."""
_BROKEN: Final = b"B"
"""The script set it before its first change, and failed before it had the outcomes."""
_REFUSED: Final = b"F"
"""The script found another program's data."""

_LANE_MARKER_MS: Final = 2 * 24 * 3_600 * 1_000
"""Markers of writers that nobody forgot: by the server's clock, so longer than the engine keeps them."""
_SESSION_MARKER_MS: Final = 3_600 * 1_000
"""In a cluster: until then, a lost packet that comes late is known for what it is."""

_REMEMBERED: Final = 50_000
"""Sessions whose keys are not looked at again, about."""


class _Prepared(NamedTuple):
    """A batch, encoded. ``creates`` are its new entries in the indexes."""

    batch: Batch
    heads: list[bytes]
    writes: list[bytes]
    creates: list[tuple[Entry, int | None]]
    script: Script


class Committer:
    """All commits of one backend. Lives in the driver's event loop."""

    def __init__(self, link: Link, keys: Keys, config: RedisConfig, instance: bytes) -> None:
        self._link: Final = link
        self._keys: Final = keys
        self._index: Final = Index(keys)
        self._instance: Final = instance
        self._margin_us: Final = None if config.reap_after_s is None else config.reap_after_s * 1_000_000
        self._unresolved: dict[tuple[str, int], _Prepared] = {}
        self._registered: set[tuple[str, int]] = set()
        self._lost: Final[set[tuple[str, int]]] = set()
        """Lanes of which a packet may still arrive: their markers are the fence that it meets."""
        self.max_call_bytes = 512 << 20
        """What the server takes as the writes of one call."""
        self._seen: Final[set[bytes]] = set()
        """In a cluster: heads of sessions whose keys were found to be ours."""

    async def commit(self, batch: Batch) -> list[Outcome]:
        """As `Backend.commit`. Whatever ends it but an answer leaves the batch to be resolved."""
        prepared = self._prepare(batch)
        lane = batch.marker[:2]
        self._unresolved[lane] = prepared
        try:
            outcomes = await self._execute(prepared, self._checks(prepared))
        except (Unavailable, Rejected):
            del self._unresolved[lane]
            raise
        except BaseException:
            self._lost.add(lane)
            raise
        del self._unresolved[lane]
        await self._clean_up(prepared, outcomes)
        return outcomes

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        """Complete the flush, if it is ours and its outcome is unknown; else look for its marker.

        Raises: `BrokenOff` if nobody will ever know, or `Unavailable`.
        """
        lane = marker[:2]
        prepared = self._unresolved.get(lane)
        if prepared is not None and prepared.batch.marker == marker:
            try:
                outcomes = await self._execute(prepared)
            except (OutcomeUnknown, Rejected) as exc:
                if isinstance(exc, BrokenOff):
                    raise
                if not (isinstance(exc, Rejected) and _is_foreign(exc.__cause__)):
                    raise Unavailable(str(exc)) from exc
                outcomes = None  # and its markers refuse what comes late
            del self._unresolved[lane]
            if outcomes is None:
                return None
            await self._clean_up(prepared, outcomes)
            return outcomes
        key = self._keys.marker(*lane)
        (found,) = checked(await run(self._link, [Command(key, (b"GET", key))]))
        if found is None or _MARKER.unpack_from(found)[1] != marker.flush:
            return None
        answer = found[_MARKER.size :]
        if answer.startswith(_BROKEN):
            raise BrokenOff("the commit broke off, and what it did is not known")
        return None if answer == _REFUSED else decode_outcomes(answer)

    async def forget_markers(self, writer: str | None, before_us: int) -> None:
        """As `Backend.forget_markers`. The server's own expiry ends those of lanes that have lost a packet."""
        (members,) = checked(await run(self._link, [Command(self._keys.markers, (b"SMEMBERS", self._keys.markers))]))
        if not members:
            return
        lanes = [parse_marker_member(member) for member in members]
        keys = [self._keys.marker(*lane) for lane in lanes]
        found = checked(await run(self._link, [Command(key, (b"GETRANGE", key, 0, _MARKER.size - 1)) for key in keys]))
        old = [
            (lane, member, call(FORGET, [key], head))
            for lane, key, member, head in zip(lanes, keys, members, found, strict=True)
            if not head or (lane not in self._lost and (lane[0] == writer or _MARKER.unpack(head)[2] < before_us))
        ]
        if not old:
            return
        answers = checked(await run(self._link, [forget for _, _, forget in old]))
        gone = [(lane, member) for (lane, member, _), is_gone in zip(old, answers, strict=True) if is_gone]
        if gone:
            self._registered.difference_update(lane for lane, _ in gone)
            members = [member for _, member in gone]
            checked(await run(self._link, [Command(self._keys.markers, (b"SREM", self._keys.markers, *members))]))

    def _prepare(self, batch: Batch) -> _Prepared:
        """Raises: `Rejected`, before anything is sent."""
        writes = [encode_write(write) for write in batch.writes]
        size = sum(map(len, writes)) if self._link.in_order else max(map(len, writes), default=0)
        if size > self.max_call_bytes:
            raise Rejected(
                f"the write has {size:,} bytes; the server takes {self.max_call_bytes:,} (proto-max-bulk-len)"
            )
        return _Prepared(
            batch,
            [self._keys.head(write.id) for write in batch.writes],
            writes,
            [
                (Entry.of(head.incarnation, head.owner, head.id), head.expires_us)
                for head in (write.create for write in batch.writes)
                if head is not None
            ],
            COMMIT if any(map(_needs_memory, batch.writes)) else FREE,
        )

    def _checks(self, prepared: _Prepared) -> list[Command]:
        """In a cluster, before the first attempt: are the keys ours? Not of sessions that were looked at before."""
        if self._link.in_order:
            return []
        return [
            Command(key, (command, key))
            for write, head in zip(prepared.batch.writes, prepared.heads, strict=True)
            if write.create is not None or head not in self._seen
            for command, key in zip((b"STRLEN", b"HLEN", b"LLEN"), [head, *companions([head])], strict=True)
        ]

    async def _execute(self, prepared: _Prepared, checks: Sequence[Command] = ()) -> list[Outcome]:
        """Raises: `Unavailable` or `Rejected` (nothing is stored), or `OutcomeUnknown`."""
        before = self._register(prepared.batch.marker) + self._index.add(prepared.creates)
        if self._link.in_order:
            answer = await self._execute_in_order(prepared, before)
        else:
            await self._send_before(before, checks)
            answer = await self._execute_by_session(prepared)
        self._registered.add(prepared.batch.marker[:2])
        return decode_outcomes(answer)

    async def _execute_in_order(self, prepared: _Prepared, before: list[Command]) -> bytes:
        batch = prepared.batch
        common = encode_batch(batch, self._instance, marker_ms=_LANE_MARKER_MS, margin_us=self._margin_us)
        keys = [self._keys.marker(*batch.marker[:2]), *self._link.declared(prepared.heads, writes=True)]
        commit = call(prepared.script, keys, common, len(prepared.writes), b"".join(prepared.writes))
        replies = await run(self._link, [*before, commit, self._hint(batch)])
        answer = replies[len(before)]
        if isinstance(answer, Exception):
            raise _refusal([(batch.writes, answer)])
        _must_be_done(replies[: len(before)])
        return bytes(answer)

    async def _send_before(self, before: Sequence[Command], checks: Sequence[Command]) -> None:
        """In a cluster: what is due before a session is written to. Raises: `Unavailable` or `Rejected`."""
        if not (before or checks):
            return
        try:
            replies = checked(await run(self._link, [*before, *checks]))
        except OutcomeUnknown as exc:  # of these; the commit itself was not sent
            raise Unavailable(str(exc)) from exc
        for check, length in zip(checks, replies[len(before) :], strict=True):
            if check.arguments[0] == b"STRLEN" and 0 < length < ROW_BYTES:
                raise Rejected("another program's data is in our place")
        if len(self._seen) > _REMEMBERED:
            self._seen.clear()
        self._seen.update(check.key for check in checks if check.key is not None and check.arguments[0] == b"STRLEN")

    async def _execute_by_session(self, prepared: _Prepared) -> bytes:
        batch = prepared.batch
        common = encode_batch(batch, self._instance, marker_ms=_SESSION_MARKER_MS, margin_us=self._margin_us)
        calls = [
            call(
                prepared.script,
                [self._keys.session_marker(head, batch.marker), *self._link.declared([head], writes=True)],
                common,
                1,
                write,
            )
            for head, write in zip(prepared.heads, prepared.writes, strict=True)
        ]
        answer = b"".join(self._outcomes(prepared, await run(self._link, calls)))
        key = self._keys.marker(*batch.marker[:2])
        value = _MARKER.pack(self._instance, batch.marker.flush, batch.now_us) + answer
        leave_marker = call(PUT, [key], b"SET", value, b"PX", _LANE_MARKER_MS)
        # The entries again: they may have been taken for stale just before the sessions were there.
        after = [leave_marker, *self._index.add(prepared.creates)]
        try:
            replies = await run(self._link, [*after, self._hint(batch)])
        except Unavailable as exc:  # of these; the commit itself is done
            raise OutcomeUnknown(f"the commit was not completed: {exc}") from exc
        _must_be_done(replies[: len(after)])
        return answer

    def _outcomes(self, prepared: _Prepared, replies: Sequence[Reply]) -> list[bytes]:
        """One for each session. Raises: as `_execute`."""
        writes = prepared.batch.writes
        refused = [([write], each) for write, each in zip(writes, replies, strict=True) if isinstance(each, Exception)]
        if not refused:
            return list(replies)
        some_done = len(refused) < len(replies)
        if not (some_done and all(_is_foreign(error) for _, error in refused)):
            raise _refusal(refused, some_done=some_done)
        outcomes = list[bytes]()
        for write, head, reply in zip(writes, prepared.heads, replies, strict=True):
            if isinstance(reply, Exception):
                _log.error("redis.foreign_key", session_id=write.id, error=str(reply))
                self._seen.discard(head)
                outcomes.append(encode_refusal(Status.CONFLICT if write.create is None else Status.EXISTS))
            else:
                outcomes.append(reply)
        return outcomes

    def _register(self, marker: Marker) -> list[Command]:
        if marker[:2] in self._registered:
            return []
        return [call(PUT, [self._keys.markers], b"SADD", marker_member(marker.writer, marker.lane))]

    def _hint(self, batch: Batch) -> Command:
        """Tells the other instances which sessions were written to. Goes with the lane's marker; it may fail."""
        changed = b"".join([incarnation_bytes(write.incarnation) for write in batch.writes])
        return Command(self._keys.marker(*batch.marker[:2]), (b"PUBLISH", self._keys.channel, self._instance + changed))

    async def _clean_up(self, prepared: _Prepared, outcomes: Sequence[Outcome]) -> None:
        """Take the entries out of sessions that are gone, or were not created. What fails here is found as stale."""
        deleted: list[SessionWrite] = []
        refused: list[Entry] = []
        for write, outcome in zip(prepared.batch.writes, outcomes, strict=True):
            if write.delete and outcome.status is Status.COMMITTED:
                deleted.append(write)
            elif write.create is not None and outcome.status is not Status.COMMITTED:
                refused.append(Entry.of(write.incarnation, write.create.owner, write.id))
        if not (deleted or refused):
            return
        try:
            gone = await self._not_living(refused)
            gone += await self._index.find(self._link, [(write.incarnation, write.id) for write in deleted])
            if gone:
                checked(await run(self._link, self._index.remove(gone)))
        except HoldfastError as exc:
            _log.debug("redis.entries_left", error=str(exc))

    async def _not_living(self, entries: Sequence[Entry]) -> list[Entry]:
        """Without those whose session is there: a create that was sent twice meets itself, and the entry is its own."""
        heads = [self._keys.head(entry.id) for entry in entries]
        found = checked(await run(self._link, [Command(head, (b"GETRANGE", head, 0, 7)) for head in heads]))
        return [
            entry
            for entry, incarnation in zip(entries, found, strict=True)
            if incarnation != incarnation_bytes(entry.incarnation)
        ]


def _needs_memory(write: SessionWrite) -> bool:
    """Touches, floors, closing and deletion do not, or next to none."""
    return bool(write.create is not None or write.sets or write.events or write.metadata is not None)


def _refusal(refused: Sequence[tuple[Sequence[SessionWrite], Exception]], *, some_done: bool = False) -> StoreError:
    """What to raise for calls of the script, each with its writes, that were answered with an error."""
    for writes, error in refused:
        if code_of(error) == "BROKEN":
            return _broken_off(writes, str(error))
    errors = [error for _, error in refused]
    if any(code_of(error) == "SUPERSEDED" for error in errors):
        return OutcomeUnknown("a later commit of the same lane is stored")
    # The one that says the least: what was refused in its company may be done by an earlier attempt.
    cause = min(errors, key=lambda error: (isinstance(translate(error), Rejected), _is_foreign(error)))
    error = translate(cause)
    if some_done:
        error = OutcomeUnknown(f"a part of the commit was refused: {error}")
    elif any(map(is_of_script, errors)):
        error = OutcomeUnknown(f"the commit broke off: {error}")
    error.__cause__ = cause
    return error


def _broken_off(writes: Sequence[SessionWrite], reply: str) -> BrokenOff:
    number, _, reason = reply.removeprefix("BROKEN").strip().partition(" ")
    where = f"in session {writes[int(number) - 1].id!r}" if number.isdigit() else "behind the last session"
    return BrokenOff(f"the commit broke off {where}, of which a part may be stored: {reason or 'nobody knows why'}")


def _is_foreign(error: BaseException | None) -> bool:
    """Whether the script refused a session's key. (Not a marker's: what that said of the commit is lost.)"""
    return error is not None and code_of(error) == "FOREIGN"


def _must_be_done(replies: Sequence[Reply]) -> None:
    """What belongs to a commit that was done. Raises: `OutcomeUnknown`, so that it is tried again."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise OutcomeUnknown(f"the commit was not completed: {translate(reply)}") from reply
