"""Names of keys, and entries of the indexes.

All keys of a session have the same hash tag, ``prefix:{id}:``, so a cluster keeps them together:
``h`` its head, ``s`` its state, ``e`` its events (and ``m:…`` markers, in a cluster). Scripts are given the head's
and derive the others. For a cluster the others are named as well: while it moves a slot, key by key, it refuses
a script of which it has not all keys, instead of failing in the middle of it. Scripts that write name one more, which
never is there: else such a server, which has all keys of a session, fails behind the first that the script removes.

Sessions are found through indexes, which are spread over `SHARDS` places by id:
``prefix:{i:07}:c`` all sessions in order of creation, ``…:x`` those that can expire, with a time before
which they cannot have, ``…:g`` entries that seem to be stale. ``prefix:{o:digest}`` are one owner's sessions.
An index is a hint: an entry may be there without its session, but never a session without its entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final, NamedTuple
from zlib import crc32

from holdfast.backends.base import Marker

__all__ = [
    "SHARDS",
    "Entry",
    "Keys",
    "absent",
    "by_shard",
    "companions",
    "marker_member",
    "owner_digest",
    "parse_marker_member",
    "shard_of",
]

SHARDS: Final = 16
"""Part of the layout: it can't be changed where there is data."""

_ESCAPES: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})
_NO_OWNER: Final = "-" * 16


class Entry(NamedTuple):
    """A session in an index. Its text sorts by incarnation, and tells the owner's index."""

    incarnation: int
    owner_digest: str
    id: str

    @classmethod
    def of(cls, incarnation: int, owner: str | None, session_id: str) -> Entry:
        return cls(incarnation, _NO_OWNER if owner is None else owner_digest(owner), session_id)

    @classmethod
    def parse(cls, member: bytes) -> Entry:
        text = member.decode()
        return cls(int(text[:16], 16), text[16:32], text[32:])

    @property
    def member(self) -> bytes:
        return f"{self.incarnation:016x}{self.owner_digest}{self.id}".encode()

    @property
    def has_owner(self) -> bool:
        return self.owner_digest != _NO_OWNER

    @property
    def shard(self) -> int:
        return shard_of(self.id)


def shard_of(session_id: str) -> int:
    return crc32(session_id.encode()) % SHARDS


def owner_digest(owner: str) -> str:
    return blake2b(owner.encode(), digest_size=8).hexdigest()


class Keys:
    """The names under one prefix. Bytes, ready to be sent."""

    def __init__(self, prefix: str) -> None:
        self._prefix: Final = prefix
        self.channel: Final = f"{prefix}:changed".encode()
        """Where commits are told of."""
        self.schema: Final = f"{prefix}:schema".encode()
        self.markers: Final = f"{prefix}:markers".encode()
        """A set of all (writer, lane) that may have a marker."""

    def head(self, session_id: str) -> bytes:
        return f"{self._prefix}:{{{_tag(session_id)}}}:h".encode()

    def created(self, shard: int) -> bytes:
        return f"{self._prefix}:{{i:{shard:02}}}:c".encode()

    def expiring(self, shard: int) -> bytes:
        return f"{self._prefix}:{{i:{shard:02}}}:x".encode()

    def stale(self, shard: int) -> bytes:
        return f"{self._prefix}:{{i:{shard:02}}}:g".encode()

    def owned(self, digest: str) -> bytes:
        return f"{self._prefix}:{{o:{digest}}}".encode()

    def marker(self, writer: str, lane: int) -> bytes:
        return f"{self._prefix}:{{m:{_tag(writer)}:{lane}}}".encode()

    def session_marker(self, head_key: bytes, marker: Marker) -> bytes:
        """In a cluster: what a writer's lane did to one session."""
        return head_key[:-1] + f"m:{_tag(marker.writer)}:{marker.lane}".encode()


def _tag(text: str) -> str:
    if "{" in text or "}" in text or "%" in text:  # nearly never
        return text.translate(_ESCAPES)
    return text


def companions(heads: Iterable[bytes]) -> list[bytes]:
    """The other keys of the heads' sessions."""
    return [head[:-1] + letter for head in heads for letter in (b"s", b"e")]


def absent(head: bytes) -> bytes:
    """A key of the session's slot that never is there."""
    return head[:-1] + b"-"


def marker_member(writer: str, lane: int) -> bytes:
    """An element of the set `Keys.markers`."""
    return f"{lane}:{writer}".encode()


def parse_marker_member(member: bytes) -> tuple[str, int]:
    lane, _, writer = member.decode().partition(":")
    return writer, int(lane)


def by_shard(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    shards: dict[int, list[Entry]] = {}
    for entry in entries:
        shards.setdefault(entry.shard, []).append(entry)
    return shards
