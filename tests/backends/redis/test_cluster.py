"""Cluster mode beyond what one server with all slots shows: slots that are elsewhere, move, or are nowhere."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from redis.crc import key_slot

from holdfast.backends.base import Head, LoadRequest, Marker, Status, TrimPolicy
from holdfast.backends.redis import RedisBackend
from holdfast.backends.redis.cluster import ClusterLink
from holdfast.backends.redis.keys import SHARDS, Keys
from holdfast.backends.redis.link import Command, Node
from holdfast.backends.redis.scripts import PUT
from holdfast.backends.urls import create_backend
from holdfast.errors import OutcomeUnknown, Unavailable
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head, texts
from tests.servers.processes import wait_until
from tests.servers.valkey import ALL_SLOTS, CLUSTER, ValkeyServer, kept, new_prefix, own_server, shared_url

MIDDLE = 8_192
FORGIVING = {**CLUSTER, "cluster-require-full-coverage": "no"}


@pytest.mark.parametrize("session_id", ["a", "{", "}", "{}", "}{", "a{b}c", "%7B", "%", "{{x}}", "x" * 128])
def test_keys_of_a_session_have_one_slot(session_id: str) -> None:
    keys = Keys("p")
    head = keys.head(session_id)
    others = [head[:-1] + b"s", head[:-1] + b"e", keys.session_marker(head, Marker("w{}r", 3, 1))]
    assert {key_slot(key) for key in others} == {key_slot(head)}
    assert head.count(b"{") == head.count(b"}") == 1


def test_ids_have_keys_of_their_own() -> None:
    """C54: no escape makes two ids one."""
    ids = ["a", "{a}", "%7Ba%7D", "a:h", "}", "%7D", "%257D"]
    assert len({Keys("p").head(session_id) for session_id in ids}) == len(ids)


def test_shards_of_an_index_have_one_slot_each() -> None:
    keys = Keys("p")
    for shard in range(SHARDS):
        assert len({key_slot(name(shard)) for name in (keys.created, keys.expiring, keys.stale)}) == 1


class Pair:
    """Two servers, one with the lower half of the slots, one with the upper."""

    def __init__(self, low: ValkeyServer, high: ValkeyServer) -> None:
        self.low, self.high = low, high
        high.command("CLUSTER", "SET-CONFIG-EPOCH", "7")
        high.command("CLUSTER", "MEET", "127.0.0.1", str(low.port), str(low.bus_port))
        wait_until(self.agree, what="the servers do not agree")

    def agree(self) -> bool:
        maps = [self.ranges(server) for server in (self.low, self.high)]
        infos = [server.command("CLUSTER", "INFO") for server in (self.low, self.high)]
        return maps[0] == maps[1] and len(maps[0]) == 2 and all(b"cluster_state:ok" in info for info in infos)

    def ranges(self, server: ValkeyServer) -> set[tuple[bytes, ...]]:
        nodes = server.command("CLUSTER", "NODES").split(b"\n")
        rows = [row.split() for row in nodes if b"connected" in row]
        return {(row[0], *row[8:]) for row in rows if len(row) > 8}

    def move(self, slot: int, source: ValkeyServer, target: ValkeyServer) -> None:
        name = target.command("CLUSTER", "MYID").split(b"\r\n")[1]
        for server in (target, source):
            assert server.command("CLUSTER", "SETSLOT", str(slot), "NODE", name) == b"+OK\r\n"


@functools.cache
def shared_pair() -> Pair:
    low, high = (kept(own_server(FORGIVING, slots=half)) for half in ((0, MIDDLE - 1), (MIDDLE, ALL_SLOTS[1])))
    return Pair(low, high)


@pytest.fixture
def pair() -> Pair:
    """One for the session; each test leaves it with all slots served."""
    return shared_pair()


@pytest.fixture
def url(pair: Pair) -> str:
    return pair.low.url(prefix=new_prefix(), timeout_s=1)


async def create_many(direct: Direct, clock: ManualClock) -> list[Head]:
    heads = [new_head(f"s{number:02}", clock.now_us()) for number in range(40)]
    outcomes = await direct.commit(*(creation(head) for head in heads))
    assert {outcome.status for outcome in outcomes} == {Status.COMMITTED}
    return heads


def slot_of(backend: RedisBackend, head: Head) -> int:
    return key_slot(backend._keys.head(head.id))


@pytest.mark.anyio
async def test_two_servers(direct: Direct, backend: RedisBackend, pair: Pair, clock: ManualClock) -> None:
    heads = await create_many(direct, clock)
    assert {slot_of(backend, head) < MIDDLE for head in heads} == {True, False}
    await direct.commit(*(blind(head, events=[new_event(head.id)]) for head in heads))
    assert await direct.listed(page=7) == [head.id for head in heads]
    for head in heads[:5]:
        assert texts(await direct.events(head)) == [head.id]
    await direct.commit(*(blind(head, delete=True) for head in heads[:20]))
    snapshots = await backend.load([LoadRequest(head.id) for head in heads])
    assert [snapshot is None for snapshot in snapshots] == [True] * 20 + [False] * 20
    facts = await backend.describe()
    assert isinstance(facts["servers"], list)
    assert len(facts["servers"]) == 2


@pytest.mark.anyio
async def test_slots_that_moved(direct: Direct, backend: RedisBackend, pair: Pair, clock: ManualClock) -> None:
    """MOVED: the map is asked for anew, within the call."""
    names = [f"{new_prefix()}-{number}" for number in range(100)]  # the id alone decides the slot
    name = next(name for name in names if key_slot(backend._keys.head(name)) < MIDDLE)
    slot = key_slot(backend._keys.head(name))
    await create_many(direct, clock)  # the map is known
    pair.move(slot, pair.low, pair.high)
    head = await direct.append(await direct.create(name), "a")
    assert texts(await direct.events(head)) == ["a"]


@pytest.mark.anyio
async def test_slots_on_their_way(direct: Direct, backend: RedisBackend, pair: Pair) -> None:
    """TRYAGAIN, ASK: of a session that may be half here and half there, nothing is read or written."""
    name = new_prefix()
    head = await direct.append(await direct.create(name), "a")
    await direct.one(blind(head, sets={"k": (b"1", 1)}))
    head_key = backend._keys.head(name)
    slot = str(key_slot(head_key))
    here, there = (pair.low, pair.high) if int(slot) < MIDDLE else (pair.high, pair.low)
    from_here, to_there = (server.command("CLUSTER", "MYID").split(b"\r\n")[1] for server in (here, there))
    there.command("CLUSTER", "SETSLOT", slot, "IMPORTING", from_here)
    here.command("CLUSTER", "SETSLOT", slot, "MIGRATING", to_there)
    assert here.command("MIGRATE", "127.0.0.1", str(there.port), head_key[:-1] + b"e", "0", "1000") == b"+OK\r\n"
    try:
        with pytest.raises(Unavailable, match="moving"):
            await direct.one(blind(head, sets={"k": (b"2", 1)}, events=[new_event("b")]))
        with pytest.raises(Unavailable, match="moving"):
            await backend.load([LoadRequest(name)])
        for letter in (b"h", b"s"):
            here.command("MIGRATE", "127.0.0.1", str(there.port), head_key[:-1] + letter, "0", "1000")
        for marker in here.command("KEYS", head_key[:-1] + b"m:*").split(b"\r\n")[2::2]:
            here.command("DEL", marker)
    finally:
        pair.move(int(slot), here, there)
    assert await direct.state(name) == {"k": b"1"}
    assert texts(await direct.events(head)) == ["a"]
    await direct.append(head, "b")


@pytest.mark.anyio
async def test_slot_that_begins_to_move(direct: Direct, backend: RedisBackend, pair: Pair, clock: ManualClock) -> None:
    """All keys of a session are still here, but one that a script removes would be looked for there from then on."""
    head = await direct.create(new_prefix(), ttl_us=1_000_000)
    await direct.one(blind(head, sets={"old": (b"1", 1)}, events=[new_event("a")]))
    before = await direct.head(head.id)
    slot = str(slot_of(backend, head))
    here, there = (pair.low, pair.high) if int(slot) < MIDDLE else (pair.high, pair.low)
    here.command("CLUSTER", "SETSLOT", slot, "MIGRATING", there.command("CLUSTER", "MYID").split(b"\r\n")[1])
    write = blind(head, cleared=True, sets={"new": (b"2", 1)}, events=[new_event("b")])
    try:
        with pytest.raises(Unavailable, match="moving"):
            await direct.one(write)
        with pytest.raises(Unavailable, match="moving"):
            await backend.trim([(head.id, head.incarnation)], TrimPolicy(min_time_us=1), 10)
        with pytest.raises(Unavailable, match="moving"):
            await backend.expire(clock.now_us() + 10_000_000, 10)
        assert await direct.head(head.id) == before
        assert await direct.state(head.id) == {"old": b"1"}
    finally:
        here.command("CLUSTER", "SETSLOT", slot, "STABLE")
    assert (await direct.one(write)).status is Status.COMMITTED
    assert await direct.state(head.id) == {"new": b"2"}
    assert texts(await direct.events(head)) == ["a", "b"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_servers_that_left(backend: RedisBackend, direct: Direct, anyio_backend: str) -> None:
    """Several calls find out at once, and one is on its way to such a server: nothing of it stays open."""
    link = backend._open_store().writes
    assert isinstance(link, ClusterLink)
    gone = [Node(link._config) for _ in range(3)]
    used = await gone[0].connect()
    link._nodes.update({("gone", port): node for port, node in enumerate(gone)})
    link._map_is_old = True
    commands = [Command(key, (b"GET", key)) for key in (b"{a}", b"{b}")]
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(link.send, commands)
    assert not any(host == "gone" for host, _ in link._nodes)
    late = await gone[0].connect()
    for connection in (used, late):
        await gone[0].release(connection, reusable=True)
        assert not connection.is_connected


@pytest.mark.anyio
async def test_slots_that_nobody_has(direct: Direct, backend: RedisBackend, pair: Pair, clock: ManualClock) -> None:
    """CLUSTERDOWN for some: their sessions are `Unavailable`, the others go on."""
    heads = await create_many(direct, clock)
    low = next(head for head in heads if slot_of(backend, head) < MIDDLE)
    high = next(head for head in heads if slot_of(backend, head) >= MIDDLE)
    slot = str(slot_of(backend, high))
    for server in (pair.low, pair.high):
        server.command("CLUSTER", "DELSLOTS", slot)
    try:
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await direct.one(blind(high, events=[new_event()]))
        assert (await direct.one(blind(low, events=[new_event()]))).status is Status.COMMITTED
    finally:
        pair.high.command("CLUSTER", "ADDSLOTS", slot)
    with anyio.fail_after(20):
        while True:
            try:
                assert (await direct.one(blind(high, events=[new_event("x")]))).base_seq == 0
                break
            except Unavailable:
                await anyio.sleep(0.05)


@pytest.mark.anyio
async def test_one_server_away(direct: Direct, backend: RedisBackend, pair: Pair, clock: ManualClock) -> None:
    """A batch for both servers, of which one does not answer: unknown at first, then completed, once."""
    heads = await create_many(direct, clock)
    pair.high.freeze()
    try:
        with pytest.raises(OutcomeUnknown):
            await direct.commit(*(blind(head, events=[new_event("x")]) for head in heads))
        with pytest.raises(Unavailable):
            await backend.resolve(direct.last_marker)
    finally:
        pair.high.thaw()
    wait_until(pair.agree, what="the servers do not agree")
    outcomes = await backend.resolve(direct.last_marker)
    assert outcomes is not None
    assert {(outcome.status, outcome.base_seq) for outcome in outcomes} == {(Status.COMMITTED, 0)}
    for head in heads:
        assert texts(await direct.events(head)) == ["x"]


@pytest.mark.anyio
async def test_no_connection_behind_the_commit(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """P5: the sessions are written, and the lane's marker cannot be sent: that is unknown, not `Unavailable`."""
    backend = create_backend(shared_url("cluster", prefix=new_prefix()))
    assert isinstance(backend, RedisBackend)
    await backend.open()
    direct = Direct(backend, clock)
    head = await direct.create("s")
    link = backend._open_store().committer._link
    send = link.send

    async def without_marker(commands: Sequence[Command]) -> list[Any]:
        if commands[0].arguments[1] == PUT.sha and b"SET" in commands[0].arguments:
            raise Unavailable("no connection")
        return await send(commands)

    with monkeypatch.context() as patch:
        patch.setattr(link, "send", without_marker)
        with pytest.raises(OutcomeUnknown, match="not completed"):
            await direct.one(blind(head, events=[new_event("once")]))
        with pytest.raises(Unavailable):
            await backend.resolve(direct.last_marker)
    outcomes = await backend.resolve(direct.last_marker)
    assert outcomes is not None
    assert outcomes[0].status is Status.COMMITTED
    assert texts(await direct.events(head)) == ["once"]
    await backend.close()
