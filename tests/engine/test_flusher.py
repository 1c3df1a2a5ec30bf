"""One flush that goes wrong: what its callers hear, and what the next ones find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from holdfast.backends.base import Marker, Outcome
from holdfast.backends.memory import MemoryBackend
from holdfast.config import Config, WriterConfig
from holdfast.errors import HoldfastError, OutcomeUnknown, Rejected, StoreClosed
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, ManualClock, touches

pytestmark = pytest.mark.anyio

PATIENCE_S = 10
RETRY_FOR_S = 20.0


def open_store(backend: FaultyBackend, clock: ManualClock, **writer: Any) -> Supervisor:
    return Supervisor(backend, Config(ttl_s=None, writer=WriterConfig(retry_for_s=RETRY_FOR_S, **writer)), clock=clock)


async def append(session: Session, told: list[Exception | int]) -> None:
    try:
        told.append((await session.append("x")).seq)
    except HoldfastError as exc:
        told.append(exc)


class Miscounting(FaultyBackend):
    """`resolve` answers for another batch."""

    def __init__(self, change: Callable[[list[Outcome]], list[Outcome]]) -> None:
        super().__init__(MemoryBackend())
        self.change = change

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        outcomes = await super().resolve(marker)
        return outcomes if outcomes is None else self.change(outcomes)


def none_of(_outcomes: list[Outcome]) -> list[Outcome]:
    return []


def twice(outcomes: list[Outcome]) -> list[Outcome]:
    return outcomes * 2


@pytest.mark.parametrize("change", [none_of, twice])
async def test_outcomes_found_out_for_another_batch_are_none(
    clock: ManualClock, change: Callable[[list[Outcome]], list[Outcome]]
) -> None:
    """The lane lives on, and the callers hear that nobody knows."""
    backend = Miscounting(change)
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        backend.inject(FaultKind.UNKNOWN_DONE)
        told = list[Exception | int]()
        async with clock.flowing():
            await append(session, told)
        assert [type(each) for each in told] == [OutcomeUnknown]
        assert store.statistics().lanes[0].resolved == 0
        await clock.advance(RETRY_FOR_S)
        with anyio.fail_after(PATIENCE_S):
            assert (await session.append("y")).seq == 2


async def test_a_commit_found_to_be_done_ends_the_run_of_failures(clock: ManualClock) -> None:
    """Else a passing error much later would look like the end of a long outage, and not be tried again."""
    backend = FaultyBackend(MemoryBackend())
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        backend.inject(FaultKind.UNKNOWN_DONE)
        told = list[Exception | int]()
        await append(session, told)
        await clock.advance(RETRY_FOR_S + 1)
        backend.inject(FaultKind.UNAVAILABLE)
        async with clock.flowing():
            await append(session, told)
        assert told == [1, 2]


async def test_a_refusal_ends_the_run_of_failures(clock: ManualClock) -> None:
    """It is an answer."""
    backend = FaultyBackend(MemoryBackend())
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        backend.inject(FaultKind.UNAVAILABLE)
        backend.inject(FaultKind.REJECTED)
        told = list[Exception | int]()
        async with clock.flowing():
            await append(session, told)
        assert [type(each) for each in told] == [Rejected]
        assert store._engine.breaker.failing_since is None


async def test_a_flush_that_is_cut_short_while_it_is_searched_for_poison(clock: ManualClock) -> None:
    """Each hears what is known of its own write: stored, perhaps stored, not stored."""
    backend = FaultyBackend(MemoryBackend())
    names = "abcd"
    told = {name: list[Exception | int]() for name in names}
    async with Supervisor(backend, Config(ttl_s=None, drain_timeout_s=0.01), clock=clock) as store:
        sessions = {name: await store.create(name) for name in (*names, "other")}
        first = backend.inject(FaultKind.HELD, when=touches("other"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sessions["other"].append, "x")
            await first.struck()
            for name in names:  # one after the other: their order in the flush
                tasks.start_soon(append, sessions[name], told[name])
                await clock.settle()
            backend.inject(FaultKind.REJECTED, when=touches("a"))
            hold = backend.inject(FaultKind.HELD, when=touches("a"))
            first.release()
            await hold.struck()
            await store.close()
    outcomes = [type(told[name][0]) for name in names]
    assert outcomes == [OutcomeUnknown, OutcomeUnknown, StoreClosed, StoreClosed]


async def test_what_was_not_done_is_said_to_be_that_while_it_waits_to_be_tried_again(clock: ManualClock) -> None:
    """Though the store, the first time, was handed it and did not answer."""
    backend = FaultyBackend(MemoryBackend())
    told = list[Exception | int]()
    async with Supervisor(backend, Config(ttl_s=None, drain_timeout_s=0.01), clock=clock) as store:
        session = await store.create("s")
        backend.inject(FaultKind.UNKNOWN_LOST)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append, session, told)
            await clock.settle()
            await store.close()
    assert [type(each) for each in told] == [StoreClosed]


async def test_a_bug_of_the_backends_on_one_session_harms_no_other(clock: ManualClock) -> None:
    """If nothing was stored, it is searched for as poison is, and not tried again."""
    backend = FaultyBackend(MemoryBackend())
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        fault = backend.inject(FaultKind.CRASH, times=None, when=touches("s"))
        told = list[Exception | int]()
        await append(session, told)
        assert [type(each) for each in told] == [Rejected]
        assert fault.hits == 1


async def test_a_create_under_way_at_the_end_is_waited_for(clock: ManualClock) -> None:
    """Though its session is not hot yet."""
    backend = FaultyBackend(MemoryBackend())
    told = list[object]()
    async with Supervisor(backend, Config(ttl_s=None), clock=clock) as store:
        hold = backend.inject(FaultKind.HELD)

        async def create() -> None:
            try:
                told.append((await store.create("s")).id)
            except HoldfastError as exc:
                told.append(exc)

        async def close() -> None:
            told.append((await store.close()).complete)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(create)
            await hold.struck()
            tasks.start_soon(close)
            await anyio.sleep(0.01)  # the drain polls
            hold.release()
    assert told == ["s", True]
