"""The plain driver in bulk: the ceiling of what the file can take, with nobody waiting for an append."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import aiosqlite

from bench.competitors.base import Place, Workload, flushes
from bench.competitors.sqlite import layout
from bench.runner import Loop


class _Rows(NamedTuple):
    """The rows of one transaction: its events, and one head row for each session among them."""

    events: list[tuple[object, ...]]
    heads: list[tuple[object, ...]]


class AiosqliteBulk:
    """The same rows by executemany, 1,000 events a transaction. All rows are made before the clock starts."""

    label: ClassVar[str] = "aiosqlite in bulk (the ceiling)"
    loops: ClassVar[tuple[Loop, ...]] = ("asyncio", "uvloop")
    batches: ClassVar[bool] = True

    def __init__(self, place: Place, workload: Workload) -> None:
        self._place = place
        now_us = time.time_ns() // 1000
        self._transactions = [
            _Rows(
                [layout.event_row(index, seq, now_us) for index, seq in flush.events],
                [layout.head_row(index, seq, now_us, units=units) for index, (seq, units) in flush.heads.items()],
            )
            for flush in flushes(range(workload.sessions), workload.events_each)
        ]
        self._sessions = workload.sessions
        self._connection: aiosqlite.Connection | None = None

    async def setup(self) -> None:
        layout.create_database(self._place.folder, self._sessions)
        self._connection = await aiosqlite.connect(self._place.folder / layout.DATABASE)
        for pragma in layout.PRAGMAS:
            await self._connection.execute(pragma)

    async def run(self, latencies_s: list[float] | None) -> None:
        del latencies_s  # nobody waits for a single append here
        connection = self._connection
        assert connection is not None
        for rows in self._transactions:
            await connection.executemany(layout.INSERT_EVENT, rows.events)
            await connection.executemany(layout.UPDATE_HEAD, rows.heads)
            await connection.commit()

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    def stored(self) -> Sequence[int]:
        return layout.stored(self._place)
