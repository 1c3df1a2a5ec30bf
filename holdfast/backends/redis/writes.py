"""`SessionWrite`s as ``commit.lua`` reads them, and its outcomes."""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from struct import error as struct_error
from typing import Final

from holdfast.backends.base import NOTHING_SET, Batch, Outcome, SessionWrite, Status
from holdfast.backends.redis.rows import encode_event, encode_head, frame, incarnation_bytes
from holdfast.backends.rules import changes_session
from holdfast.errors import Rejected

__all__ = ["decode_outcomes", "encode_batch", "encode_refusal", "encode_write"]

_BATCH: Final = Struct(">16sddddd")
_WRITE: Final = Struct(">8sHddddIIIII")
_OUTCOME: Final = Struct(">Bqqqq")
_STATUSES: Final = {int(status): status for status in Status}
_OFFSET: Final = Struct(">d")
_FENCED, _CHANGES, _CLEARED, _CLOSE, _DELETE, _CREATE, _METADATA = (1 << bit for bit in range(7))


def encode_batch(batch: Batch, instance: bytes, *, marker_ms: float, margin_us: float | None) -> bytes:
    """What holds for all of a batch's writes."""
    return _BATCH.pack(
        instance,
        batch.marker.flush,
        batch.now_us,
        marker_ms,
        -1 if margin_us is None else margin_us,
        -1 if batch.max_events is None else batch.max_events,
    )


def encode_write(write: SessionWrite) -> bytes:
    """Raises: `Rejected` for what the engine lets nobody write: lone surrogates, numbers past all bounds."""
    try:
        if write.events and write.sets is NOTHING_SET and not (write.removes or write.cleared or _is_rare(write)):
            body = b"".join([frame(encode_event(event)) for event in write.events])
            flags = _CHANGES | _FENCED * write.fenced
        else:
            body = b"".join(_body(write))
            flags = _flags(write)
        return _header(write, flags, len(body)) + body
    except (struct_error, OverflowError, UnicodeEncodeError) as exc:
        raise Rejected(f"a value cannot be stored: {exc}") from exc


def _is_rare(write: SessionWrite) -> bool:
    return write.create is not None or write.metadata is not None or write.close or write.delete


def _body(write: SessionWrite) -> Iterable[bytes]:
    if write.create is not None:
        yield frame(encode_head(write.create))
    if write.metadata is not None:
        yield frame(write.metadata)
    for key in write.removes:
        yield frame(key.encode())
    for key, (raw, offset) in write.sets.items():
        yield _OFFSET.pack(offset)
        yield frame(key.encode())
        yield frame(raw)
    for event in write.events:
        yield frame(encode_event(event))


def _flags(write: SessionWrite) -> int:
    return (
        _FENCED * write.fenced
        | _CHANGES * changes_session(write)
        | _CLEARED * write.cleared
        | _CLOSE * write.close
        | _DELETE * write.delete
        | _CREATE * (write.create is not None)
        | _METADATA * (write.metadata is not None)
    )


def _header(write: SessionWrite, flags: int, length: int) -> bytes:
    return _WRITE.pack(
        incarnation_bytes(write.incarnation),
        flags,
        write.version,
        write.accepted_us,
        write.active_us,
        write.floor_seq,
        write.units,
        len(write.removes),
        len(write.sets),
        len(write.events),
        length,
    )


def decode_outcomes(answer: bytes) -> list[Outcome]:
    return [
        Outcome(_STATUSES[status], version, seq, base_first, first)
        for status, version, seq, base_first, first in _OUTCOME.iter_unpack(answer)
    ]


def encode_refusal(status: Status) -> bytes:
    """The outcome of a write that was not applied."""
    return _OUTCOME.pack(status, 0, 0, 0, 0)
