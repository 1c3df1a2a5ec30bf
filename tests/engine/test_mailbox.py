"""Mailboxes and the budget: bounds that say their name, waiters in turn, books that balance."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from holdfast.actors.actor import SessionActor
from holdfast.actors.mailbox import Budget, Mailbox
from holdfast.config import ActorConfig, Config
from holdfast.errors import ActorCrashed, Conflict, Overloaded, Rejected, SessionNotFound
from holdfast.model import Durability
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, ManualClock
from holdfast.waiting import ack_factory

pytestmark = pytest.mark.anyio

LATER = Durability.MEMORY
PATIENCE_S = 10


def open_store(backend: FaultyBackend, clock: ManualClock, **actors: Any) -> Supervisor:
    return Supervisor(backend, Config(ttl_s=None, actors=ActorConfig(**actors)), clock=clock)


@pytest.mark.parametrize(
    ("bound", "limit"), [("mailbox_units", 2), ("mailbox_bytes", 1_000), ("max_dirty_bytes", 1_000)]
)
async def test_overloaded_names_the_bound(backend: FaultyBackend, clock: ManualClock, bound: str, limit: int) -> None:
    settings = {bound: limit, "overload_wait_s": 0.01}
    async with open_store(backend, clock, **settings) as store:
        a, b = await store.create("a"), await store.create("b")
        hold = backend.inject(FaultKind.HELD)
        for _ in range(2):
            await a.append("x" * 400, durability=LATER)
        with pytest.raises(Overloaded) as caught:
            await a.append("x" * 400)
        assert (caught.value.what, caught.value.limit) == (bound, limit)
        assert store.statistics().registry.overloaded == 1
        if bound == "max_dirty_bytes":  # it binds all mailboxes together
            with pytest.raises(Overloaded):
                await b.append("x" * 400)
        else:
            await b.append("x" * 400, durability=LATER)
        hold.release()
        assert len(await a.events()) == 2


async def test_an_empty_mailbox_takes_one_unit_of_any_size(backend: FaultyBackend, clock: ManualClock) -> None:
    settings = {"mailbox_bytes": 10, "max_dirty_bytes": 10, "overload_wait_s": 0.01}
    async with open_store(backend, clock, **settings) as store:
        session = await store.create("s")
        await session.append("x" * 1_000)
        hold = backend.inject(FaultKind.HELD)
        await session.append("y" * 1_000, durability=LATER)
        with pytest.raises(Overloaded):
            await session.append("z", durability=LATER)
        hold.release()
        assert [event.data[0] for event in await session.events()] == ["x", "y"]


async def test_callers_are_held_until_there_is_room(backend: FaultyBackend, clock: ManualClock) -> None:
    """Never more in the mailbox than the bound; in the end all is stored."""
    async with open_store(backend, clock, mailbox_units=2, overload_wait_s=60) as store:
        session = await store.create("s")
        mailbox = store._engine.registry.hot["s"].mailbox
        holds = [backend.inject(FaultKind.HELD) for _ in range(3)]
        done = list[int]()

        async def append(number: int) -> None:
            await session.append(number)
            done.append(number)

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                for number in range(7):
                    tasks.start_soon(append, number)
                    await clock.settle()
                    assert mailbox.dirty_units <= 2
                for hold, acknowledged in zip(holds, (0, 1, 2), strict=True):
                    await hold.struck()
                    assert len(done) == acknowledged
                    assert mailbox.dirty_units == 2
                    hold.release()
                    await clock.settle()
        assert sorted(event.data for event in await session.events()) == list(range(7))


async def take_room(budget: Budget, mailbox: Mailbox, size: int, admitted: list[Any], name: Any) -> None:
    await budget.wait_for_room(mailbox, size)
    budget.accept(mailbox, size)
    admitted.append(name)


async def test_waiters_are_admitted_as_room_appears(clock: ManualClock) -> None:
    budget, mailbox = Budget(ActorConfig(mailbox_units=2, overload_wait_s=60), ack_factory()), Mailbox()
    admitted = list[Any]()
    budget.accept(mailbox, 10)
    budget.accept(mailbox, 10)
    async with anyio.create_task_group() as tasks:
        for name in "abcd":
            tasks.start_soon(take_room, budget, mailbox, 10, admitted, name)
            await clock.settle()
        assert admitted == []
        budget.release(mailbox, 1, 10)
        await clock.settle()
        assert admitted == ["a"]
        budget.release(mailbox, 2, 20)
        await clock.settle()
        assert len(admitted) == 3  # trio wakes those who wait together in any order
        budget.release(mailbox, 2, 20)
    assert sorted(admitted) == list("abcd")
    assert (mailbox.dirty_units, mailbox.dirty_bytes, budget.dirty_bytes) == (1, 10, 10)


async def test_room_in_the_engine_is_for_every_mailbox(clock: ManualClock) -> None:
    """Held at the bound over all: admitted when another session's unit is decided."""
    budget = Budget(ActorConfig(max_dirty_bytes=100, overload_wait_s=60), ack_factory())
    full, mailbox = Mailbox(), Mailbox()
    admitted = list[Any]()
    budget.accept(full, 60)
    budget.accept(mailbox, 40)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take_room, budget, mailbox, 50, admitted, "a")
        await clock.settle()
        assert admitted == []
        budget.release(full, 1, 60)
    assert admitted == ["a"]
    assert budget.dirty_bytes == 90


