"""Journals: what is where, and what becomes of it when several instances use the same sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from holdfast.backends.base import SessionFilter, Status
from holdfast.backends.dynamodb import DynamoDBBackend, journals
from holdfast.backends.dynamodb.items import Item
from holdfast.backends.dynamodb.journal import LIVE, SLOTS, partition
from holdfast.backends.dynamodb.journals import JOINS_AFTER, MEMBERS
from holdfast.errors import OutcomeUnknown
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, fenced, new_event, texts
from tests.backends.dynamodb.journals.support import (
    IDS,
    Crowd,
    head_item,
    journals_of,
    puts,
    slots,
)  # fmt: skip
from tests.servers.http_proxy import Failing, HttpProxy

pytestmark = pytest.mark.anyio


# --- what is where -----------------------------------------------------------


async def test_a_flush_is_one_put(crowd: Crowd, proxy: HttpProxy, backend: DynamoDBBackend, second: Direct) -> None:
    before = puts(proxy)
    await crowd.append()
    assert puts(proxy) == before + 1
    [journal] = journals_of(backend)
    assert len(journal.members) == 10
    item = await head_item(backend, "s0")
    assert item["g"]["S"].startswith(journal.id)
    assert "ttl" not in item, "it would be removed while its touches are in the journal"
    await crowd.check(second)


async def test_a_journal_is_full_at_some_time(direct: Direct, second: Direct, backend: DynamoDBBackend) -> None:
    """Also of those that join in one flush: AWS bounds what one journal can take."""
    heads = [await direct.create(f"m{number}") for number in range(2 * MEMBERS + 20)]
    crowd = Crowd(direct, heads)
    await crowd.append(JOINS_AFTER + 3, only=len(heads))
    assert sorted(len(journal.members) for journal in journals_of(backend)) == [20, MEMBERS, MEMBERS]
    assert not any(journal.joining for journal in journals_of(backend))
    await crowd.check(second)


async def test_heads_are_written_now_and_then(crowd: Crowd, proxy: HttpProxy, backend: DynamoDBBackend) -> None:
    await crowd.append(3 * SLOTS)
    before = puts(proxy)
    await crowd.append(64)
    assert 64 + 10 * 3 <= puts(proxy) - before <= 64 + 10 * 2 * 5, "each head every 16th; its tail when it is full"
    await crowd.check(crowd.direct)


async def test_a_ring_goes_round(crowd: Crowd, backend: DynamoDBBackend, second: Direct) -> None:
    """Those that are written to no more have left it before their entries are overwritten."""
    [journal] = journals_of(backend)
    await crowd.append(LIVE - 5, only=8)
    assert len(journal.members) == 10
    for _ in range(3 * SLOTS):
        await crowd.append(only=8)
        oldest = min(member.since or SLOTS * 9 for member in journal.members.values())
        assert oldest > journal.position - LIVE, "the slots before it may be used for an end"
        page = await second.backend.list_sessions(SessionFilter(crowd.direct.clock.now_us()), -1, 100)
        assert {head.id: head.last_seq for head in page.heads} == {
            key: len(acked) for key, acked in crowd.acked.items()
        }
    assert len(journal.members) == 8
    assert len(await slots(backend, journal.id)) == SLOTS
    assert "ttl" in await head_item(backend, "s9")
    await crowd.check(crowd.direct)
    await crowd.check(second)


async def test_state_and_events_of_a_unit_stay_together(crowd: Crowd, proxy: HttpProxy, second: Direct) -> None:
    before = puts(proxy)
    await crowd.append(sets={"k": (b"1", 1), "l": (b"2", 1)})
    await crowd.append(sets={"k": (b"3", 1)}, removes={"l"})
    assert puts(proxy) == before + 2
    assert await second.state("s3") == {"k": b"3"}
    assert await second.versions("s3") == {"k": len(crowd.acked["s3"]) + 1}
    await crowd.check(second)


async def test_what_does_not_fit_goes_to_the_heads(crowd: Crowd, second: Direct, backend: DynamoDBBackend) -> None:
    """Large values and events, metadata, ends: in one flush with others that do fit."""
    head = {each.id: each for each in crowd.heads}
    big = b'"%s"' % (b"x" * 2_000)
    outcomes = await crowd.direct.commit(
        blind(head["s0"], sets={"k": (big, 1)}),
        blind(head["s1"], events=[new_event("y" * 9_000)]),
        blind(head["s2"], metadata=b'{"a":1}'),
        blind(head["s3"], close=True),
        blind(head["s4"], delete=True),
        fenced(head["s5"], sets={"k": (b"1", 1)}),
        *(blind(head[each], events=[new_event("6")]) for each in IDS[6:]),
    )
    assert [outcome.status for outcome in outcomes] == [Status.COMMITTED] * 5 + [Status.CONFLICT] + [
        Status.COMMITTED
    ] * 4
    assert await second.state("s0") == {"k": big}
    assert len((await second.events(head["s1"]))[-1].raw) == 9_002
    assert (await second.head("s2")).metadata == b'{"a":1}'
    assert (await second.head("s3")).status == "closed"
    assert not await second.exists("s4")
    assert await second.state("s5") == {}
    assert texts(await second.events(head["s6"])) == [*crowd.acked["s6"], "6"]


async def test_max_events_holds_in_journals(crowd: Crowd, second: Direct) -> None:
    for number in range(40):
        await crowd.direct.commit(*(blind(head, events=[new_event(str(number))]) for head in crowd.heads), max_events=3)
    for reader in (crowd.direct, second):
        assert texts(await reader.events(crowd.heads[0])) == ["37", "38", "39"]


async def test_few_sessions_and_lone_ones_do_without(crowd: Crowd, proxy: HttpProxy, backend: DynamoDBBackend) -> None:
    """A lone append stays one PutItem, of the head, which is then complete."""
    proxy.actions.clear()
    await crowd.append(only=1)
    assert puts(proxy) <= 2
    assert "g" not in await head_item(backend, "s0")
    assert "g" in await head_item(backend, "s1")


async def test_closing_leaves_no_ring(
    crowd: Crowd, backend: DynamoDBBackend, other: DynamoDBBackend, second: Direct
) -> None:
    [journal] = journals_of(backend)
    await crowd.append(2 * SLOTS)
    await backend.close()
    assert await slots(other, journal.id) == []
    for each in IDS:
        assert "g" not in await head_item(other, each)
    await crowd.check(second)


# --- several instances -------------------------------------------------------


async def test_another_instance_takes_over(crowd: Crowd, backend: DynamoDBBackend, second: Direct) -> None:
    """As after the owner's death; and the owner, which is not dead, goes on from there, in a new journal."""
    [journal] = journals_of(backend)
    await crowd.append(SLOTS + 5)
    await crowd.check(second)
    theirs = Crowd(second, crowd.heads)
    theirs.acked = crowd.acked
    await theirs.append(5)
    assert journals_of(backend) == [journal], "it has not noticed yet"
    await crowd.append(SLOTS + 5)
    assert journal not in journals_of(backend)
    await theirs.append(3)
    await crowd.append(3)
    await crowd.check(second)
    await crowd.check(crowd.direct)


