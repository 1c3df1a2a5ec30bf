"""The indexes: which sessions there are, whose they are, and which may have expired.

They are hints, and the sessions' heads are the truth. An entry is written before its session is
created and removed after it is gone, so that in a cluster, where the two cannot be one step, an entry may
have no session but no session lacks its entry. Whoever reads an entry checks it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from holdfast.backends.redis.errors import translate
from holdfast.backends.redis.keys import SHARDS, Entry, Keys, by_shard, shard_of
from holdfast.backends.redis.link import Command, Link, Reply
from holdfast.backends.redis.scripts import PUT, STALE, call, run

__all__ = ["Index", "Page", "checked"]

_GRACE_MS: Final = 15 * 60 * 1_000
"""How long an entry may be there without its session, by the server's clock: a create that is so slow has failed."""


class Page(NamedTuple):
    """Entries in order, and whether there are more behind them."""

    entries: list[Entry]
    more: bool


class Index:
    """Commands and queries over one prefix."""

    def __init__(self, keys: Keys) -> None:
        self._keys: Final = keys

    def add(self, entries: Sequence[tuple[Entry, int | None]]) -> list[Command]:
        """Of sessions that are about to be created, with the time before which they cannot expire."""
        ends = {entry.member: expires_us for entry, expires_us in entries}
        commands: list[Command] = []
        for shard, members in by_shard(entry for entry, _ in entries).items():
            commands.append(_zadd(self._keys.created(shard), ((b"0", entry.member) for entry in members)))
            expiring = [(entry.member, ends[entry.member]) for entry in members]
            scored = [(b"%d" % expires_us, member) for member, expires_us in expiring if expires_us is not None]
            if scored:
                commands.append(_zadd(self._keys.expiring(shard), scored))
        owned: dict[str, list[Entry]] = {}
        for entry, _ in entries:
            if entry.has_owner:
                owned.setdefault(entry.owner_digest, []).append(entry)
        for digest, members in owned.items():
            commands.append(_zadd(self._keys.owned(digest), ((b"0", entry.member) for entry in members)))
        return commands

    def remove(self, entries: Iterable[Entry]) -> list[Command]:
        """Of sessions that are gone for good."""
        entries = list(entries)
        commands = [_zrem(self._keys.owned(entry.owner_digest), [entry.member]) for entry in entries if entry.has_owner]
        for shard, group in by_shard(entries).items():
            members = [entry.member for entry in group]
            commands += [_zrem(key, members) for key in self._of_shard(shard)]
        return commands

    async def find(self, link: Link, sessions: Sequence[tuple[int, str]]) -> list[Entry]:
        """The entries of some (incarnation, id); those without one are left out."""
        commands = [
            _range(self._keys.created(shard_of(session_id)), b"[%016x" % incarnation, 1)
            for incarnation, session_id in sessions
        ]
        found = [Entry.parse(member) for reply in checked(await run(link, commands)) for member in reply]
        wanted = set(sessions)
        return [entry for entry in found if (entry.incarnation, entry.id) in wanted]

    def reschedule(self, entries: Iterable[tuple[Entry, int | None]]) -> list[Command]:
        """Of sessions that were found alive: look again at that time (None: they never expire)."""
        commands: list[Command] = []
        for entry, expires_us in entries:
            key = self._keys.expiring(entry.shard)
            if expires_us is None:
                commands.append(_zrem(key, [entry.member]))
            else:
                commands.append(call(PUT, [key], b"ZADD", b"XX", b"%d" % expires_us, entry.member))
        return commands

    async def note_stale(self, link: Link, entries: Iterable[Entry], now_us: int) -> None:
        """Of sessions that were not found: entries for which that was noted long ago go."""
        commands = list[Command]()
        for shard, group in by_shard(entries).items():
            members = [entry.member for entry in group]
            commands.append(call(STALE, self._of_shard(shard), _GRACE_MS, now_us + _GRACE_MS * 1_000, *members))
        if not commands:
            return
        removed = [Entry.parse(member) for reply in checked(await run(link, commands)) for member in reply]
        owned = [_zrem(self._keys.owned(entry.owner_digest), [entry.member]) for entry in removed if entry.has_owner]
        if owned:
            checked(await run(link, owned))

    async def expiring(self, link: Link, now_us: int, limit: int) -> list[Entry]:
        """Up to ``limit`` entries of sessions that may have expired by ``now_us``."""
        commands = [
            Command(key, (b"ZRANGE", key, b"-inf", b"%d" % now_us, b"BYSCORE", b"LIMIT", b"0", b"%d" % limit))
            for key in map(self._keys.expiring, range(SHARDS))
        ]
        found = [Entry.parse(member) for reply in checked(await run(link, commands)) for member in reply]
        return found[:limit]

    async def page(self, link: Link, after: int, limit: int, owner_digest: str | None) -> Page:
        """Entries with a higher incarnation than ``after``, in order; about ``limit`` of them."""
        if owner_digest is not None:
            keys, each = [self._keys.owned(owner_digest)], limit
        else:
            keys, each = [self._keys.created(shard) for shard in range(SHARDS)], limit // SHARDS * 2 + 8
        replies = checked(await run(link, [_range(key, b"[%016x" % (after + 1), each) for key in keys]))
        # A shard that gave all it may can have more behind its last one: no farther than that is the order known.
        ends = [reply[-1] for reply in replies if len(reply) == each]
        members = sorted(member for reply in replies for member in reply)
        if ends:
            members = [member for member in members if member <= min(ends)]
        return Page([Entry.parse(member) for member in members], bool(ends))

    async def shard_page(self, link: Link, shard: int, after: bytes, limit: int) -> list[Entry]:
        """Up to ``limit`` entries of one shard behind the member ``after`` (empty: from the beginning)."""
        low = b"(" + after if after else b"-"
        (reply,) = checked(await run(link, [_range(self._keys.created(shard), low, limit)]))
        return [Entry.parse(member) for member in reply]

    def _of_shard(self, shard: int) -> tuple[bytes, bytes, bytes]:
        return self._keys.created(shard), self._keys.expiring(shard), self._keys.stale(shard)

    async def size(self, link: Link) -> int:
        """Entries, stale ones included."""
        keys = [self._keys.created(shard) for shard in range(SHARDS)]
        return sum(checked(await run(link, [Command(key, (b"ZCARD", key)) for key in keys])))


def checked(replies: Sequence[Reply]) -> list[Reply]:
    """Raises: the first error among them, translated."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise translate(reply) from reply
    return list(replies)


def _range(key: bytes, low: bytes, limit: int) -> Command:
    return Command(key, (b"ZRANGE", key, low, b"+", b"BYLEX", b"LIMIT", b"0", b"%d" % limit))


def _zadd(key: bytes, scored: Iterable[tuple[bytes, bytes]]) -> Command:
    return Command(key, (b"ZADD", key, *(part for pair in scored for part in pair)))


def _zrem(key: bytes, members: Sequence[bytes]) -> Command:
    return Command(key, (b"ZREM", key, *members))
