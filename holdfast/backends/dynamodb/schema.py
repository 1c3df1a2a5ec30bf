"""The table itself: made if that is asked for, else checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Final

from holdfast.backends.dynamodb.client import Table
from holdfast.errors import SchemaError, Unavailable

__all__ = ["create_table", "describe_table", "verify_table"]

_KEYS: Final = ("pk", "sk")
_INDEXES: Final[Mapping[str, tuple[str, str]]] = {"live": ("l", "i"), "owned": ("o", "i"), "due": ("e", "u")}
_TYPES: Final = {"pk": "S", "sk": "S", "l": "S", "o": "S", "e": "S", "i": "N", "u": "N"}
_TTL_ATTRIBUTE: Final = "ttl"
_POLL_S: Final = 0.5


def definition(name: str) -> dict[str, Any]:
    """What CreateTable is asked for; the same as in docs/dynamodb.md."""
    return {
        "TableName": name,
        "BillingMode": "PAY_PER_REQUEST",
        "KeySchema": _schema(_KEYS),
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": kind} for name, kind in _TYPES.items()],
        "GlobalSecondaryIndexes": [
            {"IndexName": index, "KeySchema": _schema(keys), "Projection": {"ProjectionType": "KEYS_ONLY"}}
            for index, keys in _INDEXES.items()
        ],
    }


def _schema(keys: tuple[str, str]) -> list[dict[str, str]]:
    return [{"AttributeName": name, "KeyType": kind} for name, kind in zip(keys, ("HASH", "RANGE"), strict=True)]


async def create_table(table: Table, timeout_s: float) -> None:
    """Make the table if it is not there, wait until it can be used, and switch native TTL on.

    Raises: `Unavailable`, `SchemaError`. A cancellation leaves a table that the next call takes up.
    """
    try:
        await describe_table(table)
    except SchemaError:
        await table.create(definition(table.name))
    give_up_at = time.monotonic() + timeout_s
    while not _is_active(await describe_table(table, may_be_missing=True)):
        if time.monotonic() > give_up_at:
            raise Unavailable(f"the new table is not active after {timeout_s:g} s")
        await asyncio.sleep(_POLL_S)
    await verify_table(table)
    answer = await table.call("DescribeTimeToLive", TableName=table.name)
    if answer["TimeToLiveDescription"].get("TimeToLiveStatus") not in ("ENABLED", "ENABLING"):
        wanted = {"Enabled": True, "AttributeName": _TTL_ATTRIBUTE}
        await table.call("UpdateTimeToLive", TableName=table.name, TimeToLiveSpecification=wanted)


async def describe_table(table: Table, *, may_be_missing: bool = False) -> dict[str, Any]:
    """Raises: `SchemaError` if there is none, unless it ``may_be_missing``: then it is as yet without facts."""
    try:
        answer = await table.call("DescribeTable", TableName=table.name)
    except SchemaError:
        if may_be_missing:
            return {}
        raise
    found: dict[str, Any] = answer["Table"]
    return found


async def verify_table(table: Table) -> None:
    """Raises: `SchemaError` if it is not there, or has not the keys and indexes that are needed."""
    found = await describe_table(table)
    types = {each["AttributeName"]: each["AttributeType"] for each in found.get("AttributeDefinitions", [])}
    schemas: dict[str, Any] = {each["IndexName"]: each["KeySchema"] for each in _indexes(found)}
    schemas[""] = found.get("KeySchema", [])
    for name, keys in {"": _KEYS, **_INDEXES}.items():
        what = f"the index {name!r}" if name else "the table"
        has: dict[str, str] = {each["KeyType"]: each["AttributeName"] for each in schemas.get(name, [])}
        if (has.get("HASH"), has.get("RANGE")) != keys or any(types.get(key) != _TYPES[key] for key in keys):
            raise SchemaError(f"{what} ({table.name!r}) is not there, or has not the keys {keys[0]!r} and {keys[1]!r}")


def _is_active(found: dict[str, Any]) -> bool:
    return found.get("TableStatus") == "ACTIVE" and all(each["IndexStatus"] == "ACTIVE" for each in _indexes(found))


def _indexes(found: dict[str, Any]) -> list[dict[str, Any]]:
    return found.get("GlobalSecondaryIndexes") or []
