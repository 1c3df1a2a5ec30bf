"""The writer: what becomes one batch, who is saved from whom, and how it tries again."""

from __future__ import annotations

from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any

import anyio
import msgspec
import pytest

from holdfast.backends.base import Batch, Outcome
from holdfast.backends.memory import MemoryBackend
from holdfast.codec import decode
from holdfast.errors import HoldfastError, Rejected, Unavailable
from holdfast.model import Durability
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, ManualClock, touches
from tests.engine.writing import drained, open_store

pytestmark = pytest.mark.anyio

LATER = Durability.MEMORY
PATIENCE_S = 10


class Recorder(FaultyBackend):
    """Remembers every batch that was tried."""

    def __init__(self) -> None:
        super().__init__(MemoryBackend())
        self.batches: list[Batch] = []

    async def commit(self, batch: Batch) -> list[Outcome]:
        self.batches.append(batch)
        return await super().commit(batch)

    @property
    def contents(self) -> list[dict[str, list[Any]]]:
        """Per batch: the data of each session's events. Fails if a session is twice in one batch."""
        for batch in self.batches:
            assert len({write.id for write in batch.writes}) == len(batch.writes)
        return [
            {write.id: [decode(event.raw) for event in write.events] for write in batch.writes}
            for batch in self.batches
        ]

    @property
    def sizes(self) -> list[int]:
        return [len(batch.writes) for batch in self.batches]


@pytest.fixture
def backend() -> Recorder:
    return Recorder()


async def outcome_of(call: Awaitable[Any], outcomes: dict[Any, Any], key: Any) -> None:
    try:
        await call
    except HoldfastError as exc:
        outcomes[key] = exc
    else:
        outcomes[key] = "stored"


async def data(store: Supervisor, session_id: str) -> list[Any]:
    return [event.data for event in await (await store.require(session_id)).events()]


