"""Writes that fail at an awkward moment: every caller hears of it, nothing is torn, and nothing of it stays."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest

from holdfast import Config, Session, Supervisor
from holdfast.actors.actor import SessionActor
from holdfast.backends.base import Batch, LoadRequest, Outcome, Snapshot, Status
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import Limits, WriterConfig
from holdfast.errors import (
    ActorCrashed,
    Conflict,
    DeadlineExceeded,
    HoldfastError,
    InvalidInput,
    LimitExceeded,
    OutcomeUnknown,
    Rejected,
    SessionClosed,
    SessionNotFound,
    StoreClosed,
    Unavailable,
)
from holdfast.model import Durability
from holdfast.supervisor.unit_of_work import UnitOfWork
from holdfast.testing import FaultKind, FaultyBackend, ManualClock
from holdfast.testing.faults import Operation

pytestmark = pytest.mark.anyio

PATIENCE_S = 5


async def test_a_conflict_of_a_session_that_is_gone_is_answered() -> None:
    """Its actor has ended by the time that the outcome arrives: nobody would compute the unit again."""
    data = MemoryData()
    backend = FaultyBackend(MemoryBackend(data))
    async with (
        Supervisor(backend, Config(drain_timeout_s=PATIENCE_S)) as here,
        Supervisor(MemoryBackend(data)) as there,
    ):
        session = await here.create("s")
        await session.set("k", 1)
        other = await there.require("s")
        await other.set("k", 2)
        hold = backend.inject(FaultKind.HELD_DONE)

        async def update() -> None:
            with pytest.raises(SessionNotFound):
                await session.update("k", lambda value: value + 1)

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(update)
                await hold.struck()
                assert await other.delete()
                assert await here.get("s") is None
                hold.release()
    assert here.drain_report is not None
    assert here.drain_report.complete


class Garbling(MemoryBackend):
    """Can answer a commit with what is no outcome, once."""

    garbles = False

    async def commit(self, batch: Batch) -> list[Outcome]:
        outcomes = await super().commit(batch)
        if not self.garbles:
            return outcomes
        self.garbles = False
        nothing: Any = None
        return [Outcome(Status.COMMITTED, nothing, nothing, nothing, nothing) for _ in outcomes]


@pytest.mark.parametrize("write", [lambda s: s.append("x"), lambda s: s.set("k", 1)], ids=["append", "set"])
async def test_an_outcome_that_is_none_crashes_one_actor_and_answers_its_caller(
    write: Callable[[Session], Awaitable[Any]], clock: ManualClock
) -> None:
    """On the short path of a lone append, too. What the store has is found when the actor starts over."""
    backend = Garbling()
    async with Supervisor(backend, Config(drain_timeout_s=PATIENCE_S), clock=clock) as store:
        session, neighbour = await store.create("s"), await store.create("neighbour")
        backend.garbles = True
        with anyio.fail_after(PATIENCE_S):
            with pytest.raises(ActorCrashed):
                await write(session)
            await neighbour.append("unharmed")
            await clock.advance(1)
            await session.append("next")
        assert [event.data for event in await session.events()][-1] == "next"
        assert [event.seq for event in await session.events()] in ([1], [1, 2])
    assert store.drain_report is not None
    assert store.drain_report.complete


class Leaving(MemoryBackend):
    """A store whose next load can be held, and then fails."""

    def __init__(self, shared: MemoryData) -> None:
        super().__init__(shared)
        self.leaves = False
        self.asked, self.gone = anyio.Event(), anyio.Event()

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        if self.leaves:
            self.leaves = False
            self.asked.set()
            await self.gone.wait()
            raise Unavailable("away")
        return await super().load(requests)


async def test_a_crash_during_a_reload_that_fails_is_got_over(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actor's task must not end with the reload: the restart is still to do."""
    data = MemoryData()
    backend = Leaving(data)
    crashed = list[str]()

    async def crashes(write: Awaitable[Any]) -> None:
        with pytest.raises(ActorCrashed):
            await write
        crashed.append("crashed")

    def bug(*_: Any) -> None:
        raise RuntimeError("a bug of the engine")

    async with (
        Supervisor(backend, Config(drain_timeout_s=0.1), clock=clock) as here,
        Supervisor(MemoryBackend(data), clock=clock) as there,
    ):
        session = await here.create("s")
        await session.set("k", 1)
        await (await there.require("s")).set("k", 2)
        backend.leaves = True
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(crashes, session.update("k", lambda value: value + 1))
                await backend.asked.wait()  # the update met a conflict, and its actor loads the state
                with monkeypatch.context() as patch:
                    patch.setattr(SessionActor, "_take_many", bug)
                    tasks.start_soon(crashes, session.append("x"))
                    await anyio.wait_all_tasks_blocked()
                assert len(crashed) == 2
                backend.gone.set()
                await anyio.wait_all_tasks_blocked()
            await clock.advance(1)
            assert (await session.append("next")).seq == 1
            assert await session.update("k", lambda value: value + 1) == 3


