"""A table for the plain driver: a head item and an item for each event, as one would lay it out by hand."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final

from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]

import holdfast
from bench.competitors.base import Place
from bench.payload import EVENT_TYPE, MESSAGE_JSON
from bench.runner import Void, run_on
from bench.urls import with_params

__all__ = [
    "create_table",
    "event_put",
    "head_update",
    "new_client",
    "remove",
    "store_url",
    "stored",
    "stored_plainly",
]

_KEYS: Final = (("pk", "HASH"), ("sk", "RANGE"))
_HEAD: Final = "H"


def store_url(place: Place) -> str:
    return with_params(f"dynamodb://{place.name}", endpoint=place.url, create="true", durability=place.level)


@asynccontextmanager
async def new_client(place: Place, connections: int = 10) -> AsyncGenerator[Any]:
    """The plain driver; like Holdfast's it does not check parameters, which costs time."""
    config = AioConfig(max_pool_connections=connections, parameter_validation=False, tcp_keepalive=True)
    session: Any = AioSession()
    async with session.create_client("dynamodb", endpoint_url=place.url, config=config) as client:
        yield client


async def create_table(place: Place, client: Any) -> None:
    await client.create_table(
        TableName=place.name,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": name, "KeyType": kind} for name, kind in _KEYS],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name, _ in _KEYS],
    )
    await client.get_waiter("table_exists").wait(TableName=place.name, WaiterConfig={"Delay": 1})


def event_put(place: Place, index: int, seq: int) -> dict[str, Any]:
    """Parameters of PutItem: what Holdfast keeps of an event."""
    item = {
        **_key(index, f"E#{seq:019}"),
        "y": {"S": EVENT_TYPE},
        "d": {"B": MESSAGE_JSON.encode()},
        "t": {"N": str(time.time_ns() // 1000)},
    }
    return {"TableName": place.name, "Item": item}


def head_update(place: Place, index: int) -> dict[str, Any]:
    """Parameters of UpdateItem: one event more, and the session's last activity."""
    values = {":now": {"N": str(time.time_ns() // 1000)}, ":one": {"N": "1"}}
    return {
        "TableName": place.name,
        "Key": _key(index, _HEAD),
        "UpdateExpression": "SET active_us = :now ADD last_seq :one, version :one",
        "ExpressionAttributeValues": values,
    }


def _key(index: int, sort_key: str) -> dict[str, Any]:
    return {"pk": {"S": f"{index:036}"}, "sk": {"S": sort_key}}


def stored_plainly(place: Place) -> list[int]:
    """How many events each session of the plain driver's has; see `Competitor.stored`."""
    return run_on("asyncio", _stored_plainly, place)


async def _stored_plainly(place: Place) -> list[int]:
    counts: Counter[str] = Counter()
    heads: dict[str, int] = {}
    async with new_client(place) as client:
        async for page in client.get_paginator("scan").paginate(TableName=place.name, ConsistentRead=True):
            for item in page["Items"]:
                if item["sk"]["S"] == _HEAD:
                    heads[item["pk"]["S"]] = int(item["last_seq"]["N"])
                else:
                    counts[item["pk"]["S"]] += 1
    if counts != Counter(heads):
        raise Void("heads and events do not agree")
    return list(counts.values())


def stored(place: Place) -> list[int]:
    """The same of Holdfast's, read by a Holdfast that has just been opened: its items are packed."""
    return run_on("asyncio", _stored, place)


async def _stored(place: Place) -> list[int]:
    counts: list[int] = []
    async with holdfast.open(store_url(place)) as store:
        async for info in store.scan():
            session = await store.require(info.id)
            seqs = [event.seq async for event in session.replay()]
            if seqs != list(range(1, info.last_seq + 1)):
                raise Void(f"a session at {info.last_seq} holds {len(seqs)} events")
            counts.append(len(seqs))
    return counts


def remove(place: Place) -> None:
    run_on("asyncio", _remove, place)


async def _remove(place: Place) -> None:
    async with new_client(place) as client:
        await client.delete_table(TableName=place.name)
