"""What is in the server: keys, their own expiry, indexes that are only hints; docs/adr/0008."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from holdfast.backends.base import EventQuery, LoadRequest, NewEvent, SessionFilter, Status, TrimPolicy
from holdfast.backends.redis import RedisBackend
from holdfast.backends.redis.keys import Entry, Keys
from holdfast.backends.redis.link import Command
from holdfast.backends.redis.rows import decode_event, encode_event, stream_prefix
from holdfast.backends.redis.scripts import run
from holdfast.backends.urls import create_backend
from holdfast.errors import OutcomeUnknown, Rejected, Unavailable
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, fenced, new_event, new_head, texts

pytestmark = pytest.mark.anyio

SECOND = 1_000_000
HOUR = 3_600 * SECOND


@pytest.fixture
def keys(backend: RedisBackend) -> Keys:
    return backend._keys


async def ask(backend: RedisBackend, *words: bytes, key: int = 1) -> object:
    """A command of the test's own."""
    (reply,) = await backend._bridge.call(run, backend._open_store().reads, [Command(words[key], words)])
    return reply


async def keys_of(backend: RedisBackend, session_id: str) -> set[str]:
    """The letters of the session's keys that there are."""
    head = backend._keys.head(session_id)
    found = {letter: await ask(backend, b"EXISTS", head[:-1] + letter) for letter in (b"h", b"s", b"e")}
    return {letter.decode() for letter, there in found.items() if there}


async def lives_s(backend: RedisBackend, session_id: str) -> list[int]:
    """How long the server keeps the session's keys, in seconds; -1: for ever, -2: there is none."""
    head = backend._keys.head(session_id)
    lives = [await ask(backend, b"PTTL", head[:-1] + letter) for letter in (b"h", b"s", b"e")]
    return [round(life / 1_000) if isinstance(life, int) and life >= 0 else life for life in lives]  # type: ignore[misc]


async def test_keys_come_and_go(direct: Direct, backend: RedisBackend) -> None:
    head = await direct.create("s")
    assert await keys_of(backend, "s") == {"h"}
    await direct.one(blind(head, sets={"k": (b"1", 1)}, events=[new_event()]))
    assert await keys_of(backend, "s") == {"h", "s", "e"}
    await direct.one(blind(head, cleared=True))
    assert await keys_of(backend, "s") == {"h", "e"}
    await direct.one(blind(head, delete=True))
    assert await keys_of(backend, "s") == set()


async def test_server_reaps_late(direct: Direct, backend: RedisBackend, clock: ManualClock) -> None:
    """A net below the janitor: an hour behind a session's end, by the server's own clock."""
    head = await direct.create("s", ttl_us=HOUR)
    await direct.one(blind(head, sets={"k": (b"1", 1)}, events=[new_event()]))
    assert await lives_s(backend, "s") == [7_200] * 3
    await clock.advance(1_000)
    await direct.one(blind(head, units=0, active_us=clock.now_us()))
    assert await lives_s(backend, "s") == [7_200] * 3, "moved only when half of the hour is used up"
    await clock.advance(1_000)
    await direct.one(blind(head, units=0, active_us=clock.now_us()))
    assert await lives_s(backend, "s") == [7_200] * 3
    await direct.one(blind(head, active_us=clock.now_us(), cleared=True, sets={"new": (b"1", 1)}))
    assert await lives_s(backend, "s") == [7_200] * 3, "a new key gets it too"
    await direct.create("ends", ttl_us=99 * HOUR, deadline_us=clock.now_us() + HOUR)
    assert (await lives_s(backend, "ends"))[0] == 7_200
    await direct.create("forever")
    assert (await lives_s(backend, "forever"))[0] == -1


async def test_server_does_not_reap_what_a_late_flush_keeps_alive(
    direct: Direct, backend: RedisBackend, clock: ManualClock
) -> None:
    """C38: accepted in time, flushed days later: the keys do not go before the engine has seen them."""
    head = await direct.create("s", ttl_us=SECOND)
    await clock.advance(200_000)
    await direct.one(blind(head, accepted_us=head.active_us, active_us=head.active_us + 5, events=[new_event()]))
    assert min(await lives_s(backend, "s")) in {3_600, -2}
    assert await direct.exists("s")


