"""The plain driver with one call per append."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import Any, ClassVar, Final

from bench.competitors.base import Place, Workload, await_appends
from bench.competitors.valkey import layout
from bench.runner import Loop

_CONNECTIONS: Final = 16

_APPEND: Final = "redis.call('SETRANGE', KEYS[1], 0, ARGV[1]) return redis.call('RPUSH', KEYS[2], ARGV[2])"


class RedisEach:
    """Event and head by a script of two commands: one call, one reply, and atomic, as Holdfast's commits are."""

    label: ClassVar[str] = "redis-py, a call per append"
    loops: ClassVar[tuple[Loop, ...]] = ("asyncio", "uvloop")
    batches: ClassVar[bool] = False

    def __init__(self, place: Place, workload: Workload) -> None:
        self._place = place
        self._workload = workload
        self._last_seq = [0] * workload.sessions
        self._heads = [layout.head_key(place, index) for index in range(workload.sessions)]
        self._client: Any = None
        self._script = ""

    async def setup(self) -> None:
        self._client = layout.new_client(self._place, self._workload.connections or _CONNECTIONS)
        await layout.create_sessions(self._place, self._client, self._workload.sessions)
        self._script = await self._client.script_load(_APPEND)

    async def run(self, latencies_s: list[float] | None) -> None:
        client, script, heads = self._client, self._script, self._heads

        def append(index: int) -> Awaitable[object]:
            seq = self._last_seq[index] = self._last_seq[index] + 1
            now_us = time.time_ns() // 1000
            row, entry = layout.head_row(index, seq, now_us), layout.event_entry(now_us)
            call: Awaitable[object] = client.evalsha(
                script, 2, heads[index], layout.event_key(heads[index]), row, entry
            )
            return call

        await await_appends(self._workload, latencies_s, append)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def stored(self) -> Sequence[int]:
        return layout.stored(self._place)
