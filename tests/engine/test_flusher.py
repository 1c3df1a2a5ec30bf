"""One flush that goes wrong: what its callers hear, and what the next ones find."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from holdfast.backends.base import Marker, Outcome, SessionWrite
from holdfast.backends.flusher import Counts, Flusher, Part
from holdfast.backends.memory import MemoryBackend
from holdfast.config import Config, WriterConfig
from holdfast.errors import HoldfastError, OutcomeUnknown, Rejected, StoreClosed
from holdfast.model import Durability
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, ManualClock, touches
from holdfast.testing.faults import Operation

pytestmark = pytest.mark.anyio

PATIENCE_S = 10
RETRY_FOR_S = 20.0


def open_store(backend: FaultyBackend, clock: ManualClock, **writer: Any) -> Supervisor:
    config = WriterConfig(**{"retry_for_s": RETRY_FOR_S, **writer})
    return Supervisor(backend, Config(ttl_s=None, writer=config), clock=clock)


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


@pytest.mark.parametrize("operation", ["commit", "resolve"])
async def test_no_answer_is_a_failure_of_the_store(clock: ManualClock, operation: Operation) -> None:
    """To a commit, or to the question what became of one."""
    backend = FaultyBackend(MemoryBackend())
    failures = 1 if operation == "commit" else 2
    async with open_store(
        backend, clock, commit_timeout_s=0.01, read_timeout_s=0.01, breaker_failures=failures
    ) as store:
        session = await store.create("s")
        if operation == "resolve":
            backend.inject(FaultKind.UNKNOWN_LOST)
        backend.inject(FaultKind.HELD, operation)
        told = list[Exception | int]()
        async with clock.flowing():
            await append(session, told)
        assert told == [1]
        statistics = store.statistics()
        assert (statistics.breaker, statistics.breaker_opened) == ("closed", 1)


async def test_what_a_lane_counts(clock: ManualClock) -> None:
    backend = FaultyBackend(MemoryBackend())
    async with open_store(backend, clock) as store:
        sessions = [await store.create(f"s{number}") for number in range(3)]
        hold = backend.inject(FaultKind.HELD)
        told = list[Exception | int]()
        async with anyio.create_task_group() as tasks:
            for session in sessions:
                tasks.start_soon(append, session, told)
            await hold.struck()
            await clock.settle()
            await clock.advance(3)
            hold.release()
        await append(sessions[0], told)
        backend.inject(FaultKind.REJECTED)
        await append(sessions[0], told)
        outage = backend.inject(FaultKind.UNAVAILABLE, times=None)
        async with clock.flowing(), anyio.create_task_group() as tasks:
            for session in sessions[1:]:
                tasks.start_soon(append, session, told)
        outage.release()
        assert [type(each).__name__ for each in told] == [*["int"] * 4, "Rejected", *["Unavailable"] * 2]
        (lane,) = store.statistics().lanes
        assert (lane.writes, lane.events, lane.largest_batch, lane.failed_writes) == (7, 4, 3, 3)
        assert lane.busy_s >= 3 + RETRY_FOR_S


class Failing:
    """A source that fails in everything but saying so."""

    id = "s"

    def __init__(self) -> None:
        self.errors = list[Exception]()

    def fail(self, _error: object) -> None:
        raise RuntimeError

    reject = settle = fail

    def crashed(self, error: Exception) -> None:
        self.errors.append(error)


@pytest.mark.parametrize("kind", [FaultKind.REJECTED, FaultKind.UNAVAILABLE, None], ids=str)
async def test_a_source_that_cannot_be_told_has_crashed_alone(clock: ManualClock, kind: FaultKind | None) -> None:
    backend = FaultyBackend(MemoryBackend())
    async with open_store(backend, clock, retry_for_s=0.001) as store:
        await store.create("s")
        if kind is not None:
            backend.inject(kind, times=None)
        write = SessionWrite(id="s", incarnation=1, accepted_us=0, active_us=0, version=0, base_seq=0)
        sources: list[Any] = [Failing(), Failing()]
        flusher = Flusher(store._engine.writer, 7, Counts())
        async with clock.flowing():
            await flusher.flush(Part(sources, [write, write], Durability.MEMORY))
        assert [[type(error) for error in source.errors] for source in sources] == [[RuntimeError]] * 2
        backend.heal()


def test_halves_keep_the_level_of_the_whole() -> None:
    """Which of them needs it is not known any more."""
    write = SessionWrite(id="s", incarnation=1, accepted_us=0, active_us=0, version=0, base_seq=0)
    sources: list[Any] = [Failing() for _ in range(3)]
    halves = Part(sources, [write] * 3, Durability.DISK).halves()
    assert [half.durability for half in halves] == [Durability.DISK] * 2
    assert [len(half.writes) for half in halves] == [1, 2]
    assert [source for half in halves for source in half.sources] == sources
