"""Journals: requests that fail, or that nobody answered; and what is left behind is put in its place."""

from __future__ import annotations

import anyio
import pytest

from holdfast.backends.base import Status, TrimPolicy
from holdfast.backends.dynamodb import DynamoDBBackend, journals
from holdfast.backends.dynamodb.journal import SLOTS
from holdfast.errors import OutcomeUnknown, StoreError, Unavailable
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, new_event, texts
from tests.backends.dynamodb.journals.support import (
    ANY_JOURNAL,
    DAY_S,
    SECOND,
    Crowd,
    head_item,
    journals_of,
    slots,
)  # fmt: skip
from tests.servers.http_proxy import Failing, HttpProxy

pytestmark = pytest.mark.anyio


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
