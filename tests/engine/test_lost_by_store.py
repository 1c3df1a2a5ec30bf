"""A store that has lost what it had acknowledged (a failover to a copy that was behind) is right all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import Config
from holdfast.errors import InvalidCursor
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultKind, FaultyBackend, ManualClock

pytestmark = pytest.mark.anyio

PATIENCE_S = 10
MOST_LOADS = 5


class Losing(FaultyBackend):
    """Shared with others, and able to go back to an earlier moment."""

    def __init__(self) -> None:
        self.data = MemoryData()
        super().__init__(MemoryBackend(self.data))

    def remember(self) -> Callable[[], None]:
        """Returns what goes back to now."""
        copies = dict[str, Any]()
        for session_id, row in self.data.rows.items():
            copy = copies[session_id] = type(row)(row.head)
            copy.state, copy.events = dict(row.state), list(row.events)

        def lose() -> None:
            self.data.rows.clear()
            self.data.rows.update(copies)
            self.calls.clear()

        return lose


@pytest.fixture
def backend() -> Losing:
    return Losing()


def open_store(backend: Losing, clock: ManualClock) -> Supervisor:
    return Supervisor(backend, Config(ttl_s=None), clock=clock)


async def lossy(backend: Losing, store: Supervisor) -> tuple[Session, Callable[[], None]]:
    """A session with three events at version 6, and what takes it back to one event at version 3."""
    session = await store.create("s")
    await session.set("n", 1)
    await session.append(1)
    lose = backend.remember()
    await session.set("n", 2)
    await session.append(2)
    await session.append(3)
    return session, lose


async def seqs(session: Session) -> list[int]:
    return [event.seq for event in await session.events()]


async def test_reads_show_what_the_store_has(backend: Losing, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        session, lose = await lossy(backend, store)
        lose()
        assert await session.get("n") == 1
        info = await session.info()
        assert (info.version, info.last_seq) == (3, 1)
        assert await seqs(session) == [1]
        assert backend.calls["load"] <= MOST_LOADS


async def test_a_head_that_was_read_alone_shows_it_too(backend: Losing, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        session = await store.create("s")
        lose = backend.remember()
        await session.set("n", 1)
        await session.close()
        lose()
        assert (await session.info()).status == "active"
        assert await session.get("n") is None
        await session.append("open again")


async def test_a_unit_that_computes_does_so_on_what_the_store_has(backend: Losing, clock: ManualClock) -> None:
    """Its commit is refused as a conflict, and the load that follows shows an older version than was known."""
    async with open_store(backend, clock) as store:
        session, lose = await lossy(backend, store)
        lose()
        with anyio.fail_after(PATIENCE_S):
            assert await session.update("n", lambda n: n + 10) == 11
        assert backend.calls["load"] <= MOST_LOADS


@pytest.mark.parametrize("appends", [1, 4])
async def test_a_blind_write_finds_it_out(backend: Losing, clock: ManualClock, appends: int) -> None:
    """One, or so many that they have more versions than are lost."""
    async with open_store(backend, clock) as store:
        session, lose = await lossy(backend, store)
        lose()
        hold = backend.inject(FaultKind.HELD)
        written = list[int]()

        async def append() -> None:
            written.append((await session.append("new")).seq)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.create, "other")
            await hold.struck()
            for _ in range(appends):
                tasks.start_soon(append)
            await clock.settle()
            hold.release()
        assert sorted(written) == [2 + number for number in range(appends)]
        assert await session.get("n", cached=True) == 2, "not read yet"
        assert await session.get("n") == 1
        assert (await session.info()).last_seq == 1 + appends
        assert await seqs(session) == list(range(1, 2 + appends))


@pytest.mark.parametrize("appends", [1, 4])
async def test_who_has_read_lost_events_is_told(backend: Losing, clock: ManualClock, appends: int) -> None:
    """Waiting on would be to skip the new events that get their numbers."""
    async with open_store(backend, clock) as store:
        session, lose = await lossy(backend, store)
        async with session.subscribe() as ahead, session.subscribe() as behind:
            assert [(await anext(ahead)).data for _ in range(3)] == [1, 2, 3]
            lose()
            await session.append_many(["new"] * appends)
            with anyio.fail_after(PATIENCE_S), pytest.raises(InvalidCursor) as error:
                await anext(ahead)
            assert error.value.reason == "ahead"
            with anyio.fail_after(PATIENCE_S):
                assert [(await anext(behind)).data for _ in range(1 + appends)] == [1, *["new"] * appends]
        assert store.statistics().registry.ring_bytes == 0


async def test_who_waits_is_told_as_soon_as_it_is_known(backend: Losing, clock: ManualClock) -> None:
    async with open_store(backend, clock) as store:
        session, lose = await lossy(backend, store)
        told = list[InvalidCursor]()

        async def listen() -> None:
            with pytest.raises(InvalidCursor) as error:
                async for _ in session.subscribe():
                    pass
            told.append(error.value)

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                await clock.settle()
                assert not told
                lose()
                await session.info()
        assert [error.reason for error in told] == ["ahead"]


async def test_who_is_behind_does_not_ask_for_ever(backend: Losing, clock: ManualClock) -> None:
    """The actor knows of more events than there are to be read."""
    async with open_store(backend, clock) as store:
        session, lose = await lossy(backend, store)
        first = await session.events(limit=1)
        read = list[object]()

        async def listen() -> None:
            async with session.subscribe(after=first[0].id) as events:
                read.append((await anext(events)).data)

        hold = backend.inject(FaultKind.HELD, "read_events")
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen)
                await hold.struck()
                lose()
                hold.release()
                await clock.settle()
                assert backend.calls["read_events"] == 0
                assert backend.calls["load"] <= MOST_LOADS
                await session.append("new")
        assert read == ["new"]
