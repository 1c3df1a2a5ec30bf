"""The plain driver in bulk: the ceiling of what the database can take, with nobody waiting for an append."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Final

import anyio

from bench.competitors.base import Flush, Place, Workload, flushes
from bench.competitors.postgres import layout
from bench.payload import EVENT_TYPE
from bench.runner import Loop

_CONNECTIONS: Final = 2

_TRANSACTION: Final = (
    "WITH new AS ("
    "INSERT INTO @events (incarnation, seq, stream, type, data, retry_ms, time_us)"
    " SELECT e.*, NULL, $6 FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bytea[], $5::bytea[]) AS e) "
    "UPDATE @sessions AS s SET last_seq = h.seq, version = s.version + h.units, active_us = $6"
    " FROM unnest($7::bigint[], $8::bigint[], $9::bigint[]) AS h (incarnation, seq, units)"
    " WHERE s.incarnation = h.incarnation"
)


class AsyncpgBulk:
    """The same rows by ``unnest``, 500 events a transaction, over two connections that share no session.

    A transaction is one prepared statement. All arguments are made before the clock starts.
    """

    label: ClassVar[str] = "asyncpg in bulk (the ceiling)"
    loops: ClassVar[tuple[Loop, ...]] = ("asyncio", "uvloop")
    batches: ClassVar[bool] = True

    def __init__(self, place: Place, workload: Workload) -> None:
        self._place = place
        self._sessions = workload.sessions
        count = min(workload.connections or _CONNECTIONS, workload.sessions)
        shares = [range(number, workload.sessions, count) for number in range(count)]
        self._shares = [
            [_arguments(flush) for flush in flushes(share, workload.events_each, connections=count)] for share in shares
        ]
        self._connections: list[Any] = []
        self._resources = AsyncExitStack()

    async def setup(self) -> None:
        await layout.create_sessions(self._place, self._sessions)
        for _ in self._shares:
            connection = await self._resources.enter_async_context(layout.connect(self._place))
            self._connections.append(connection)

    async def run(self, latencies_s: list[float] | None) -> None:
        del latencies_s  # nobody waits for a single append here
        statement = layout.names(self._place).sql(_TRANSACTION)

        async def load(connection: Any, transactions: Sequence[tuple[object, ...]]) -> None:
            for arguments in transactions:
                await connection.execute(statement, *arguments)

        async with anyio.create_task_group() as tasks:
            for connection, share in zip(self._connections, self._shares, strict=True):
                tasks.start_soon(load, connection, share)

    async def close(self) -> None:
        await self._resources.aclose()

    def stored(self) -> Sequence[int]:
        return layout.stored(self._place)


def _arguments(flush: Flush) -> tuple[object, ...]:
    """Of `_TRANSACTION`."""
    count = len(flush.events)
    return (
        [layout.incarnation(index) for index, _ in flush.events],
        [seq for _, seq in flush.events],
        [b""] * count,
        [EVENT_TYPE.encode()] * count,
        [layout.DATA] * count,
        time.time_ns() // 1000,
        [layout.incarnation(index) for index in flush.heads],
        [seq for seq, _ in flush.heads.values()],
        [units for _, units in flush.heads.values()],
    )
