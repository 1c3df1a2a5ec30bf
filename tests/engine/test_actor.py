"""The actor: crashes and restarts, units given up, units that compute anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from structlog.testing import capture_logs

from holdfast.actors.actor import SessionActor
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import Config, RestartConfig
from holdfast.errors import ActorCrashed, HoldfastError
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, ManualClock

pytestmark = pytest.mark.anyio

PATIENCE_S = 10


class Bug:
    """While it is ``there``, settling a commit of the session "bad" raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there = False
        self.method = "settle"
        for method in ("settle", "take"):
            self._patch(monkeypatch, method, getattr(SessionActor, method))

    def _patch(self, monkeypatch: pytest.MonkeyPatch, method: str, real: Any) -> None:
        def broken(actor: SessionActor, *args: Any) -> Any:
            if self.there and self.method == method and actor.id == "bad":
                raise RuntimeError("a bug")
            return real(actor, *args)

        monkeypatch.setattr(SessionActor, method, broken)


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> Bug:
    return Bug(monkeypatch)


RESTART = RestartConfig(max_restarts=3, within_s=60, backoff_initial_s=0.1, backoff_max_s=0.3)


@pytest.fixture
async def store(backend: FaultyBackend, clock: ManualClock) -> AsyncIterator[Supervisor]:
    async with Supervisor(backend, Config(ttl_s=None, restart=RESTART), clock=clock) as store:
        yield store


async def data(session: Session) -> list[Any]:
    return [event.data for event in await session.events()]


@pytest.mark.parametrize("method", ["settle", "take"])
async def test_a_crash_stays_with_its_actor(
    store: Supervisor, backend: FaultyBackend, clock: ManualClock, bug: Bug, method: str
) -> None:
    """In a batch with others: only its own callers hear of it, those behind it included."""
    sessions = {name: await store.create(name) for name in ("good", "bad", "fine")}
    outcomes = dict[Any, str]()

    async def append(name: str, value: Any) -> None:
        try:
            await sessions[name].append(value)
        except HoldfastError as exc:
            outcomes[name, value] = type(exc).__name__
        else:
            outcomes[name, value] = "stored"

    with capture_logs() as logs:
        hold = backend.inject(FaultKind.HELD)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append, "good", 0)
            await hold.struck()
            for name in sessions:
                tasks.start_soon(append, name, 1)
                await clock.settle()
            bug.there, bug.method = True, method
            hold.release()
        bug.there = False
    assert outcomes == {("good", 0): "stored", ("good", 1): "stored", ("fine", 1): "stored", ("bad", 1): "ActorCrashed"}
    assert [entry["session_id"] for entry in logs if entry["event"] == "actor.crashed"] == ["bad"]
    await clock.advance(0.1)
    assert await data(sessions["bad"]) == ([1] if method == "settle" else [])


async def test_those_behind_a_crash_hear_of_it_too(
    store: Supervisor, backend: FaultyBackend, clock: ManualClock, bug: Bug
) -> None:
    """Each gets an error of its own; nothing that waited is stored."""
    session = await store.create("bad")
    errors = list[ActorCrashed]()

    async def append(value: Any) -> None:
        with pytest.raises(ActorCrashed) as caught:
            await session.append(value)
        errors.append(caught.value)

    hold = backend.inject(FaultKind.HELD)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append, "taken")
        await hold.struck()
        for _ in range(2):
            tasks.start_soon(append, "waiting")
        await clock.settle()
        bug.there = True
        hold.release()
    bug.there = False
    assert len({id(error) for error in errors}) == 3
    assert {error.session_id for error in errors} == {"bad"}
    await clock.advance(0.1)
    assert await data(session) == ["taken"]


async def test_it_restarts_after_the_policys_delays(store: Supervisor, clock: ManualClock, bug: Bug) -> None:
    """0.1, 0.2 and 0.3 seconds; what comes meanwhile waits for it, and works then."""
    session = await store.create("bad")
    actor = store._engine.registry.hot["bad"]
    await session.set("n", 0)
    for crash, delay_s in enumerate((0.1, 0.2, 0.3), 1):
        bug.there = True
        with pytest.raises(ActorCrashed):
            await session.append(f"crash {crash}")
        bug.there = False
        done = list[int]()

        async def append(done: list[int], crash: int) -> None:
            event = await session.append(f"after {crash}")
            done.append(event.seq)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append, done, crash)
            await clock.advance(delay_s - 0.001)
            assert done == []
            await clock.advance(0.001)
        assert done == [2 * crash]
        assert await session.update("n", lambda value: value + 1) == crash
    assert store._engine.registry.hot["bad"] is actor
    assert await data(session) == [f"{what} {crash}" for crash in (1, 2, 3) for what in ("crash", "after")]


async def test_a_restarted_actor_knows_what_its_crashed_turn_has_stored(
    store: Supervisor, clock: ManualClock, bug: Bug
) -> None:
    session = await store.create("bad")
    await session.set("n", 1)
    bug.there = True
    with pytest.raises(ActorCrashed):
        await session.set("n", 10)
    bug.there = False
    assert await session.get("n") == 10
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: session.update("n", lambda value: value + 1))
        await clock.advance(0.1)
    assert await session.get_versioned("n") == (11, 4)  # its creation made version 1


