"""Expiry and trimming: candidates from the indexes, checked and done by scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from struct import Struct
from typing import Final, NamedTuple

import structlog

from holdfast.backends.base import Expired, Marker, TrimPolicy
from holdfast.backends.redis.index import Index, checked
from holdfast.backends.redis.keys import SHARDS, Entry, Keys
from holdfast.backends.redis.link import Command, Link
from holdfast.backends.redis.rows import Frames, decode_head, incarnation_bytes
from holdfast.backends.redis.scripts import EXPIRE, TRIM, call, run
from holdfast.errors import HoldfastError

__all__ = ["Janitor", "Trimmer"]

_log: Final = structlog.stdlib.get_logger("holdfast.redis")

_EXPIRE: Final = Struct(">16sddd")
_TRIM: Final = Struct(">dddd")
_SIGHT: Final = Struct(">8sdd")
_TRIMMED: Final = Struct(">dBdd")
_DOUBLE: Final = Struct(">d")

_MARKER_MS: Final = 3_600 * 1_000
_TRIED_AGAIN_US: Final = 15 * 60 * 1_000_000
"""After so long, sessions that could not be removed: their keys are another program's, or rights are missing."""
_FOREIGN: Final = -2
_TRIMMED_AT_ONCE: Final = 100
"""Sessions that one call of the script looks at."""
_SIGHTS: Final = 5_000
"""Events that one call of the script looks at, and deletes, about: others wait for the server meanwhile."""
_EXPIRED_AT_ONCE: Final = 1_000
"""Sessions that one call of the script removes."""


class _Removal(NamedTuple):
    """Sessions that are being removed, as one flush of a lane of its own."""

    marker: Marker
    now_us: int
    entries: list[Entry]


class Janitor:
    """Removes expired sessions, and tells of each exactly once.

    A removal whose answer is lost is sent again by the next call: its marker then gives the answer. What was
    removed is kept until a call returns.
    """

    def __init__(self, link: Link, keys: Keys, instance: bytes) -> None:
        self._link: Final = link
        self._keys: Final = keys
        self._index: Final = Index(keys)
        self._instance: Final = instance
        self._lane: Final = f"janitor-{instance.hex()}"
        self._turns: Final = asyncio.Lock()
        self._flush = 0
        self._unfinished: _Removal | None = None
        self._gone: list[Expired] = []

    async def expire(self, now_us: int, limit: int) -> list[Expired]:
        async with self._turns:
            try:
                await self._remove_expired(now_us, limit)
            except HoldfastError as exc:
                if not self._gone:
                    raise
                _log.warning("redis.expiry_interrupted", error=str(exc))
            gone, self._gone = self._gone[:limit], self._gone[limit:]
            return gone

    async def _remove_expired(self, now_us: int, limit: int) -> None:
        """Adds to what is gone, until that is ``limit`` sessions or all. What was added stays if it raises."""
        if self._unfinished is not None:
            await self._remove(self._unfinished)
        while len(self._gone) < limit:
            wanted = min(limit - len(self._gone), _EXPIRED_AT_ONCE)
            entries = await self._index.expiring(self._link, now_us, wanted)
            if not entries:
                break
            self._flush += 1
            self._unfinished = _Removal(Marker(self._lane, 0, self._flush), now_us, entries)
            await self._remove(self._unfinished)

    async def _remove(self, removal: _Removal) -> None:
        """The sessions, which may be repeated, then their entries: those that are left will be found stale."""
        gone: list[Expired] = []
        removed: list[Entry] = []
        later: list[tuple[Entry, int | None]] = []
        missing: list[Entry] = []
        failed = 0
        for entry, answer in await self._answers(removal):
            match answer[:1]:
                case b"R":
                    removed.append(entry)
                    gone.append(Expired(entry.id, entry.incarnation, decode_head(entry.id, answer[1:]).owner))
                case b"K":
                    ends_us = int(_DOUBLE.unpack_from(answer, 1)[0])
                    later.append((entry, None if ends_us < 0 else ends_us))
                case b"F":
                    failed += 1
                    later.append((entry, removal.now_us + _TRIED_AGAIN_US))
                case _:
                    missing.append(entry)
        self._unfinished = None
        self._gone += gone
        if failed:
            _log.warning("redis.expiry_failed", sessions=failed)
        commands = self._index.remove(removed) + self._index.reschedule(later)
        if commands:
            checked(await run(self._link, commands))
        await self._index.note_stale(self._link, missing, removal.now_us)

    async def _answers(self, removal: _Removal) -> list[tuple[Entry, bytes]]:
        heads = [self._keys.head(entry.id) for entry in removal.entries]
        common = _EXPIRE.pack(self._instance, removal.marker.flush, removal.now_us, _MARKER_MS)
        groups = list(self._link.groups(heads))
        commands: list[Command] = []
        for group in groups:
            keys = [heads[number] for number in group]
            marker = self._marker(removal, keys[0])
            incarnations = b"".join(incarnation_bytes(removal.entries[number].incarnation) for number in group)
            commands.append(call(EXPIRE, [marker, *self._link.declared(keys, writes=True)], common, incarnations))
        found: list[tuple[Entry, bytes]] = []
        for group, answer in zip(groups, checked(await run(self._link, commands)), strict=True):
            frames = Frames(answer)
            found += [(removal.entries[number], frames.frame()) for number in group]
        return found

    def _marker(self, removal: _Removal, head: bytes) -> bytes:
        if self._link.in_order:
            return self._keys.marker(*removal.marker[:2])
        return self._keys.session_marker(head, removal.marker)


