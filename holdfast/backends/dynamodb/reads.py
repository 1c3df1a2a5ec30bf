"""Reading: sessions, pages of events, lists."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from holdfast.backends.base import (
    EventPage,
    EventQuery,
    Head,
    LoadRequest,
    SessionFilter,
    SessionPage,
    Snapshot,
    StateValue,
)
from holdfast.backends.dynamodb.client import Table
from holdfast.backends.dynamodb.heads import Heads, Looks
from holdfast.backends.dynamodb.items import (
    HEAD_KEY,
    SHARDS,
    EventChunk,
    Item,
    Stored,
    decode_chunk,
    decode_head,
    decode_state,
    event_key,
    state_prefix,
)
from holdfast.errors import Unavailable
from holdfast.model import Event

__all__ = [
    "chunks",
    "chunks_backwards",
    "count_sessions",
    "list_sessions",
    "live_sessions",
    "load",
    "read_events",
]

_TRIES: Final = 10
"""Readings of a session that others write to all the while."""
_LISTED_AT_ONCE: Final = 100
_NEWEST_ITEMS: Final = 10
"""Event items read at once when the newest events are asked for."""


# --- sessions ----------------------------------------------------------------


async def load(heads: Heads, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
    """`Backend.load`: all heads in batches; then the state items of those that have some, side by side."""
    if not requests:
        return []
    found = await heads.get_many([request.id for request in requests])
    for stored in found.values():
        heads.cache.put(stored)
    return await asyncio.gather(*(_snapshot(heads, found.get(request.id), request) for request in requests))


async def _snapshot(heads: Heads, stored: Stored | None, request: LoadRequest) -> Snapshot | None:
    head = None if stored is None else stored.head
    if stored is None or head is None:
        return None
    known = (request.incarnation, request.version) == (head.incarnation, head.version)
    if request.head_only or known:
        return Snapshot(head, None)
    if not stored.record.scattered:
        return Snapshot(head, stored.state)
    for _ in range(_TRIES):
        stored, state = await _whole(heads, request.id)
        head = None if stored is None else stored.head
        if stored is None or head is None:
            return None
        if state is not None:
            return Snapshot(head, state)
    raise Unavailable("the session is written to so often that its state cannot be read as of one moment")


async def _whole(heads: Heads, session_id: str) -> tuple[Stored | None, dict[str, StateValue] | None]:
    """The head and all state items, in one query; no state if they were not of one moment: a query need not be.

    An item that was set after the head was read is of a later revision; one that was taken away is told of
    by the head as it is afterwards.
    """
    since = heads.rings_read
    found = [item async for page in heads.table.range(session_id, HEAD_KEY, "S~") for item in page]
    if not found or found[0]["sk"]["S"] != HEAD_KEY:
        return None, None
    stored = await heads.complete(read := decode_head(found[0]), since)
    if stored is None:  # its journal has been read now
        return read, None
    prefix = state_prefix(stored.incarnation, stored.record.generation)
    items = [decode_state(item) for item in found if item["sk"]["S"].startswith(prefix)]
    if any(rev > stored.rev for _, _, rev in items):
        return stored, None
    after = await heads.table.get_head(session_id)
    if after is None or after.incarnation != stored.incarnation or after.record.cut_rev > stored.rev:
        return stored, None
    return stored, stored.state | {key: value for key, value, _ in items}


# --- events ------------------------------------------------------------------


async def read_events(heads: Heads, query: EventQuery) -> EventPage | None:
    """`Backend.read_events`: the head has the newest; what lies before is in event items."""
    for _ in range(_TRIES):
        stored = await heads.get(query.id)
        if stored is None or stored.head is None or stored.incarnation != query.incarnation:
            return None
        heads.cache.put(stored)
        read = _newest if query.last else _next
        page = await read(heads.table, query, stored)
        if page is not None:
            return page
    raise Unavailable("the session's events are trimmed while they are read, again and again")


async def _next(table: Table, query: EventQuery, stored: Stored) -> EventPage | None:
    """None: somebody trims, so what the head said is gone."""
    first_seq, last_seq = stored.record.first_seq, stored.record.last_seq
    expected = max(query.after_seq + 1, first_seq)
    events, size, scanned = list[Event](), 0, query.after_seq
    async for chunk in chunks(table, stored, expected):
        part = chunk.between(expected, last_seq)
        if part.first_seq != expected:
            return None
        for event in part.numbered(stored):
            matches = query.stream is None or event.stream == query.stream
            full = len(events) == query.limit or (events and size + len(event.raw) > query.max_bytes)
            if full:
                return EventPage(events, scanned, True, first_seq, last_seq)
            scanned = event.seq
            if matches:
                events.append(event)
                size += len(event.raw)
        expected = part.last_seq + 1
    if expected <= last_seq:
        return None
    return EventPage(events, max(scanned, last_seq), False, first_seq, last_seq)


async def chunks(table: Table, stored: Stored, start: int) -> AsyncIterator[EventChunk]:
    """From ``start`` on, by ascending seq, without overlaps; the tail comes last."""
    record = stored.record
    tail_seq = record.tail_seq
    if start < tail_seq:
        low, high = event_key(stored.incarnation, start), event_key(stored.incarnation, record.last_seq)
        async for page in table.range(stored.id, low, high):
            for item in page:
                part = decode_chunk(item).between(start, tail_seq - 1)
                if part.events:
                    yield part
                    start = part.last_seq + 1
    if record.tail:
        part = EventChunk(tail_seq, record.tail).between(start, record.last_seq)
        if part.events:
            yield part


async def _newest(table: Table, query: EventQuery, stored: Stored) -> EventPage | None:
    """The newest ``limit`` that match, oldest first; the log is read backwards until there are enough."""
    record = stored.record
    start = max(query.after_seq + 1, record.first_seq)
    found, expected = list[Event](), record.last_seq
    if query.limit > 0 and start <= expected:
        async for chunk in chunks_backwards(table, stored, start):
            if chunk.last_seq != expected:
                return None
            found += [
                event
                for event in reversed(list(chunk.numbered(stored)))
                if query.stream is None or event.stream == query.stream
            ]
            expected = chunk.first_seq - 1
            if len(found) >= query.limit or expected < start:
                break
        else:
            if expected >= start:
                return None
    return EventPage(found[: query.limit][::-1], record.last_seq, False, record.first_seq, record.last_seq)


async def chunks_backwards(table: Table, stored: Stored, start: int) -> AsyncIterator[EventChunk]:
    record = stored.record
    end = record.last_seq
    if record.tail:
        yield EventChunk(record.tail_seq, record.tail).between(start, end)
        end = record.tail_seq - 1
    if end < start:
        return
    low, high = event_key(stored.incarnation, start), event_key(stored.incarnation, record.last_seq)
    pages = table.range(stored.id, low, high, ScanIndexForward=False, Limit=_NEWEST_ITEMS)
    async for page in pages:
        for item in page:
            part = decode_chunk(item).between(start, end)
            if part.events:
                yield part
                end = part.first_seq - 1


# --- lists -------------------------------------------------------------------


async def list_sessions(heads: Heads, where: SessionFilter, after: int, limit: int) -> SessionPage:
    """`Backend.list_sessions`: ids from an index, then the heads themselves."""
    found = list[Head]()
    async for head in matching(heads, where, after, at_once=min(limit + 1, _LISTED_AT_ONCE)):
        found.append(head)
        if len(found) > limit:
            break
    page = found[:limit]
    return SessionPage(page, page[-1].incarnation if len(found) > limit else None)


async def count_sessions(heads: Heads, where: SessionFilter) -> int:
    """`Backend.count_sessions`: reads every head that there is, or every one of an owner."""
    count = 0
    async for _ in matching(heads, where, -1, at_once=_LISTED_AT_ONCE):
        count += 1
    return count


async def matching(heads: Heads, where: SessionFilter, after: int, *, at_once: int) -> AsyncIterator[Head]:
    """Live sessions by ascending incarnation."""
    async for stored in live_sessions(Looks(heads), heads.table, after, owner=where.owner, at_once=at_once):
        head = stored.head
        if (
            head is not None
            and (where.status is None or head.status == where.status)
            and (head.expires_us is None or head.expires_us > where.now_us)
        ):
            yield head


async def live_sessions(
    looks: Looks, table: Table, after: int, *, owner: str | None = None, at_once: int = _LISTED_AT_ONCE
) -> AsyncIterator[Stored]:
    """Sessions with ``incarnation > after``, ascending, expired ones too."""
    chunk = list[tuple[int, str]]()
    async for entry in _index_entries(table, after, owner, at_once):
        chunk.append(entry)
        if len(chunk) == at_once:
            for stored in await _heads(looks, chunk):
                yield stored
            chunk.clear()
    for stored in await _heads(looks, chunk) if chunk else ():
        yield stored


async def _heads(looks: Looks, entries: Sequence[tuple[int, str]]) -> list[Stored]:
    heads = await looks.get([session_id for _, session_id in entries])
    found = [(incarnation, heads.get(session_id)) for incarnation, session_id in entries]
    return [stored for incarnation, stored in found if stored is not None and stored.incarnation == incarnation]


async def _index_entries(table: Table, after: int, owner: str | None, limit: int) -> AsyncIterator[tuple[int, str]]:
    """(incarnation, id) in ascending order, merged from the partitions of the index."""
    if owner is not None:
        partitions = [_Partition(table, "owned", "o", f"={owner}", after, limit)]
    else:
        partitions = [_Partition(table, "live", "l", f"L{shard}", after, limit) for shard in range(SHARDS)]
    await asyncio.gather(*(partition.fill() for partition in partitions))
    queue = [(partition.entries[0], number) for number, partition in enumerate(partitions) if partition.entries]
    heapq.heapify(queue)
    while queue:
        entry, number = heapq.heappop(queue)
        partition = partitions[number]
        partition.entries.pop(0)
        yield entry
        if not partition.entries:
            await partition.fill()
        if partition.entries:
            heapq.heappush(queue, (partition.entries[0], number))


class _Partition:
    """One partition of an index, read page by page."""

    def __init__(self, table: Table, index: str, key: str, value: str, after: int, limit: int) -> None:
        values: dict[str, Any] = {":p": {"S": value}, ":i": {"N": str(after)}}
        self._pages = table.query(f"{key} = :p AND i > :i", values, IndexName=index, Limit=limit)
        self.entries: list[tuple[int, str]] = []

    async def fill(self) -> None:
        """Read on until there is something, or nothing more."""
        while not self.entries:
            page: list[Item] | None = await anext(self._pages, None)
            if page is None:
                return
            self.entries = [(int(item["i"]["N"]), item["pk"]["S"]) for item in page]
