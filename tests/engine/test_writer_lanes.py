"""Several lanes, one queue: what a free lane begins while others have flushes under way, and what it waits for."""

from __future__ import annotations

import random
from collections import Counter

import anyio
import pytest

from holdfast.backends.base import Batch, Outcome
from holdfast.backends.memory import MemoryBackend
from holdfast.errors import OutcomeUnknown
from holdfast.model import Durability
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import Fault, FaultKind, FaultyBackend, ManualClock, touches
from tests.engine.writing import drained, open_store

pytestmark = pytest.mark.anyio

LATER = Durability.MEMORY
SLOW_S = 0.05
PATIENCE_S = 10


class Parallel(FaultyBackend):
    """Commits side by side; remembers which it was asked for, and fails if one session is in two of them."""

    def __init__(self) -> None:
        super().__init__(MemoryBackend())
        self.asked: list[Batch] = []
        self.under_way: Counter[str] = Counter()

    async def commit(self, batch: Batch) -> list[Outcome]:
        self.asked.append(batch)
        ids = [write.id for write in batch.writes]
        self.under_way.update(ids)
        assert max(self.under_way.values()) == 1
        try:
            await anyio.lowlevel.checkpoint()
            return await super().commit(batch)
        finally:
            self.under_way.subtract(ids)

    @property
    def sizes(self) -> list[int]:
        return [len(batch.writes) for batch in self.asked]


@pytest.fixture
def backend() -> Parallel:
    return Parallel()


async def append_to(sessions: list[Session], clock: ManualClock) -> None:
    for session in sessions:
        await session.append("x", durability=LATER)
    await clock.settle()


async def held_flush(
    backend: Parallel, store: Supervisor, clock: ManualClock, *, size: int, others: int
) -> tuple[Fault, list[Session]]:
    """A flush of ``size`` is under way and held; so many other sessions, in no flush."""
    first = [await store.create(f"first{number}") for number in range(size)]
    sessions = [await store.create(f"s{number}") for number in range(others)]
    await drained(store)
    hold = backend.inject(FaultKind.HELD)
    for session in first:  # no turn of the loop in between: they make one flush
        await session.append("held", durability=LATER)
    await hold.struck()
    await clock.settle()
    assert backend.sizes[-1] == size
    backend.asked.clear()
    return hold, sessions


async def test_a_lone_write_does_not_wait_for_another(backend: Parallel, clock: ManualClock) -> None:
    async with open_store(backend, clock, lanes=3) as store:
        hold, sessions = await held_flush(backend, store, clock, size=1, others=2)
        for session in sessions:
            await append_to([session], clock)
        assert backend.sizes == [1, 1]
        hold.release()


async def test_side_by_side_they_have_markers_of_their_own(backend: Parallel, clock: ManualClock) -> None:
    async with open_store(backend, clock, lanes=3) as store:
        sessions = [await store.create(f"s{number}") for number in range(3)]
        await drained(store)
        backend.asked.clear()
        holds: list[Fault] = []
        for session in sessions:
            holds.append(backend.inject(FaultKind.HELD))
            await append_to([session], clock)
        assert {batch.marker.lane for batch in backend.asked} == {0, 1, 2}
        for hold in holds:
            hold.release()


async def test_a_flush_that_is_small_beside_one_under_way_waits(backend: Parallel, clock: ManualClock) -> None:
    async with open_store(backend, clock, lanes=2) as store:
        hold, sessions = await held_flush(backend, store, clock, size=10, others=5)
        await append_to(sessions[:4], clock)
        assert backend.sizes == []
        assert store.statistics().queued == 4
        await append_to(sessions[4:], clock)
        assert backend.sizes == [5]
        hold.release()


async def test_what_waits_goes_when_the_flush_has_ended(backend: Parallel, clock: ManualClock) -> None:
    async with open_store(backend, clock, lanes=2) as store:
        hold, sessions = await held_flush(backend, store, clock, size=10, others=4)
        await append_to(sessions, clock)
        assert backend.sizes == []
        hold.release()
        await drained(store)
        assert backend.sizes == [4]