class _Trim(NamedTuple):
    """What is to be trimmed, and how far earlier calls got: the bytes of its events from ``below`` on (0: none)."""

    number: int
    id: str
    incarnation: int
    below: float = 0
    size: float = 0


class Trimmer:
    """Deletes dropped events. A sweep over all sessions goes on where the last one stopped."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link: Final = link
        self._keys: Final = keys
        self._index: Final = Index(keys)
        self._place: tuple[int, bytes] = (0, b"")

    async def trim(self, sessions: Sequence[tuple[str, int]], policy: TrimPolicy, limit: int) -> int:
        deleted = 0
        for start in range(0, len(sessions), _TRIMMED_AT_ONCE):
            if deleted >= limit:
                break
            counts = await self._trim(sessions[start : start + _TRIMMED_AT_ONCE], policy, limit - deleted)
            deleted += sum(max(count, 0) for count in counts)
        return deleted

    async def sweep(self, policy: TrimPolicy, limit: int) -> int:
        """All sessions once round, or until ``limit`` is reached; index entries without a session are noted."""
        deleted = 0
        shard, after = self._place
        for _ in range(SHARDS + 1):  # the shard that it began in the middle of comes again at the end
            while entries := await self._index.shard_page(self._link, shard, after, _TRIMMED_AT_ONCE):
                counts = await self._trim([(entry.id, entry.incarnation) for entry in entries], policy, limit - deleted)
                deleted += sum(max(count, 0) for count in counts)
                missing = [entry for entry, count in zip(entries, counts, strict=True) if count < 0]
                await self._index.note_stale(self._link, missing, 0)
                if deleted >= limit:
                    self._place = (shard, after)
                    return deleted
                after = entries[-1].member
            shard, after = (shard + 1) % SHARDS, b""
        self._place = (0, b"")
        return deleted

    async def _trim(self, sessions: Sequence[tuple[str, int]], policy: TrimPolicy, limit: int) -> list[int]:
        """How many events of each went; -1: there is no such session. Each call of the script does a bounded work."""
        counts = [0] * len(sessions)
        left = [_Trim(number, *session) for number, session in enumerate(sessions)]
        deleted = 0
        while left and deleted < limit:
            again: list[_Trim] = []
            for trim, (count, goes_on, below, size) in await self._call(left, policy, limit - deleted):
                if count == _FOREIGN:
                    _log.error("redis.foreign_key", session_id=trim.id)
                    continue
                counts[trim.number] = counts[trim.number] + int(count) if count >= 0 else -1
                deleted += max(0, int(count))
                if goes_on:
                    again.append(trim._replace(below=below, size=size))
            left = again
        return counts

    async def _call(
        self, trims: Sequence[_Trim], policy: TrimPolicy, limit: int
    ) -> list[tuple[_Trim, tuple[float, float, float, float]]]:
        heads = [self._keys.head(trim.id) for trim in trims]
        common = _TRIM.pack(
            -1 if policy.min_time_us is None else policy.min_time_us,
            -1 if policy.max_bytes is None else policy.max_bytes,
            limit,
            _SIGHTS,
        )
        requests = [_SIGHT.pack(incarnation_bytes(trim.incarnation), trim.below, trim.size) for trim in trims]
        groups = list(self._link.groups(heads))
        commands = [
            call(
                TRIM,
                self._link.declared([heads[number] for number in group], writes=True),
                common,
                b"".join([requests[number] for number in group]),
            )
            for group in groups
        ]
        answers = checked(await run(self._link, commands))
        return [
            (trims[number], found)
            for group, answer in zip(groups, answers, strict=True)
            for number, found in zip(group, _TRIMMED.iter_unpack(answer), strict=True)
        ]
