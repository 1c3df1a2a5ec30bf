"""Plain writes, committed on trust: most writes are, and their hints are nearly always right.

One statement updates all rows that are as the writes believe them to be. If that is every one, the
numbers in the hints stand, and no row has to be read; if not, nothing of it is kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from holdfast.backends.base import Outcome, SessionWrite, Status
from holdfast.backends.sqlite.bulk import BulkStatement
from holdfast.backends.sqlite.content import Content

__all__ = ["HintWasWrong", "apply_plain", "is_plain"]

# Not "WITH new (…) … UPDATE": Python counts the changed rows only of statements that begin with UPDATE.
_UPDATE: Final = BulkStatement(
    "UPDATE sessions SET active_us = max(active_us, new.column5), version = new.column2 + new.column6,"
    " last_seq = new.column7, first_seq = new.column8 FROM (VALUES {rows}) AS new"
    " WHERE sessions.incarnation = new.column1 AND id = new.column9 AND version = new.column2"
    " AND first_seq = new.column3 AND status = 'active'"
    " AND ifnull(active_us + ttl_us > new.column4, 1) AND ifnull(deadline_us > new.column4, 1)",
    "(?, ?, ?, ?, ?, ?, ?, ?, ?)",
)
"""Columns: incarnation, version, base_first_seq, accepted_us, active_us, units, last_seq, first_seq, id."""


class HintWasWrong(Exception):
    """A row is not as a write believes it to be. The transaction is to be rolled back."""


def is_plain(write: SessionWrite) -> bool:
    """Whether the write only touches, sets, removes and appends."""
    return not (
        write.create is not None or write.delete or write.close or write.floor_seq or write.metadata is not None
    )


def apply_plain(
    connection: sqlite3.Connection, writes: Sequence[SessionWrite], max_events: int | None
) -> list[Outcome]:
    """Apply them within the caller's transaction. Raises: `HintWasWrong`."""
    rows: list[Any] = []
    outcomes: list[Outcome] = []
    content = Content()
    for write in writes:
        version, base_seq, base_first_seq = write.version, write.base_seq, write.base_first_seq
        last_seq, first_seq = base_seq + len(write.events), base_first_seq
        if max_events is not None and last_seq - max_events >= first_seq:
            first_seq = last_seq - max_events + 1
        rows += (
            write.incarnation,
            version,
            base_first_seq,
            write.accepted_us,
            write.active_us,
            write.units,
            last_seq,
            first_seq,
            write.id,
        )
        outcomes.append(Outcome(Status.COMMITTED, version, base_seq, base_first_seq, first_seq))
        content.add(write, version=version, seq=base_seq)
    if _UPDATE.run(connection, rows) != len(writes):
        raise HintWasWrong
    content.apply(connection)
    return outcomes
