"""The background workers: they go on whatever happens, and do what they are for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from holdfast.backends.base import Expired, TrimPolicy
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import Config, JanitorConfig, RestartConfig, RetentionConfig, WriterConfig
from holdfast.errors import DeadlineExceeded, Unavailable
from holdfast.restart import RestartPolicy
from holdfast.supervisor.supervisor import Supervisor
from holdfast.supervisor.workers import Worker, supervise
from holdfast.testing import FaultKind, FaultyBackend, ManualClock

pytestmark = pytest.mark.anyio

PATIENCE_S = 10
RESTART = RestartConfig(max_restarts=2, within_s=60, backoff_initial_s=0.1, backoff_max_s=5)


class Failing(Worker):
    """Notes when it is started, and fails in another way each time."""

    name = "failing"

    def __init__(self, engine: Any, clock: ManualClock) -> None:
        super().__init__(engine)
        self.starts = list[float]()
        self._clock = clock

    async def run(self) -> None:
        self.starts.append(self._clock.monotonic())
        match len(self.starts) % 3:
            case 1:
                raise Unavailable("the store is away")
            case 2:
                raise RuntimeError("a bug")
            case _:
                return


async def test_a_failing_worker_is_started_again_for_ever(clock: ManualClock) -> None:
    """By the policy first, and past it at the slowest pace; each failure is counted and logged."""
    worker = Failing(SimpleNamespace(clock=clock, config=Config(restart=RESTART)), clock)
    with capture_logs() as logs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervise, worker, RestartPolicy(RESTART))
            await clock.advance(20.4)
            tasks.cancel_scope.cancel()
    assert worker.starts == pytest.approx([0, 0.1, 0.3, 5.3, 10.3, 15.3, 20.3])
    assert worker.statistics().failures == 7
    assert [entry["event"] for entry in logs[:2]] == ["worker.failed", "worker.crashed"]
    assert all(entry["worker"] == "failing" for entry in logs)


async def test_an_old_failure_does_not_slow_a_worker_down(clock: ManualClock) -> None:
    worker = Failing(SimpleNamespace(clock=clock, config=Config(restart=RESTART)), clock)
    policy = RestartPolicy(RestartConfig(max_restarts=2, within_s=5, backoff_initial_s=0.1, backoff_max_s=5))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervise, worker, policy)
        await clock.advance(6)
        tasks.cancel_scope.cancel()
    assert worker.starts == pytest.approx([0, 0.1, 0.3, 5.3, 5.4, 5.6])


@pytest.mark.parametrize(("jitter", "low", "high"), [(0.2, 48, 72), (0.0, 60, 60), (0.5, 30, 90)])
async def test_pauses_vary_within_their_bounds(jitter: float, low: float, high: float) -> None:
    pauses = list[float]()

    class Sleeper:
        async def sleep(self, seconds: float) -> None:
            pauses.append(seconds)

    engine: Any = SimpleNamespace(clock=Sleeper(), config=Config(janitor=JanitorConfig(jitter=jitter)))
    worker = Worker(engine)
    for _ in range(300):
        await worker.pause(60)
    assert low <= min(pauses) <= max(pauses) <= high
    if jitter:
        assert min(pauses) < low + (high - low) / 10
        assert max(pauses) > high - (high - low) / 10


@pytest.fixture
def data() -> MemoryData:
    return MemoryData()


@pytest.fixture
def backend(data: MemoryData) -> Trims:
    return Trims(data)


class Trims(FaultyBackend):
    """Notes what is to be trimmed."""

    def __init__(self, data: MemoryData) -> None:
        super().__init__(MemoryBackend(data))
        self.trims = list[Any]()

    async def trim(self, ids: Sequence[tuple[str, int]] | None, policy: TrimPolicy, limit: int) -> int:
        self.trims.append(ids if ids is None else list(ids))
        return await super().trim(ids, policy, limit)


@pytest.fixture
async def store(backend: Trims, clock: ManualClock) -> AsyncIterator[Supervisor]:
    config = Config(
        janitor=JanitorConfig(jitter=0, interval_s=60), retention=RetentionConfig(interval_s=30), restart=RESTART
    )
    async with Supervisor(backend, config, clock=clock) as store:
        yield store


async def test_janitor_keeps_its_interval_and_outlives_an_outage(
    store: Supervisor, backend: Trims, clock: ManualClock
) -> None:
    await store.create("s", ttl_s=10)
    await clock.advance(59.9)
    assert backend.calls["expire"] == 0
    backend.inject(FaultKind.UNAVAILABLE, "expire")
    await clock.advance(0.1)
    assert backend.calls["expire"] == 1
    await clock.advance(60.2)  # after the restart's delay, an interval again
    assert backend.calls["expire"] == 2
    janitor = store.statistics().workers["janitor"]
    assert (janitor.passes, janitor.done, janitor.failures) == (1, 1, 1)
    assert store.statistics().registry.hot_sessions == 0


async def test_callbacks_of_every_kind_are_called(store: Supervisor, clock: ManualClock) -> None:
    """Plain and async, in the order of their registration; one that raises harms nobody."""
    called = list[Any]()

    def bad(sessions: Sequence[Expired]) -> None:
        called.append("bad")
        raise ValueError("plain")

    async def bad_later(sessions: Sequence[Expired]) -> None:
        await anyio.lowlevel.checkpoint()
        called.append("bad later")
        raise ValueError("async")

    def plain(sessions: Sequence[Expired]) -> None:
        called.append(("plain", [session.id for session in sessions]))

    async def later(sessions: Sequence[Expired]) -> None:
        await anyio.lowlevel.checkpoint()
        called.append(("async", [session.owner for session in sessions]))

    for callback in (bad, bad_later, plain, later):
        store.on_expired(callback)
    await store.create("s", ttl_s=10, owner="o")
    await store.create("t", ttl_s=100)
    await clock.advance(10)
    with capture_logs() as logs:
        assert [session.id for session in await store.expire()] == ["s"]
    assert called == ["bad", "bad later", ("plain", ["s"]), ("async", ["o"])]
    assert [entry["event"] for entry in logs].count("on_expired.failed") == 2
    called.clear()
    assert await store.expire() == []
    assert called == []


async def test_trimmer_sweeps_at_its_start_and_then_what_has_grown_or_gone(
    store: Supervisor, backend: Trims, clock: ManualClock
) -> None:
    await clock.settle()
    assert backend.trims == [None]
    dropped, deleted, expired, quiet = [
        await store.create(name, ttl_s=ttl_s)
        for name, ttl_s in (("dropped", None), ("deleted", None), ("expired", 5), ("quiet", None))
    ]
    events = [await dropped.append(number) for number in range(3)]
    for session in (deleted, expired, quiet):
        await session.append("x")
    assert await dropped.delete_events_before(events[2].id) == 2
    await deleted.delete()
    await clock.advance(5)
    await store.expire()
    backend.trims.clear()
    await clock.advance(25)
    assert backend.trims == [sorted((session.id, session.incarnation) for session in (dropped, deleted, expired))]
    assert store.statistics().workers["trimmer"].done == 2
    await clock.advance(30)
    assert len(backend.trims) == 1  # nothing is left to do


async def test_trimmer_tries_again_what_it_could_not_trim(
    store: Supervisor, backend: Trims, clock: ManualClock
) -> None:
    await clock.settle()
    session = await store.create("s", ttl_s=None)
    await session.delete()
    backend.trims.clear()
    backend.inject(FaultKind.UNAVAILABLE, "trim")
    await clock.advance(30.2)  # it starts again with a sweep
    await clock.advance(30)
    assert backend.trims == [[("s", session.incarnation)], None, [("s", session.incarnation)]]


async def test_trimmer_sweeps_over_all_where_age_or_bytes_count(backend: Trims, clock: ManualClock) -> None:
    config = Config(
        janitor=JanitorConfig(jitter=0), retention=RetentionConfig(interval_s=30, max_event_age_s=100), ttl_s=None
    )
    async with Supervisor(backend, config, clock=clock) as store:
        session = await store.create("s")
        await session.append("old")
        await clock.advance(90)
        await session.append("new")
        assert len(await session.events()) == 2
        await clock.advance(30)
        assert [event.data for event in await session.events()] == ["new"]
        assert set(backend.trims) == {None}


async def test_keeper_keeps_short_lives_while_it_sleeps_for_long_ones(
    store: Supervisor, data: MemoryData, clock: ManualClock
) -> None:
    """A session with a short TTL turns up in the middle of a tick: in the store it never lapses."""
    registry = store._engine.registry
    long = await store.create("long", ttl_s=100)
    assert registry.tick_us == 1_000_000
    async with long.subscribe():
        await clock.advance(0.5)
        short = await store.create("short", ttl_s=0.4)
        assert registry.tick_us == 100_000
        async with short.subscribe():
            for _ in range(40):
                await clock.advance(0.05)
                expires_us = data.rows["short"].head.expires_us
                assert expires_us is not None
                assert expires_us > clock.now_us()
        await clock.advance(0.6)
        assert await store.get("short") is None


async def test_keeper_has_a_shortest_tick(store: Supervisor) -> None:
    await store.create("s", ttl_s=0.001)
    assert store._engine.registry.tick_us == 20_000
    await store.create("t", ttl_s=100)
    assert store._engine.registry.tick_us == 20_000


async def test_keeper_stores_many_reads_as_one_touch(store: Supervisor, backend: Trims, clock: ManualClock) -> None:
    session = await store.create("s", ttl_s=100)
    await clock.advance(10)
    commits = backend.calls["commit"]
    for _ in range(50):
        await session.get("k")
        await clock.advance(0.01)
    assert backend.calls["commit"] == commits
    await clock.advance(0.6)
    assert backend.calls["commit"] == commits + 1
    assert not store._engine.registry.has_touches
    await clock.advance(30)
    assert backend.calls["commit"] == commits + 1


@pytest.mark.parametrize("call", ["expire", "trim"])
async def test_upkeep_on_demand_ends_by_its_deadline(clock: ManualClock, call: str) -> None:
    """Whatever the store does; and what came first is done."""
    backend = FaultyBackend(MemoryBackend())
    async with Supervisor(backend, Config(background=False), clock=clock) as store:
        await store.create("s", ttl_s=10)
        await clock.advance(10)
        hold = backend.inject(FaultKind.HELD, call)
        with pytest.raises(DeadlineExceeded) as caught:
            await getattr(store, call)(deadline_s=0.01)
        assert (caught.value.deadline_s, caught.value.stored) == (0.01, "unknown")
        hold.release()
        assert len(await store.expire(deadline_s=PATIENCE_S)) == 1
        assert await store.trim(deadline_s=PATIENCE_S) == 0


@pytest.mark.parametrize("operation", ["expire", "trim", "forget_markers"])
async def test_a_store_that_does_not_answer_holds_no_worker_up(clock: ManualClock, operation: str) -> None:
    backend = FaultyBackend(MemoryBackend())
    config = Config(background=False, writer=WriterConfig(commit_timeout_s=0.01))
    async with Supervisor(backend, config, clock=clock) as store:
        hold = backend.inject(FaultKind.HELD, operation)
        with anyio.fail_after(PATIENCE_S):
            with pytest.raises(Unavailable, match=r"did not answer within 0\.01 s"):
                await (store.trim() if operation == "trim" else store.expire())
            hold.release()
            assert await store.expire() == []
            assert await store.trim() == 0
