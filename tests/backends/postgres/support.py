"""What the tests of the PostgreSQL backend share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import sniffio

from holdfast.backends.base import Batch, Marker, SessionWrite
from holdfast.backends.postgres import PostgresBackend, PostgresConfig
from holdfast.model import Durability
from holdfast.testing import ManualClock

__all__ = ["MakeBackend", "batch_of", "opened", "sql"]

MakeBackend = Callable[..., Awaitable[PostgresBackend]]


def batch_of(*writes: SessionWrite, marker: Marker, durability: Durability = Durability.MEMORY) -> Batch:
    now_us = ManualClock().now_us()
    return Batch(writes=writes, marker=marker, durability=durability, now_us=now_us, max_events=None)


@asynccontextmanager
async def opened(dsn: str, schema: str) -> AsyncIterator[MakeBackend]:
    """Makes open backends, and closes them all in the end."""
    async with AsyncExitStack() as stack:

        async def make(**settings: Any) -> PostgresBackend:
            backend = PostgresBackend(PostgresConfig(**({"dsn": dsn, "schema": schema} | settings)))
            stack.push_async_callback(backend.close)
            await backend.open()
            return backend

        yield make


async def sql(dsn: str, query: str, *values: object, fetch: bool = True) -> Any:
    """Run a statement beside the backend, on any event loop."""

    async def run() -> Any:
        connection = await asyncpg.connect(dsn, statement_cache_size=0)
        try:
            return await (connection.fetch(query, *values) if fetch else connection.execute(query))
        finally:
            await connection.close()

    if sniffio.current_async_library() == "asyncio":
        return await run()
    import trio

    return await trio.to_thread.run_sync(lambda: asyncio.run(run()))