async def test_a_journal_that_has_nothing_yet(direct: Direct, backend: DynamoDBBackend, second: Direct) -> None:
    """The heads point to it, and its owner is about to put: an empty ring does not mean that it is done with."""
    crowd = Crowd(direct, [await direct.create(each) for each in IDS])
    await crowd.append(journals.JOINS_AFTER)
    [journal] = journals_of(backend)
    assert journal.position == 0
    assert len(journal.members) == 10
    await second.head("s0")
    theirs = Crowd(second, crowd.heads)
    theirs.acked = crowd.acked
    await theirs.append(2)
    await crowd.append(2)
    await crowd.check(second)


async def test_a_transaction_is_named_by_its_place_too(crowd: Crowd, proxy: HttpProxy, second: Direct) -> None:
    """Sent again when the journal has got further, it is another one, and its condition tells."""
    big = "x" * 5_000
    proxy.inject(Failing.RESET_AFTER, "TransactWriteItems", times=1)
    proxy.inject(Failing.EXPIRED, "TransactWriteItems", times=1)
    writes = [blind(head, events=[new_event(big if head.id == "s0" else "y")]) for head in crowd.heads]
    with pytest.raises(OutcomeUnknown):
        await crowd.direct.commit(*writes)
    marker = crowd.direct.last_marker
    third = Direct(second.backend, second.clock, "third")
    await third.head("s1")
    await Direct(crowd.direct.backend, second.clock, "fourth").commit(
        *(blind(head, events=[new_event("z")]) for head in crowd.heads[1:])
    )
    outcomes = await crowd.direct.backend.resolve(marker)
    assert outcomes is not None
    assert {outcome.status for outcome in outcomes} == {Status.COMMITTED}
    assert texts(await second.events(crowd.heads[0])) == [*crowd.acked["s0"], big]


async def test_an_owner_that_was_overtaken_reads_what_is_there(crowd: Crowd, second: Direct) -> None:
    head = crowd.heads[0]
    await second.append(await second.head("s0"), "theirs")
    assert texts(await crowd.direct.events(head)) == [*crowd.acked["s0"], "theirs"]
    assert texts(await crowd.direct.events(crowd.heads[1])) == crowd.acked["s1"]


async def test_a_session_that_is_used_elsewhere_rests(
    crowd: Crowd, backend: DynamoDBBackend, second: Direct, clock: ManualClock
) -> None:
    await second.head("s0")
    await crowd.append(6)
    [journal] = journals_of(backend)
    assert set(journal.members) == set(IDS) - {"s0"}
    await clock.advance(journals.REST_S + 1)
    await crowd.append(6)
    assert set(journal.members) == set(IDS)
    await second.head("s0")
    await crowd.append(2)
    await clock.advance(journals.REST_S + 1)
    await crowd.append(6)
    [journal] = journals_of(backend)
    assert set(journal.members) == set(IDS) - {"s0"}, "twice as long"


