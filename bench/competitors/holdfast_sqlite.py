"""Holdfast itself, on SQLite at durability ``disk``, as a server would use it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import ClassVar

import anyio

import holdfast
from bench.competitors import layout
from bench.competitors.base import Workload, await_appends
from bench.payload import EVENT_TYPE, MESSAGE
from bench.runner import LOOPS, Loop


class HoldfastSqlite:
    """Default settings, the file shared (other processes may write too)."""

    label: ClassVar[str] = "holdfast"
    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    batches: ClassVar[bool] = True

    def __init__(self, folder: Path, workload: Workload) -> None:
        self._folder = folder
        self._workload = workload
        self._sessions: list[holdfast.Session] = []
        self._resources = AsyncExitStack()

    async def setup(self) -> None:
        url = f"sqlite:///{self._folder / layout.DATABASE}"
        store = await self._resources.enter_async_context(holdfast.open(url, durability=holdfast.Durability.DISK))

        async def create() -> None:
            self._sessions.append(await store.create())

        async with anyio.create_task_group() as tasks:
            for _ in range(self._workload.sessions):
                tasks.start_soon(create)

    async def run(self, latencies_s: list[float] | None) -> None:
        sessions = self._sessions

        def append(index: int) -> Awaitable[object]:
            return sessions[index].append(MESSAGE, type=EVENT_TYPE)

        await await_appends(self._workload, latencies_s, append)

    async def close(self) -> None:
        await self._resources.aclose()

    def stored(self) -> Sequence[int]:
        return layout.stored(self._folder)
