"""Listening, trimming, touches and the bound on hot sessions: what happens while they are at it is not lost on them."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import msgspec
import pytest
from structlog.testing import capture_logs

from holdfast import Config, Supervisor
from holdfast.backends.base import Capabilities, LoadRequest, Snapshot
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import ActorConfig, JanitorConfig, RetentionConfig, WatchConfig
from holdfast.errors import EventGap
from holdfast.supervisor import workers
from holdfast.supervisor.watcher import Rota
from holdfast.testing import FaultKind, FaultyBackend, ManualClock

pytestmark = pytest.mark.anyio

PATIENCE_S = 5


# Subscriptions


@pytest.mark.parametrize("read_before", [0, 1])
async def test_who_waits_at_the_end_is_told_of_what_was_trimmed(read_before: int) -> None:
    """At the start of an empty log too: what came while it listened is its own to read, or a gap."""
    async with Supervisor(MemoryBackend(), Config(retention=RetentionConfig(max_events=10))) as store:
        session = await store.create()
        gaps = list[EventGap]()

        async def listen() -> None:
            async with session.subscribe() as events:
                for _ in range(read_before):
                    await anext(events)
                with pytest.raises(EventGap) as gap:
                    await anext(events)
                gaps.append(gap.value)

        for number in range(read_before):
            await session.append(number)
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                await anyio.wait_all_tasks_blocked()
                await session.append_many(range(20))
        assert gaps[0].first_id == (await session.events())[0].id


async def test_who_comes_late_without_a_cursor_gets_what_is_held() -> None:
    """That is no gap: nothing of it was promised."""
    async with Supervisor(MemoryBackend(), Config(retention=RetentionConfig(max_events=10))) as store:
        session = await store.create()
        await session.append_many(range(20))
        assert (await anext(session.subscribe())).seq == 11


# Watching


async def test_a_collected_subscription_is_no_longer_watched_for(clock: ManualClock) -> None:
    """The collector may run in any thread, and wakes nobody: the keeper finds out."""
    data = MemoryData()
    async with Supervisor(MemoryBackend(data), clock=clock) as store:
        session = await store.create()
        await session.append("x")
        events = session.subscribe()
        await anext(events)
        await clock.settle()
        assert data.watchers
        del events
        gc.collect()
        await clock.advance(2)
        assert not data.watchers
        async with session.subscribe():
            await clock.settle()
            assert data.watchers


async def test_a_hint_that_could_not_be_followed_is_followed_later(clock: ManualClock) -> None:
    """It will not come again. A store that is away for a moment is no bug of the watcher's."""
    data = MemoryData()
    backend = FaultyBackend(MemoryBackend(data))
    async with (
        Supervisor(backend, Config(ttl_s=None), clock=clock) as here,
        Supervisor(MemoryBackend(data), clock=clock) as there,
    ):
        session = await here.create("s")
        elsewhere = await there.require("s")
        async with session.subscribe() as events:
            await clock.settle()
            with capture_logs() as logs:
                backend.inject(FaultKind.UNAVAILABLE, "load", times=2)
                await elsewhere.append("news")
                await clock.advance(0.9)
                assert here.statistics().workers["watcher"].failures == 1
                await clock.advance(2)
            assert here.statistics().workers["watcher"].failures == 2
            assert not [entry for entry in logs if entry["event"].startswith("worker")]
            with anyio.fail_after(PATIENCE_S):
                assert (await anext(events)).data == "news"


class Silent(FaultyBackend):
    """A store that does not tell of others' commits. It counts polls, and calls a hook in each."""

    polls = 0
    during_poll: Callable[[], Awaitable[Any]] | None = None

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities, exclusive=False, watches=False)

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        found = await super().load(requests)
        if any(request.head_only for request in requests):
            self.polls += 1
            if self.during_poll is not None:
                await self.during_poll()
        return found


@pytest.mark.parametrize("whose", ["own", "others'"])
async def test_own_writes_are_no_news_to_the_poll(whose: str, clock: ManualClock) -> None:
    """A session that is streamed to from here alone is polled as rarely as a quiet one."""
    data = MemoryData()
    backend = Silent(MemoryBackend(data))
    config = Config(ttl_s=None, watch=WatchConfig(poll_min_s=0.02, poll_max_s=1))
    async with Supervisor(backend, config, clock=clock) as here, Supervisor(MemoryBackend(data), clock=clock) as there:
        session = await here.create("s")
        elsewhere = await there.require("s")
        async with session.subscribe():
            await clock.advance(5)
            before = backend.polls
            backend.during_poll = lambda: (session if whose == "own" else elsewhere).append("x")
            await clock.advance(5)
            polls = backend.polls - before
    assert polls <= 6 if whose == "own" else polls > 50


class FakeActor:
    incarnation = 1


def test_the_rota_takes_two_of_one_incarnation() -> None:
    """A session's actor, and the one that has taken its place since."""
    rota = Rota(WatchConfig())
    first: Any = FakeActor()
    second: Any = FakeActor()
    rota.welcome({first, second}, 0.0)
    assert set(rota.due(1.0)) == {first, second}


# Upkeep


async def test_what_grows_during_a_sweep_is_trimmed_by_the_next_pass(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_MANY_SESSIONS", 3)
    data = MemoryData()
    backend = FaultyBackend(MemoryBackend(data))
    config = Config(ttl_s=None, retention=RetentionConfig(max_events=5, interval_s=30), janitor=JanitorConfig(jitter=0))
    async with Supervisor(backend, config, clock=clock) as store:
        await clock.settle()
        for number in range(4):
            await (await store.create(f"many{number}")).append_many(range(9))
        late = await store.create("late")
        sweep = backend.inject(FaultKind.HELD_DONE, "trim", when=lambda ids: ids is None)
        await clock.advance(30)
        assert sweep.hits == 1
        await late.append_many(range(50))
        sweep.release()
        await clock.settle()
        assert len(data.rows["late"].events) == 50
        await clock.advance(30)
        assert len(data.rows["late"].events) == 5


async def test_activity_noted_during_a_write_is_stored_at_the_close(clock: ManualClock) -> None:
    data = MemoryData()
    backend = FaultyBackend(MemoryBackend(data))
    async with Supervisor(backend, Config(drain_timeout_s=PATIENCE_S), clock=clock) as store:
        session = await store.create("s", ttl_s=3_600)
        hold = backend.inject(FaultKind.HELD_DONE)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.append, "x")
            await hold.struck()
            await clock.advance(2)
            await session.get("k")
            tasks.start_soon(store.close)
            await anyio.wait_all_tasks_blocked()
            hold.release()
    assert data.rows["s"].head.active_us == clock.now_us()
    assert store.drain_report is not None
    assert store.drain_report.complete


async def test_many_creates_at_once_keep_the_bound_on_hot_sessions() -> None:
    """Each has found room before the first was there."""
    backend = FaultyBackend(MemoryBackend())
    async with Supervisor(backend, Config(actors=ActorConfig(max_hot_sessions=10))) as store:
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(store.create, f"s{number}")
        assert backend.largest_batch > 10
        assert store.statistics().registry.hot_sessions <= 10
        assert await store.count() == 100
