"""Reads: sessions, events, lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from struct import Struct
from typing import Final

import structlog

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
from holdfast.backends.redis.index import Index, checked
from holdfast.backends.redis.keys import Keys, owner_digest
from holdfast.backends.redis.link import Link
from holdfast.backends.redis.rows import (
    HEADER_BYTES,
    Frames,
    decode_event,
    decode_head,
    decode_state,
    incarnation_bytes,
    stream_prefix,
)
from holdfast.backends.redis.scripts import EVENTS, LOAD, call, run
from holdfast.model import Event

__all__ = ["Reads"]

_log: Final = structlog.stdlib.get_logger("holdfast.redis")

_LOAD: Final = Struct(">8sdB")
_QUERY: Final = Struct(">8sddddBddd")
_PAGE: Final = Struct(">Bddd")
_SEQ: Final = Struct(">d")

_NONE: Final = 0xFFFF_FFFF
_FOREIGN: Final = 0xFFFF_FFFE
_ANSWER_BYTES: Final = 8 << 20
"""After so much, the sessions that are left are loaded by another call."""
_SIGHTS: Final = 5_000
"""Events that one call of a script looks at, about: others wait for the server meanwhile."""
_COUNTED_AT_ONCE: Final = 1_000


class Reads:
    """Lives in the driver's event loop. Every method raises only `Unavailable` and `OutcomeUnknown` (not read)."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link: Final = link
        self._keys: Final = keys
        self._index: Final = Index(keys)

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        snapshots: list[Snapshot | None] = [None] * len(requests)
        left = list(range(len(requests)))
        while left:
            left = await self._load_some(requests, left, snapshots)
        return snapshots

    async def _load_some(
        self, requests: Sequence[LoadRequest], wanted: list[int], snapshots: list[Snapshot | None]
    ) -> list[int]:
        """Fill in snapshots; those of the wanted that did not fit."""
        keys = [self._keys.head(requests[number].id) for number in wanted]
        groups = [[wanted[place] for place in group] for group in self._link.groups(keys)]
        commands = [
            call(
                LOAD,
                self._link.declared([self._keys.head(requests[number].id) for number in group]),
                _ANSWER_BYTES,
                b"".join(_encode_request(requests[number]) for number in group),
            )
            for group in groups
        ]
        left: list[int] = []
        for group, answer in zip(groups, checked(await run(self._link, commands)), strict=True):
            frames = Frames(answer)
            for number in group:
                length = frames.length()
                if length == _NONE:
                    left.append(number)
                elif length == _FOREIGN:  # as if it were not there: the others must be readable
                    _log.error("redis.foreign_key", session_id=requests[number].id)
                elif length:
                    value, state = frames.take(length), _decode_state(frames)
                    try:
                        snapshots[number] = Snapshot(decode_head(requests[number].id, value), state)
                    except ValueError as exc:
                        _log.error("redis.foreign_key", session_id=requests[number].id, error=str(exc))
        return left

    async def read_events(self, query: EventQuery) -> EventPage | None:
        """By as many calls as it takes. What is trimmed in between is left out of the page, as if read at its end."""
        events = list[Event]()
        size, place, last_seq = 0, 0 if query.last else query.after_seq, 0
        while True:
            frames = Frames(await self._read_part(query, query.limit - len(events), size, place))
            if not frames:
                return None
            full, place, first_seq, now_last_seq = map(int, frames.unpack(_PAGE))
            if not (query.last and last_seq):
                last_seq = now_last_seq
            while frames:
                (seq,) = frames.unpack(_SEQ)
                entry = frames.frame()
                size += len(entry)
                events.append(decode_event(query.id, query.incarnation, int(seq), entry))
            if full or not (query.last or query.stream is None):  # in search of a rare stream, a page may be short
                break
        if query.last:
            events.reverse()
            place = last_seq
        if events and events[0].seq < first_seq:
            events = [event for event in events if event.seq >= first_seq]
        return EventPage(events, place, place < last_seq, first_seq, last_seq)

    async def _read_part(self, query: EventQuery, limit: int, size: int, place: int) -> bytes:
        """A page's next part, behind ``place`` (of the newest: below it), if it has ``size`` bytes by now."""
        asked = _QUERY.pack(
            incarnation_bytes(query.incarnation),
            query.after_seq if query.last else place,
            limit,
            query.max_bytes,
            size,
            query.last,
            place if query.last else 0,
            _SIGHTS,
            _ANSWER_BYTES,
        )
        filter_ = b"" if query.stream is None else stream_prefix(query.stream)
        command = call(EVENTS, self._link.declared([self._keys.head(query.id)]), asked, filter_, HEADER_BYTES)
        (answer,) = checked(await run(self._link, [command]))
        return bytes(answer)

    async def list_sessions(self, where: SessionFilter, after: int, limit: int) -> SessionPage:
        found: list[Head] = []
        async for heads in self._live(where, after, limit + 1):
            found += heads
            if len(found) > limit:
                return SessionPage(found[:limit], found[limit - 1].incarnation)
        return SessionPage(found, None)

    async def count_sessions(self, where: SessionFilter) -> int:
        """Looks at each: what is in the indexes is a hint."""
        return sum([len(heads) async for heads in self._live(where, -1, _COUNTED_AT_ONCE)])

    async def _live(self, where: SessionFilter, after: int, page_size: int) -> AsyncIterator[list[Head]]:
        """Heads in order, page by page; some pages may be empty."""
        digest = None if where.owner is None else owner_digest(where.owner)
        more = True
        while more:
            entries, more = await self._index.page(self._link, after, page_size, digest)
            if not entries:
                return
            after = entries[-1].incarnation
            snapshots = await self.load([LoadRequest(entry.id, head_only=True) for entry in entries])
            yield [
                snapshot.head
                for entry, snapshot in zip(entries, snapshots, strict=True)
                if snapshot is not None
                and snapshot.head.incarnation == entry.incarnation
                and _fits(snapshot.head, where)
            ]


def _encode_request(request: LoadRequest) -> bytes:
    return _LOAD.pack(incarnation_bytes(request.incarnation), request.version, request.head_only)


def _decode_state(frames: Frames) -> dict[str, StateValue] | None:
    count = frames.length()
    if count == _NONE:
        return None
    return {frames.frame().decode(): decode_state(frames.frame()) for _ in range(count)}


def _fits(head: Head, where: SessionFilter) -> bool:
    expires_us = head.expires_us
    return (
        (expires_us is None or expires_us > where.now_us)
        and (where.owner is None or head.owner == where.owner)
        and (where.status is None or head.status == where.status)
    )