async def test_a_unit_takes_nothing_more_once_its_block_has_ended() -> None:
    """Not while it commits, when it would be stored by halves; and not afterwards, when it would be lost."""
    late: list[Callable[[UnitOfWork], None]] = [
        lambda unit: unit.append("late"),
        lambda unit: unit.set("late", 1),
        lambda unit: unit.remove("a"),
        lambda unit: unit.clear(),
        lambda unit: unit.set_metadata({"late": 1}),
        lambda unit: unit.close(),
    ]
    backend = FaultyBackend(MemoryBackend())
    units = list[UnitOfWork]()

    def all_refused() -> None:
        for add in late:
            with pytest.raises(InvalidInput, match="block has ended"):
                add(units[0])

    async with Supervisor(backend) as store:
        session = await store.create("s")

        async def commit() -> None:
            async with session.unit() as unit:
                units.append(unit)
                unit.append("a")
                unit.set("a", 1)

        hold = backend.inject(FaultKind.HELD)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(commit)
            await hold.struck()
            all_refused()
            hold.release()
        all_refused()
        assert [event.seq for event in units[0].events] == [1]
        assert (await session.append("b")).seq == 2
        assert [(event.seq, event.data) for event in await session.events()] == [(1, "a"), (2, "b")]
        assert await session.state() == {"a": 1}
        assert (await session.info()).metadata == {}


class UserError(Exception):
    """Of a user's function."""


def refuse(_value: Any) -> None:
    raise UserError


async def closed(session: Session) -> None:
    await session.append("x")


async def conflict(session: Session) -> None:
    await session.compare_and_set("k", 1, version=77)


async def function(session: Session) -> None:
    await session.update("k", refuse)


async def limit(session: Session) -> None:
    await session.set_many({str(number): number for number in range(9)})


async def in_a_unit(session: Session) -> None:
    async with session.unit() as unit:
        unit.append("x")
        unit.set("k", 1)


async def too_late(session: Session) -> None:
    await session.append("x", deadline_s=0.01)


FAILURES: dict[str, tuple[Callable[[Session], Awaitable[None]], type[Exception]]] = {
    "closed": (closed, SessionClosed),
    "closed, a unit": (in_a_unit, SessionClosed),
    "rejected": (closed, Rejected),
    "deleted": (in_a_unit, SessionNotFound),
    "conflict": (conflict, Conflict),
    "function": (function, UserError),
    "limit": (limit, LimitExceeded),
    "deadline": (too_late, DeadlineExceeded),
}


@pytest.mark.parametrize("case", FAILURES)
async def test_a_failed_write_is_freed(case: str) -> None:
    """With its error, whose traceback leads to the unit: were that to lead back, the collector would not see it."""
    write, expected = FAILURES[case]
    data = MemoryData()
    backend = FaultyBackend(MemoryBackend(data))
    errors = list[weakref.ref[Exception]]()

    async def fail(session: Session) -> None:
        try:
            await write(session)
        except expected as error:
            errors.append(weakref.ref(error))

    config = Config(limits=Limits(max_state_keys=5))
    async with Supervisor(backend, config) as here, Supervisor(MemoryBackend(data)) as there:
        for number in range(5):
            session = await here.create(f"s{number}")
            if case.startswith("closed"):
                await session.close()
            elif case == "rejected":
                backend.inject(FaultKind.REJECTED)
            elif case == "deadline":
                backend.inject(FaultKind.HELD)
            elif case == "deleted":
                await (await there.require(session.id)).delete()
            await fail(session)
            backend.heal()
        await (await here.create()).append("what the lane holds of the last flush is let go")
        gc.collect()
        assert [error() for error in errors] == [None] * 5


# At the end


