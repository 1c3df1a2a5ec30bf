"""The plain driver with one commit per append, over a pool of ten connections."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Final

from bench.competitors.base import Place, Workload, await_appends
from bench.competitors.postgres import layout
from bench.payload import EVENT_TYPE
from bench.runner import Loop

_CONNECTIONS: Final = 10

_APPEND: Final = (
    "WITH head AS ("
    "UPDATE @sessions SET last_seq = last_seq + 1, version = version + 1, active_us = $2"
    " WHERE incarnation = $1 RETURNING last_seq) "
    "INSERT INTO @events (incarnation, seq, stream, type, data, retry_ms, time_us)"
    " SELECT $1, last_seq, '', $3, $4, NULL, $2 FROM head RETURNING seq"
)


class AsyncpgEach:
    """The event row and the head row by one prepared statement, which is one transaction and one round trip.

    The pool does not reset a connection that comes back, as it does by default: that would be a second trip.
    """

    label: ClassVar[str] = "asyncpg, a commit per append, pool of 10"
    loops: ClassVar[tuple[Loop, ...]] = ("asyncio", "uvloop")
    batches: ClassVar[bool] = False

    def __init__(self, place: Place, workload: Workload) -> None:
        self._place = place
        self._workload = workload
        self._resources = AsyncExitStack()
        self._pool: Any = None

    async def setup(self) -> None:
        await layout.create_sessions(self._place, self._workload.sessions)
        size = self._workload.connections or _CONNECTIONS
        self._pool = await self._resources.enter_async_context(
            layout.driver.create_pool(
                self._place.url, min_size=size, max_size=size, reset=_leave_as_it_is, server_settings=layout.SETTINGS
            )
        )

    async def run(self, latencies_s: list[float] | None) -> None:
        pool, statement = self._pool, layout.names(self._place).sql(_APPEND)
        type_ = EVENT_TYPE.encode()

        def append(index: int) -> Awaitable[object]:
            now_us = time.time_ns() // 1000
            call: Awaitable[object] = pool.fetchval(statement, layout.incarnation(index), now_us, type_, layout.DATA)
            return call

        await await_appends(self._workload, latencies_s, append)

    async def close(self) -> None:
        await self._resources.aclose()

    def stored(self) -> Sequence[int]:
        return layout.stored(self._place)


async def _leave_as_it_is(_connection: object) -> None:
    pass
