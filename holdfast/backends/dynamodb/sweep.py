"""Removing what no reader can see any more, in steps of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from holdfast.backends.dynamodb.client import Table
from holdfast.backends.dynamodb.items import Item, Stored, event_prefix, state_prefix
from holdfast.backends.dynamodb.plan import rewritten

__all__ = ["bury", "delete_range", "sweep_up"]

_LAST: Final = "~"
"""Sorts behind all that our keys have in that place."""


async def sweep_up(table: Table, stored: Stored, limit: int) -> int:
    """Delete up to about ``limit`` items of earlier lives and generations; of a dead session, all.

    How many were deleted: fewer than ``limit`` means that nothing is left. A cancellation leaves some.
    """
    deleted = 0
    for low, high in _debris(stored):
        if deleted >= limit:
            break
        deleted += await delete_range(table, stored.id, low, high, limit - deleted)
    return deleted


async def bury(table: Table, stored: Stored) -> Stored:
    """Note that a tombstone has nothing left beside it. Raises: as `Table.put_head`."""
    buried = rewritten(stored, debris=False)
    await table.put_head(buried, stored)
    return buried


def _debris(stored: Stored) -> Iterator[tuple[str, str]]:
    """The ranges of keys in which everything is debris."""
    if stored.record.dead:
        yield "E#", "E" + _LAST
        yield "S#", "S" + _LAST
        return
    events = event_prefix(stored.incarnation)
    state = state_prefix(stored.incarnation, stored.record.generation)
    for own in (events, state):
        yield own[:2], own
        yield own + _LAST, own[0] + _LAST


async def delete_range(table: Table, session_id: str, low: str, high: str, limit: int) -> int:
    """Delete up to about ``limit`` items with sort keys from ``low`` to ``high``, by ascending key."""
    deleted = 0
    async for page in table.range(session_id, low, high, ProjectionExpression="pk, sk", Limit=max(limit, 1)):
        await table.delete_items([_key(item) for item in page])
        deleted += len(page)
        if deleted >= limit:
            break
    return deleted


def _key(item: Item) -> Item:
    return {"pk": item["pk"], "sk": item["sk"]}
