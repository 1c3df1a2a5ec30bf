"""Pages of events that end before their limit, and look-ups of many ids."""

from __future__ import annotations

import pytest

from holdfast.backends.base import LoadRequest
from holdfast.backends.sqlite import reads
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head

pytestmark = pytest.mark.anyio


async def walk(direct: Direct, session_id: str, **query: object) -> tuple[list[int], int]:
    """The seqs of all pages, and how many pages there were."""
    head = await direct.head(session_id)
    seqs, after, pages = list[int](), 0, 0
    while True:
        page = await direct.page(head, after_seq=after, **query)
        pages += 1
        seqs += [event.seq for event in page.events]
        assert page.more is (page.scanned_seq < head.last_seq)
        after = page.scanned_seq
        if not page.more:
            return seqs, pages


@pytest.mark.parametrize("stream", [None, "a"])
async def test_page_that_ends_by_bytes_goes_on_where_it_ended(direct: Direct, stream: str | None) -> None:
    head = await direct.create("s")
    streams = ["a", "b", "a", "a", "b", "a"] * 5
    await direct.one(blind(head, events=[new_event("x" * 98, stream=name) for name in streams]))
    expected = [seq for seq, name in enumerate(streams, 1) if stream in (None, name)]
    assert await walk(direct, "s", stream=stream, max_bytes=200) == (expected, len(expected) // 2)
    assert await walk(direct, "s", stream=stream, max_bytes=1) == (expected, len(expected))


async def test_rare_stream_is_searched_in_steps(direct: Direct, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may come back empty, with more to look at: it has read its share."""
    monkeypatch.setattr(reads, "_SCANNED_EVENTS", 10)
    head = await direct.create("s")
    await direct.one(blind(head, events=[new_event(stream="rare" if n == 34 else "") for n in range(50)]))
    assert await walk(direct, "s", stream="rare", limit=5) == ([35], 5)
    assert [event.seq for event in (await direct.page(head, stream="rare", last=True, limit=5)).events] == [35]


async def test_more_ids_than_one_statement_takes(direct: Direct) -> None:
    names = [f"s{number}" for number in range(1_203)]
    await direct.commit(*(creation(new_head(name, 1), sets={"k": (b'"%b"' % name.encode(), 1)}) for name in names))
    asked = [*reversed(names), "unknown"]
    found = await direct.backend.load([LoadRequest(name) for name in asked])
    assert found[-1] is None
    values = [snapshot.state["k"].raw for snapshot in found if snapshot is not None and snapshot.state is not None]
    assert values == [b'"%b"' % name.encode() for name in reversed(names)]
