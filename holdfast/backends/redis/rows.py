"""How heads, state and events are laid out in the server's values; the Lua scripts know the same.

A head is a string: the row (`ROW`), which every commit rewrites in place, then the parts that stay as
they are, then the metadata. Numbers are doubles, as Lua's are: exact up to 2**53, which is enough for
versions, sequence numbers and times. Incarnations are larger: they are eight bytes that are only compared.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error
from typing import Final

import msgspec

from holdfast.backends.base import Head, NewEvent, StateValue
from holdfast.model import Event

__all__ = [
    "HEADER_BYTES",
    "LENGTH",
    "ROW_BYTES",
    "Frames",
    "decode_event",
    "decode_head",
    "decode_state",
    "encode_event",
    "encode_head",
    "frame",
    "incarnation_bytes",
    "stream_prefix",
]

ROW: Final = Struct(">8sBdddddddI")
"""incarnation, closed, version, first_seq, last_seq, active_us, ttl_us, deadline_us (-1: none), native_us, and the
length of what follows before the metadata. ``native_us``: when the server will remove it by itself (0: never)."""
ROW_BYTES: Final = ROW.size

LENGTH: Final = Struct(">I")
_VERSION: Final = Struct(">d")
_EVENT: Final = Struct(">dI")
"""time_us, and the length of the data, which is the entry's end; between them msgpack of (stream, type, retry_ms)."""
HEADER_BYTES: Final = _EVENT.size

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_fixed: Final = msgspec.msgpack.Decoder(tuple[int, int | None, int | None, str | None]).decode
_decode_names: Final = msgspec.msgpack.Decoder(tuple[str, str, int | None]).decode


def incarnation_bytes(incarnation: int) -> bytes:
    """Compares as the number does. Anything that is no incarnation becomes one that nobody has."""
    return incarnation.to_bytes(8, "big") if 0 <= incarnation < 1 << 64 else b"\xff" * 8


def encode_head(head: Head) -> bytes:
    fixed = _encode((head.created_us, head.ttl_us, head.deadline_us, head.owner))
    row = ROW.pack(
        incarnation_bytes(head.incarnation),
        head.status == "closed",
        head.version,
        head.first_seq,
        head.last_seq,
        head.active_us,
        -1 if head.ttl_us is None else head.ttl_us,
        -1 if head.deadline_us is None else head.deadline_us,
        0,
        len(fixed),
    )
    return b"".join((row, fixed, head.metadata))


def decode_head(session_id: str, value: bytes) -> Head:
    """Raises: ValueError for what is no head."""
    try:
        return _decode_head(session_id, value)
    except (struct_error, OverflowError, msgspec.DecodeError) as exc:
        raise ValueError(f"not the head of a session: {exc}") from exc


def _decode_head(session_id: str, value: bytes) -> Head:
    incarnation, closed, version, first_seq, last_seq, active_us, _, _, _, length = ROW.unpack_from(value)
    end = ROW.size + length
    created_us, ttl_us, deadline_us, owner = _decode_fixed(value[ROW.size : end])
    return Head(
        id=session_id,
        incarnation=int.from_bytes(incarnation, "big"),
        owner=owner,
        created_us=created_us,
        active_us=int(active_us),
        ttl_us=ttl_us,
        deadline_us=deadline_us,
        status="closed" if closed else "active",
        metadata=value[end:],
        first_seq=int(first_seq),
        last_seq=int(last_seq),
        version=int(version),
    )


def decode_state(value: bytes) -> StateValue:
    (version,) = _VERSION.unpack_from(value)
    return StateValue(value[_VERSION.size :], int(version))


def encode_event(event: NewEvent) -> bytes:
    names = _encode((event.stream, event.type, event.retry_ms))
    return b"".join((_EVENT.pack(event.time_us, len(event.raw)), names, event.raw))


def decode_event(session_id: str, incarnation: int, seq: int, entry: bytes) -> Event:
    time_us, size = _EVENT.unpack_from(entry)
    end = len(entry) - size
    stream, type_, retry_ms = _decode_names(entry[HEADER_BYTES:end])
    return Event(
        session_id=session_id,
        incarnation=incarnation,
        seq=seq,
        stream=stream,
        type=type_,
        raw=entry[end:],
        retry_ms=retry_ms,
        time_us=int(time_us),
    )


def stream_prefix(stream: str) -> bytes:
    """What the entries of a stream have behind their header, and no other stream's."""
    return b"\x93" + _encode(stream)


def frame(value: bytes) -> bytes:
    """``value`` behind its length, as Lua's ``>I4c0`` reads it."""
    return LENGTH.pack(len(value)) + value


class Frames:
    """Reads a script's answer from its beginning to its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        """Whether there is more."""
        return self._position < len(self._data)

    def unpack(self, layout: Struct) -> tuple[float, ...]:
        values = layout.unpack_from(self._data, self._position)
        self._position += layout.size
        return values

    def length(self) -> int:
        (length,) = LENGTH.unpack_from(self._data, self._position)
        self._position += LENGTH.size
        return int(length)

    def take(self, length: int) -> bytes:
        start, self._position = self._position, self._position + length
        return self._data[start : self._position]

    def frame(self) -> bytes:
        return self.take(self.length())
