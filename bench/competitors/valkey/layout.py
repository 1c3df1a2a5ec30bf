"""The values that the plain driver writes: the ones Holdfast would, under Holdfast's own keys."""

from __future__ import annotations

import time
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis

from bench.competitors.base import Place
from bench.payload import EVENT_TYPE, MESSAGE_JSON
from bench.runner import Void, run_on
from bench.urls import with_params
from holdfast.backends.base import Head, NewEvent
from holdfast.backends.redis.keys import Keys
from holdfast.backends.redis.rows import ROW, decode_head, encode_event, encode_head

__all__ = [
    "create_sessions",
    "event_entry",
    "event_key",
    "head_key",
    "head_row",
    "new_client",
    "remove",
    "scan",
    "store_url",
    "stored",
]

_FIRST_INCARNATION: Final = 1_800_000_000_000_000 << 12
_AT_ONCE: Final = 1_000


def store_url(place: Place) -> str:
    return with_params(place.url, prefix=place.name, durability=place.level)


def new_client(place: Place, connections: int = 1) -> Any:
    """The plain driver over so many connections; a call waits for one that is free."""
    pool: type[Any] = BlockingConnectionPool
    return Redis.from_pool(pool.from_url(place.url, max_connections=connections, timeout=None))


def head_key(place: Place, index: int) -> bytes:
    return Keys(place.name).head(_session_id(index))


def event_key(head: bytes) -> bytes:
    return head[:-1] + b"e"


def head_row(index: int, seq: int, time_us: int) -> bytes:
    """What an append rewrites of the head."""
    return encode_head(_head(index, seq, time_us))[: ROW.size]


def event_entry(time_us: int) -> bytes:
    return encode_event(NewEvent("", EVENT_TYPE, MESSAGE_JSON.encode(), None, time_us))


def _head(index: int, seq: int, time_us: int) -> Head:
    return Head(
        id=_session_id(index),
        incarnation=_FIRST_INCARNATION + (index << 12),
        owner=None,
        created_us=time_us,
        active_us=time_us,
        ttl_us=1_800_000_000,
        deadline_us=None,
        status="active",
        metadata=b"{}",
        first_seq=1,
        last_seq=seq,
        version=seq,
    )


def _session_id(index: int) -> str:
    return f"{index:036}"


async def create_sessions(place: Place, client: Any, sessions: int) -> None:
    now_us = time.time_ns() // 1000
    async with client.pipeline(transaction=False) as pipeline:
        for index in range(sessions):
            pipeline.set(head_key(place, index), encode_head(_head(index, 0, now_us)))
        await pipeline.execute()


def stored(place: Place) -> list[int]:
    """How many events each session has; see `Competitor.stored`."""
    return run_on("asyncio", _stored, place)


async def _stored(place: Place) -> list[int]:
    counts: list[int] = []
    async with new_client(place) as client:
        heads = await scan(client, f"{place.name}:*:h")
        for begin in range(0, len(heads), _AT_ONCE):
            async with client.pipeline(transaction=False) as pipeline:
                for key in heads[begin : begin + _AT_ONCE]:
                    pipeline.get(key)
                    pipeline.llen(event_key(key))
                answers = await pipeline.execute()
            for value, count in zip(answers[::2], answers[1::2], strict=True):
                head = decode_head("", value)
                if (head.first_seq, head.last_seq) != (1, count):
                    raise Void(f"a session at {head.last_seq} holds {count} events from {head.first_seq} on")
                counts.append(count)
    return counts


async def scan(client: Any, pattern: str) -> list[bytes]:
    """The keys that match."""
    return [key async for key in client.scan_iter(match=pattern, count=_AT_ONCE)]


def remove(place: Place) -> None:
    run_on("asyncio", _remove, place)


async def _remove(place: Place) -> None:
    async with new_client(place) as client:
        keys = await scan(client, f"{place.name}:*")
        for begin in range(0, len(keys), _AT_ONCE):
            await client.unlink(*keys[begin : begin + _AT_ONCE])
