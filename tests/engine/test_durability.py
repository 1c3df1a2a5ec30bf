"""Durability per call: what is acknowledged when, and what is said of writes that are lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from holdfast.config import Config, WriterConfig
from holdfast.errors import Rejected
from holdfast.model import Durability
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, ManualClock

pytestmark = pytest.mark.anyio

MEMORY = Durability.MEMORY
PATIENCE_S = 10


@pytest.fixture
async def store(backend: FaultyBackend, clock: ManualClock) -> AsyncIterator[Supervisor]:
    writer = WriterConfig(retry_for_s=0.001)
    async with Supervisor(backend, Config(ttl_s=None, writer=writer), clock=clock) as store:
        yield store


async def every_write(session: Session) -> None:
    """Each at once, while nothing can be stored."""
    with anyio.fail_after(PATIENCE_S):
        event = await session.append("x", durability=MEMORY)
        assert (event.id, event.seq, event.data) == ("", 0, "x")
        events = await session.append_many(["y", "z"], durability=MEMORY)
        assert [(event.id, event.data) for event in events] == [("", "y"), ("", "z")]
        await session.set("k", 1, durability=MEMORY)
        await session.set_many({"l": 2}, durability=MEMORY)
        await session.set_metadata({"m": 3}, durability=MEMORY)
        await session.touch(durability=MEMORY)


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda session: session.get("k"), 1),
        (lambda session: session.get("k", cached=True), 1),
        (lambda session: session.state(), {"k": 1, "l": 2}),
        (lambda session: session.update("k", lambda value: value + 1), 2),
        (lambda session: session.last_events(9), ["x", "y", "z"]),
        (lambda session: session.events(), ["x", "y", "z"]),
    ],
)
async def test_acknowledged_on_acceptance(
    store: Supervisor, backend: FaultyBackend, clock: ManualClock, read: Any, expected: Any
) -> None:
    """Before the commit; and a read that follows waits for it."""
    session = await store.create("s")
    hold = backend.inject(FaultKind.HELD, times=None)
    await every_write(session)
    found = list[Any]()

    async def get() -> None:
        found.append(await read(session))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get)
        await hold.struck()
        await clock.settle()
        assert found == []
        hold.release()
    (value,) = found
    assert ([event.data for event in value] if expected == ["x", "y", "z"] else value) == expected
    assert (await session.info()).metadata == {"m": 3}
    assert store.statistics().registry.lost_writes == 0


async def test_only_who_asks_for_it_is_acknowledged_on_acceptance(
    store: Supervisor, backend: FaultyBackend, clock: ManualClock
) -> None:
    """By default a write waits for its commit, also in a store that can promise no more than memory."""
    session = await store.create("s")
    hold = backend.inject(FaultKind.HELD)
    done = list[str]()

    async def append() -> None:
        done.append((await session.append("x")).id)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append)
        await hold.struck()
        await clock.settle()
        assert done == []
        hold.release()
    assert len(done[0]) > 0


async def test_settings_may_ask_for_it(backend: FaultyBackend, clock: ManualClock) -> None:
    """A create waits all the same; so does what gives a result."""
    async with Supervisor(backend, Config(ttl_s=None, durability=MEMORY), clock=clock) as store:
        session = await store.create("s")
        assert backend.calls["commit"] == 1
        hold = backend.inject(FaultKind.HELD)
        with anyio.fail_after(PATIENCE_S):
            assert (await session.append("x")).id == ""
            await hold.struck()
        done = list[Any]()

        async def update() -> None:
            done.append(await session.update("n", lambda value: value + 1, 0))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(update)
            await clock.settle()
            assert done == []
            hold.release()
        assert done == [1]


@pytest.mark.parametrize("kind", [FaultKind.REJECTED, FaultKind.UNAVAILABLE])
async def test_lost_writes_are_counted_and_logged(
    store: Supervisor, backend: FaultyBackend, clock: ManualClock, kind: FaultKind
) -> None:
    """A touch that is lost is no write; whoever waited for its own write has its error instead."""
    session = await store.create("s")
    refuse = backend.inject(kind, times=None)
    with capture_logs() as logs:
        async with clock.flowing():
            with anyio.fail_after(PATIENCE_S):
                for number in range(3):
                    await session.append(number, durability=MEMORY)
                await session.touch(durability=MEMORY)
                while not store._engine.idle:
                    await anyio.sleep(0.001)
    lost = [entry for entry in logs if entry["event"] == "write.lost"]
    assert sum(entry["units"] for entry in lost) == 3
    assert {(entry["session_id"], entry["log_level"]) for entry in lost} == {("s", "error")}
    assert all("injected" in entry["error"] for entry in lost)
    assert store.statistics().registry.lost_writes == 3
    refuse.release()
    assert await session.events() == []
    await session.append("after")
    assert [event.data for event in await session.events()] == ["after"]


async def test_who_waits_is_told_and_not_counted_as_lost(store: Supervisor, backend: FaultyBackend) -> None:
    session = await store.create("s")
    backend.inject(FaultKind.REJECTED)
    with pytest.raises(Rejected):
        await session.append("x")
    assert store.statistics().registry.lost_writes == 0