@pytest.mark.parametrize(
    ("kinds", "error"),
    [
        ([(FaultKind.UNAVAILABLE, "commit")], StoreClosed),
        ([(FaultKind.HELD, "commit")], OutcomeUnknown),
        ([(FaultKind.UNKNOWN_LOST, "commit"), (FaultKind.HELD, "resolve")], OutcomeUnknown),
        ([(FaultKind.UNKNOWN_LOST, "commit")], StoreClosed),
    ],
    ids=["refused", "not answered", "not found out", "found out"],
)
async def test_who_is_left_at_the_end_hears_what_is_known(
    kinds: list[tuple[FaultKind, Operation]], error: type[Exception], clock: ManualClock
) -> None:
    """A write that waits to be tried again is not stored; one that the store was handed may be."""
    backend = FaultyBackend(MemoryBackend())
    heard = dict[str, Exception]()

    async def append(session: Session, data: str) -> None:
        with pytest.raises(HoldfastError) as caught:
            await session.append(data)
        heard[data] = caught.value

    async with Supervisor(backend, Config(drain_timeout_s=0.02), clock=clock) as store:
        session = await store.create("s")
        for kind, operation in kinds:
            backend.inject(kind, operation, times=None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append, session, "first")
            await clock.settle()
            tasks.start_soon(append, session, "behind")
            await clock.settle()
            report = await store.close()
    assert {data: type(caught) for data, caught in heard.items()} == {"first": error, "behind": StoreClosed}
    assert (report.sessions, report.units) == (1, 2)


class Finishing(MemoryBackend):
    """Ends a commit that it has begun, though it is cancelled, and begins no other."""

    store: Supervisor | None = None
    begun = False

    async def commit(self, batch: Batch) -> list[Outcome]:
        if self.begun:
            await anyio.sleep_forever()
        if self.store is not None:
            self.begun = True
            with anyio.CancelScope(shield=True):
                while not self.store._open_parts.scope.cancel_called:
                    await anyio.sleep(0.001)
        return await super().commit(batch)


async def test_a_flush_that_ends_well_after_the_deadline_is_not_reported(clock: ManualClock) -> None:
    """What is behind it is, and only that."""
    backend = Finishing()
    async with Supervisor(backend, Config(drain_timeout_s=0.02), clock=clock) as store:
        session, other = await store.create("s"), await store.create("other")
        backend.store = store
        stored = list[int]()

        async def append() -> None:
            stored.append((await session.append("x")).seq)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append)
            await clock.settle()
            await other.append("behind", durability=Durability.MEMORY)
            report = await store.close()
    assert stored == [1]
    assert (report.sessions, report.units, report.complete) == (1, 1, False)
    assert 0 < report.bytes < 200


async def test_what_was_withdrawn_is_not_reported(clock: ManualClock) -> None:
    """Its caller has given it up, and knows that it is not stored."""
    backend = FaultyBackend(MemoryBackend())
    async with Supervisor(backend, Config(drain_timeout_s=0.01), clock=clock) as store:
        session = await store.create("s")
        hold = backend.inject(FaultKind.HELD)
        await session.append("held", durability=Durability.MEMORY)
        await hold.struck()
        with pytest.raises(DeadlineExceeded):
            await session.append("given up", deadline_s=0.01)
        report = await store.close()
    assert (report.sessions, report.units) == (1, 1)


async def test_activity_that_cannot_be_stored_is_told_once(clock: ManualClock) -> None:
    """Of many sessions: the first error, when all are decided; no other is left for nobody to hear."""
    data = MemoryData()
    backend = FaultyBackend(MemoryBackend(data))
    config = Config(ttl_s=10_000, writer=WriterConfig(retry_for_s=0.001))
    async with Supervisor(backend, config, clock=clock) as store:
        sessions = [await store.create() for _ in range(3)]

        async def be_active() -> None:
            clock._elapsed_us += 1_000_000  # without waking the keeper
            for session in sessions:
                await session.get("k")

        await be_active()
        acks = list[Any]()
        new_ack = store._engine.registry.new_ack

        def noted() -> Any:
            acks.append(new_ack())
            return acks[-1]

        store._engine.registry.new_ack = noted
        fault = backend.inject(FaultKind.UNAVAILABLE, times=None)
        async with clock.flowing():
            with pytest.raises(Unavailable):
                await store.count()
        assert len(acks) == 1
        fault.release()
        await be_active()
        del data.rows[sessions[0].id]  # by another instance: its session is gone, which does not matter
        assert await store.count(deadline_s=PATIENCE_S) == 2
