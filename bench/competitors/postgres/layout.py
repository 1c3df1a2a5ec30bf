"""The rows that the plain driver writes: the ones Holdfast would, in Holdfast's own schema."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg  # type: ignore[import-untyped]

from bench.competitors.base import Place
from bench.payload import MESSAGE_JSON
from bench.runner import Void, run_on
from bench.urls import with_params
from holdfast.backends.postgres.names import Names
from holdfast.backends.postgres.schema import prepare

__all__ = [
    "DATA",
    "SETTINGS",
    "connect",
    "create_schema",
    "create_sessions",
    "driver",
    "incarnation",
    "names",
    "remove",
    "store_url",
    "stored",
]

driver: Final[Any] = asyncpg
"""It has no types."""

SETTINGS: Final = {"jit": "off", "enable_seqscan": "off"}
"""As Holdfast sets its own connections: a plan made while a table is small must not read all of it later."""

DATA: Final = MESSAGE_JSON.encode()

_FIRST_INCARNATION: Final = 1_800_000_000_000_000 << 12

_INSERT_SESSIONS: Final = (
    "INSERT INTO @sessions"
    " (incarnation, id, created_us, active_us, ttl_us, due_us, closed, metadata, first_seq, last_seq, version)"
    " SELECT i, lpad(i::text, 36, '0'), $2::bigint, $2, 1800000000, $2 + 1800000000, false, '{}', 1, 0, 0"
    " FROM unnest($1::bigint[]) AS i"
)
_STORED: Final = (
    "SELECT count(*), min(seq), max(seq), last_seq FROM @events JOIN @sessions USING (incarnation)"
    " GROUP BY incarnation, last_seq"
)


def store_url(place: Place) -> str:
    return with_params(place.url, schema=place.name, durability=place.level)


def names(place: Place) -> Names:
    return Names(place.name, "")


def incarnation(index: int) -> int:
    """As wide as a real one."""
    return _FIRST_INCARNATION + (index << 12)


@asynccontextmanager
async def connect(place: Place) -> AsyncGenerator[Any]:
    connection = await driver.connect(place.url, server_settings=SETTINGS)
    try:
        yield connection
    finally:
        await connection.close()


async def create_schema(place: Place) -> None:
    """An empty schema, for stores that make their own tables."""
    async with connect(place) as connection:
        await connection.execute(f'CREATE SCHEMA "{place.name}"')


async def create_sessions(place: Place, sessions: int) -> None:
    """Holdfast's tables and indexes, and ``sessions`` sessions."""
    async with connect(place) as connection:
        await prepare(connection, names(place), migrate=True)
        incarnations = [incarnation(index) for index in range(sessions)]
        await connection.execute(names(place).sql(_INSERT_SESSIONS), incarnations, time.time_ns() // 1000)


def stored(place: Place) -> list[int]:
    """How many events each session has; see `Competitor.stored`."""
    rows = run_on("asyncio", _fetch, place, names(place).sql(_STORED))
    for count, first, last, head in rows:
        if (first, last, head) != (1, count, count):
            raise Void(f"a session at {head} holds {count} events numbered {first} to {last}")
    return [row[0] for row in rows]


async def _fetch(place: Place, query: str) -> list[Any]:
    async with connect(place) as connection:
        return list(await connection.fetch(query))


def remove(place: Place) -> None:
    run_on("asyncio", _fetch, place, f'DROP SCHEMA IF EXISTS "{place.name}" CASCADE')