async def test_a_slow_flush_is_not_waited_for(backend: Parallel, clock: ManualClock) -> None:
    """Whether it becomes slow before or after they come."""
    async with open_store(backend, clock, lanes=3) as store:
        hold, sessions = await held_flush(backend, store, clock, size=10, others=3)
        await append_to(sessions[:2], clock)
        assert backend.sizes == []
        await clock.advance(SLOW_S)
        assert backend.sizes == [2]
        await append_to(sessions[2:], clock)
        assert backend.sizes == [2, 1]
        hold.release()
        await drained(store)


async def test_a_slow_flush_that_began_with_every_lane_busy_is_not_waited_for(
    backend: Parallel, clock: ManualClock
) -> None:
    """That there is something to wait for is only found when another one has ended."""
    async with open_store(backend, clock, lanes=2) as store:
        small, sessions = await held_flush(backend, store, clock, size=1, others=11)
        large = backend.inject(FaultKind.HELD)
        for session in sessions[:10]:
            await session.append("held", durability=LATER)
        await large.struck()
        assert backend.sizes == [10]
        small.release()
        await clock.settle()
        await append_to(sessions[10:], clock)
        assert backend.sizes == [10]
        await clock.advance(SLOW_S)
        assert backend.sizes == [10, 1]
        large.release()


async def test_a_lane_that_was_slow_once_is_waited_for_again(backend: Parallel, clock: ManualClock) -> None:
    async with open_store(backend, clock, lanes=2) as store:
        hold, sessions = await held_flush(backend, store, clock, size=10, others=4)
        await clock.advance(SLOW_S)
        hold.release()
        await drained(store)
        again = [await store.require(f"first{number}") for number in range(10)]
        hold = backend.inject(FaultKind.HELD)
        await append_to(again, clock)
        await append_to(sessions, clock)
        assert backend.sizes[-1] == 10
        hold.release()


async def test_a_flush_is_slow_by_its_own_time(backend: Parallel, clock: ManualClock) -> None:
    """Not by that of the one which its lane had before."""
    async with open_store(backend, clock, lanes=2) as store:
        hold, sessions = await held_flush(backend, store, clock, size=10, others=4)
        await clock.advance(SLOW_S / 2)
        hold.release()
        await drained(store)
        again = [await store.require(f"first{number}") for number in range(10)]
        hold = backend.inject(FaultKind.HELD)
        await append_to(again, clock)
        await append_to(sessions, clock)
        await clock.advance(SLOW_S / 2)
        assert backend.sizes[-1] == 10
        await clock.advance(SLOW_S)
        assert backend.sizes[-1] == 4
        hold.release()


async def test_what_a_flush_has_no_room_for_is_begun_beside_it(backend: Parallel, clock: ManualClock) -> None:
    async with open_store(backend, clock, lanes=2, max_batch_sessions=2) as store:
        sessions = [await store.create(f"s{number}") for number in range(4)]
        await drained(store)
        backend.asked.clear()
        hold = backend.inject(FaultKind.HELD, times=2)
        await append_to(sessions, clock)
        assert backend.sizes == [2, 2]
        hold.release()


async def test_another_life_of_an_id_waits_for_the_first_to_end(backend: Parallel, clock: ManualClock) -> None:
    """With nothing else in the queue, and a lane free."""
    async with open_store(backend, clock, lanes=2) as store:
        first, other = await store.create("first"), await store.create("other")
        await drained(store)
        hold = backend.inject(FaultKind.HELD)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first.delete)
            await hold.struck()
            backend.asked.clear()
            tasks.start_soon(store.create, "first")
            await clock.settle()
            assert backend.sizes == []
            await append_to([other], clock)
            assert [[write.id for write in batch.writes] for batch in backend.asked] == [["other"]]
            hold.release()
        assert (await store.require("first")).incarnation > first.incarnation