async def test_an_instance_that_does_not_let_the_server_reap(url: str, backend: RedisBackend, direct: Direct) -> None:
    """It lifts what another one has set: nobody would move it."""
    head = await direct.create("s", ttl_us=HOUR)
    await direct.append(head, "x")
    other = create_backend(f"{url}&reap_after_s=none")
    await other.open()
    await Direct(other, direct.clock, "other").one(blind(head, events=[new_event()]))
    assert await lives_s(backend, "s") == [-1, -2, -1]
    await direct.append(head, "y")
    assert await lives_s(backend, "s") == [7_200, -2, 7_200]
    await other.close()


async def test_dropped_events_do_not_pile_up(direct: Direct, backend: RedisBackend, keys: Keys) -> None:
    """P9: where no trimmer runs, commits delete what is dropped, by the thousand."""
    head = await direct.create("s")
    for _ in range(30):
        await direct.one(blind(head, events=[new_event(str(n)) for n in range(100)]), max_events=50)
    length = await ask(backend, b"LLEN", keys.head("s")[:-1] + b"e")
    assert isinstance(length, int)
    assert 50 <= length < 1_050 + 100
    events = await direct.events(head)
    assert [event.seq for event in events] == list(range(2_951, 3_001))
    assert await backend.trim([("s", head.incarnation)], TrimPolicy(), 10_000) == length - 50
    await direct.one(blind(head, floor_seq=9_999))
    await direct.one(blind(head, events=[new_event("x") for _ in range(2_000)], floor_seq=9_999))
    assert await direct.events(head) == []
    await direct.append(head, "y")
    assert [event.seq for event in await direct.events(head)] == [5_001]


async def test_large_logs_and_states(direct: Direct, backend: RedisBackend) -> None:
    """C28: past every chunk that scripts work in; large entries too."""
    head = await direct.create("s")
    values = {f"k{n}": (b"%d" % n, 1) for n in range(9_000)}
    await direct.one(
        blind(head, sets=values, events=[new_event(str(n), stream="ab"[n == 8_500]) for n in range(9_000)])
    )
    assert len(await direct.state("s")) == 9_000
    assert texts(await direct.events(head)) == [str(n) for n in range(9_000)]
    assert texts((await direct.page(head, stream="b", last=True, limit=3)).events) == ["8500"]
    assert texts((await direct.page(head, last=True, limit=2_000)).events) == [str(n) for n in range(7_000, 9_000)]
    await direct.one(blind(head, removes=set(list(values)[:8_999])))
    assert set(await direct.state("s")) == {"k8999"}
    assert await backend.trim(None, TrimPolicy(min_time_us=1), 100_000) == 9_000


async def test_loads_of_more_than_an_answer_holds(direct: Direct, backend: RedisBackend) -> None:
    """What does not fit is asked for again; the order of the requests stays."""
    names = [f"s{number}" for number in range(6)]
    for name in names:
        head = await direct.create(name)
        await direct.one(blind(head, sets={str(n): (b'"%s"' % (b"x" * 1_000_000), 1) for n in range(3)}))
    snapshots = await backend.load([LoadRequest(name) for name in [*names, "nobody"]])
    assert [snapshot and snapshot.head.id for snapshot in snapshots] == [*names, None]
    assert all(snapshot is None or len(snapshot.state or ()) == 3 for snapshot in snapshots)


async def test_numbers_beyond_a_double(direct: Direct, clock: ManualClock) -> None:
    """C1: incarnations differ in their last bit, TTLs are any."""
    incarnation = (clock.now_us() << 12) + 4_095
    head = await direct.create("s", incarnation=incarnation, ttl_us=10**18 + 1, deadline_us=10**18 + 3)
    assert (head.incarnation, head.ttl_us, head.deadline_us) == (incarnation, 10**18 + 1, 10**18 + 3)
    for other in (incarnation - 1, incarnation + 1):
        assert (await direct.one(blind(head, incarnation=other))).status is Status.MISSING
    assert (await direct.one(fenced(head))).status is Status.COMMITTED
    largest = await direct.create("t", incarnation=(1 << 63) - 1)
    assert await direct.listed() == ["s", "t"]
    assert (await direct.one(blind(largest, delete=True))).status is Status.COMMITTED
    assert await direct.listed() == ["s"]


@pytest.mark.parametrize("fields", [{"sets": {"\ud800": (b"1", 1)}}, {"active_us": 1 << 1_025}, {"units": -1}])
async def test_values_that_cannot_be_packed(direct: Direct, fields: dict[str, object]) -> None:
    head = await direct.create("s")
    with pytest.raises(Rejected):
        await direct.one(blind(head, **fields))
    assert await direct.head("s") == head


