"""Hints by publish and subscribe: others' commits only, over broken connections too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection

import anyio
import pytest
import structlog.testing

from holdfast.backends.redis import RedisBackend
from holdfast.backends.urls import create_backend
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head
from tests.servers.proxy import TcpProxy
from tests.servers.valkey import ALWAYS, CLUSTER, new_prefix, own_server, shared_url

pytestmark = pytest.mark.anyio


class Hints:
    """What a watch has told."""

    def __init__(self, backend: RedisBackend) -> None:
        self.told: list[Collection[int] | None] = []
        self._backend = backend

    async def watch(self) -> None:
        await self._backend.watch(self.told.append)

    async def until(self, hint: Collection[int] | None) -> None:
        """Wait for that hint, and forget the ones before it."""
        with anyio.fail_after(20):
            while hint not in self.told:
                await anyio.sleep(0.005)
        self.told.clear()


@pytest.fixture
async def pair(url: str) -> AsyncIterator[tuple[RedisBackend, RedisBackend]]:
    backends = [create_backend(url) for _ in range(2)]
    for backend in backends:
        await backend.open()
    one, two = backends
    assert isinstance(one, RedisBackend)
    assert isinstance(two, RedisBackend)
    yield one, two
    for backend in backends:
        await backend.close()


async def test_hints_name_the_sessions(pair: tuple[RedisBackend, RedisBackend], clock: ManualClock) -> None:
    """C32: one message a flush, of which one's own are left out."""
    here, there = Direct(pair[0], clock, "here"), Direct(pair[1], clock, "there")
    hints = Hints(pair[0])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hints.watch)
        await hints.until(None)
        largest = new_head("b", clock.now_us(), incarnation=(1 << 63) - 1)
        heads = [new_head("a", clock.now_us()), largest]
        await there.commit(*(creation(head) for head in heads))
        await hints.until([head.incarnation for head in heads])
        await here.one(blind(heads[1], events=[new_event()]))
        await there.one(blind(heads[0], events=[new_event()]))
        with anyio.fail_after(20):
            while not hints.told:
                await anyio.sleep(0.005)
        assert hints.told == [[heads[0].incarnation]]
        tasks.cancel_scope.cancel()


async def test_stores_do_not_hear_each_other(clock: ManualClock) -> None:
    """Each has its own prefix."""
    backends = [create_backend(shared_url("valkey", prefix=new_prefix())) for _ in range(2)]
    for backend in backends:
        await backend.open()
    here, there = backends
    assert isinstance(here, RedisBackend)
    hints = Hints(here)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hints.watch)
        await hints.until(None)
        await Direct(there, clock).create("s")
        await anyio.sleep(0.05)
        assert hints.told == []
        tasks.cancel_scope.cancel()
    for backend in backends:
        await backend.close()


async def test_watch_connects_again(clock: ManualClock) -> None:
    """After an outage, whatever happened meanwhile: a hint that anything may have changed."""
    with own_server() as server, TcpProxy("127.0.0.1", server.port) as proxy:
        here = create_backend(f"redis://127.0.0.1:{proxy.port}/")
        there = create_backend(server.url())
        assert isinstance(here, RedisBackend)
        for backend in (here, there):
            await backend.open()
        other = Direct(there, clock)
        head = await other.create("s")
        hints = Hints(here)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hints.watch)
            await hints.until(None)
            for _ in range(2):
                proxy.refuse()
                await anyio.sleep(0.05)
                assert hints.told == []
                proxy.heal()
                await hints.until(None)
                await other.one(blind(head, events=[new_event()]))
                await hints.until([head.incarnation])
            tasks.cancel_scope.cancel()
        for backend in (here, there):
            await backend.close()


@pytest.mark.parametrize("kind", ["valkey", "cluster"])
async def test_hints_that_are_denied(kind: str, clock: ManualClock) -> None:
    """A user without rights on channels: commits succeed all the same, and the log says, once, that nobody listens."""
    with own_server({**ALWAYS, **CLUSTER} if kind == "cluster" else ALWAYS) as server:
        server.command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "resetchannels")
        backend = create_backend(server.url().replace("redis://", "redis://app:secret@"))
        assert isinstance(backend, RedisBackend)
        await backend.open()
        hints = Hints(backend)
        with structlog.testing.capture_logs() as log:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hints.watch)
                direct = Direct(backend, clock)
                head = await direct.append(await direct.create("s"), "a")
                assert head.last_seq == 1
                with anyio.fail_after(20):
                    while not log:
                        await anyio.sleep(0.005)
                await anyio.sleep(0.5)  # it tries again meanwhile
                tasks.cancel_scope.cancel()
        await backend.close()
    assert [(entry["event"], entry["log_level"]) for entry in log] == [("redis.listening_failed", "warning")]
    assert "denied" in log[0]["error"]
    assert "app" not in log[0]["error"]
    assert hints.told == []