async def test_a_cancelled_waiter_leaves_nothing_behind(clock: ManualClock) -> None:
    """Its place goes to the next; the books do not know of it."""
    budget, mailbox = Budget(ActorConfig(mailbox_units=1, overload_wait_s=60), ack_factory()), Mailbox()
    admitted = list[Any]()
    budget.accept(mailbox, 10)
    async with anyio.create_task_group() as tasks:
        async with anyio.create_task_group() as leaving:
            for name in "ab":
                leaving.start_soon(take_room, budget, mailbox, 10, admitted, name)
                await clock.settle()
            tasks.start_soon(take_room, budget, mailbox, 10, admitted, "c")
            await clock.settle()
            leaving.cancel_scope.cancel()
        assert (mailbox.dirty_units, budget.dirty_bytes, budget.refused) == (1, 10, 0)
        budget.accept(mailbox, 5)  # so that exactly one is woken by the release
        budget.release(mailbox, 1, 5)
        await clock.settle()
        assert admitted == []
        budget.release(mailbox, 1, 10)
        await clock.settle()
        assert admitted == ["c"]
    budget.release(mailbox, 1, 10)
    assert not mailbox.waiting
    assert (mailbox.dirty_units, mailbox.dirty_bytes, budget.dirty_bytes) == (0, 0, 0)


async def test_a_cancelled_caller_does_not_take_the_next_ones_turn(backend: FaultyBackend, clock: ManualClock) -> None:
    async with open_store(backend, clock, mailbox_units=1, overload_wait_s=60) as store:
        session = await store.create("s")
        hold = backend.inject(FaultKind.HELD)
        await session.append("first", durability=LATER)
        await hold.struck()
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                async with anyio.create_task_group() as leaving:
                    leaving.start_soon(session.append, "gives up")
                    await clock.settle()
                    tasks.start_soon(session.append, "stays")
                    await clock.settle()
                    leaving.cancel_scope.cancel()
                hold.release()
        assert [event.data for event in await session.events()] == ["first", "stays"]


Scenario = Callable[[Session, FaultyBackend, ManualClock, pytest.MonkeyPatch], Awaitable[None]]


async def success(session: Session, backend: FaultyBackend, clock: ManualClock, patch: pytest.MonkeyPatch) -> None:
    async with session.unit() as unit:
        unit.set("k", "value")
        unit.append("x")
    await session.set("k", 2, durability=LATER)
    await session.touch()


async def rejection(session: Session, backend: FaultyBackend, clock: ManualClock, patch: pytest.MonkeyPatch) -> None:
    backend.inject(FaultKind.REJECTED, times=2)
    with pytest.raises(Rejected):
        await session.append("x")
    await session.append("y", durability=LATER)


async def failing_compute(
    session: Session, backend: FaultyBackend, clock: ManualClock, patch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Conflict):
        await session.compare_and_set("k", "value", version=7)
    with pytest.raises(ZeroDivisionError):
        await session.update("k", lambda _: 1 / 0)


async def withdrawal(session: Session, backend: FaultyBackend, clock: ManualClock, patch: pytest.MonkeyPatch) -> None:
    hold = backend.inject(FaultKind.HELD)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.append, "taken")
        await hold.struck()
        tasks.start_soon(session.append, "withdrawn")
        await clock.settle()
        tasks.cancel_scope.cancel()
    hold.release()


async def deletion(session: Session, backend: FaultyBackend, clock: ManualClock, patch: pytest.MonkeyPatch) -> None:
    """What was accepted behind the delete fails with it."""
    failed = list[str]()

    async def append() -> None:
        with pytest.raises(SessionNotFound):
            await session.append("behind")
        failed.append("behind")

    hold = backend.inject(FaultKind.HELD)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(session.delete)
        await hold.struck()
        tasks.start_soon(append)
        await session.append("lost", durability=LATER)
        await clock.settle()
        hold.release()
    assert failed == ["behind"]


async def crash(session: Session, backend: FaultyBackend, clock: ManualClock, patch: pytest.MonkeyPatch) -> None:
    """In the turn of two callers, with a third waiting behind."""
    crashed = list[int]()

    async def append(number: int) -> None:
        with pytest.raises(ActorCrashed):
            await session.append(number)
        crashed.append(number)

    def settle(actor: SessionActor, outcome: Any) -> None:
        patch.undo()
        raise RuntimeError("a bug")

    hold = backend.inject(FaultKind.HELD)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(append, 1)
        await hold.struck()
        tasks.start_soon(append, 2)
        await session.append(3, durability=LATER)
        await clock.settle()
        patch.setattr(SessionActor, "settle", settle)
        hold.release()
    assert sorted(crashed) == [1, 2]
    await clock.advance(1)


@pytest.mark.parametrize("scenario", [success, rejection, failing_compute, withdrawal, deletion, crash])
async def test_the_books_balance(
    backend: FaultyBackend, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, scenario: Scenario
) -> None:
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        actor = store._engine.registry.hot["s"]
        await scenario(session, backend, clock, monkeypatch)
        with anyio.fail_after(PATIENCE_S):
            while not store._engine.idle:
                await anyio.lowlevel.checkpoint()
        assert store.statistics().registry.dirty_bytes == 0
        mailbox = actor.mailbox
        assert (mailbox.dirty_units, mailbox.dirty_bytes, actor.barriers) == (0, 0, 0)
        assert not actor.busy
        assert mailbox.queue == []
        if scenario is not deletion:
            await session.append("works")
