"""Requests and replies that are lost or late on the way to a real server: nothing is lost, nothing is done twice."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from typing import Any

import anyio
import pytest

import holdfast
from holdfast.backends.base import Batch, Head, LoadRequest, Status
from holdfast.backends.redis import RedisBackend
from holdfast.backends.redis.link import Command
from holdfast.backends.redis.scripts import FORGET
from holdfast.backends.urls import create_backend
from holdfast.config import WriterConfig
from holdfast.errors import OutcomeUnknown, Unavailable
from holdfast.model import Durability
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head, texts
from tests.servers.proxy import TcpProxy
from tests.servers.valkey import ALWAYS, ValkeyServer, new_prefix, own_server

pytestmark = pytest.mark.anyio

SECOND = 1_000_000


def is_script(data: bytes) -> bool:
    return b"EVALSHA" in data


class LosesReply:
    """Cuts the connection at the reply to the next script; then, if asked to, refuses new ones."""

    def __init__(self, proxy: TcpProxy, *, then_refuse: bool = False) -> None:
        self._proxy = proxy
        self._then_refuse = then_refuse
        self._asked = False
        proxy.at_request = self.request
        proxy.at_reply = self.reply

    def request(self, data: bytes) -> bool:
        self._asked |= is_script(data)
        return False

    def reply(self, data: bytes) -> bool:
        self._proxy.refusing = self._asked and self._then_refuse
        return self._asked


async def everything(direct: Direct, head: Head) -> tuple[Any, ...]:
    return (await direct.head(head.id), await direct.versions(head.id), texts(await direct.events(head)))


@pytest.mark.parametrize("arrived", [True, False])
async def test_lost_connection(
    proxy: TcpProxy, direct: Direct, backend: RedisBackend, clock: ManualClock, arrived: bool
) -> None:
    """C43: whether the script ran or not, the flush is completed, exactly once, with its own outcomes."""
    one, two, gone = [await direct.create(name) for name in ("one", "two", "gone")]
    closed, _ = await direct.create("closed"), await direct.create("taken")
    await direct.one(blind(closed, close=True))
    new = new_head("new", clock.now_us(), owner="o")
    writes = [
        blind(one, units=2, sets={"k": (b"1", 2)}, events=[new_event("a"), new_event("b")]),
        blind(two, events=[new_event("c")], floor_seq=1),
        blind(gone, delete=True),
        blind(closed, events=[new_event("refused")]),
        blind(new_head("nobody", 0)),
        creation(new),
        creation(new_head("taken", clock.now_us())),
    ]
    if arrived:
        LosesReply(proxy)
    else:
        proxy.cut_at_request(is_script)
    with pytest.raises(OutcomeUnknown, match=r"lost|not all servers"):
        await direct.commit(*writes)
    outcomes = await backend.resolve(direct.last_marker)
    assert outcomes is not None
    assert [outcome.status.name for outcome in outcomes] == [
        "COMMITTED", "COMMITTED", "COMMITTED", "CLOSED", "MISSING", "COMMITTED", "EXISTS",
    ]  # fmt: skip
    assert (outcomes[0].base_version, outcomes[0].base_seq) == (1, 0)
    assert await backend.resolve(direct.last_marker) == outcomes, "it can be asked for again"
    after, versions, events = await everything(direct, one)
    assert (after.version, versions, events) == (3, {"k": 3}, ["a", "b"])
    assert texts(await direct.events(two)) == ["c"]
    assert await direct.listed() == ["one", "two", "closed", "taken", "new"]
    assert await direct.listed(owner="o") == ["new"]
    assert not await direct.exists("gone")


async def test_late_packets(server: ValkeyServer, proxy: TcpProxy, direct: Direct, backend: RedisBackend) -> None:
    """C43: what was sent and believed lost arrives after the flush was settled: it changes nothing."""
    head = await direct.create("s")
    recorded: list[bytes] = []

    def record(data: bytes) -> bool:
        recorded.append(data)
        return False

    proxy.at_request = record
    await direct.one(blind(head, events=[new_event("once")], sets={"k": (b"1", 1)}))
    assert recorded
    settled = await everything(direct, head)
    replay(server, recorded)
    assert await everything(direct, head) == settled
    proxy.at_request = None
    await direct.append(head, "later")
    settled = await everything(direct, head)
    replay(server, recorded)
    assert await everything(direct, head) == settled


@pytest.mark.parametrize("arrived", [True, False])
async def test_lost_connection_of_a_refused_commit(
    server: ValkeyServer, proxy: TcpProxy, direct: Direct, backend: RedisBackend, arrived: bool
) -> None:
    """It is known not to be stored, and stays so: what comes late finds its number taken."""
    head = await direct.create("s")
    foreign = backend._keys.head("s")[:-1] + b"e"
    server.command("SET", foreign, "x")
    write = blind(head, events=[new_event("once")])
    recorded: list[bytes] = []

    def record(data: bytes) -> bool:
        recorded.append(data)
        return not arrived and is_script(data)

    proxy.cut_at_request(record)
    proxy.at_reply = lambda data: bool(recorded)
    with pytest.raises(OutcomeUnknown):
        await direct.one(write)
    proxy.at_request = proxy.at_reply = None
    for _ in range(2):
        assert await backend.resolve(direct.last_marker) is None
    server.command("DEL", foreign)
    replay(server, recorded)
    assert await direct.head("s") == head
    assert (await direct.one(write)).status is Status.COMMITTED
    assert texts(await direct.events(head)) == ["once"]


async def test_fence_of_a_lane_that_lost_a_packet(
    server: ValkeyServer, proxy: TcpProxy, direct: Direct, backend: RedisBackend, clock: ManualClock
) -> None:
    """Its writer has ended, and its markers are forgotten: what arrives after that still changes nothing."""
    head = await direct.create("s")
    recorded: list[bytes] = []

    def lost(data: bytes) -> bool:
        recorded.append(data)
        return is_script(data)

    proxy.cut_at_request(lost)
    with pytest.raises(OutcomeUnknown):
        await direct.one(blind(head, events=[new_event("once")]))
    assert await backend.resolve(direct.last_marker) is not None
    await backend.forget_markers(direct.last_marker.writer, 0)
    await backend.forget_markers(None, clock.now_us() + SECOND)
    settled = await everything(direct, head)
    replay(server, recorded)
    assert await everything(direct, head) == settled
    assert await backend.resolve(direct.last_marker) is not None


async def test_marker_that_changes_while_it_is_forgotten(
    direct: Direct, backend: RedisBackend, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was old when it was looked at, and is not when it is to go: it stays."""
    head = await direct.create("s")
    committer = backend._open_store().committer
    send = committer._link.send

    async def late(commands: Sequence[Command]) -> list[Any]:
        if commands[0].arguments[1] == FORGET.sha:
            monkeypatch.undo()
            await committer.commit(batch)
        return await send(commands)

    marker = direct.last_marker._replace(flush=2)
    batch = Batch(
        writes=[blind(head, events=[new_event("x")])],
        marker=marker,
        durability=Durability.MEMORY,
        now_us=clock.now_us(),
        max_events=None,
    )
    monkeypatch.setattr(committer._link, "send", late)
    await backend.forget_markers(None, clock.now_us() + SECOND)
    outcomes = await backend.resolve(marker)
    assert outcomes is not None
    assert outcomes[0].status is Status.COMMITTED
    await backend.forget_markers(None, clock.now_us() + SECOND)
    assert await backend.resolve(marker) is None


