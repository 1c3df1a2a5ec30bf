"""The ``memory://`` backend: a dict, for development and tests. It survives nothing.

It is also the reference: the shortest code that keeps the contract of `holdfast.backends.base`.
Several backends over one `MemoryData` stand for several instances on one store.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from urllib.parse import SplitResult

import anyio
import anyio.lowlevel

from holdfast.backends.base import (
    Batch,
    Capabilities,
    EventPage,
    EventQuery,
    Expired,
    Head,
    LoadRequest,
    Marker,
    Outcome,
    SessionFilter,
    SessionPage,
    SessionWrite,
    Snapshot,
    StateValue,
    Status,
    TrimPolicy,
)
from holdfast.backends.rules import advance, judge, outcome
from holdfast.model import Durability, Event

__all__ = ["MemoryBackend", "MemoryData", "from_url"]


class _Row:
    """One session. ``events`` holds consecutive seqs up to ``head.last_seq``, dropped ones included."""

    __slots__ = ("events", "head", "state")

    def __init__(self, head: Head) -> None:
        self.head = head
        self.state: dict[str, StateValue] = {}
        self.events: list[Event] = []

    @property
    def held_from(self) -> int:
        """The seq of the first event in ``events``."""
        return self.head.last_seq - len(self.events) + 1

    def after(self, seq: int) -> list[Event]:
        start = max(seq + 1, self.head.first_seq)
        return self.events[max(0, start - self.held_from) :]


class MemoryData:
    """What the backends of one store share. Use from one event loop only."""

    def __init__(self) -> None:
        self.rows: dict[str, _Row] = {}
        self.markers: dict[tuple[str, int], tuple[int, list[Outcome], int]] = {}
        self.watchers: set[Callable[[Collection[int] | None], None]] = set()


class MemoryBackend:
    """All in one process. Without ``shared`` data nobody else can write, so it is exclusive."""

    def __init__(self, shared: MemoryData | None = None) -> None:
        self._data = shared if shared is not None else MemoryData()
        self.capabilities = Capabilities(name="memory", durability=Durability.MEMORY, exclusive=shared is None)

    async def open(self) -> None:
        await anyio.lowlevel.checkpoint()

    async def close(self) -> None:
        """Keeps the data: the same object can be opened again."""

    async def commit(self, batch: Batch) -> list[Outcome]:
        outcomes = [self._apply(write, batch.max_events) for write in batch.writes]
        writer, lane, flush = batch.marker
        self._data.markers[writer, lane] = (flush, outcomes, batch.now_us)
        changed = [write.incarnation for write in batch.writes]
        for notify in list(self._data.watchers):
            notify(changed)
        return outcomes

    def _apply(self, write: SessionWrite, max_events: int | None) -> Outcome:
        rows = self._data.rows
        row = rows.get(write.id)
        status = judge(row.head if row is not None else None, write)
        if status is not Status.COMMITTED:
            return Outcome(status)
        if write.create is not None:
            row = rows[write.id] = _Row(write.create)
        assert row is not None
        before = row.head
        row.head = advance(before, write, max_events)
        _apply_state(row.state, write, before.version)
        row.events.extend(
            event.numbered(write.id, write.incarnation, seq)
            for seq, event in enumerate(write.events, before.last_seq + 1)
        )
        if write.delete:
            del rows[write.id]
        return outcome(before, row.head)

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        flush, outcomes, _ = self._data.markers.get((marker.writer, marker.lane), (-1, [], 0))
        return outcomes if flush == marker.flush else None

    async def forget_markers(self, writer: str | None, before_us: int) -> None:
        markers = self._data.markers
        for key in [key for key, (_, _, at_us) in markers.items() if key[0] == writer or at_us < before_us]:
            del markers[key]

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        return [self._load(request) for request in requests]

    def _load(self, request: LoadRequest) -> Snapshot | None:
        row = self._data.rows.get(request.id)
        if row is None:
            return None
        known = (request.incarnation, request.version) == (row.head.incarnation, row.head.version)
        return Snapshot(row.head, None if known or request.head_only else dict(row.state))

    async def read_events(self, query: EventQuery) -> EventPage | None:
        row = self._row(query.id, query.incarnation)
        if row is None:
            return None
        head = row.head
        if query.last:
            matching = [
                event for event in row.after(query.after_seq) if query.stream is None or event.stream == query.stream
            ]
            newest = matching[-query.limit :] if query.limit else []
            return EventPage(newest, head.last_seq, False, head.first_seq, head.last_seq)
        events, size, scanned = list[Event](), 0, query.after_seq
        for event in row.after(query.after_seq):
            if len(events) == query.limit or (events and size + len(event.raw) > query.max_bytes):
                return EventPage(events, scanned, True, head.first_seq, head.last_seq)
            scanned = event.seq
            if query.stream is None or event.stream == query.stream:
                events.append(event)
                size += len(event.raw)
        return EventPage(events, max(scanned, head.last_seq), False, head.first_seq, head.last_seq)

    def _row(self, session_id: str, incarnation: int) -> _Row | None:
        row = self._data.rows.get(session_id)
        return row if row is not None and row.head.incarnation == incarnation else None

    async def list_sessions(self, where: SessionFilter, after: int, limit: int) -> SessionPage:
        found = sorted(
            (head for head in self._live(where) if head.incarnation > after), key=lambda head: head.incarnation
        )
        page = found[:limit]
        return SessionPage(page, page[-1].incarnation if len(found) > limit else None)

    async def count_sessions(self, where: SessionFilter) -> int:
        return sum(1 for _ in self._live(where))

    def _live(self, where: SessionFilter) -> Iterator[Head]:
        for row in self._data.rows.values():
            head = row.head
            if (
                (where.owner is None or head.owner == where.owner)
                and (where.status is None or head.status == where.status)
                and (head.expires_us is None or head.expires_us > where.now_us)
            ):
                yield head

    async def expire(self, now_us: int, limit: int) -> list[Expired]:
        gone = [
            Expired(head.id, head.incarnation, head.owner)
            for head in (row.head for row in self._data.rows.values())
            if head.expires_us is not None and head.expires_us <= now_us
        ][:limit]
        for session in gone:
            del self._data.rows[session.id]
        return gone

    async def trim(self, ids: Sequence[tuple[str, int]] | None, policy: TrimPolicy, limit: int) -> int:
        rows = self._data.rows.values() if ids is None else filter(None, (self._row(*pair) for pair in ids))
        deleted = 0
        for row in rows:
            if deleted >= limit:
                break
            deleted += _trim(row, policy)
        return deleted

    async def watch(self, changed: Callable[[Collection[int] | None], None]) -> None:
        self._data.watchers.add(changed)
        changed(None)
        try:
            await anyio.sleep_forever()
        finally:
            self._data.watchers.discard(changed)

    async def describe(self) -> dict[str, object]:
        return {"backend": "memory", "sessions": len(self._data.rows), "durability": "memory"}


def _apply_state(state: dict[str, StateValue], write: SessionWrite, base_version: int) -> None:
    if write.cleared:
        state.clear()
    for key in write.removes:
        state.pop(key, None)
    for key, (raw, offset) in write.sets.items():
        state[key] = StateValue(raw, base_version + offset)


def _trim(row: _Row, policy: TrimPolicy) -> int:
    """Raise ``first_seq`` by the policy, then drop what lies below it."""
    events, first_seq = row.events, row.head.first_seq
    size = sum(len(event.raw) for event in row.after(0))
    for event in row.after(0):
        too_old = policy.min_time_us is not None and event.time_us < policy.min_time_us
        if not too_old and (policy.max_bytes is None or size <= policy.max_bytes):
            break
        first_seq = event.seq + 1
        size -= len(event.raw)
    row.head = advance(row.head, _trim_write(row.head, first_seq), None)
    surplus = max(0, row.head.first_seq - row.held_from)
    del events[:surplus]
    return surplus


def _trim_write(head: Head, floor_seq: int) -> SessionWrite:
    return SessionWrite(
        id=head.id,
        incarnation=head.incarnation,
        accepted_us=head.active_us,
        active_us=head.active_us,
        version=head.version,
        base_seq=head.last_seq,
        floor_seq=floor_seq,
    )


def from_url(url: SplitResult, params: dict[str, str]) -> MemoryBackend:
    """``memory://``: nothing to configure."""
    return MemoryBackend()
