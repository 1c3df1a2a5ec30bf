"""Expiry and trimming, in steps of bounded size. What is found is done only if it is still so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from msgspec import structs

from holdfast.backends.base import Expired, TrimPolicy
from holdfast.backends.dynamodb.errors import ConditionFailed
from holdfast.backends.dynamodb.heads import Heads, Looks
from holdfast.backends.dynamodb.items import SHARDS, EventChunk, Item, Stored, due_of, event_key
from holdfast.backends.dynamodb.journal import journal_of
from holdfast.backends.dynamodb.plan import entombed, written_out
from holdfast.backends.dynamodb.reads import chunks, chunks_backwards, live_sessions
from holdfast.backends.dynamodb.sweep import bury, delete_range, sweep_up
from holdfast.errors import OutcomeUnknown

__all__ = ["Upkeep"]

_DUE_AT_ONCE: Final = 100
_ITEMS_AT_ONCE: Final = 1_000
_TRIES: Final = 5


class Upkeep:
    """Keeps its place in the walk over all sessions, so that one that stops at a limit goes on from there."""

    def __init__(self, heads: Heads) -> None:
        self._heads: Final = heads
        self._table: Final = heads.table
        self._cache: Final = heads.cache
        self._trimmed_to = -1

    # --- expiry --------------------------------------------------------------

    async def expire(self, now_us: int, limit: int) -> list[Expired]:
        """`Backend.expire`, by the index of when to look; then forget tombstones that have done their time."""
        gone = list[Expired]()
        now_s = now_us // 1_000_000
        looks = Looks(self._heads)
        for shard in range(SHARDS):
            async for page in self._due(looks, f"D{shard}", now_s):
                expired = [stored for stored in page if _has_expired(stored, now_us)]
                alive = [stored for stored in page if not (_has_expired(stored, now_us) or looks.is_elsewhere(stored))]
                await asyncio.gather(*map(self._file_anew, alive))
                room = limit - len(gone)
                ended = await asyncio.gather(*(self._end(stored, now_us) for stored in expired[:room]))
                gone += [session for session in ended if session is not None]
                if len(gone) >= limit:
                    return gone
        await self._forget_the_dead(looks, now_s)
        for shard in range(SHARDS):
            await self._sweep_journals(shard, now_s)
        return gone

    async def _due(self, looks: Looks, partition: str, now_s: int) -> AsyncIterator[list[Stored]]:
        """Pages of the heads that are to be looked at by now. Consistent reads, so that none is old news."""
        async for page in self._filed(partition, now_s):
            heads = await looks.get([item["pk"]["S"] for item in page]) if page else {}
            yield [stored for stored in heads.values() if stored.due_s is not None and stored.due_s <= now_s]

    async def _filed(self, partition: str, now_s: int) -> AsyncIterator[list[Item]]:
        values: dict[str, Any] = {":p": {"S": partition}, ":u": {"N": str(now_s)}}
        async for page in self._table.query("e = :p AND u <= :u", values, IndexName="due", Limit=_DUE_AT_ONCE):
            yield page

    async def _end(self, looked_at: Stored, now_us: int) -> Expired | None:
        """None: a touch came first, or another janitor."""
        async with self._heads.journals.holds.of(looked_at.id):
            stored = await self._heads.to_write(looked_at)
            if stored is None or stored.incarnation != looked_at.incarnation or not _has_expired(stored, now_us):
                return None
            tomb = entombed(stored, now_us // 1_000_000)
            try:
                await self._heads.put(tomb, stored)
            except ConditionFailed:
                return None
            except OutcomeUnknown:
                found = await self._table.get_head(stored.id)
                if found is None or (found.incarnation, found.rev) != (tomb.incarnation, tomb.rev) or found.head:
                    raise
                self._heads.journals.wrote(tomb)
            self._cache.put(tomb)
            await self._sweep_grave(tomb)
        return Expired(stored.id, stored.incarnation, stored.owner)

    async def _file_anew(self, looked_at: Stored) -> None:
        """It was touched since it was filed: look again when it is due by that."""
        if looked_at.head is None or due_of(looked_at.head) == looked_at.due_s:
            return
        async with self._heads.journals.holds.of(looked_at.id):
            stored = await self._heads.to_write(looked_at)
            if stored is None or stored.incarnation != looked_at.incarnation or stored.head is None:
                return
            plan = written_out(stored)
            plan = plan._replace(head=plan.head._replace(due_s=due_of(stored.head)))
            try:
                await self._heads.send(plan, stored)
            except ConditionFailed:
                return
            self._cache.put(plan.head)

    async def _sweep_journals(self, shard: int, now_s: int) -> None:
        """Those that their owners have left behind."""
        async for page in self._filed(f"X{shard}", now_s):
            for journal in dict.fromkeys(map(journal_of, page)):
                await self._heads.sweep(journal, now_s)

    async def _forget_the_dead(self, looks: Looks, now_s: int) -> None:
        """A last look for what came late, then the tombstone goes too."""
        for shard in range(SHARDS):
            for kind in "TG":
                async for page in self._due(looks, f"{kind}{shard}", now_s):
                    await asyncio.gather(*(self._forget(stored) for stored in page))

    async def _forget(self, stored: Stored) -> None:
        if stored.head is not None or await sweep_up(self._table, stored, _ITEMS_AT_ONCE) >= _ITEMS_AT_ONCE:
            return
        try:
            await self._table.delete_head(stored)
        except ConditionFailed:
            return
        self._cache.forget(stored.id)

    async def _sweep_grave(self, tomb: Stored) -> int:
        if not tomb.record.debris:
            return 0
        deleted = await sweep_up(self._table, tomb, _ITEMS_AT_ONCE)
        if deleted < _ITEMS_AT_ONCE:
            try:
                self._cache.put(await bury(self._table, tomb))
            except ConditionFailed:  # the id has a new life
                self._cache.forget(tomb.id)
        return deleted

    # --- trimming ------------------------------------------------------------

    async def trim_these(self, ids: Sequence[tuple[str, int]], policy: TrimPolicy, limit: int) -> int:
        heads = await Looks(self._heads).get([session_id for session_id, _ in ids])
        deleted = 0
        for session_id, incarnation in ids:
            stored = heads.get(session_id)
            if deleted < limit and stored is not None and stored.incarnation == incarnation:
                deleted += await self._trim(stored, policy)
        return deleted

    async def trim_all(self, policy: TrimPolicy, limit: int) -> int:
        """The graves first, then a walk over all heads."""
        deleted = 0
        for shard in range(SHARDS):
            values: dict[str, Any] = {":p": {"S": f"G{shard}"}}
            async for page in self._table.query("e = :p", values, IndexName="due"):
                heads = await self._table.get_heads([item["pk"]["S"] for item in page]) if page else {}
                for stored in heads.values():
                    if stored.head is None:
                        deleted += await self._sweep_grave(stored)
                if deleted >= limit:
                    return deleted
        return deleted + await self._walk(policy, limit - deleted)

    async def _walk(self, policy: TrimPolicy, limit: int) -> int:
        deleted, start = 0, self._trimmed_to
        rounds = [(start, None)] if start < 0 else [(start, None), (-1, start)]
        for after, end in rounds:
            looks = Looks(self._heads)
            async for stored in live_sessions(looks, self._table, after):
                if end is not None and stored.incarnation > end:
                    break
                self._trimmed_to = stored.incarnation
                if looks.is_elsewhere(stored):
                    continue
                deleted += await self._trim(stored, policy)
                if deleted >= limit:
                    return deleted
            self._trimmed_to = -1
        return deleted

    async def _trim(self, stored: Stored, policy: TrimPolicy) -> int:
        """How many events are dropped for good now, or how many items of debris."""
        for _ in range(_TRIES):
            record = stored.record
            if record.dead:
                return await self._sweep_grave(stored)
            first_seq = await self._kept_from(stored, policy)
            if first_seq <= record.trimmed_seq and not record.debris:
                return 0
            swept = await sweep_up(self._table, stored, _ITEMS_AT_ONCE) if record.debris else 0
            async with self._heads.journals.holds.of(stored.id):
                found = await self._heads.to_write(stored)
                if found is None or found.incarnation != stored.incarnation:
                    return swept
                if found.rev == stored.rev and await self._cut(found, first_seq, debris=swept >= _ITEMS_AT_ONCE):
                    break
                found = await self._heads.get(stored.id, held=True)
            if found is None or found.incarnation != stored.incarnation:
                return swept
            stored = found
        else:
            return 0
        low, high = event_key(stored.incarnation, 0), event_key(stored.incarnation, first_seq - 1)
        while await delete_range(self._table, stored.id, low, high, _ITEMS_AT_ONCE) >= _ITEMS_AT_ONCE:
            pass
        return swept + first_seq - record.trimmed_seq

    async def _cut(self, stored: Stored, first_seq: int, *, debris: bool) -> bool:
        """Raise the first seq of a session that is held; False: others wrote it meanwhile."""
        record = stored.record
        tail = EventChunk(record.tail_seq, record.tail).between(first_seq, record.last_seq)
        cut = structs.replace(record, first_seq=first_seq, trimmed_seq=first_seq, tail=tail.events, debris=debris)
        plan = written_out(stored._replace(record=cut))
        try:
            await self._heads.send(plan, stored)
        except ConditionFailed:
            return False
        self._cache.put(plan.head)
        return True

    async def _kept_from(self, stored: Stored, policy: TrimPolicy) -> int:
        """The first seq that the policy keeps: oldest first, up to the first event that may stay."""
        first_seq, last_seq = stored.record.first_seq, stored.record.last_seq
        if policy.min_time_us is not None:
            first_seq = await self._young_from(stored, first_seq, policy.min_time_us)
        if policy.max_bytes is not None and first_seq <= last_seq:
            size = 0
            async for chunk in chunks_backwards(self._table, stored, first_seq):
                for seq, event in zip(range(chunk.last_seq, 0, -1), reversed(chunk.events), strict=False):
                    size += len(event.raw)
                    if size > policy.max_bytes:
                        return seq + 1
        return first_seq

    async def _young_from(self, stored: Stored, first_seq: int, min_time_us: int) -> int:
        async for chunk in chunks(self._table, stored, first_seq):
            for seq, event in enumerate(chunk.events, chunk.first_seq):
                if event.time_us >= min_time_us:
                    return seq
        return stored.record.last_seq + 1


def _has_expired(stored: Stored, now_us: int) -> bool:
    head = stored.head
    return head is not None and head.expires_us is not None and head.expires_us <= now_us
