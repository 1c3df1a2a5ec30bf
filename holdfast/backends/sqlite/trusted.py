"""Flushes committed on trust: the hints of their writes are nearly always right.

Every row is written as it becomes if it was as its write believes it to be. If that holds for all of
them, the numbers in the hints stand, and nothing has to be read; if not, nothing of it is kept.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from holdfast.backends.base import Batch, Outcome, SessionWrite, Status
from holdfast.backends.rules import advance, outcome
from holdfast.backends.sqlite.flush import FlushRows

__all__ = ["TrustedFlush", "encode_outcomes", "trusted_flush"]

_COMMITTED = Status.COMMITTED

encode_outcomes: Final = msgspec.msgpack.Encoder().encode


class TrustedFlush(NamedTuple):
    """What to write, marker included, and the outcomes if it is written."""

    rows: FlushRows
    outcomes: list[Outcome]


def trusted_flush(batch: Batch) -> TrustedFlush | None:
    """The flush of a batch of plain writes that fits one statement, or None."""
    rows = FlushRows()
    outcomes: list[Outcome] = []
    max_events = batch.max_events
    for write in batch.writes:
        if not _is_plain(write):
            return None
        if write.create is not None:
            outcomes.append(_add_created(rows, write, max_events))
            continue
        base_seq, base_first_seq = write.base_seq, write.base_first_seq
        last_seq, first_seq = base_seq + len(write.events), base_first_seq
        if max_events is not None and last_seq - max_events >= first_seq:
            first_seq = last_seq - max_events + 1
        rows.add_trusted(write, last_seq, first_seq)
        outcomes.append(Outcome(_COMMITTED, write.version, base_seq, base_first_seq, first_seq))
    rows.add_marker(batch.marker, encode_outcomes(outcomes), batch.now_us)
    return TrustedFlush(rows, outcomes) if rows.fit_one_statement else None


def _is_plain(write: SessionWrite) -> bool:
    """Whether the write only creates, touches, sets, removes and appends."""
    return not (write.delete or write.close or write.floor_seq or write.metadata is not None)


def _add_created(rows: FlushRows, write: SessionWrite, max_events: int | None) -> Outcome:
    before = write.create
    assert before is not None
    after = advance(before, write, max_events)
    rows.add_created(after)
    rows.add_content(write, version=before.version, seq=before.last_seq)
    return outcome(before, after)
