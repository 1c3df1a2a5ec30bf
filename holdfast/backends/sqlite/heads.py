"""Heads that the write connection remembers, so that a commit need not look its rows up."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

from holdfast.backends.base import Head
from holdfast.backends.sqlite.rows import heads_by_incarnation

__all__ = ["HeadCache", "data_version"]

_CAPACITY: Final = 20_000
_MAX_METADATA_BYTES: Final = 1_024


class HeadCache:
    """Rows as this connection's own commits left them, for as long as nobody else commits.

    ``PRAGMA data_version`` tells: it changes when another connection has committed, and only then.
    """

    def __init__(self) -> None:
        self._heads: Final[dict[int, Head]] = {}
        self._data_version = -1

    def look_up(self, connection: sqlite3.Connection, incarnations: Sequence[int]) -> dict[int, Head]:
        """The rows as they are now; call it under the write lock. What it returns is to be left alone."""
        version = data_version(connection)
        if version != self._data_version:
            self._heads.clear()
            self._data_version = version
        heads = self._heads
        unknown = [incarnation for incarnation in incarnations if incarnation not in heads]
        return heads | heads_by_incarnation(connection, unknown) if unknown else heads

    def keep(self, heads: Iterable[Head], removed: Iterable[int]) -> None:
        """A commit has left these rows, and removed those."""
        if len(self._heads) > _CAPACITY:
            self._heads.clear()
        too_large = list[int]()
        for head in heads:
            if len(head.metadata) <= _MAX_METADATA_BYTES:
                self._heads[head.incarnation] = head
            else:
                too_large.append(head.incarnation)
        for incarnation in (*removed, *too_large):
            self._heads.pop(incarnation, None)

    def clear(self) -> None:
        """For when this connection changes rows in another way, or a commit has failed."""
        self._heads.clear()


def data_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version
