"""mcp-persist's SQLite event store: what one would add to an MCP server for resumable streams."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Sequence
from contextlib import AsyncExitStack, closing
from typing import ClassVar

from mcp_persist import SQLiteEventStore
from mcp_types import JSONRPCNotification

from bench.competitors.base import Place, Workload, await_appends
from bench.payload import MESSAGE
from bench.runner import Loop

_DATABASE = "mcp-persist.db"


class McpPersist:
    """One durable store (a commit per event, its default), all sessions at once.

    That is its best concurrency: the inserts of many callers land in one transaction, which the first of
    their commits makes durable. Fewer callers at once, or a second connection, were slower. Its write-behind mode
    acknowledges before the commit, so it is left out. The message is built beforehand; the store makes its JSON.
    """

    label: ClassVar[str] = "mcp-persist"
    loops: ClassVar[tuple[Loop, ...]] = ("asyncio", "uvloop")
    batches: ClassVar[bool] = False

    def __init__(self, place: Place, workload: Workload) -> None:
        self._path = place.folder / _DATABASE
        self._workload = workload
        self._streams = [f"session-{index + 1}:_GET_stream" for index in range(workload.sessions)]
        self._message = JSONRPCNotification.model_validate(MESSAGE)
        self._resources = AsyncExitStack()
        self._store: SQLiteEventStore | None = None

    async def setup(self) -> None:
        self._store = await self._resources.enter_async_context(SQLiteEventStore.create(str(self._path), ttl=3600))

    async def run(self, latencies_s: list[float] | None) -> None:
        store, message, streams = self._store, self._message, self._streams
        assert store is not None

        def append(index: int) -> Awaitable[object]:
            return store.store_event(streams[index], message)

        await await_appends(self._workload, latencies_s, append)

    async def close(self) -> None:
        await self._resources.aclose()

    def stored(self) -> Sequence[int]:
        with closing(sqlite3.connect(self._path)) as connection:
            rows: list[tuple[int]] = connection.execute("SELECT count(*) FROM mcp_events GROUP BY stream_id").fetchall()
        return [count for (count,) in rows]
