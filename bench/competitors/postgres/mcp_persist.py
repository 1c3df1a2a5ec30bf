"""mcp-persist's PostgreSQL event store: what one would add to an MCP server for resumable streams."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Final

from mcp_persist import PostgresEventStore
from mcp_types import JSONRPCNotification

from bench.competitors.base import Place, Workload, await_appends
from bench.competitors.postgres import layout
from bench.payload import MESSAGE
from bench.runner import Loop, run_on

_CONNECTIONS: Final = 20


class McpPersist:
    """A commit per event over a pool of 20; from 10, its default, to 80 the difference was within the noise.

    Its batching wrapper acknowledges before the commit, so it is left out. The message is built beforehand;
    the store makes its JSON.
    """

    label: ClassVar[str] = "mcp-persist"
    loops: ClassVar[tuple[Loop, ...]] = ("asyncio", "uvloop")
    batches: ClassVar[bool] = False

    def __init__(self, place: Place, workload: Workload) -> None:
        self._place = place
        self._workload = workload
        self._streams = [f"session-{index + 1}:_GET_stream" for index in range(workload.sessions)]
        self._message = JSONRPCNotification.model_validate(MESSAGE)
        self._resources = AsyncExitStack()
        self._store: PostgresEventStore | None = None

    async def setup(self) -> None:
        await layout.create_schema(self._place)
        size = self._workload.connections or _CONNECTIONS
        self._store = await self._resources.enter_async_context(
            PostgresEventStore.create(
                self._place.url,
                table_name=f"{self._place.name}.mcp_events",
                ttl=3600,
                min_size=size,
                max_size=size,
            )
        )

    async def run(self, latencies_s: list[float] | None) -> None:
        store, message, streams = self._store, self._message, self._streams
        assert store is not None

        def append(index: int) -> Awaitable[object]:
            return store.store_event(streams[index], message)

        await await_appends(self._workload, latencies_s, append)

    async def close(self) -> None:
        await self._resources.aclose()

    def stored(self) -> Sequence[int]:
        rows: list[Any] = run_on("asyncio", _counts, self._place)
        return [row[0] for row in rows]


async def _counts(place: Place) -> list[Any]:
    async with layout.connect(place) as connection:
        return list(await connection.fetch(f'SELECT count(*) FROM "{place.name}".mcp_events GROUP BY stream_id'))