async def test_a_lone_write_goes_at_once(backend: Recorder, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        await session.append(1)
        await session.append(2)
        assert backend.contents == [{"s": []}, {"s": [1]}, {"s": [2]}]


async def test_what_arrives_during_a_flush_is_the_next_batch(backend: Recorder, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        sessions = [await store.create(f"s{number}") for number in range(5)]
        backend.batches.clear()
        hold = backend.inject(FaultKind.HELD)
        await sessions[0].append("first", durability=LATER)
        await hold.struck()
        for number in range(3):
            for session in sessions:
                await session.append(number, durability=LATER)
                await clock.settle()
        assert backend.contents == [{"s0": ["first"]}]
        hold.release()
        await drained(store)
        assert backend.contents == [{"s0": ["first"]}, {f"s{number}": [0, 1, 2] for number in range(5)}]
        (lane,) = store.statistics().lanes
        assert (lane.largest_batch, lane.writes, lane.events) == (5, 11, 16)


async def test_linger_waits_for_company(backend: Recorder, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        for name in ("a", "b"):
            await store.create(name)
    backend.batches.clear()
    async with open_store(backend, clock, linger_s=0.01) as store:
        await (await store.require("a")).append(1, durability=LATER)
        await clock.advance(0.009)
        await (await store.require("b")).append(2, durability=LATER)
        await clock.settle()
        assert backend.batches == []
        await clock.advance(0.001)
        await drained(store)
        assert backend.contents == [{"a": [1], "b": [2]}]


async def queue_behind_a_flush(
    backend: Recorder, store: Supervisor, clock: ManualClock, writes: list[tuple[str, Any]]
) -> list[dict[str, list[Any]]]:
    """Let the writes wait in this order while a flush is held; the batches that they become."""
    for session_id in dict.fromkeys(["other", *(name for name, _ in writes)]):
        await store.create(session_id)
    hold = backend.inject(FaultKind.HELD)
    await (await store.require("other")).append("x", durability=LATER)
    await hold.struck()
    backend.batches.clear()
    for session_id, value in writes:
        await (await store.require(session_id)).append(value, durability=LATER)
    hold.release()
    await drained(store)
    return backend.contents


async def test_a_busy_session_does_not_starve_the_others(backend: Recorder, clock: ManualClock) -> None:
    writes = [("busy", number) for number in range(6)] + [("a", "a"), ("b", "b")]
    async with open_store(backend, clock, max_session_units=2, max_batch_sessions=1) as store:
        assert await queue_behind_a_flush(backend, store, clock, writes) == [
            {"busy": [0, 1]},
            {"a": ["a"]},
            {"b": ["b"]},
            {"busy": [2, 3]},
            {"busy": [4, 5]},
        ]


async def test_sessions_of_a_batch_are_bounded(backend: Recorder, clock: ManualClock) -> None:
    async with open_store(backend, clock, max_batch_sessions=2) as store:
        await queue_behind_a_flush(backend, store, clock, [(f"s{number}", number) for number in range(5)])
        assert backend.sizes == [2, 2, 1]


async def test_a_stores_own_bound_holds_where_it_is_lower(backend: Recorder, clock: ManualClock) -> None:
    inner: Any = backend.inner
    inner.capabilities = msgspec.structs.replace(inner.capabilities, max_batch_sessions=3)
    async with open_store(backend, clock, max_batch_sessions=4) as store:
        await queue_behind_a_flush(backend, store, clock, [(f"s{number}", number) for number in range(5)])
        assert backend.sizes == [3, 2]


async def test_bytes_of_one_sessions_write_are_bounded(backend: Recorder, clock: ManualClock) -> None:
    """An event of 402 bytes counts 466: two fit into 1000, not three."""
    async with open_store(backend, clock, max_batch_bytes=1000) as store:
        writes = [("s", str(number) * 400) for number in range(5)]
        batches = await queue_behind_a_flush(backend, store, clock, writes)
        assert [[value[0] for value in batch["s"]] for batch in batches] == [["0", "1"], ["2", "3"], ["4"]]


async def test_a_stores_own_bound_on_one_sessions_write_holds_where_it_is_lower(
    backend: Recorder, clock: ManualClock
) -> None:
    inner: Any = backend.inner
    inner.capabilities = msgspec.structs.replace(inner.capabilities, max_unit_bytes=1000)
    async with open_store(backend, clock, max_batch_bytes=2000) as store:
        writes = [("s", str(number) * 400) for number in range(5)]
        batches = await queue_behind_a_flush(backend, store, clock, writes)
        assert [[value[0] for value in batch["s"]] for batch in batches] == [["0", "1"], ["2", "3"], ["4"]]


async def test_a_session_adds_no_more_to_a_batch_than_there_is_room(backend: Recorder, clock: ManualClock) -> None:
    """But for its first unit."""
    async with open_store(backend, clock, max_batch_bytes=1000) as store:
        writes = [("a", "0" * 400), *(("b", str(number) * 400) for number in range(3))]
        await queue_behind_a_flush(backend, store, clock, writes)
        assert [{key: len(values) for key, values in batch.items()} for batch in backend.contents] == [
            {"a": 1, "b": 1},
            {"b": 2},
        ]


async def test_a_batch_is_full_once_it_has_its_bytes(backend: Recorder, clock: ManualClock) -> None:
    """Every session may add one unit to a batch with room left, so that none waits for ever."""
    async with open_store(backend, clock, max_batch_bytes=1000) as store:
        await queue_behind_a_flush(backend, store, clock, [(f"s{number}", "x" * 400) for number in range(5)])
        assert backend.sizes == [3, 2]


@pytest.mark.parametrize(
    ("poison", "sizes", "bisections"),
    [
        ({"s5"}, [8, 4, 4, 2, 1, 1, 2], 3),
        ({"s0"}, [8, 4, 2, 1, 1, 2, 4], 3),
        ({"s0", "s7"}, [8, 4, 2, 1, 1, 2, 4, 2, 2, 1, 1], 5),
    ],
)
async def test_bisecting_finds_the_poison(
    backend: Recorder, clock: ManualClock, poison: set[str], sizes: list[int], bisections: int
) -> None:
    """Only the culprit's caller gets the error; the commits are as few as halving needs."""
    names = [f"s{number}" for number in range(8)]
    outcomes: dict[Any, Any] = {}
    async with open_store(backend, clock) as store:
        sessions = [await store.create(name) for name in (*names, "other")]
        hold = backend.inject(FaultKind.HELD, when=touches("other"))
        reject = backend.inject(FaultKind.REJECTED, times=None, when=touches(*poison))
        await sessions[-1].append("x", durability=LATER)
        await hold.struck()
        backend.batches.clear()
        async with anyio.create_task_group() as tasks:
            for session in sessions[:-1]:
                tasks.start_soon(outcome_of, session.append("x"), outcomes, session.id)
                await clock.settle()
            hold.release()
        assert {name for name in names if outcomes[name] != "stored"} == poison
        assert all(isinstance(outcomes[name], Rejected) for name in poison)
        assert backend.sizes == sizes
        (lane,) = store.statistics().lanes
        assert (lane.bisections, lane.failed_writes) == (bisections, len(poison))
        reject.release()
        assert [name for name in names if not await data(store, name)] == sorted(poison)


def with_event(value: Any) -> Any:
    """For ``when=``: commits of an event with this data."""
    return lambda batch: any(decode(event.raw) == value for write in batch.writes for event in write.events)


async def test_one_poisonous_unit_of_many_fails_alone(backend: Recorder, clock: ManualClock) -> None:
    """Within one session: its units are committed one by one, in order, until all of them are decided."""
    outcomes: dict[Any, Any] = {}
    values = [0, 1, 2, "poison", 4, 5, 6]
    async with open_store(backend, clock) as store:
        session, other = await store.create("s"), await store.create("other")
        hold = backend.inject(FaultKind.HELD)
        backend.inject(FaultKind.REJECTED, times=None, when=with_event("poison"))
        await other.append("x", durability=LATER)
        await hold.struck()
        backend.batches.clear()
        async with anyio.create_task_group() as tasks:
            for value in values:
                tasks.start_soon(outcome_of, session.append(value), outcomes, value)
                await clock.settle()
            hold.release()
        assert [value for value in values if outcomes[value] != "stored"] == ["poison"]
        assert isinstance(outcomes["poison"], Rejected)
        assert backend.contents == [{"s": values}, *({"s": [value]} for value in values)]
        assert await data(store, "s") == [0, 1, 2, 4, 5, 6]
        assert [event.seq for event in await session.events()] == [1, 2, 3, 4, 5, 6]
        # and then it is as fast as before
        hold = backend.inject(FaultKind.HELD)
        await session.append("a", durability=LATER)
        await hold.struck()
        backend.batches.clear()
        for value in "bcd":
            await session.append(value, durability=LATER)
        hold.release()
        await drained(store)
        assert backend.contents == [{"s": ["b", "c", "d"]}]


async def test_a_poisonous_unit_harms_no_neighbour(backend: Recorder, clock: ManualClock) -> None:
    """Poison in one session's units, in a batch with others."""
    outcomes: dict[Any, Any] = {}
    async with open_store(backend, clock) as store:
        sessions = {name: await store.create(name) for name in ("a", "b", "c", "other")}
        hold = backend.inject(FaultKind.HELD)
        backend.inject(FaultKind.REJECTED, times=None, when=with_event("poison"))
        await sessions["other"].append("x", durability=LATER)
        await hold.struck()
        async with anyio.create_task_group() as tasks:
            for name, value in [("a", 1), ("b", 1), ("b", "poison"), ("b", 2), ("c", 1)]:
                tasks.start_soon(outcome_of, sessions[name].append(value), outcomes, (name, value))
                await clock.settle()
            hold.release()
        assert [key for key, outcome in outcomes.items() if outcome != "stored"] == [("b", "poison")]
        assert [await data(store, name) for name in "abc"] == [[1], [1, 2], [1]]


@pytest.fixture
def jitter(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The bounds of the jitter asked for; it is always the longest."""
    asked = list[tuple[float, float]]()

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    monkeypatch.setattr("holdfast.backends.flusher.random", SimpleNamespace(uniform=uniform))
    return asked


async def test_passing_errors_are_tried_again_with_growing_delays(
    backend: Recorder, clock: ManualClock, jitter: list[tuple[float, float]]
) -> None:
    async with open_store(backend, clock, backoff_initial_s=0.5, backoff_max_s=1.5, breaker_failures=9) as store:
        session = await store.create("s")
        backend.batches.clear()
        backend.inject(FaultKind.UNAVAILABLE, times=4)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.append, "x")
            await clock.settle()
            for attempts, delay_s in enumerate((0.5, 1.0, 1.5, 1.5), 1):
                assert len(backend.batches) == attempts
                await clock.advance(delay_s - 0.001)
                assert len(backend.batches) == attempts
                await clock.advance(0.001)
        assert len(backend.batches) == 5
        assert jitter == [(0.5, 1.0)] * 4
        assert len({batch.marker for batch in backend.batches}) == 5
        assert store.statistics().lanes[0].retries == 4
        assert await data(store, "s") == ["x"]


async def test_retries_end_for_all_who_wait_together(
    backend: Recorder, clock: ManualClock, jitter: list[tuple[float, float]]
) -> None:
    """What queued up behind the failing flush does not wait as long again."""
    outcomes: dict[Any, Any] = {}
    settings = {"backoff_initial_s": 0.5, "backoff_max_s": 1.0, "retry_for_s": 2.0, "breaker_failures": 99}
    async with open_store(backend, clock, **settings) as store:
        first, second = await store.create("first"), await store.create("second")
        down = backend.inject(FaultKind.UNAVAILABLE, times=None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outcome_of, first.append("x"), outcomes, "first")
            await clock.settle()
            tasks.start_soon(outcome_of, second.append("x"), outcomes, "second")
            await clock.advance(2.499)
            assert outcomes == {}
            assert down.hits == 3
            await clock.advance(0.001)
            await clock.settle()
            assert {name: type(error) for name, error in outcomes.items()} == dict.fromkeys(
                ("first", "second"), Unavailable
            )
        assert down.hits == 5
        down.release()
        await first.append("after")
        assert await data(store, "first") == ["after"]
        assert await data(store, "second") == []


@pytest.mark.parametrize(("kind", "commits"), [(FaultKind.UNKNOWN_DONE, 1), (FaultKind.UNKNOWN_LOST, 2)])
async def test_unknown_outcome_is_found_out_by_the_marker(
    backend: Recorder, clock: ManualClock, kind: FaultKind, commits: int
) -> None:
    """Done: acknowledged without a second commit, and at once. Not done: tried again under a new marker."""
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        backend.batches.clear()
        backend.inject(kind)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(session.append, "x")
            await clock.settle()
            assert backend.calls["resolve"] == 1
            assert len(await session.events()) == 2 - commits
            await clock.advance(1)
        assert len({batch.marker.flush for batch in backend.batches}) == len(backend.batches) == commits
        (lane,) = store.statistics().lanes
        assert (lane.resolved, lane.retries) == (1, commits - 1)
        assert [(event.seq, event.data) for event in await session.events()] == [(1, "x")]


@pytest.mark.parametrize("kind", [FaultKind.HELD, FaultKind.HELD_DONE])
async def test_a_commit_without_an_answer_is_given_up_and_asked_for(
    backend: Recorder, clock: ManualClock, kind: FaultKind
) -> None:
    async with open_store(backend, clock, commit_timeout_s=0.01) as store:
        session = await store.create("s")
        backend.inject(kind)
        async with clock.flowing():
            with anyio.fail_after(PATIENCE_S):
                assert (await session.append("x")).seq == 1
        assert store.statistics().lanes[0].resolved == 1
        assert await data(store, "s") == ["x"]


async def test_two_lives_of_an_id_are_never_in_one_batch(backend: Recorder, clock: ManualClock) -> None:
    """A delete and a create of one id, waiting together: one after the other, both done."""
    results: dict[str, Any] = {}
    async with open_store(backend, clock) as store:
        old, other = await store.create("s"), await store.create("other")
        await old.append("old")
        hold = backend.inject(FaultKind.HELD)
        await other.append("x", durability=LATER)
        await hold.struck()
        backend.batches.clear()

        async def delete() -> None:
            results["deleted"] = await old.delete()

        async def create() -> None:
            results["new"] = await store.create("s")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(delete)
            await clock.settle()
            tasks.start_soon(create)
            await clock.settle()
            hold.release()
        assert [[(write.id, write.delete) for write in batch.writes] for batch in backend.batches] == [
            [("s", True)],
            [("s", False)],
        ]
        assert results["deleted"] is True
        assert results["new"].incarnation > old.incarnation
        await results["new"].append("new")
        assert await data(store, "s") == ["new"]


async def test_a_batch_has_the_highest_level_that_one_of_its_units_asks_for(
    backend: Recorder, clock: ManualClock
) -> None:
    inner: Any = backend.inner
    inner.capabilities = msgspec.structs.replace(inner.capabilities, durability=Durability.DISK)
    async with open_store(backend, clock) as store:
        a, b, other = [await store.create(name) for name in ("a", "b", "other")]
        hold = backend.inject(FaultKind.HELD)
        await other.append("x", durability=LATER)
        await hold.struck()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: a.append(1, durability=Durability.PROCESS))
            await clock.settle()
            await a.append(2, durability=LATER)
            await b.append(3, durability=LATER)
            hold.release()
        await drained(store)
        await b.append(4, durability=LATER)
        await drained(store)
        assert [batch.durability for batch in backend.batches[-3:]] == [LATER, Durability.PROCESS, LATER]
        await b.append(5)
        assert backend.batches[-1].durability is Durability.DISK