async def test_it_gives_up_past_the_intensity(store: Supervisor, clock: ManualClock, bug: Bug) -> None:
    """The next call hydrates a fresh actor, and a subscriber goes on with that."""
    session = await store.create("bad")
    actor = store._engine.registry.hot["bad"]
    seen = list[Any]()

    async def follow() -> None:
        async for event in session.subscribe():
            seen.append(event.data)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(follow)
        await clock.settle()
        bug.there = True
        for crash in range(4):
            with pytest.raises(ActorCrashed):
                await session.append(crash)
            await clock.advance(0.3)
        assert store._engine.registry.hot.get("bad") is not actor
        assert store.statistics().registry.given_up == 1
        bug.there = False
        with anyio.fail_after(PATIENCE_S):
            assert (await session.append("after")).seq == 5
            assert store._engine.registry.hot["bad"] is not actor
            while len(seen) < 5:
                await anyio.lowlevel.checkpoint()
            await session.close()
    assert seen == [0, 1, 2, 3, "after"]


async def test_old_crashes_are_forgotten(store: Supervisor, clock: ManualClock, bug: Bug) -> None:
    """One crash a minute is not too many, for ever."""
    session = await store.create("bad")
    actor = store._engine.registry.hot["bad"]
    for crash in range(8):
        bug.there = True
        with pytest.raises(ActorCrashed):
            await session.append(crash)
        bug.there = False
        await clock.advance(60)
    assert store._engine.registry.hot["bad"] is actor
    await session.append("works")
    assert len(await data(session)) == 9


async def test_units_given_up_before_they_are_taken_are_not_begun(
    store: Supervisor, backend: FaultyBackend, clock: ManualClock
) -> None:
    """Their functions do not run either; those around them keep their order; those taken are stored."""
    session = await store.create("s")
    ran = list[str]()

    def function(value: int, name: str) -> int:
        ran.append(name)
        return value + 1

    hold = backend.inject(FaultKind.HELD)
    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as leaving:
            leaving.start_soon(session.append, "taken")
            await hold.struck()
            tasks.start_soon(session.append, "before")
            await clock.settle()
            leaving.start_soon(session.append, "withdrawn")
            leaving.start_soon(lambda: session.update("n", lambda value: function(value, "withdrawn"), 0))
            await clock.settle()
            tasks.start_soon(lambda: session.update("n", lambda value: function(value, "kept"), 0))
            tasks.start_soon(session.append, "after")
            await clock.settle()
            leaving.cancel_scope.cancel()
        hold.release()
    assert await data(session) == ["taken", "before", "after"]
    assert await session.get("n") == 1
    assert ran == ["kept"]
    assert (await session.info()).version == 5  # its creation is the first


# Units that compute, with another instance on the same store


@pytest.fixture
async def one(shared: MemoryData, clock: ManualClock) -> AsyncIterator[Session]:
    """The session "s", hot on an instance that has seen n = 0."""
    backend = FaultyBackend(MemoryBackend(shared))
    async with Supervisor(backend, Config(ttl_s=None), clock=clock) as store:
        session = await store.create("s")
        await session.set("n", 0)
        yield session


@pytest.fixture
async def two(one: Session, shared: MemoryData, clock: ManualClock) -> AsyncIterator[Session]:
    """The same session on another instance."""
    async with Supervisor(MemoryBackend(shared), Config(ttl_s=None), clock=clock) as store:
        yield await store.require("s")


def faults(session: Session) -> FaultyBackend:
    backend = session._engine.backend
    assert isinstance(backend, FaultyBackend)
    return backend


async def test_compute_runs_again_on_what_another_instance_wrote(one: Session, two: Session) -> None:
    seen = list[int]()

    def increment(value: int) -> int:
        seen.append(value)
        return value + 1

    await two.set("n", 10)
    assert await one.update("n", increment) == 11
    assert seen == [0, 10]
    assert await two.get("n") == 11
    assert await one.update("n", increment) == 12
    assert seen == [0, 10, 11]


async def test_company_of_a_conflict_is_stored_once_and_in_order(
    one: Session, two: Session, clock: ManualClock
) -> None:
    hold = faults(one).inject(FaultKind.HELD)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one.append, "held")
        await hold.struck()
        tasks.start_soon(one.append, "before")
        await clock.settle()
        tasks.start_soon(lambda: one.update("n", lambda value: value + 1))
        await clock.settle()
        tasks.start_soon(one.append, "after")
        tasks.start_soon(lambda: one.set("k", "blind"))
        await clock.settle()
        await two.set("n", 10)
        await two.append("other")
        hold.release()
    assert await data(two) == ["other", "held", "before", "after"]
    assert await two.state() == {"k": "blind", "n": 11}
    assert await one.state() == {"k": "blind", "n": 11}


async def test_a_unit_fails_only_on_what_the_store_has(one: Session, two: Session) -> None:
    """A function that raises on old news is asked again; its second error is its caller's, and harms no one."""
    seen = list[int]()

    def only_ten(value: int) -> str:
        seen.append(value)
        if value != 10:
            raise LookupError(f"not ten but {value}")
        return "ten"

    await two.set("n", 10)
    assert await one.update("n", only_ten) == "ten"
    assert seen == [0, 10]
    seen.clear()
    await two.set("n", 11)
    with pytest.raises(LookupError, match="not ten but 11"):
        await one.update("n", only_ten)
    assert seen == ["ten", 11]
    assert await two.get("n") == 11


async def test_compare_and_set_on_old_news_gets_the_stores_answer(one: Session, two: Session) -> None:
    await two.set("n", 10)
    _, version = await two.get_versioned("n")
    assert await one.compare_and_set("n", 11, version=version) == version + 1
    assert await two.get_versioned("n") == (11, version + 1)
