"""The standard library's driver, called in the event loop's own thread: no hop, and the loop stands still."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import ClassVar

from bench.competitors.base import Place, Workload, await_appends
from bench.competitors.sqlite import layout
from bench.runner import LOOPS, Loop


class Sqlite3Inline:
    """The event row and the head row in one transaction per append. No server may do this: it is the floor."""

    label: ClassVar[str] = "sqlite3 in the loop's thread"
    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    batches: ClassVar[bool] = False

    def __init__(self, place: Place, workload: Workload) -> None:
        self._place = place
        self._workload = workload
        self._last_seq = [0] * workload.sessions
        self._connection: sqlite3.Connection | None = None

    async def setup(self) -> None:
        layout.create_database(self._place.folder, self._workload.sessions)
        self._connection = sqlite3.connect(self._place.folder / layout.DATABASE)
        for pragma in layout.PRAGMAS:
            self._connection.execute(pragma)

    async def run(self, latencies_s: list[float] | None) -> None:
        connection = self._connection
        assert connection is not None

        async def append(index: int) -> None:
            seq = self._last_seq[index] = self._last_seq[index] + 1
            now_us = time.time_ns() // 1000
            with connection:
                connection.execute(layout.INSERT_EVENT, layout.event_row(index, seq, now_us))
                connection.execute(layout.UPDATE_HEAD, layout.head_row(index, seq, now_us))

        await await_appends(self._workload, latencies_s, append)

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def stored(self) -> Sequence[int]:
        return layout.stored(self._place)
