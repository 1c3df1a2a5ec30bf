"""What a commit decides about one write: pure functions that every backend can share."""

from __future__ import annotations

import msgspec

from holdfast.backends.base import Head, Outcome, SessionWrite, Status

__all__ = ["advance", "changes_session", "judge", "outcome"]


def changes_session(write: SessionWrite) -> bool:
    """Whether the write needs an active session: more than a touch, a trim or a delete."""
    return bool(
        write.sets or write.removes or write.events or write.cleared or write.close or write.metadata is not None
    )


def judge(head: Head | None, write: SessionWrite) -> Status:
    """Whether ``write`` may be applied to the row that holds its id now (None: no row)."""
    if write.create is not None:
        taken = head is not None and not _lapsed(head, write.accepted_us)
        return Status.EXISTS if taken else Status.COMMITTED
    if head is None or head.incarnation != write.incarnation or _lapsed(head, write.accepted_us):
        return Status.MISSING
    if write.fenced and head.version != write.version:
        return Status.CONFLICT
    if head.status == "closed" and changes_session(write):
        return Status.CLOSED
    return Status.COMMITTED


def _lapsed(head: Head, at_us: int) -> bool:
    expires_us = head.expires_us
    return expires_us is not None and expires_us <= at_us


def advance(head: Head, write: SessionWrite, max_events: int | None) -> Head:
    """The row after the write, which `judge` has let pass."""
    last_seq = head.last_seq + len(write.events)
    first_seq = max(head.first_seq, min(write.floor_seq, last_seq + 1))
    if max_events is not None:
        first_seq = max(first_seq, last_seq - max_events + 1)
    return msgspec.structs.replace(
        head,
        active_us=max(head.active_us, write.active_us),
        status="closed" if write.close else head.status,
        metadata=head.metadata if write.metadata is None else write.metadata,
        first_seq=first_seq,
        last_seq=last_seq,
        version=head.version + write.units,
    )


def outcome(before: Head, after: Head) -> Outcome:
    return Outcome(Status.COMMITTED, before.version, before.last_seq, before.first_seq, after.first_seq)
