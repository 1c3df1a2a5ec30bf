"""What a commit decides about one write: pure functions that every backend can share."""

from __future__ import annotations

from holdfast.backends.base import Head, Outcome, SessionWrite, Status, expiry_us

__all__ = ["advance", "changes_session", "judge", "outcome"]

_COMMITTED = Status.COMMITTED


def changes_session(write: SessionWrite) -> bool:
    """Whether the write needs an active session: more than a touch, a trim or a delete.

    A fenced write does even if it changes nothing: a remove of a key that is not there is a write.
    """
    return bool(
        write.events
        or write.sets
        or write.removes
        or write.cleared
        or write.close
        or write.metadata is not None
        or (write.fenced and not write.delete)
    )


def judge(head: Head | None, write: SessionWrite) -> Status:
    """Whether ``write`` may be applied to the row that holds its id now (None: no row)."""
    if write.create is not None:
        return Status.EXISTS if head is not None and not _lapsed(head, write.accepted_us) else _COMMITTED
    if head is None or head.incarnation != write.incarnation or _lapsed(head, write.accepted_us):
        return Status.MISSING
    if write.fenced and head.version != write.version:
        return Status.CONFLICT
    if head.status == "closed" and changes_session(write):
        return Status.CLOSED
    return _COMMITTED


def _lapsed(head: Head, at_us: int) -> bool:
    expires_us = expiry_us(head.active_us, head.ttl_us, head.deadline_us)
    return expires_us is not None and expires_us <= at_us


def advance(head: Head, write: SessionWrite, max_events: int | None) -> Head:
    """The row after the write, which `judge` has let pass."""
    first_seq, last_seq = head.first_seq, head.last_seq + len(write.events)
    if write.floor_seq > first_seq:
        first_seq = min(write.floor_seq, last_seq + 1)
    if max_events is not None and last_seq - max_events >= first_seq:
        first_seq = last_seq - max_events + 1
    active_us = head.active_us
    return Head(
        id=head.id,
        incarnation=head.incarnation,
        owner=head.owner,
        created_us=head.created_us,
        active_us=max(write.active_us, active_us),
        ttl_us=head.ttl_us,
        deadline_us=head.deadline_us,
        status="closed" if write.close else head.status,
        metadata=head.metadata if write.metadata is None else write.metadata,
        first_seq=first_seq,
        last_seq=last_seq,
        version=head.version + write.units,
    )


def outcome(before: Head, after: Head) -> Outcome:
    return Outcome(_COMMITTED, before.version, before.last_seq, before.first_seq, after.first_seq)