async def test_the_end_of_a_busy_journal(crowd: Crowd, other: DynamoDBBackend, second: Direct) -> None:
    """The owner puts while the other looks for a place; both see all, and nothing is lost."""
    stop = False

    async def work() -> None:
        while not stop:
            await crowd.append()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        for _ in range(12):
            await anyio.sleep(0.05)
            for head in crowd.heads[:3]:
                known = len(crowd.acked[head.id])
                assert len(await second.events(head)) >= known
        stop = True
    await crowd.check(second)


@pytest.mark.parametrize("ahead", [2, 5])
async def test_an_end_that_was_put_ahead_and_left_so(
    crowd: Crowd, backend: DynamoDBBackend, other: DynamoDBBackend, second: Direct, ahead: int
) -> None:
    """Its author died before the gap was closed: the journal goes on to there, and readers are not taken in."""
    from holdfast.backends.dynamodb.journal import end_item

    [journal] = journals_of(backend)
    end = end_item(journal.id, journal.position + ahead, 0, ["s0"])
    await other._table.put_slot(end, None)
    await crowd.append()
    assert journal in journals_of(backend)
    await crowd.check(second)
    await crowd.append(10)
    assert journal not in journals_of(backend)
    await crowd.check(second)


@pytest.mark.parametrize("puts", [1, 4, 20])
async def test_an_owner_that_is_faster_is_ended_ahead(
    crowd: Crowd, other: DynamoDBBackend, second: Direct, monkeypatch: pytest.MonkeyPatch, puts: int
) -> None:
    """It takes the place that was meant for the end; the gap before the next one is closed."""
    original = other._table.put_slot
    left = [puts, 1]

    async def late(item: Item, previous: int | None) -> None:
        if left:
            await crowd.append(left.pop(0))
        await original(item, previous)

    monkeypatch.setattr(other._table, "put_slot", late)
    theirs = Crowd(second, crowd.heads)
    theirs.acked = crowd.acked
    await second.head("s0")
    assert not left
    await theirs.append()
    await crowd.append(2)
    await crowd.check(second)


async def test_two_lanes_of_one_object(crowd: Crowd, backend: DynamoDBBackend, second: Direct) -> None:
    """With the same sessions at the same time, which the engine never does."""

    async def work(name: str, only: slice) -> None:
        lane = Direct(backend, crowd.direct.clock, name)
        for number in range(30):
            writes = [blind(head, events=[new_event(f"{name} {number}")]) for head in crowd.heads[only]]
            assert {outcome.status for outcome in await lane.commit(*writes)} == {Status.COMMITTED}

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, "a", slice(0, 10))
        tasks.start_soon(work, "b", slice(0, 10))
        tasks.start_soon(work, "c", slice(0, 3))
    for head in crowd.heads[:3]:
        events = await second.events(head)
        found = texts(events)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert sorted(found[len(crowd.acked[head.id]) :]) == sorted(f"{name} {n}" for name in "abc" for n in range(30))


async def test_lists_and_counts_leave_journals_alone(
    crowd: Crowd, backend: DynamoDBBackend, other: DynamoDBBackend, second: Direct, clock: ManualClock
) -> None:
    [journal] = journals_of(backend)
    await crowd.append(2 * SLOTS)
    assert await second.listed(page=3) == IDS
    assert await other.count_sessions(SessionFilter(clock.now_us())) == 10
    page = await other.list_sessions(SessionFilter(clock.now_us()), -1, 100)
    assert [head.last_seq for head in page.heads] == [len(crowd.acked[each]) for each in IDS]
    await crowd.append(3)
    assert journals_of(backend) == [journal]
    page = await backend.list_sessions(SessionFilter(clock.now_us()), -1, 100)
    assert [head.last_seq for head in page.heads] == [len(crowd.acked[each]) for each in IDS]


async def test_a_ring_that_was_read_in_pieces(
    crowd: Crowd, other: DynamoDBBackend, second: Direct, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query is not of one moment: half of it from before the owner went round and round, half from after."""
    original = other._table.range
    goes_on: list[int] = []

    async def torn(session_id: str, *args: Any, **params: Any) -> AsyncIterator[list[Item]]:
        if not session_id.startswith(partition("")) or not goes_on:
            async for page in original(session_id, *args, **params):
                yield page
            return
        before = [item async for page in original(session_id, *args, **params) for item in page]
        await crowd.append(goes_on.pop())
        after = [item async for page in original(session_id, *args, **params) for item in page]
        yield [*before[: len(before) // 2], *after[len(before) // 2 :]]

    monkeypatch.setattr(other._table, "range", torn)
    monkeypatch.setattr(journals, "REST_S", 0)
    for times in (1, 2, 3, 5, 9, SLOTS - 1, SLOTS, SLOTS + 1, 50):
        known = len(crowd.acked["s0"])
        goes_on.append(times)
        page = await other.list_sessions(SessionFilter(clock.now_us()), -1, 100)
        assert not goes_on
        for head in page.heads:
            assert known <= head.last_seq == head.version - 1 <= known + times
        known = len(crowd.acked["s0"])
        goes_on.append(times)
        for head in crowd.heads:
            assert len(await second.events(head)) >= known
        assert not goes_on
        await crowd.append(journals.JOINS_AFTER + 10)
    await crowd.check(second)