async def test_entries_without_a_session(direct: Direct, backend: RedisBackend, keys: Keys, clock: ManualClock) -> None:
    """An index is a hint: stale entries are not listed, and go after a while, and only then."""
    await direct.create("live", ttl_us=SECOND)
    ghost = Entry.of(99, "o", "ghost")
    shard = ghost.shard
    await ask(backend, b"ZADD", keys.created(shard), b"0", ghost.member)
    await ask(backend, b"ZADD", keys.expiring(shard), b"1", ghost.member)
    await ask(backend, b"ZADD", keys.owned(ghost.owner_digest), b"0", ghost.member)
    assert await direct.listed() == ["live"]
    assert await direct.listed(owner="o") == []
    assert await backend.count_sessions(SessionFilter(clock.now_us())) == 1
    for _ in range(2):
        assert await backend.expire(clock.now_us(), 10) == []
        assert await backend.trim(None, TrimPolicy(), 100) == 0
        assert await ask(backend, b"ZSCORE", keys.created(shard), ghost.member) is not None
    await ask(backend, b"ZADD", keys.stale(shard), b"1", ghost.member)  # noted in 1970
    assert await backend.trim(None, TrimPolicy(), 100) == 0
    for key in (keys.created(shard), keys.expiring(shard), keys.stale(shard), keys.owned(ghost.owner_digest)):
        assert await ask(backend, b"ZSCORE", key, ghost.member) is None
    await clock.advance(2)
    assert [session.id for session in await backend.expire(clock.now_us(), 10)] == ["live"]


async def test_indexes_are_left_empty(direct: Direct, backend: RedisBackend, keys: Keys, clock: ManualClock) -> None:
    """A delete, an expiry, and a refused create take their entries with them."""
    head = await direct.create("deleted", owner="o")
    await direct.one(creation(new_head("deleted", clock.now_us(), owner="o")))
    await direct.one(blind(head, delete=True))
    await direct.create("expired", owner="o", ttl_us=SECOND)
    await clock.advance(2)
    assert len(await backend.expire(clock.now_us(), 10)) == 1
    facts = await backend.describe()
    assert facts["indexed_sessions"] == 0
    assert await ask(backend, b"EXISTS", keys.owned(Entry.of(1, "o", "x").owner_digest)) == 0
    for shard in range(16):
        for key in (keys.created(shard), keys.expiring(shard), keys.stale(shard)):
            assert await ask(backend, b"EXISTS", key) == 0


async def test_looked_at_once_a_ttl(direct: Direct, backend: RedisBackend, keys: Keys, clock: ManualClock) -> None:
    """A touch does not write to an index: the janitor puts the entry off when it comes by."""
    head = await direct.create("s", ttl_us=10 * SECOND)
    member, shard = Entry.of(head.incarnation, None, "s").member, Entry.of(head.incarnation, None, "s").shard
    first = await ask(backend, b"ZSCORE", keys.expiring(shard), member)
    await clock.advance(9)
    await direct.one(blind(head, units=0, active_us=clock.now_us()))
    assert await ask(backend, b"ZSCORE", keys.expiring(shard), member) == first
    await clock.advance(2)
    assert await backend.expire(clock.now_us(), 10) == []
    assert await ask(backend, b"ZSCORE", keys.expiring(shard), member) == b"%d" % (clock.now_us() + 8 * SECOND)


async def test_a_second_create_of_a_session_leaves_its_entries(direct: Direct, clock: ManualClock) -> None:
    """The same incarnation, as a copy made twice: it exists, and stays listed, and expires."""
    head = new_head("s", clock.now_us(), owner="o", ttl_us=HOUR)
    assert (await direct.one(creation(head))).status is Status.COMMITTED
    for again in (head, new_head("s", clock.now_us(), owner="o")):
        assert (await direct.one(creation(again))).status is Status.EXISTS
    assert await direct.listed() == await direct.listed(owner="o") == ["s"]
    page = await direct.backend.list_sessions(SessionFilter(clock.now_us()), -1, 10)
    assert [found.incarnation for found in page.heads] == [head.incarnation]
    await clock.advance(7_200)
    assert [gone.id for gone in await direct.backend.expire(clock.now_us(), 10)] == ["s"]


