"""Statements over many rows at once.

One statement with hundreds of rows instead of ``executemany``: the interpreter lock is let go once
for all of them, and not once a row, so that SQLite works while the event loop does. Under a busy loop
that is ten times as fast, since each lost lock costs up to ``sys.getswitchinterval()``.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

__all__ = ["BulkStatement", "chunks"]

CHUNK_SIZES: Final = (500, 64, 8, 1)
"""Few sizes, so that few statements are ever prepared."""


def chunks(count: int) -> list[int]:
    """``count`` as a sum of few chunk sizes, largest first."""
    sizes: list[int] = []
    for size in CHUNK_SIZES:
        times, count = divmod(count, size)
        sizes += [size] * times
    return sizes


class BulkStatement:
    """``template`` for any number of rows; its ``{rows}`` stands for so many of ``row``, as after VALUES."""

    def __init__(self, template: str, row: str) -> None:
        self._template = template
        self._row = row
        self._width = row.count("?")
        self._sized: dict[int, str] = {}

    def run(self, connection: sqlite3.Connection, values: list[Any]) -> int:
        """Execute it over the rows that ``values`` holds one after the other; how many rows changed."""
        changed = start = 0
        for size in chunks(len(values) // self._width):
            end = start + size * self._width
            changed += connection.execute(self._statement(size), values[start:end]).rowcount
            start = end
        return changed

    def _statement(self, size: int) -> str:
        if size not in self._sized:
            self._sized[size] = self._template.format(rows=", ".join([self._row] * size))
        return self._sized[size]
