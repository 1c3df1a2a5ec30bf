"""Journals: what is where, who may write what, and what becomes of it when requests and instances fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest

from holdfast.backends.base import Head, Outcome, SessionFilter, Status, TrimPolicy
from holdfast.backends.dynamodb import DynamoDBBackend, journals
from holdfast.backends.dynamodb.items import Item
from holdfast.backends.dynamodb.journal import LIVE, SLOTS, partition
from holdfast.errors import OutcomeUnknown, StoreError, Unavailable
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, fenced, new_event, texts
from tests.servers.dynamodb import config_for, fast_endpoint
from tests.servers.http_proxy import Failing, HttpProxy

pytestmark = pytest.mark.anyio

SECOND = 1_000_000
DAY_S = 86_400
IDS = [f"s{number}" for number in range(10)]
ANY_JOURNAL = partition("").encode()
"""In the body of a request to one."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def proxy() -> Iterator[HttpProxy]:
    with HttpProxy(fast_endpoint()) as proxy:
        yield proxy


@pytest.fixture
def make(proxy: HttpProxy) -> Callable[[], DynamoDBBackend]:
    """On one table; the first through a proxy."""
    config = config_for(proxy.url, request_timeout_s=0.5)
    return lambda: DynamoDBBackend(config)


@pytest.fixture
async def backend(make: Callable[[], DynamoDBBackend]) -> AsyncIterator[DynamoDBBackend]:
    backend = make()
    await backend.open()
    yield backend
    await backend.close()


@pytest.fixture
async def other(backend: DynamoDBBackend) -> AsyncIterator[DynamoDBBackend]:
    other = DynamoDBBackend(config_for(fast_endpoint(), table=backend._config.table))
    await other.open()
    yield other
    await other.close()


@pytest.fixture
def direct(backend: DynamoDBBackend, clock: ManualClock) -> Direct:
    return Direct(backend, clock)


@pytest.fixture
def second(other: DynamoDBBackend, clock: ManualClock) -> Direct:
    return Direct(other, clock, "second")


class Crowd:
    """Ten sessions that are appended to together, and what was acknowledged."""

    def __init__(self, direct: Direct, heads: list[Head]) -> None:
        self.direct = direct
        self.heads = heads
        self.acked: dict[str, list[str]] = {head.id: [] for head in heads}

    async def append(self, times: int = 1, *, only: int = 10, **fields: Any) -> None:
        for _ in range(times):
            heads = self.heads[:only]
            texts = [str(len(self.acked[head.id]) + 1) for head in heads]
            writes = [blind(head, events=[new_event(text)], **fields) for head, text in zip(heads, texts, strict=True)]
            outcomes = await self.direct.commit(*writes)
            self.settle(outcomes)

    def settle(self, outcomes: list[Outcome] | None) -> None:
        assert outcomes is not None
        for head, outcome in zip(self.heads, outcomes, strict=False):
            assert outcome.status is Status.COMMITTED
            assert outcome.base_seq == len(self.acked[head.id])
            self.acked[head.id].append(str(outcome.base_seq + 1))

    async def check(self, reader: Direct) -> None:
        for head in self.heads:
            events = await reader.events(head)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert texts(events) == self.acked[head.id], head.id


@pytest.fixture
async def crowd(direct: Direct) -> Crowd:
    """In a journal, with some entries there."""
    crowd = Crowd(direct, [await direct.create(each, ttl_us=600 * SECOND) for each in IDS])
    await crowd.append(journals.JOINS_AFTER + 3)
    return crowd


def journals_of(backend: DynamoDBBackend) -> list[journals.Journal]:
    return backend._heads.journals.open_ones


async def slots(backend: DynamoDBBackend, journal: str) -> list[Item]:
    return [item async for page in backend._table.range(partition(journal), "0", "9") for item in page]


async def head_item(backend: DynamoDBBackend, session_id: str) -> Item:
    [[item]] = [page async for page in backend._table.range(session_id, "H", "H")]
    return item


def puts(proxy: HttpProxy) -> int:
    return proxy.actions["PutItem"] + proxy.actions["TransactWriteItems"]


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


# --- what fails --------------------------------------------------------------


@pytest.mark.parametrize("failing", [Failing.RESET_AFTER, Failing.RESET_BEFORE, Failing.SILENT_AFTER])
@pytest.mark.parametrize("then", ["resolved", "read here", "read there"])
async def test_a_put_that_is_not_answered(
    crowd: Crowd, proxy: HttpProxy, backend: DynamoDBBackend, second: Direct, failing: Failing, then: str
) -> None:
    """Applied or not: it is found out before anything is said or written."""
    proxy.inject(failing, "PutItem", times=1, text=ANY_JOURNAL)
    fault = proxy.inject(Failing.THROTTLED, "PutItem", times=None)
    with pytest.raises(OutcomeUnknown):
        await crowd.append()
    assert fault.hits
    proxy.heal()
    applied = 0 if failing is Failing.RESET_BEFORE else 1
    expected = len(crowd.acked["s0"])
    if then == "read here":
        assert len(await crowd.direct.events(crowd.heads[0])) == expected + 1, "sent again, and so there now"
    elif then == "read there":
        assert len(await second.events(crowd.heads[0])) == expected + applied
    crowd.settle(await backend.resolve(crowd.direct.last_marker))
    await crowd.append()
    await crowd.check(second)
    await crowd.check(crowd.direct)


