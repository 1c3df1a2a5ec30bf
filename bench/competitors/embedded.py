"""Holdfast itself, as a server would use it: default settings, at the durability that everybody is held to."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from typing import ClassVar

import anyio

import holdfast
from bench.competitors.base import Place, Workload, await_appends
from bench.payload import EVENT_TYPE, MESSAGE
from bench.runner import LOOPS, Loop

__all__ = ["Embedded", "create_sessions"]

_CREATED_AT_ONCE = 100


class Embedded:
    """On any store; the ones below say on which."""

    label: ClassVar[str] = "holdfast"
    loops: ClassVar[tuple[Loop, ...]] = LOOPS
    batches: ClassVar[bool] = True

    def __init__(self, place: Place, workload: Workload) -> None:
        self.place = place
        self.workload = workload
        self.sessions: list[holdfast.Session] = []
        self._resources = AsyncExitStack()

    def url(self) -> str:
        """With the durability: one that the store cannot promise is an error as it is opened."""
        raise NotImplementedError

    def stored(self) -> Sequence[int]:
        raise NotImplementedError

    async def setup(self) -> None:
        store = await self._resources.enter_async_context(holdfast.open(self.url()))
        self.sessions = await create_sessions(store, self.workload.sessions)

    async def run(self, latencies_s: list[float] | None) -> None:
        sessions = self.sessions

        def append(index: int) -> Awaitable[object]:
            return sessions[index].append(MESSAGE, type=EVENT_TYPE)

        await await_appends(self.workload, latencies_s, append)

    async def close(self) -> None:
        await self._resources.aclose()


async def create_sessions(store: holdfast.Supervisor, count: int) -> list[holdfast.Session]:
    """So many new sessions, made many at a time."""
    sessions: list[holdfast.Session] = []

    async def create(share: int) -> None:
        sessions.extend([await store.create() for _ in range(share)])

    async with anyio.create_task_group() as tasks:
        for number in range(_CREATED_AT_ONCE):
            tasks.start_soon(create, len(range(number, count, _CREATED_AT_ONCE)))
    return sessions