def replay(server: ValkeyServer, packets: list[bytes]) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=2) as late:
        late.sendall(b"".join(packets))
        late.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while late.recv(1 << 16):
                pass


@pytest.mark.parametrize("stays_away", [False, True])
async def test_lost_answer_of_the_janitor(
    proxy: TcpProxy, direct: Direct, backend: RedisBackend, clock: ManualClock, stays_away: bool
) -> None:
    """C38: who was removed is told all the same, and once."""
    names = {f"s{number}" for number in range(5)}
    for name in sorted(names):
        await direct.create(name, ttl_us=SECOND)
    await clock.advance(2)
    LosesReply(proxy, then_refuse=stays_away)
    if stays_away:
        with pytest.raises(Unavailable):
            await backend.expire(clock.now_us(), 100)
        proxy.heal()
    assert {session.id for session in await backend.expire(clock.now_us(), 100)} == names
    assert await backend.expire(clock.now_us(), 100) == []
    assert proxy.cuts == 1
    assert await direct.listed() == []


async def test_cancelled_calls(proxy: TcpProxy, direct: Direct, backend: RedisBackend, clock: ManualClock) -> None:
    """C49, C51: a call that is given up leaves no connection in a bad state."""
    head = await direct.create("s")
    proxy.delay_s = 0.02
    for number in range(12):
        with anyio.move_on_after(number * 0.005):
            await direct.one(blind(head, events=[new_event(str(number))]))
        with anyio.move_on_after(number * 0.005):
            await backend.load([LoadRequest("s")])
    proxy.delay_s = 0.0
    await direct.one(blind(head, events=[new_event("last")]))
    events = await direct.events(head)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert len(set(texts(events))) == len(events)


