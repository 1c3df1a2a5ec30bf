"""The plain driver in bulk: the ceiling of what the file can take, with nobody waiting for an append."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import aiosqlite

from bench.competitors import layout
from bench.competitors.base import Workload
from bench.runner import Loop

_TRANSACTION_EVENTS: Final = 1_000


class _Flush(NamedTuple):
    """The rows of one transaction: its events, and one head row for each session among them."""

    events: list[tuple[object, ...]]
    heads: list[tuple[object, ...]]


class AiosqliteBulk:
    """The same rows by executemany, 1,000 events a transaction. All rows are made before the clock starts."""

    label: ClassVar[str] = "aiosqlite in bulk (the ceiling)"
    loops: ClassVar[tuple[Loop, ...]] = ("asyncio", "uvloop")
    batches: ClassVar[bool] = True

    def __init__(self, folder: Path, workload: Workload) -> None:
        self._folder = folder
        self._flushes = list(_flushes(workload))
        self._sessions = workload.sessions
        self._connection: aiosqlite.Connection | None = None

    async def setup(self) -> None:
        layout.create_database(self._folder, self._sessions)
        self._connection = await aiosqlite.connect(self._folder / layout.DATABASE)
        for pragma in layout.PRAGMAS:
            await self._connection.execute(pragma)

    async def run(self, latencies_s: list[float] | None) -> None:
        del latencies_s  # nobody waits for a single append here
        connection = self._connection
        assert connection is not None
        for flush in self._flushes:
            await connection.executemany(layout.INSERT_EVENT, flush.events)
            await connection.executemany(layout.UPDATE_HEAD, flush.heads)
            await connection.commit()

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    def stored(self) -> Sequence[int]:
        return layout.stored(self._folder)


def _flushes(workload: Workload) -> Iterator[_Flush]:
    """Every session's first event, then every session's second, and so on, cut into transactions."""
    now_us = time.time_ns() // 1000
    for begin in range(0, workload.events, _TRANSACTION_EVENTS):
        places = range(begin, min(begin + _TRANSACTION_EVENTS, workload.events))
        events: list[tuple[object, ...]] = []
        appended: dict[int, list[int]] = {}
        for place in places:
            seq, index = place // workload.sessions + 1, place % workload.sessions
            events.append(layout.event_row(index, seq, now_us))
            appended.setdefault(index, []).append(seq)
        heads = [layout.head_row(index, seqs[-1], now_us, units=len(seqs)) for index, seqs in appended.items()]
        yield _Flush(events, heads)
