"""Rows of ``sessions``: read as heads, looked up in bulk, told dead from alive."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

from holdfast.backends.base import Head

__all__ = [
    "HEAD_COLUMNS",
    "MAX_INTEGER",
    "as_head",
    "heads_by_id",
    "heads_by_incarnation",
    "select_in",
    "sql_expires_us",
]

MAX_INTEGER: Final = (1 << 63) - 1
"""The largest incarnation, and the time that never comes."""

sql_expires_us: Final = f"min(ifnull(active_us + ttl_us, {MAX_INTEGER}), ifnull(deadline_us, {MAX_INTEGER}))"
"""`Head.expires_us` in SQL."""

HEAD_COLUMNS: Final = (
    "id, incarnation, owner, created_us, active_us, ttl_us, deadline_us, status, CAST(metadata AS BLOB), "
    "first_seq, last_seq, version"
)

_LOOKUP_SIZES: Final = (1, 8, 64, 500)
"""Lists of values are padded to these, so that few statements are ever prepared."""


def as_head(row: Sequence[Any]) -> Head:
    """A row of `HEAD_COLUMNS`."""
    session_id, incarnation, owner, created, active, ttl, deadline, status, metadata, first, last, version = row
    return Head(
        id=session_id,
        incarnation=incarnation,
        owner=owner,
        created_us=created,
        active_us=active,
        ttl_us=ttl,
        deadline_us=deadline,
        status=status,
        metadata=metadata,
        first_seq=first,
        last_seq=last,
        version=version,
    )


def heads_by_id(connection: sqlite3.Connection, ids: Sequence[str]) -> dict[str, Head]:
    rows = select_in(connection, f"SELECT {HEAD_COLUMNS} FROM sessions WHERE id IN", ids)  # noqa: S608
    return {head.id: head for head in map(as_head, rows)}


def heads_by_incarnation(connection: sqlite3.Connection, incarnations: Sequence[int]) -> dict[int, Head]:
    rows = select_in(connection, f"SELECT {HEAD_COLUMNS} FROM sessions WHERE incarnation IN", incarnations)  # noqa: S608
    return {head.incarnation: head for head in map(as_head, rows)}


def select_in(connection: sqlite3.Connection, select: str, values: Sequence[object]) -> Iterator[Any]:
    """The rows of ``select (values)``, where ``select`` ends with ``IN``; any number of values."""
    largest = _LOOKUP_SIZES[-1]
    for start in range(0, len(values), largest):
        chunk = values[start : start + largest]
        size = next(size for size in _LOOKUP_SIZES if size >= len(chunk))
        padding = [None] * (size - len(chunk))  # NULL equals nothing
        yield from connection.execute(_statement(select, size), [*chunk, *padding])


@lru_cache(maxsize=64)
def _statement(select: str, size: int) -> str:
    return f"{select} ({', '.join('?' * size)})"