async def test_with_every_lane_busy_the_next_waits_for_any(backend: Parallel, clock: ManualClock) -> None:
    async with open_store(backend, clock, lanes=2) as store:
        sessions = [await store.create(f"s{number}") for number in range(3)]
        await drained(store)
        backend.asked.clear()
        holds: list[Fault] = []
        for session in sessions[:2]:
            holds.append(backend.inject(FaultKind.HELD))
            await append_to([session], clock)
        await append_to(sessions[2:], clock)
        await clock.advance(SLOW_S)
        assert backend.sizes == [1, 1]
        holds[1].release()
        await clock.settle()
        assert backend.sizes == [1, 1, 1]
        holds[0].release()


async def test_a_session_is_in_one_flush_at_a_time_and_in_order(backend: Parallel, clock: ManualClock) -> None:
    """Also with lives of the same id one after the other; `Parallel` looks at each flush."""
    rng = random.Random(7)
    async with open_store(backend, clock, lanes=4) as store:
        ids = [f"s{number}" for number in range(24)]
        expected: dict[str, list[int]] = {}

        async def use(session_id: str) -> None:
            for _ in range(3):
                session = await store.create(session_id)
                for number in range(5):
                    await session.append(number, durability=rng.choice([LATER, None]))
                    for _ in range(rng.randrange(4)):
                        await anyio.lowlevel.checkpoint()
                expected[session_id] = [event.data for event in await session.events()]
                await session.delete()

        async with anyio.create_task_group() as tasks:
            for session_id in ids:
                tasks.start_soon(use, session_id)
        assert expected == {key: [0, 1, 2, 3, 4] for key in ids}
        assert len({batch.marker.lane for batch in backend.asked}) > 1
        assert max(backend.sizes) > 1


async def test_what_may_still_arrive_late_is_not_overtaken_on_another_lane(
    backend: Parallel, clock: ManualClock
) -> None:
    """The store refuses a late flush once it has a later one of the same lane, and by nothing else."""
    async with open_store(backend, clock, lanes=2, retry_for_s=0.1, breaker_failures=1_000) as store:
        lost, busy, other = [await store.create(name) for name in ("lost", "busy", "other")]
        await drained(store)
        backend.asked.clear()
        backend.inject(FaultKind.UNKNOWN_LOST)
        silent = backend.inject(FaultKind.UNAVAILABLE, "resolve", times=None)
        async with clock.flowing():
            with pytest.raises(OutcomeUnknown):
                await lost.append("may come late")
        silent.release()
        (unsettled,) = {batch.marker.lane for batch in backend.asked}
        backend.asked.clear()

        hold = backend.inject(FaultKind.HELD)
        await append_to([busy], clock)
        assert [batch.marker.lane for batch in backend.asked] == [unsettled], "the lane is not free any more"
        await append_to([lost], clock)
        await clock.advance(SLOW_S)
        assert backend.sizes == [1]
        await append_to([other], clock)
        assert [write.id for batch in backend.asked[1:] for write in batch.writes] == ["other"]
        hold.release()
        await drained(store)
        assert [write.id for batch in backend.asked[2:] for write in batch.writes] == ["lost"]

        backend.asked.clear()
        hold = backend.inject(FaultKind.HELD)
        await append_to([busy], clock)
        await append_to([lost], clock)
        assert len({batch.marker.lane for batch in backend.asked}) == 2, "bound no longer"
        hold.release()


async def test_a_bound_session_wakes_its_lane(backend: Parallel, clock: ManualClock) -> None:
    async with open_store(backend, clock, lanes=3, retry_for_s=0.1, breaker_failures=1_000) as store:
        first, lost = await store.create("first"), await store.create("lost")
        await drained(store)
        hold = backend.inject(FaultKind.HELD, when=touches("first"))
        await append_to([first], clock)  # takes the lane that is called first
        backend.inject(FaultKind.UNKNOWN_LOST)
        silent = backend.inject(FaultKind.UNAVAILABLE, "resolve", times=None)
        backend.asked.clear()
        async with clock.flowing():
            with pytest.raises(OutcomeUnknown):
                await lost.append("may come late")
        silent.release()
        hold.release()
        await drained(store)
        (unsettled,) = {batch.marker.lane for batch in backend.asked}
        assert unsettled != 0
        backend.asked.clear()
        with anyio.fail_after(PATIENCE_S):
            await lost.append("in order")
        assert [batch.marker.lane for batch in backend.asked] == [unsettled]
