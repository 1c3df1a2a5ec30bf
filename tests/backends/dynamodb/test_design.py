"""How sessions lie in the table: what is where, what is shared, what is left over, what goes by itself."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.backends.base import Backend, Batch, EventQuery, Head, LoadRequest, Marker, Status, TrimPolicy
from holdfast.backends.dynamodb import DynamoDBBackend
from holdfast.backends.dynamodb.items import EventChunk, Stored, decode_chunk, item_bytes, state_item
from holdfast.backends.dynamodb.limits import CHUNK_BYTES, MAX_EVENT_BYTES, MAX_UNIT_KEYS, MAX_VALUE_BYTES
from holdfast.errors import Rejected, SchemaError, Unavailable
from holdfast.model import Durability
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, fenced, new_event, new_head, texts

pytestmark = pytest.mark.anyio

SECOND = 1_000_000
BIG = "x" * 5_000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def items(backend: DynamoDBBackend, session_id: str) -> dict[str, dict[str, Any]]:
    """All items of a session by sort key."""

    async def read() -> list[dict[str, Any]]:
        return [item async for page in backend._table.range(session_id, " ", "~") for item in page]

    return {item["sk"]["S"]: item for item in await backend._bridge.call(read)}


async def stored(backend: DynamoDBBackend, session_id: str) -> Stored:
    found = await backend._bridge.call(backend._table.get_head, session_id)
    assert found is not None
    return found


def kinds(found: dict[str, Any]) -> str:
    return "".join(sorted(key[0] for key in found))


# --- events ------------------------------------------------------------------


async def test_small_events_share_the_head_then_an_item(direct: Direct, backend: DynamoDBBackend) -> None:
    """Appended one by one: far fewer items than events, none larger than a unit or two, all read back."""
    head = await direct.create("s")
    for number in range(40):
        await direct.append(head, str(number) + "x" * 200)
    found = await items(backend, "s")
    chunks = [decode_chunk(item) for key, item in found.items() if key[0] == "E"]
    assert 8 <= len(chunks) <= 14
    assert item_bytes(found["H"]) <= 1_024
    assert [text[:-200] for text in texts(await direct.events(head))] == list(map(str, range(40)))


async def test_a_large_flush_shares_items(direct: Direct, backend: DynamoDBBackend) -> None:
    head = await direct.append(await direct.create("s"), *(f"{n:01000}" for n in range(1_000)))
    found = await items(backend, "s")
    assert kinds(found) == "EEEEH"
    assert all(item_bytes(item) < CHUNK_BYTES + 2_000 for item in found.values())
    page = await direct.page(head, after_seq=700, limit=5)
    assert [event.seq for event in page.events] == [701, 702, 703, 704, 705]
    assert [event.seq for event in (await direct.page(head, last=True, limit=3)).events] == [998, 999, 1_000]


async def test_pages_of_a_megabyte_are_followed(direct: Direct, backend: DynamoDBBackend) -> None:
    """A query ends at 1 MB: events, and state, are read to their end."""
    head = await direct.create("s")
    for number in range(8):
        await direct.append(head, str(number) * 390_000)
        await direct.one(blind(head, sets={f"k{number}": (b'"%s"' % (b"x" * 390_000), 1)}))
    assert [text[0] for text in texts(await direct.events(head))] == list("01234567")
    page = await direct.page(head, max_bytes=10 << 20)
    assert len(page.events) == 8
    assert len((await direct.page(head, last=True, limit=8)).events) == 8
    assert sorted(await direct.state("s")) == [f"k{number}" for number in range(8)]


@pytest.mark.parametrize("which", ["earlier", "the same", "of the tail"])
async def test_overlapping_copies_of_a_tail_do_no_harm(direct: Direct, backend: DynamoDBBackend, which: str) -> None:
    """Two instances copied a tail at once, or one's copy came late: each event is read once, in order.

    A copy begins where its tail did, and ends where that had got to.
    """
    head = await direct.create("s")
    for number in range(20):
        await direct.append(head, str(number) + "x" * 200)
    before = texts(await direct.events(head))
    current = await stored(backend, "s")
    tail = EventChunk(current.record.tail_seq, current.record.tail)
    chunks = [decode_chunk(item) for key, item in (await items(backend, "s")).items() if key[0] == "E"]
    copies = {
        "earlier": [chunk.between(chunk.first_seq, chunk.last_seq - 1) for chunk in chunks],
        "the same": chunks,
        "of the tail": [tail, tail.between(tail.first_seq, tail.first_seq)],
    }
    for copy in copies[which]:
        await backend._bridge.call(backend._table.put_copy, copy.item(current))
    assert texts(await direct.events(head)) == before
    for after in range(21):
        page = await direct.page(head, after_seq=after, limit=3)
        assert [event.seq for event in page.events] == list(range(after + 1, min(after + 4, 21)))
        newest = await direct.page(head, after_seq=after, last=True, limit=30)
        assert [event.seq for event in newest.events] == list(range(after + 1, 21))
    await direct.append(head, BIG)
    assert texts(await direct.events(head)) == [*before, BIG]
    await direct.one(blind(head, delete=True))
    assert kinds(await items(backend, "s")) == "H"


async def test_a_hole_in_the_log_is_not_passed_over(direct: Direct, backend: DynamoDBBackend) -> None:
    """P7: a reader that meets less than the head says reads again, and never skips."""
    head = await direct.create("s")
    for _ in range(3):
        await direct.append(head, BIG)
    found = await items(backend, "s")
    [_, second, _] = sorted(key for key in found if key[0] == "E")
    await backend._bridge.call(backend._table.delete_items, [{"pk": {"S": "s"}, "sk": {"S": second}}])
    with pytest.raises(Unavailable):
        await direct.events(head)
    with pytest.raises(Unavailable):
        await direct.page(head, last=True, limit=3)


async def test_trimming_deletes_whole_items_and_hides_the_rest(direct: Direct, backend: DynamoDBBackend) -> None:
    head = await direct.create("s")
    for number in range(4):
        await direct.append(head, *(f"{number}{n}" + "x" * 800 for n in range(5)))
    before = len(await items(backend, "s"))
    await direct.one(blind(head, floor_seq=13))
    assert await backend.trim([("s", head.incarnation)], TrimPolicy(), 1_000) == 12
    assert [event.seq for event in await direct.events(head)] == list(range(13, 21))
    assert len(await items(backend, "s")) == before - 2


# --- state -------------------------------------------------------------------


async def test_small_state_shares_the_head(direct: Direct, backend: DynamoDBBackend) -> None:
    head = await direct.create("s")
    await direct.one(blind(head, sets={"a": (b"1", 1), "b": (b"2", 1)}))
    await direct.one(blind(head, removes={"a"}))
    assert kinds(await items(backend, "s")) == "H"
    assert await direct.state("s") == {"b": b"2"}


async def test_a_key_is_in_one_place_only(direct: Direct, backend: DynamoDBBackend) -> None:
    """Grown, shrunk, removed, set again: what is read is what was written last."""
    head = await direct.create("s")
    large = b'"%s"' % (b"x" * 2_000)
    steps: list[dict[str, Any]] = [
        {"sets": {"k": (b"1", 1), "l": (b"1", 1)}}, {"sets": {"k": (large, 1)}}, {"sets": {"k": (b"2", 1)}},
        {"removes": {"k", "l"}}, {"sets": {"l": (b"3", 1)}}, {"sets": {"k": (b"4", 1)}}, {"removes": {"k"}},
    ]  # fmt: skip
    expected = [
        {"k": b"1", "l": b"1"}, {"k": large, "l": b"1"}, {"k": b"2", "l": b"1"},
        {}, {"l": b"3"}, {"k": b"4", "l": b"3"}, {"l": b"3"},
    ]  # fmt: skip
    for step, state in zip(steps, expected, strict=True):
        await direct.one(blind(head, **step))
        assert await direct.state("s") == state, step


async def test_a_copy_may_have_keys_of_later_versions_than_its_own(direct: Direct, clock: ManualClock) -> None:
    """As a copied session has: its state is read all the same, small and large."""
    head = new_head("s", clock.now_us(), version=-3)
    large = b'"%s"' % (b"x" * 2_000)
    await direct.one(creation(head, sets={"small": (b"1", 10), "large": (large, 20)}))
    assert await direct.versions("s") == {"small": 7, "large": 17}


async def test_clearing_many_keys_is_one_write(direct: Direct, backend: DynamoDBBackend) -> None:
    """More than a transaction could delete: gone at once, and swept up."""
    head = await direct.create("s")
    for start in range(0, 300, 60):
        sets = {f"k{number}": (b'"%s"' % (b"x" * 100), 1) for number in range(start, start + 60)}
        await direct.one(blind(head, sets=sets))
    await direct.one(blind(head, cleared=True, sets={"new": (b'"%s"' % (b"y" * 900), 1)}))
    assert set(await direct.state("s")) == {"new"}
    while await backend.trim([("s", head.incarnation)], TrimPolicy(), 1_000):
        pass
    assert kinds(await items(backend, "s")) == "HS"
    assert set(await direct.state("s")) == {"new"}


# --- limits ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["value", "event", "keys", "unit", "metadata", "owner"])
async def test_too_much_is_refused_by_name_and_its_batch_unharmed(
    direct: Direct, backend: DynamoDBBackend, clock: ManualClock, kind: str
) -> None:
    """Nothing of the batch is sent: the writer divides it."""
    head, good = await direct.create("s"), await direct.create("good")
    wrong = {
        "value": blind(head, sets={"k": (b"1" * (MAX_VALUE_BYTES + 1), 1)}),
        "event": blind(head, events=[new_event("x" * MAX_EVENT_BYTES)]),
        "keys": blind(head, sets={f"k{n}": (b"1", 1) for n in range(MAX_UNIT_KEYS + 1)}),
        "unit": blind(head, events=[new_event("x" * 380_000)] * 10),
        "metadata": blind(head, metadata=b'"' + b"x" * 300_000 + b'"'),
        "owner": creation(new_head("t", clock.now_us(), owner="x" * 2_001)),
    }
    with pytest.raises(Rejected, match="on DynamoDB the limit is"):
        await direct.commit(blind(good, events=[new_event()]), wrong[kind])
    assert await direct.events(good) == []
    assert await direct.head("s") == head


async def test_the_largest_of_everything_fits(direct: Direct, backend: DynamoDBBackend) -> None:
    """Just within the limits: taken by the server, too, which counts for itself."""
    head = await direct.create("x" * 128, owner="ö" * 1_000, metadata=b'"' + b"m" * 299_000 + b'"')
    await direct.one(blind(head, events=[new_event("e" * (MAX_EVENT_BYTES - 2), stream="s" * 512, type="t" * 488)]))
    await direct.one(blind(head, sets={"k" * 1_024: (b'"' + b"v" * (MAX_VALUE_BYTES - 2) + b'"', 1)}))
    assert len((await direct.events(head))[0].raw) == MAX_EVENT_BYTES
    keys = {f"{number:0100}": (b'"' + b"v" * 19_000 + b'"', 1) for number in range(MAX_UNIT_KEYS)}
    await direct.one(blind(head, sets=keys, events=[new_event("e" * 190_000) for _ in range(11)]))
    assert len(await direct.state("x" * 128)) == MAX_UNIT_KEYS + 1
    assert len(await direct.events(head)) == 12


# --- what is left over -------------------------------------------------------


async def test_a_tombstone_is_forgotten_in_time(direct: Direct, backend: DynamoDBBackend, clock: ManualClock) -> None:
    head = await direct.append(await direct.create("s"), BIG)
    await direct.one(blind(head, delete=True))
    assert kinds(await items(backend, "s")) == "H"
    assert await backend.expire(clock.now_us(), 100) == []
    assert kinds(await items(backend, "s")) == "H"
    await clock.advance(3_601)
    assert await backend.expire(clock.now_us(), 100) == []
    assert await items(backend, "s") == {}


async def test_what_a_delete_could_not_sweep_is_swept_later(
    direct: Direct, backend: DynamoDBBackend, clock: ManualClock
) -> None:
    head = await direct.create("s")
    for _ in range(130):
        await direct.one(blind(head, events=[new_event(BIG)]))
    await direct.one(blind(head, delete=True))
    left = len(await items(backend, "s"))
    assert 1 < left < 100
    assert (await direct.create("t")).id == "t"
    while await backend.trim(None, TrimPolicy(), 50):
        pass
    assert kinds(await items(backend, "s")) == "H"


async def test_a_new_life_over_an_expired_one_leaves_nothing_of_it(
    direct: Direct, backend: DynamoDBBackend, clock: ManualClock
) -> None:
    head = await direct.append(await direct.create("s", ttl_us=SECOND), BIG)
    await direct.one(blind(head, sets={"k": (b'"%s"' % (b"x" * 900), 1)}))
    assert kinds(await items(backend, "s")) == "EHS"
    await clock.advance(2)
    again = await direct.create("s")
    assert kinds(await items(backend, "s")) == "H"
    await direct.append(again, "x")
    assert not (await stored(backend, "s")).record.debris


async def test_touches_leave_the_index_alone(direct: Direct, backend: DynamoDBBackend, clock: ManualClock) -> None:
    """The janitor files the session anew when it comes by."""
    head = await direct.create("s", ttl_us=10 * SECOND)
    due_s = (await stored(backend, "s")).due_s
    await clock.advance(8)
    await direct.one(blind(head, units=0, active_us=clock.now_us()))
    assert (await stored(backend, "s")).due_s == due_s
    await clock.advance(5)
    assert await backend.expire(clock.now_us(), 10) == []
    assert (await stored(backend, "s")).due_s == due_s + 8
    await clock.advance(5)
    assert len(await backend.expire(clock.now_us(), 10)) == 1


async def test_native_ttl_is_set_on_what_leaves_nothing_behind(
    direct: Direct, backend: DynamoDBBackend, clock: ManualClock
) -> None:
    now_s = clock.now_us() // SECOND

    async def ttls(session_id: str) -> set[int | None]:
        found = await items(backend, session_id)
        return {int(item["ttl"]["N"]) - now_s if "ttl" in item else None for item in found.values()}

    small = await direct.create("small", ttl_us=60 * SECOND)
    await direct.append(small, "x")
    assert await ttls("small") == {60 + 3_600}
    await direct.append(small, BIG)
    assert await ttls("small") == {None}, "its events would be left behind"
    ended = await direct.create("ended", ttl_us=60 * SECOND, deadline_us=clock.now_us() + 600 * SECOND)
    await direct.append(ended, BIG)
    await direct.one(blind(ended, sets={"k": (b'"%s"' % (b"x" * 900), 1)}))
    assert len(await items(backend, "ended")) == 3
    assert await ttls("ended") == {600 + 3_600}
    await direct.create("forever")
    assert await ttls("forever") == {None}
    await direct.one(blind(small, delete=True))
    assert await ttls("small") == {3_600 + 3_600}


# --- the two of them ---------------------------------------------------------


async def test_an_old_head_in_memory_refuses_nothing(
    direct: Direct, backend: DynamoDBBackend, other: DynamoDBBackend, clock: ManualClock
) -> None:
    """Refusals are believed only of a head that was read for them."""
    second = Direct(other, clock, "second")
    head = await direct.create("s")
    await direct.one(blind(head, delete=True))  # a tombstone is remembered here
    again = await second.create("s")
    assert (await direct.one(blind(again, events=[new_event()]))).status is Status.COMMITTED
    current = await second.append(again, "y")
    assert (await direct.one(fenced(current, sets={"k": (b"1", 1)}))).status is Status.COMMITTED


async def test_state_and_head_are_of_one_moment(
    direct: Direct, backend: DynamoDBBackend, other: DynamoDBBackend, clock: ManualClock
) -> None:
    """Two keys that are always set together are never read apart, in whichever items they are."""
    import anyio

    head = await direct.create("s")
    second = Direct(other, clock, "second")

    def both(number: int) -> dict[str, tuple[bytes, int]]:
        value = b'"%d %s"' % (number, b"x" * (900 if number % 2 else 10))
        return {"a": (value, 1), "b": (value, 1)}

    async def write() -> None:
        for number in range(40):
            await direct.one(blind(head, sets=both(number)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        for _ in range(15):
            (snapshot,) = await other.load([LoadRequest("s")])
            assert snapshot is not None
            assert snapshot.state is not None
            values = set(snapshot.state.values())
            assert len(values) <= 1
            assert all(value.version == snapshot.head.version for value in values)
    assert len(await second.state("s")) == 2


async def test_a_state_item_from_after_the_head_is_not_shown(direct: Direct, backend: DynamoDBBackend) -> None:
    """A query need not be of one moment (the emulators' are): staged by an item that is ahead of its head."""
    head = await direct.create("s")
    await direct.one(blind(head, sets={"k": (b'"%s"' % (b"x" * 900), 1)}))
    ahead = await stored(backend, "s")
    ahead = ahead._replace(rev=ahead.rev + 1)
    await backend._bridge.call(backend._table.put_copy, state_item(ahead, "k", b"2", 9))
    with pytest.raises(Unavailable, match="one moment"):
        await direct.state("s")


async def test_a_newer_format_is_refused(direct: Direct, backend: Backend, other: DynamoDBBackend) -> None:
    """C52."""
    head = await direct.create("s")
    item = (await items(other, "s"))["H"]
    item["d"] = {"B": bytes([2]) + item["d"]["B"][1:]}
    await other._bridge.call(other._table.put_copy, item)
    for call in (lambda: other.load([LoadRequest("s")]), lambda: other.read_events(EventQuery("s", head.incarnation))):
        with pytest.raises(SchemaError, match="format 2") as refused:
            await call()
        assert (refused.value.found, refused.value.supported) == (2, 1)
    with pytest.raises(SchemaError):
        await Direct(other, ManualClock(), "second").one(blind(head, events=[new_event()]))


async def test_many_sessions_in_a_batch_go_side_by_side(
    direct: Direct, backend: DynamoDBBackend, clock: ManualClock
) -> None:
    """Refusals and commits mixed, in the writes' order."""
    heads = [new_head(f"s{number}", clock.now_us()) for number in range(150)]
    await direct.commit(*(creation(head) for head in heads[::2]))
    outcomes = await direct.commit(*(blind(head, events=[new_event(head.id)]) for head in heads))
    assert [outcome.status for outcome in outcomes] == [Status.COMMITTED, Status.MISSING] * 75


def batch_of(head: Head, flush: int) -> Batch:
    return Batch(
        writes=[blind(head, events=[new_event(str(flush))])],
        marker=Marker("writer", 0, flush),
        durability=Durability.PROCESS,
        now_us=head.active_us,
        max_events=None,
    )


async def test_the_same_flush_sent_twice_is_done_once(direct: Direct, backend: DynamoDBBackend) -> None:
    head = await direct.create("s")
    first = await backend.commit(batch_of(head, 1))
    assert await backend.commit(batch_of(head, 1)) == first
    await backend.commit(batch_of(head, 2))
    assert texts(await direct.events(head)) == ["1", "2"]
