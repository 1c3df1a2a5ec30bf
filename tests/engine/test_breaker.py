"""The circuit breaker and the restart policy."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.backends.breaker import Breaker
from holdfast.backends.memory import MemoryBackend
from holdfast.config import Config, RestartConfig, WriterConfig
from holdfast.errors import Unavailable
from holdfast.restart import RestartPolicy
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, ManualClock

ERROR = Unavailable("the reason")


@pytest.fixture
def breaker(clock: ManualClock) -> Breaker:
    return Breaker(WriterConfig(breaker_failures=3, breaker_cooldown_s=2.0), clock)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        breaker.failure(ERROR)


def test_failures_in_a_row_open_it(breaker: Breaker) -> None:
    fail(breaker, 2)
    assert breaker.state == "closed"
    breaker.check()
    breaker.success()
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert breaker.state == "open"
    assert breaker.opened == 1
    with pytest.raises(Unavailable, match="the reason"):
        breaker.check()


@pytest.mark.anyio
async def test_it_is_half_open_after_its_cool_down(breaker: Breaker, clock: ManualClock) -> None:
    fail(breaker, 3)
    await clock.advance(1.999_999)
    assert breaker.state == "open"
    await clock.advance(0.000_001)
    assert breaker.state == "half-open"
    breaker.check()


@pytest.mark.anyio
async def test_a_good_probe_closes_it(breaker: Breaker, clock: ManualClock) -> None:
    fail(breaker, 3)
    await clock.advance(2)
    breaker.success()
    assert breaker.state == "closed"
    assert breaker.failing_since is None
    fail(breaker, 2)
    assert breaker.state == "closed"
    fail(breaker, 1)
    assert breaker.opened == 2


@pytest.mark.anyio
async def test_a_failed_probe_opens_it_for_another_cool_down(breaker: Breaker, clock: ManualClock) -> None:
    await clock.advance(5)
    fail(breaker, 3)
    await clock.advance(2)
    fail(breaker, 1)
    assert breaker.state == "open"
    await clock.advance(1.9)
    with pytest.raises(Unavailable):
        breaker.check()
    await clock.advance(0.1)
    assert breaker.state == "half-open"
    assert breaker.failing_since == 5


@pytest.mark.anyio
async def test_callers_are_refused_at_once_while_it_is_open(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is not asked. Then one attempt decides. Readers are served: what they ask for may work."""
    monkeypatch.setattr("holdfast.backends.flusher.random", SimpleNamespace(uniform=lambda _low, high: high))
    backend = FaultyBackend(MemoryBackend())
    writer = WriterConfig(breaker_failures=2, breaker_cooldown_s=5, retry_for_s=0.5, backoff_initial_s=0.5)
    async with Supervisor(backend, Config(ttl_s=None, writer=writer), clock=clock) as store:
        session = await store.create("s")
        await session.append(0)

        async def refused(call: Any, advance_s: float = 0) -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(clock.advance, advance_s)
                with pytest.raises(Unavailable):
                    await call()

        down = backend.inject(FaultKind.UNAVAILABLE, times=None)
        await refused(lambda: session.append(1), 0.5)
        assert down.hits == 2
        assert store.statistics().breaker == "open"
        calls = backend.calls.copy()
        for call in (
            lambda: session.append(2),
            lambda: session.update("k", lambda _: 1),
            lambda: store.create("t"),
        ):
            with pytest.raises(Unavailable, match="left alone"):
                await call()
        assert backend.calls == calls
        assert await store.get("cold") is None
        assert [event.data for event in await session.events()] == [0]
        assert backend.calls == calls + Counter(load=1, read_events=1)
        await clock.advance(5)
        assert store.statistics().breaker == "half-open"
        await refused(lambda: session.append(3))  # the probe: failing for longer than `retry_for_s`
        assert down.hits == 3
        assert store.statistics().breaker == "open"
        await clock.advance(5)
        down.release()
        await session.append(4)
        assert store.statistics().breaker == "closed"
        assert store.statistics().breaker_opened == 1
        assert [event.data for event in await session.events()] == [0, 4]


@pytest.mark.anyio
async def test_a_refused_write_is_no_failure_of_the_store(clock: ManualClock) -> None:
    backend = FaultyBackend(MemoryBackend())
    config = Config(ttl_s=None, writer=WriterConfig(breaker_failures=1))
    async with Supervisor(backend, config, clock=clock) as store:
        session = await store.create("s")
        backend.inject(FaultKind.REJECTED, times=3)
        for _ in range(3):
            with pytest.raises(Exception, match="injected"):
                await session.append("x")
        assert store.statistics().breaker == "closed"


@pytest.mark.anyio
async def test_reads_have_a_breaker_of_their_own(clock: ManualClock) -> None:
    """Loads and pages of events open it; writes go on."""
    backend = FaultyBackend(MemoryBackend())
    config = Config(ttl_s=None, writer=WriterConfig(breaker_failures=2, breaker_cooldown_s=5))
    async with Supervisor(backend, config, clock=clock) as store:
        session = await store.create("s")
        await session.append(0)
        backend.inject(FaultKind.UNAVAILABLE, "load", times=2)
        for _ in range(2):
            with pytest.raises(Unavailable, match="injected"):
                await store.get("cold")
        calls = backend.calls.copy()
        for call in (lambda: store.get("cold"), session.events, lambda: session.last_events(1)):
            with pytest.raises(Unavailable, match="left alone"):
                await call()
        assert backend.calls == calls
        await session.append(1)
        assert (store.statistics().breaker, store.statistics().read_breaker) == ("closed", "open")
        await clock.advance(5)
        assert await store.get("cold") is None
        assert store.statistics().read_breaker == "closed"
        assert len(await session.events()) == 2


POLICY = RestartPolicy(RestartConfig(max_restarts=4, within_s=10, backoff_initial_s=0.5, backoff_max_s=3.0))


def test_restarts_are_delayed_more_and_more_and_then_given_up() -> None:
    history, delays = list[float](), list[float | None]()
    for now in range(5):
        history, delay_s = POLICY.decide(history, now)
        delays.append(delay_s)
    assert delays == [0.5, 1.0, 2.0, 3.0, None]
    assert history == [0, 1, 2, 3, 4]


def test_crashes_of_long_ago_do_not_count() -> None:
    assert POLICY.decide([0, 1, 2, 3], 10) == ([1, 2, 3, 10], 3.0)
    assert POLICY.decide([0, 1, 2, 3], 9.9) == ([0, 1, 2, 3, 9.9], None)
    assert POLICY.decide([0, 1, 2, 3], 100) == ([100], 0.5)


@given(st.lists(st.floats(0, 30), max_size=30), st.integers(0, 6))
def test_a_policy_gives_up_exactly_past_its_intensity(gaps: list[float], max_restarts: int) -> None:
    config = RestartConfig(max_restarts=max_restarts, within_s=10, backoff_initial_s=0.5, backoff_max_s=3.0)
    policy, history, now, crashes = RestartPolicy(config), list[float](), 0.0, list[float]()
    for gap in gaps:
        now += gap
        crashes.append(now)
        before = list(history)
        decision = policy.decide(history, now)
        assert history == before  # it is not changed in place
        within = [at for at in crashes if now - at < 10]
        assert decision.history == within
        assert (decision.delay_s is None) == (len(within) > max_restarts)
        if decision.delay_s is not None:
            assert 0.5 <= decision.delay_s <= 3.0
        history = decision.history
