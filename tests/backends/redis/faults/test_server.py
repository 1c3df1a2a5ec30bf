"""What goes wrong on the server: it refuses, stops, or holds what is not ours. All of it happens to a real one."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from holdfast.backends.base import Head, Status, TrimPolicy
from holdfast.backends.redis import RedisBackend
from holdfast.errors import OutcomeUnknown, Unavailable
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, new_event, texts
from tests.backends.redis.faults.support import behind
from tests.servers.proxy import TcpProxy
from tests.servers.valkey import ValkeyServer, new_prefix, packed

pytestmark = pytest.mark.anyio

SECOND = 1_000_000


def configure(server: ValkeyServer, **settings: str) -> None:
    for name, value in settings.items():
        assert server.command("CONFIG", "SET", name.replace("_", "-"), value) == b"+OK\r\n"


async def refused_and_recovers(
    direct: Direct, head: Head, end: Callable[[], Any], words: str, *, reads: bool = True
) -> None:
    """A write is `Unavailable`, nothing of it is stored, and it works once the trouble is over."""
    write = blind(head, sets={"k": (b"1", 1)}, events=[new_event("x")])
    with pytest.raises(Unavailable, match=words):
        await direct.one(write)
    if reads:
        assert await direct.head("s") == head
    end()
    with anyio.fail_after(20):
        while await is_unavailable(direct):
            await anyio.sleep(0.02)
    assert await direct.head("s") == head
    assert (await direct.one(write)).base_seq == head.last_seq
    assert texts(await direct.events(head))[-1] == "x"


async def is_unavailable(direct: Direct) -> bool:
    try:
        await direct.head("s")
    except Unavailable:
        return True
    return False


async def test_out_of_memory(server: ValkeyServer, direct: Direct) -> None:
    head = await direct.create("s")
    configure(server, maxmemory="1")
    await refused_and_recovers(direct, head, lambda: configure(server, maxmemory="0"), "out of memory")


async def test_out_of_memory_things_can_go(
    server: ValkeyServer, direct: Direct, backend: RedisBackend, clock: ManualClock
) -> None:
    """What frees memory works without any: also for a lane that has not written before."""
    head = await direct.append(await direct.create("s"), "a", "b", "c")
    doomed, _, _ = [await direct.create(name, ttl_us=ttl) for name, ttl in (("d", None), ("e", SECOND), ("f", SECOND))]
    alive = await direct.create("alive", ttl_us=SECOND)
    await clock.advance(2)
    await direct.one(blind(alive, units=0, accepted_us=alive.active_us, active_us=clock.now_us()))
    configure(server, maxmemory="1")
    try:
        other = Direct(backend, clock)
        writes = [
            blind(head, units=0, active_us=clock.now_us(), floor_seq=3),
            blind(doomed, delete=True),
            blind(alive, close=True),
        ]
        assert {outcome.status for outcome in await other.commit(*writes)} == {Status.COMMITTED}
        with pytest.raises(Unavailable, match="out of memory"):
            await other.one(blind(head, events=[new_event("x")]))
        assert await backend.trim([("s", head.incarnation)], TrimPolicy(), 10) == 2
        assert sorted(gone.id for gone in await backend.expire(clock.now_us(), 10)) == ["e", "f"]
        assert await direct.listed() == ["s", "alive"]
    finally:
        configure(server, maxmemory="0")


async def test_too_few_replicas(server: ValkeyServer, direct: Direct) -> None:
    head = await direct.create("s")
    configure(server, min_replicas_to_write="1")
    await refused_and_recovers(direct, head, lambda: configure(server, min_replicas_to_write="0"), "too few replicas")


async def test_somebody_elses_script(server: ValkeyServer, direct: Direct) -> None:
    """BUSY."""
    head = await direct.create("s")
    with socket.create_connection(("127.0.0.1", server.port)) as busy:
        busy.sendall(packed("EVAL", "while true do end", "0"))
        await anyio.sleep(0.3)
        await refused_and_recovers(direct, head, lambda: server.command("SCRIPT", "KILL"), "busy", reads=False)


async def test_loading(server: ValkeyServer, direct: Direct) -> None:
    head = await direct.create("s")
    server.command("DEBUG", "POPULATE", "300", f"ballast-{new_prefix()}")
    configure(server, key_load_delay="2000", loading_process_events_interval_bytes="1024")
    with socket.create_connection(("127.0.0.1", server.port)) as reloading:
        reloading.sendall(packed("DEBUG", "RELOAD"))
        while b"LOADING" not in server.command("GET", "x"):
            await anyio.sleep(0.01)
        await refused_and_recovers(direct, head, lambda: None, "loading", reads=False)
        reloading.recv(100)
    configure(server, key_load_delay="0")


async def test_forgotten_scripts(server: ValkeyServer, direct: Direct, backend: RedisBackend) -> None:
    """NOSCRIPT: they are loaded again, within the call."""
    head = await direct.create("s")
    for number in range(3):
        server.command("SCRIPT", "FLUSH")
        await direct.append(head, str(number))
        server.command("SCRIPT", "FLUSH")
        assert len(await direct.events(head)) == number + 1
    server.command("SCRIPT", "FLUSH")
    assert await backend.expire(0, 10) == []


async def test_restart(server: ValkeyServer, direct: Direct) -> None:
    """C10: an orderly one, and a kill: what was answered is there, and the next call connects anew."""
    head = await direct.create("s")
    ends = (server.kill,) if server.is_cluster else (server.stop, server.kill, server.kill)
    for number, end in enumerate(ends):
        await direct.append(head, str(number))
        end()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await direct.create(f"while-down-{number}")
        with pytest.raises(Unavailable):
            await direct.head("s")
        server.start()
        assert texts(await direct.events(head)) == [str(n) for n in range(number + 1)]


async def test_frozen_server(
    server: ValkeyServer, proxy: TcpProxy, direct: Direct, backend: RedisBackend, clock: ManualClock
) -> None:
    """No answer in time: unknown; when it wakes up it carries out what it had got, once."""
    head = await direct.create("s")
    async with behind(proxy, timeout_s=0.5, prefix=backend._config.prefix) as hasty:
        its = Direct(hasty, clock)
        await its.one(blind(head, units=0))
        server.freeze()
        try:
            with pytest.raises(OutcomeUnknown):
                await its.one(blind(head, events=[new_event("x")]))
            with pytest.raises(Unavailable):
                await its.head("s")
            with pytest.raises(Unavailable):
                await hasty.resolve(its.last_marker)
        finally:
            server.thaw()
        outcomes = None
        with anyio.fail_after(20):
            while outcomes is None:
                with contextlib.suppress(Unavailable):  # not in so short a time
                    outcomes = await hasty.resolve(its.last_marker)
        assert (outcomes[0].status, outcomes[0].base_seq) == (Status.COMMITTED, 0)
    await direct.append(head, "y")
    assert texts(await direct.events(head)) == ["x", "y"]
