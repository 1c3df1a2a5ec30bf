"""A store that commits one flush after the other: the next large one is handed over before the last has ended."""

from __future__ import annotations

import anyio
import msgspec
import pytest

from holdfast.backends.base import Batch, Capabilities, Marker, Outcome
from holdfast.backends.memory import MemoryBackend
from holdfast.config import Config
from holdfast.errors import HoldfastError, Rejected
from holdfast.model import Durability
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import Fault, FaultKind, FaultyBackend, ManualClock, touches
from tests.engine.writing import drained, open_store

pytestmark = pytest.mark.anyio

LATER = Durability.MEMORY
PATIENCE_S = 10
LARGE = 64


class Queueing(FaultyBackend):
    """Commits in the order of the calls, one at a time, as a file does."""

    def __init__(self) -> None:
        super().__init__(MemoryBackend())
        self.asked: list[Batch] = []
        self.under_way = 0
        self.most_under_way = 0
        self._turn = anyio.Lock()

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities, commits_queue=True, preferred_lanes=2)

    async def commit(self, batch: Batch) -> list[Outcome]:
        self.asked.append(batch)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            async with self._turn:
                return await super().commit(batch)
        finally:
            self.under_way -= 1

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        async with self._turn:
            return await super().resolve(marker)


@pytest.fixture
def backend() -> Queueing:
    return Queueing()


async def append_to(sessions: list[Session], value: str, clock: ManualClock) -> None:
    for session in sessions:
        await session.append(value, durability=LATER)
    await clock.settle()


async def held_flush(
    backend: Queueing, store: Supervisor, clock: ManualClock, *, others: int
) -> tuple[Fault, list[Session]]:
    """One small flush is under way and held; so many other sessions, in no flush."""
    first = await store.create("first")
    sessions = [await store.create(f"s{number}") for number in range(others)]
    await drained(store)
    backend.asked.clear()
    hold = backend.inject(FaultKind.HELD)
    await first.append("held", durability=LATER)
    await hold.struck()
    return hold, sessions


async def test_a_large_flush_is_asked_for_behind_another(backend: Queueing, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        hold, sessions = await held_flush(backend, store, clock, others=LARGE)
        await append_to(sessions, "behind", clock)
        assert [len(batch.writes) for batch in backend.asked] == [1, LARGE]
        markers = {(batch.marker.writer, batch.marker.lane) for batch in backend.asked}
        assert len(markers) == 2, "a flush would overwrite the marker of the one before it, which may be asked for"
        hold.release()
        await drained(store)
        assert backend.most_under_way == 2
        for session in sessions:
            assert [event.data for event in await session.events()] == ["behind"]


async def test_a_small_flush_waits(backend: Queueing, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        hold, sessions = await held_flush(backend, store, clock, others=LARGE - 1)
        await append_to(sessions, "waiting", clock)
        assert [len(batch.writes) for batch in backend.asked] == [1]
        hold.release()
        await drained(store)
        assert [len(batch.writes) for batch in backend.asked] == [1, LARGE - 1]


async def test_where_commits_queue_a_slow_one_is_waited_for(clock: ManualClock, backend: Queueing) -> None:
    async with open_store(backend, clock, lanes=3) as store:
        hold, sessions = await held_flush(backend, store, clock, others=5 * LARGE)
        await append_to(sessions[: 4 * LARGE], "behind", clock)
        sizes = [len(batch.writes) for batch in backend.asked]
        await append_to(sessions[4 * LARGE :], "waiting", clock)
        await clock.advance(60)
        assert [len(batch.writes) for batch in backend.asked] == sizes
        hold.release()


async def test_never_more_than_one_behind_another(backend: Queueing, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        hold, sessions = await held_flush(backend, store, clock, others=3 * LARGE)
        for part in range(3):
            await append_to(sessions[part * LARGE : (part + 1) * LARGE], "x", clock)
        assert [len(batch.writes) for batch in backend.asked] == [1, LARGE]
        hold.release()
        await drained(store)
        assert [len(batch.writes) for batch in backend.asked] == [1, LARGE, 2 * LARGE]
        assert max(lane.largest_batch for lane in store.statistics().lanes) == 2 * LARGE


async def test_a_session_is_in_one_flush_at_a_time(backend: Queueing, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        hold, sessions = await held_flush(backend, store, clock, others=LARGE)
        await (await store.require("first")).append("second", durability=LATER)
        await append_to(sessions, "behind", clock)
        assert "first" not in {write.id for write in backend.asked[1].writes}
        hold.release()
        await drained(store)
        assert [event.data for event in await (await store.require("first")).events()] == ["held", "second"]


async def test_another_life_of_an_id_waits_for_the_first_to_end(backend: Queueing, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        first = await store.create("first")
        sessions = [await store.create(f"s{number}") for number in range(LARGE)]
        await drained(store)
        backend.asked.clear()
        hold = backend.inject(FaultKind.HELD)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.delete)
            await hold.struck()
            tasks.start_soon(store.create, "first")
            await append_to(sessions, "behind", clock)
            assert [len(batch.writes) for batch in backend.asked][:2] == [1, LARGE]
            assert all(write.create is None for batch in backend.asked for write in batch.writes)
            hold.release()
        await drained(store)
        assert await store.get("first") is not None


async def test_a_poisoned_flush_does_no_harm_to_the_one_behind_it(backend: Queueing, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        hold, sessions = await held_flush(backend, store, clock, others=LARGE)
        poison = backend.inject(FaultKind.REJECTED, times=None, when=touches("first"))
        failed = list[Exception]()

        async def append() -> None:
            try:
                await (await store.require("first")).append("poison")
            except HoldfastError as exc:
                failed.append(exc)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(append)
            await append_to(sessions, "well", clock)
            hold.release()
        await drained(store)
        assert [type(exc) for exc in failed] == [Rejected]
        assert poison.hits >= 1
        for session in sessions:
            assert [event.data for event in await session.events()] == ["well"]


async def test_the_outcome_of_each_can_be_found_out(backend: Queueing, clock: ManualClock) -> None:
    """The answer to the first is lost, while the second has committed behind it."""
    async with open_store(backend, clock) as store:
        first = [await store.create(f"a{number}") for number in range(LARGE)]
        second = [await store.create(f"b{number}") for number in range(LARGE)]
        await drained(store)
        backend.asked.clear()
        hold = backend.inject(FaultKind.HELD)
        lost = backend.inject(FaultKind.UNKNOWN_DONE, when=touches("a1"))
        await first[0].append("x", durability=LATER)
        await hold.struck()
        await append_to(first[1:] + second[:1], "x", clock)
        hold.release()
        await append_to(second[1:], "x", clock)
        await drained(store)
        assert lost.hits == 1
        assert sum(lane.resolved for lane in store.statistics().lanes) == 1
        for session in first + second:
            assert [event.data for event in await session.events()] == ["x"]


async def test_two_flushes_that_are_cut_short_are_both_reported(backend: Queueing, clock: ManualClock) -> None:
    store = Supervisor(backend, Config(ttl_s=None, drain_timeout_s=0.01), clock=clock)
    async with store:
        _, sessions = await held_flush(backend, store, clock, others=LARGE)
        await append_to(sessions, "behind", clock)
    assert store.drain_report is not None
    assert store.drain_report.units == 1 + LARGE
