"""The plain driver, one transaction per append: what one writes before one needs a session store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

import aiosqlite
import anyio

from bench.competitors.base import Place, Workload, await_appends
from bench.competitors.sqlite import layout
from bench.runner import Loop


class AiosqliteEach:
    """The event row and the head row in one transaction per append, by the driver's public calls (three of them).

    One connection: SQLite has one writer, and a lock in the process is cheaper than a lock on the file.
    """

    label: ClassVar[str] = "aiosqlite, a commit per append"
    loops: ClassVar[tuple[Loop, ...]] = ("asyncio", "uvloop")
    batches: ClassVar[bool] = False

    def __init__(self, place: Place, workload: Workload) -> None:
        self._place = place
        self._workload = workload
        self._last_seq = [0] * workload.sessions
        self._lock = anyio.Lock()
        self._connection: aiosqlite.Connection | None = None

    async def setup(self) -> None:
        layout.create_database(self._place.folder, self._workload.sessions)
        self._connection = await aiosqlite.connect(self._place.folder / layout.DATABASE)
        for pragma in layout.PRAGMAS:
            await self._connection.execute(pragma)

    async def run(self, latencies_s: list[float] | None) -> None:
        connection = self._connection
        assert connection is not None

        async def append(index: int) -> None:
            async with self._lock:
                seq = self._last_seq[index] + 1
                now_us = time.time_ns() // 1000
                await connection.execute(layout.INSERT_EVENT, layout.event_row(index, seq, now_us))
                await connection.execute(layout.UPDATE_HEAD, layout.head_row(index, seq, now_us))
                await connection.commit()
                self._last_seq[index] = seq

        await await_appends(self._workload, latencies_s, append)

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    def stored(self) -> Sequence[int]:
        return layout.stored(self._place)