async def test_trim_by_bytes_takes_turns(
    direct: Direct, backend: RedisBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes of many events are looked at by several calls of the script, with the same result as by one."""
    heads = [await direct.create(name) for name in "ab"]
    for head in heads:
        for _ in range(6):
            await direct.append(head, *["x" * 10] * 2_000)
    calls = 0
    send = (link := backend._open_store().trimmer._link).send

    async def counted(commands: Sequence[Command]) -> list[Any]:
        nonlocal calls
        calls += 1
        return await send(commands)

    monkeypatch.setattr(link, "send", counted)
    sessions = [(head.id, head.incarnation) for head in heads]
    length = len(new_event("x" * 10).raw)
    assert await backend.trim(sessions, TrimPolicy(max_bytes=length * 11_000), 100_000) == 2_000
    assert 3 <= calls <= 8
    for head in heads:
        found = await direct.head(head.id)
        assert (found.first_seq, found.last_seq) == (1_001, 12_000)
        assert await ask(backend, b"LLEN", backend._keys.head(head.id)[:-1] + b"e") == 11_000
    assert await backend.trim(sessions, TrimPolicy(max_bytes=length * 11_000), 100_000) == 0


@pytest.mark.parametrize("foreign", ["HSET k v", "SET short"])
async def test_expiry_beside_another_programs_key(
    direct: Direct, backend: RedisBackend, keys: Keys, clock: ManualClock, foreign: str
) -> None:
    """C38: the others are removed, and told of; it is looked at again later."""
    for name in "abc":
        await direct.create(name, ttl_us=SECOND)
    command, *words = foreign.encode().split()
    await ask(backend, b"DEL", keys.head("b"))
    await ask(backend, command, keys.head("b"), *words)
    await clock.advance(2)
    assert sorted(gone.id for gone in await backend.expire(clock.now_us(), 10)) == ["a", "c"]
    assert await backend.expire(clock.now_us(), 10) == []
    assert await ask(backend, b"EXISTS", keys.head("b")) == 1
    await ask(backend, b"DEL", keys.head("b"))
    await clock.advance(3_600)
    assert await backend.expire(clock.now_us(), 10) == []


@pytest.mark.parametrize("exc", [OutcomeUnknown("lost"), Unavailable("no connection")])
async def test_expired_sessions_are_told_of_though_their_entries_stay(
    direct: Direct, backend: RedisBackend, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, exc: Exception
) -> None:
    """The indexes cannot be cleaned up: that holds nothing back, and nothing is told twice."""
    await direct.create("s", ttl_us=SECOND)
    await clock.advance(2)
    link = backend._open_store().janitor._link
    send = link.send

    async def without_clean_up(commands: Sequence[Command]) -> list[Any]:
        if commands[0].arguments[0] == b"ZREM":
            raise exc
        return await send(commands)

    with monkeypatch.context() as patch:
        patch.setattr(link, "send", without_clean_up)
        assert [gone.id for gone in await backend.expire(clock.now_us(), 10)] == ["s"]
    assert await backend.expire(clock.now_us(), 10) == []
    assert await direct.listed() == []


async def test_markers_of_sessions_do_not_stay(backend: RedisBackend, direct: Direct, keys: Keys) -> None:
    """In a cluster there is one beside each session: the server removes it."""
    await direct.create("s")
    lane = keys.marker(direct.last_marker.writer, 0)
    assert 0 < int(str(await ask(backend, b"PTTL", lane))) <= 2 * 24 * 3_600 * 1_000
    beside = await ask(backend, b"PTTL", keys.session_marker(keys.head("s"), direct.last_marker))
    if not backend._open_store().writes.in_order:
        assert 0 < int(str(beside)) <= 3_600 * 1_000


@pytest.mark.parametrize("stream", ["", "a", "b" * 40, "é" * 200, "x" * 70_000, "\0"])
def test_entries(stream: str) -> None:
    event = NewEvent(stream, "type", b'{"a":1}', None, 1_767_225_600_123_456)
    entry = encode_event(event)
    assert decode_event("s", 7, 3, entry) == event.numbered("s", 7, 3)
    assert entry[12:].startswith(stream_prefix(stream))
    for other in ("", "a", "aa", "b" * 39, "é"):
        assert entry[12:].startswith(stream_prefix(other)) == (other == stream)


def test_indexes_sort_by_incarnation() -> None:
    entries = [Entry.of(incarnation, owner, "x" * incarnation.bit_length()) for incarnation, owner in
               ((0, None), (1, "ö"), (4_095, None), (1 << 62, "a"), ((1 << 63) - 1, None))]  # fmt: skip
    assert sorted(entry.member for entry in entries) == [entry.member for entry in entries]
    assert [Entry.parse(entry.member) for entry in entries] == entries


async def test_an_unknown_session_has_no_events(backend: RedisBackend) -> None:
    assert await backend.read_events(EventQuery("nobody", -1)) is None
