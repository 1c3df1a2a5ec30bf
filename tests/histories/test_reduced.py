"""What histories have found, reduced to one process: kept as tests of the engine."""

from __future__ import annotations

from typing import Any

import pytest

import holdfast
from holdfast.errors import EventGap

pytestmark = pytest.mark.anyio


async def first_after(session: holdfast.Session, event_id: str) -> Any:
    """What a new subscription with this cursor shows first; None: it says that there is a gap."""
    async with session.subscribe(after=event_id) as events:
        try:
            return (await anext(events)).data
        except EventGap:
            return None


async def test_a_cursor_of_dropped_events_is_a_gap_while_somebody_listens() -> None:
    """P7, CONFORMANCE 27. Seen as: an event given to a subscription after another process had dropped it."""
    async with holdfast.open("memory://") as store:
        session = await store.create()
        async with session.subscribe(after=holdfast.LATEST):
            events = [await session.append(number) for number in range(10)]
            assert await session.delete_events_before(events[8].id) == 8
            assert await first_after(session, events[0].id) is None


async def test_a_cursor_below_the_newest_n_is_a_gap_while_somebody_listens() -> None:
    """P9: reads never show more than ``max_events``."""
    async with holdfast.open("memory://", retention={"max_events": 3}) as store:
        session = await store.create()
        async with session.subscribe(after=holdfast.LATEST):
            events = [await session.append(number) for number in range(10)]
            assert await first_after(session, events[0].id) is None