async def test_nothing_goes_past_a_put_that_is_in_doubt(crowd: Crowd, proxy: HttpProxy, second: Direct) -> None:
    """Another flush with the same sessions, also one to their heads, must know first."""
    proxy.inject(Failing.RESET_AFTER, "PutItem", times=1, text=ANY_JOURNAL)
    proxy.inject(Failing.THROTTLED, "PutItem", times=None, text=ANY_JOURNAL)
    with pytest.raises(OutcomeUnknown):
        await crowd.append()
    for write in (blind(crowd.heads[0], events=[new_event("z")]), blind(crowd.heads[1], close=True)):
        with pytest.raises(StoreError):
            await crowd.direct.one(write)
    with pytest.raises(StoreError):
        await crowd.direct.events(crowd.heads[2])
    proxy.heal()
    await crowd.direct.one(blind(crowd.heads[0], events=[new_event("z")]))
    count = len(crowd.acked["s0"])
    assert texts(await second.events(crowd.heads[0])) == [*crowd.acked["s0"], str(count + 1), "z"]


async def test_a_throttled_put_has_done_nothing(crowd: Crowd, proxy: HttpProxy, second: Direct) -> None:
    proxy.inject(Failing.THROTTLED, "PutItem", times=None, text=ANY_JOURNAL)
    with pytest.raises(Unavailable, match="throttles"):
        await crowd.append()
    proxy.heal()
    await crowd.append(2)
    await crowd.check(second)


async def test_a_put_that_is_refused_goes_to_the_heads(crowd: Crowd, proxy: HttpProxy, second: Direct) -> None:
    proxy.inject(Failing.INVALID, "PutItem", times=None, text=ANY_JOURNAL)
    await crowd.append(3)
    proxy.heal()
    await crowd.append(3)
    await crowd.check(second)


async def test_a_put_in_doubt_that_is_refused_then(
    crowd: Crowd, proxy: HttpProxy, backend: DynamoDBBackend, second: Direct
) -> None:
    """The journal is ended in its place, so that it is known."""
    for failing in (Failing.RESET_AFTER, Failing.RESET_BEFORE):
        await crowd.append(journals.JOINS_AFTER + 2)
        [journal] = journals_of(backend)
        proxy.inject(failing, "PutItem", times=1, text=ANY_JOURNAL)
        proxy.inject(Failing.EXPIRED, "PutItem", times=1, text=ANY_JOURNAL)
        with pytest.raises(OutcomeUnknown):
            await crowd.append()
        proxy.heal()
        proxy.inject(Failing.INVALID, "PutItem", times=1, text=ANY_JOURNAL)
        crowd.settle(await backend.resolve(crowd.direct.last_marker))
        proxy.heal()
        assert (journal in journals_of(backend)) == (failing is Failing.RESET_AFTER)
    await crowd.check(second)


@pytest.mark.parametrize("failing", [Failing.RESET_AFTER, Failing.RESET_BEFORE])
async def test_a_head_whose_write_is_in_doubt(
    crowd: Crowd, proxy: HttpProxy, backend: DynamoDBBackend, second: Direct, failing: Failing
) -> None:
    """No entry is put on top of it until it is known."""
    proxy.inject(failing, "PutItem", times=1, text=b'"s4"')
    proxy.inject(Failing.EXPIRED, times=None, text=b'"s4"')
    head = crowd.heads[4]
    with pytest.raises(OutcomeUnknown):
        await crowd.direct.one(blind(head, events=[new_event("doubt")]))
    marker = crowd.direct.last_marker
    proxy.heal()
    third = Direct(backend, crowd.direct.clock, "third")
    for number in range(SLOTS + 3):
        writes = [blind(each, events=[new_event(f"then {number}")]) for each in crowd.heads]
        assert {outcome.status for outcome in await third.commit(*writes)} == {Status.COMMITTED}
    outcomes = await backend.resolve(marker)
    assert outcomes is not None
    assert outcomes[0].status is Status.COMMITTED
    found = texts(await second.events(head))
    then = [f"then {number}" for number in range(SLOTS + 3)]
    at_first = failing is Failing.RESET_AFTER
    assert found == [*crowd.acked["s4"], *(["doubt", *then] if at_first else [*then, "doubt"])]


async def test_the_same_flush_again_is_done_once(
    crowd: Crowd, backend: DynamoDBBackend, other: DynamoDBBackend, clock: ManualClock
) -> None:
    """Also by another object: the marks are in the journal."""
    from holdfast.backends.base import Batch, Marker
    from holdfast.model import Durability

    batch = Batch(
        writes=[blind(head, events=[new_event("once")]) for head in crowd.heads],
        marker=Marker("somebody", 0, 1),
        durability=Durability.PROCESS,
        now_us=clock.now_us(),
        max_events=None,
    )
    outcomes = await backend.commit(batch)
    assert await backend.commit(batch) == outcomes
    assert await other.commit(batch) == outcomes
    assert texts(await crowd.direct.events(crowd.heads[0])).count("once") == 1


