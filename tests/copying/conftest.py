"""Two stores, what is in them, and ways to fill one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from holdfast import EventData
from holdfast.backends.base import Backend, Batch, Head, LoadRequest, Outcome, SessionFilter, StateValue
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.backends.sqlite import SQLiteBackend, SQLiteConfig
from holdfast.config import Config, RetentionConfig, WriterConfig
from holdfast.copying import Copier
from holdfast.model import Event, new_incarnation
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, InjectedCrash, ManualClock
from holdfast.testing.contract.direct import Direct, blind

Make = Callable[[], Backend]
SMALL = WriterConfig(max_session_units=7, max_batch_sessions=3, max_batch_bytes=400)


@pytest.fixture(params=["memory", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_source(kind: str, tmp_path: Path) -> Make:
    return maker(kind, tmp_path / "source.db")


@pytest.fixture
def make_target(kind: str, tmp_path: Path) -> Make:
    return maker(kind, tmp_path / "target.db")


def maker(kind: str, path: Path) -> Make:
    data = MemoryData()
    return lambda: MemoryBackend(shared=data) if kind == "memory" else SQLiteBackend(SQLiteConfig(path=str(path)))


@asynccontextmanager
async def opened(*makes: Make) -> AsyncIterator[list[Backend]]:
    backends = [make() for make in makes]
    for backend in backends:
        await backend.open()
    try:
        yield backends
    finally:
        for backend in backends:
            await backend.close()


@pytest.fixture
async def source(make_source: Make) -> AsyncIterator[Backend]:
    async with opened(make_source) as [backend]:
        yield backend


@pytest.fixture
async def target(make_target: Make) -> AsyncIterator[Backend]:
    async with opened(make_target) as [backend]:
        yield Checked(backend)


class Checked(FaultyBackend):
    """A target that checks what it is told: each change makes a version, and is fenced by the one before."""

    async def commit(self, batch: Batch) -> list[Outcome]:
        for write in batch.writes:
            changes = bool(write.events or write.sets or write.removes or write.metadata is not None or write.close)
            assert write.units >= changes
            if changes and write.create is None:
                assert write.fenced
        return await super().commit(batch)


def store(make: Make, clock: ManualClock, **settings: Any) -> Supervisor:
    settings = {"background": False, "retention": RetentionConfig(max_events=None)} | settings
    return Supervisor(make(), Config(**settings), clock=clock)


async def content(backend: Backend, clock: ManualClock) -> dict[str, tuple[Head, dict[str, StateValue], list[Event]]]:
    """All that a store shows, read without the copier's help."""
    direct = Direct(backend, clock)
    found: dict[str, tuple[Head, dict[str, StateValue], list[Event]]] = {}
    for head in (await backend.list_sessions(SessionFilter(clock.now_us()), -1, 10_000)).heads:
        (snapshot,) = await backend.load([LoadRequest(head.id)])
        assert snapshot is not None
        assert snapshot.state is not None
        found[head.id] = (snapshot.head, snapshot.state, await direct.events(head))
    return found


async def cut_short(
    source: Backend, target: Backend, clock: ManualClock, *, commits: int, config: WriterConfig | None = None
) -> None:
    """A copy that ends at once after so many commits."""
    faulty = FaultyBackend(target)
    faulty.inject(FaultKind.CRASH, "commit", skip=commits)
    with pytest.raises(InjectedCrash):
        await Copier(source, faulty, config, clock=clock).run()


async def fill(make: Make, clock: ManualClock) -> None:
    """A session of each kind that there is."""
    async with store(make, clock) as filled:
        plain = await filled.create("plain", owner="ann", ttl_s=3600, lifetime_s=86_400, metadata={"agent": "für\0"})
        await plain.set("first", 1)
        await clock.advance(1)
        await plain.set_many({"nul\0": "a\0b", "ünï": "\U0001f600", "big": 2**100, "null": None, "real": 0.1})
        await plain.remove("first")
        await plain.append_many(
            [EventData({"n": 2**70}, type="tick", stream="s/ü", retry_ms=500), EventData("\0\ud7ff", type="")]
        )
        await filled.create("empty", ttl_s=None)
        closed = await filled.create("closed")
        await closed.append_many(list(range(20)))
        await clock.advance(1)
        await closed.close()
        await clock.advance(1)
        await closed.touch()
        trimmed = await filled.create("trimmed")
        events = await trimmed.append_many(list(range(30)))
        await trimmed.delete_events_before(events[12].id)
    async with opened(make) as [backend]:
        direct = Direct(backend, clock)
        head = await direct.create("all-trimmed", incarnation=new_incarnation(clock.now_us()))
        await direct.one(blind(await direct.append(head, *"abc"), floor_seq=4))


async def fill_many(make: Make, clock: ManualClock, sessions: int = 25) -> None:
    """Small sessions and large ones, some of which were made by fewer units than they have parts."""
    async with store(make, clock) as filled:
        for number in range(sessions):
            session = await filled.create(f"s{number}")
            await session.set_many({f"k{key}": key for key in range(number)})
            await session.append_many([f"{number}.{event}" for event in range(number * 2)])
            if number % 3 == 0:
                await session.set("k0", "again")
            if number % 5 == 0:
                await session.close()
