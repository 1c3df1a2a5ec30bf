"""The data that users see: sessions, events, cursors, durability.

Instances are immutable. Times are microseconds since the epoch (``*_us``) with `datetime`
properties beside them.
"""

from __future__ import annotations

import enum
import re
import threading
import uuid
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from secrets import randbits
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import quote, unquote

import msgspec

from holdfast.errors import InvalidCursor

__all__ = [
    "LATEST",
    "Cursor",
    "Durability",
    "Event",
    "Latest",
    "SessionInfo",
    "SessionStatus",
    "new_incarnation",
    "new_session_id",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


def as_datetime(us: int) -> datetime:
    """Microseconds since the epoch as an aware datetime, exactly (no float between)."""
    return _EPOCH + timedelta(microseconds=us)


class Durability(enum.Enum):
    """What an acknowledged write survives. Ordered: each level includes those before it."""

    MEMORY = "memory"
    """Nothing: acknowledged on acceptance, flushed behind."""
    PROCESS = "process"
    """The process is killed (``kill -9``)."""
    DISK = "disk"
    """The machine loses power."""
    REPLICATED = "replicated"
    """The machine is lost."""

    def __init__(self, _value: str) -> None:
        self.rank: Final = len(type(self).__members__)
        """Its place in the order."""

    def covers(self, other: Durability) -> bool:
        """Whether a write at this level is at least as safe as one at ``other``."""
        return self.rank >= other.rank


SessionStatus = Literal["active", "closed"]


class Latest(enum.Enum):
    """The type of `LATEST`."""

    LATEST = "latest"


LATEST: Final = Latest.LATEST
"""Pass as ``after=`` to start behind the newest event: nothing is replayed."""


_EVENT_ID: Final = re.compile(r"([0-9a-z]{1,13})\.([0-9]{1,19})\.([\x21-\x7e]*)")


@lru_cache(maxsize=4096)
def _quote_stream(stream: str) -> str:
    return quote(stream, safe="")


class Cursor(NamedTuple):
    """A place in a session's log, as an event id carries it.

    The text form is ``<incarnation>.<seq>.<stream>`` (incarnation in base 36, stream
    percent-encoded): visible ASCII, so it fits an SSE ``id:`` line and an HTTP header. To users it
    is opaque. It names the stream even when the event itself has been trimmed.
    """

    incarnation: int
    seq: int
    stream: str

    def __str__(self) -> str:
        return f"{_base36(self.incarnation)}.{self.seq}.{_quote_stream(self.stream)}"

    @classmethod
    def parse(cls, text: object) -> Cursor:
        """Read an event id back.

        Raises: `InvalidCursor` ("malformed") if it is none, in exactly the form that `str` gives.
        """
        if not isinstance(text, str):
            raise InvalidCursor(str(text), "malformed")
        parts = _EVENT_ID.fullmatch(text)
        if parts is None:
            raise InvalidCursor(text, "malformed")
        try:
            cursor = cls(int(parts[1], 36), int(parts[2]), unquote(parts[3], errors="strict"))
        except UnicodeError:
            raise InvalidCursor(text, "malformed") from None
        if str(cursor) != text:
            raise InvalidCursor(text, "malformed")
        return cursor


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One entry of a session's log.

    ``seq`` counts from 1 without gaps over all streams of a session. An event acknowledged on
    acceptance (durability "memory") has no place in the log yet: its ``seq`` is 0, its ``id`` "".
    """

    session_id: str
    incarnation: int
    seq: int
    stream: str
    type: str
    raw: bytes
    """The data as JSON text in UTF-8."""
    retry_ms: int | None
    time_us: int

    @property
    def id(self) -> str:
        """The opaque public id: an SSE event id, and a cursor for ``after=``."""
        if self.seq == 0:
            return ""
        return str(Cursor(self.incarnation, self.seq, self.stream))

    @property
    def data(self) -> Any:
        """The data, decoded anew at each access."""
        return msgspec.json.decode(self.raw)

    @property
    def time(self) -> datetime:
        return as_datetime(self.time_us)


class SessionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A session's head, as committed: everything but its state and events."""

    id: str
    incarnation: int
    owner: str | None
    created_us: int
    active_us: int
    expires_us: int | None
    """When it becomes unreadable if nothing touches it; None: never."""
    ttl_s: float | None
    status: SessionStatus
    metadata: dict[str, Any]
    first_seq: int
    """Sequence number of the oldest event held; ``last_seq + 1`` if none is."""
    last_seq: int
    version: int
    """Counts the session's committed units of work."""

    @property
    def created_at(self) -> datetime:
        return as_datetime(self.created_us)

    @property
    def last_active_at(self) -> datetime:
        return as_datetime(self.active_us)

    @property
    def expires_at(self) -> datetime | None:
        return None if self.expires_us is None else as_datetime(self.expires_us)


_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"


@lru_cache(maxsize=4096)
def _base36(number: int) -> str:
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = _DIGITS[digit] + digits
    return digits or "0"


_last_incarnation = 0
_incarnation_lock = threading.Lock()


def new_incarnation(now_us: int) -> int:
    """A number for a session's life: time-ordered, unique across instances, below 2**63.

    51 bits of microseconds, then 12 random bits; strictly increasing within a process, so that a
    session deleted and created again in the same microsecond still gets ids of its own.
    """
    global _last_incarnation
    with _incarnation_lock:
        _last_incarnation = max(now_us << 12 | randbits(12), _last_incarnation + 1)
        return _last_incarnation


def new_session_id(incarnation: int) -> str:
    """A UUIDv7 (RFC 9562, with its sub-millisecond method) that sorts as incarnations do.

    48 bits of milliseconds, 12 of the fraction, 12 of the incarnation's tail, 50 random.
    """
    now_us, tail = divmod(incarnation, 1 << 12)
    milliseconds, rest_us = divmod(now_us, 1000)
    fraction = rest_us * 4096 // 1000
    value = milliseconds << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | tail << 50 | randbits(50)
    return str(uuid.UUID(int=value))