async def test_exactly_once_under_resets(server: ValkeyServer, proxy: TcpProxy) -> None:
    """P5: connections break all the time, and every append is stored once, in order."""
    url = f"redis://127.0.0.1:{proxy.port}/?prefix={new_prefix()}"
    config = WriterConfig(breaker_failures=1_000)
    async with holdfast.open(url, writer=config) as store:
        sessions = [await store.create() for _ in range(20)]
        done = 0

        async def append(session: holdfast.Session) -> None:
            nonlocal done
            for number in range(20):
                await session.append(number)
            done += 1

        async with anyio.create_task_group() as tasks:
            for session in sessions:
                tasks.start_soon(append, session)
            while done < len(sessions):
                await anyio.sleep(0.03)
                proxy.reset()
        for session in sessions:
            assert [event.data async for event in session.replay()] == list(range(20))


def _offset(server: ValkeyServer) -> bytes:
    """How far its log of replicated writes goes."""
    return server.command("INFO", "replication").partition(b"master_repl_offset:")[2].split()[0]


async def replicated(primary: ValkeyServer, replica: ValkeyServer) -> None:
    """Wait until the replica has everything."""
    with anyio.fail_after(20):
        while b"link_status:up" not in replica.command("INFO") or _offset(primary) != _offset(replica):
            await anyio.sleep(0.02)


async def test_failover(clock: ManualClock) -> None:
    """READONLY: the primary was demoted, and its name leads to another server."""
    settings = {**ALWAYS, "repl-diskless-sync-delay": "0"}
    with own_server(settings) as first, own_server(settings) as second, TcpProxy("127.0.0.1", first.port) as name:
        second.command("REPLICAOF", "127.0.0.1", str(first.port))
        backend = create_backend(f"redis://127.0.0.1:{name.port}/")
        await backend.open()
        try:
            direct = Direct(backend, clock)
            head = await direct.append(await direct.create("s"), "a")
            await replicated(first, second)
            second.command("REPLICAOF", "NO", "ONE")
            first.command("REPLICAOF", "127.0.0.1", str(second.port))
            name._target = ("127.0.0.1", second.port)  # type: ignore[misc]
            write = blind(head, events=[new_event("b")])
            with pytest.raises(Unavailable, match="read-only"):
                await direct.one(write)
            assert (await direct.one(write)).base_seq == 1
            assert texts(await direct.events(head)) == ["a", "b"]
        finally:
            await backend.close()


async def test_failover_to_a_replica_that_lacks_the_last_writes(clock: ManualClock) -> None:
    """What was acknowledged and not replicated is lost, as documented; what was not answered is done, once."""
    settings = {**ALWAYS, "repl-diskless-sync-delay": "0"}
    with (
        own_server(settings) as first,
        own_server(settings) as second,
        TcpProxy("127.0.0.1", first.port) as name,
        TcpProxy("127.0.0.1", first.port) as replication,
    ):
        second.command("REPLICAOF", "127.0.0.1", str(replication.port))
        backend = create_backend(f"redis://127.0.0.1:{name.port}/")
        await backend.open()
        try:
            direct = Direct(backend, clock)
            head = await direct.append(await direct.create("s"), "a")
            await replicated(first, second)
            replication.black_hole()
            assert texts(await direct.events(await direct.append(head, "lost"))) == ["a", "lost"]
            LosesReply(name, then_refuse=True)
            with pytest.raises(OutcomeUnknown):
                await direct.one(blind(head, sets={"k": (b"1", 1)}, events=[new_event("once")]))
            first.kill()
            second.command("REPLICAOF", "NO", "ONE")
            name._target = ("127.0.0.1", second.port)  # type: ignore[misc]
            name.at_reply = name.at_request = None
            name.heal()
            outcomes = await backend.resolve(direct.last_marker)
            assert outcomes is not None
            assert (outcomes[0].status, outcomes[0].base_seq) == (Status.COMMITTED, 1)
            assert await backend.resolve(direct.last_marker) == outcomes
            assert texts(await direct.events(head)) == ["a", "once"]
        finally:
            await backend.close()
