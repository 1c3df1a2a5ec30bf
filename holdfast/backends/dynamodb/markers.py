"""Markers of batches without writes, which leave no trace in any session.

The engine makes none, but somebody who wants to know whether two places are one store does. They
are the only items that belong to no session.
"""

from __future__ import annotations

from typing import Any, Final

from holdfast.backends.base import Batch, Marker
from holdfast.backends.dynamodb.client import Table
from holdfast.backends.dynamodb.items import Item, key_of, lane_name

__all__ = ["forget_markers", "has_marker", "leave_marker"]

_PARTITION: Final = " markers"
"""No session's: an id has no space in it."""
_LIFE_S: Final = 86_400


def _key(writer: str, lane: int) -> Item:
    return key_of(_PARTITION, lane_name(writer, lane).hex())


async def leave_marker(table: Table, batch: Batch) -> None:
    writer, lane, flush = batch.marker
    now_s = batch.now_us // 1_000_000
    fields: Any = {"w": {"S": writer}, "f": {"N": str(flush)}, "t": {"N": str(batch.now_us)}}
    item = _key(writer, lane) | fields | {"ttl": {"N": str(now_s + _LIFE_S)}}
    await table.call("PutItem", writes=True, TableName=table.name, Item=item)


async def has_marker(table: Table, marker: Marker) -> bool:
    key = _key(marker.writer, marker.lane)
    answer = await table.call("GetItem", TableName=table.name, Key=key, ConsistentRead=True)
    return bool(answer.get("Item")) and int(answer["Item"]["f"]["N"]) == marker.flush


async def forget_markers(table: Table, writer: str | None, before_us: int) -> None:
    async for page in table.range(_PARTITION, " ", "~"):
        keys = [
            {"pk": item["pk"], "sk": item["sk"]}
            for item in page
            if item["w"]["S"] == writer or int(item["t"]["N"]) < before_us
        ]
        await table.delete_items(keys)