async def test_a_cancelled_flush_can_be_resolved(crowd: Crowd, proxy: HttpProxy, backend: DynamoDBBackend) -> None:
    proxy.inject(Failing.SILENT_AFTER, "PutItem", times=None, text=ANY_JOURNAL)
    with anyio.move_on_after(0.1) as scope:
        await crowd.append()
    assert scope.cancelled_caught
    proxy.heal()
    crowd.settle(await backend.resolve(crowd.direct.last_marker))
    await crowd.append()
    await crowd.check(crowd.direct)


# --- upkeep ------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["owner", "other"])
async def test_a_session_that_was_touched_in_a_journal_does_not_expire(
    crowd: Crowd, backend: DynamoDBBackend, other: DynamoDBBackend, clock: ManualClock, whose: str
) -> None:
    janitor = {"owner": backend, "other": other}[whose]
    await clock.advance(500)
    touches = [blind(head, units=0, active_us=clock.now_us()) for head in crowd.heads[:8]]
    await crowd.direct.commit(*touches)
    await clock.advance(200)
    gone = await janitor.expire(clock.now_us(), 100)
    assert sorted(session.id for session in gone) == ["s8", "s9"]
    crowd.heads = crowd.heads[:8]
    await crowd.check(Direct(other, clock, "reader"))
    await clock.advance(500)
    assert len(await janitor.expire(clock.now_us(), 100)) == 8
    statuses = [outcome.status for outcome in await crowd.direct.commit(*touches)]
    assert statuses == [Status.MISSING] * 8


async def test_the_owner_trims_its_own(
    crowd: Crowd, backend: DynamoDBBackend, other: DynamoDBBackend, second: Direct
) -> None:
    await crowd.append(20)
    await crowd.direct.commit(*(blind(head, floor_seq=11) for head in crowd.heads[:2]))
    await crowd.append(journals.JOINS_AFTER + 1)
    assert await other.trim(None, TrimPolicy(), 1_000) == 0, "the owner sees to that"
    assert await backend.trim(None, TrimPolicy(), 1_000) == 20
    crowd.acked["s0"] = crowd.acked["s1"] = []
    crowd.heads = crowd.heads[2:]
    await crowd.append(3)
    await crowd.check(second)


async def test_journals_that_were_left_behind_are_swept(
    crowd: Crowd, backend: DynamoDBBackend, other: DynamoDBBackend, second: Direct, clock: ManualClock
) -> None:
    """By any instance's janitor; their ends stay until native TTL takes them, so that no owner comes back."""
    forever = Crowd(crowd.direct, [await crowd.direct.create(f"t{number}") for number in range(10)])
    await forever.append(SLOTS + 7)
    ids = [journal.id for journal in journals_of(backend)]
    await clock.advance(DAY_S - 10)
    await other.expire(clock.now_us(), 100)
    assert all([await slots(other, each) for each in ids])
    await clock.advance(20)
    await other.expire(clock.now_us(), 100)
    for each in ids:
        left = await slots(other, each)
        assert left
        assert all("x" in item and int(item["ttl"]["N"]) > clock.now_us() // SECOND + 6 * DAY_S for item in left)
    for head in forever.heads:
        assert "g" not in await head_item(other, head.id)
    await forever.check(second)
    await forever.append(2)
    await forever.check(second)
    await other.expire(clock.now_us(), 100)


async def test_an_owner_whose_ring_is_gone(crowd: Crowd, backend: DynamoDBBackend, second: Direct) -> None:
    """As after eight days of sleep: it goes on without it."""
    await crowd.append(SLOTS)
    [journal] = journals_of(backend)
    await crowd.check(second)
    theirs = Crowd(second, crowd.heads)
    theirs.acked = crowd.acked
    await theirs.append()
    await second.backend._heads.sweep(journal.id, 0)  # type: ignore[attr-defined]
    keys = [{"pk": item["pk"], "sk": item["sk"]} for item in await slots(backend, journal.id)]
    await backend._table.delete_items(keys)
    await crowd.append(3)
    assert journal not in journals_of(backend)
    await crowd.check(second)


async def test_an_owner_takes_a_new_journal_in_time(
    crowd: Crowd, backend: DynamoDBBackend, second: Direct, clock: ManualClock
) -> None:
    forever = Crowd(crowd.direct, [await crowd.direct.create(f"t{number}") for number in range(10)])
    await forever.append(5)
    old = journals_of(backend)
    await clock.advance(DAY_S / 2 + 1)
    await forever.append(5)
    assert not set(old) & set(journals_of(backend))
    assert journals_of(backend)
    await forever.append(SLOTS)
    await forever.check(second)
