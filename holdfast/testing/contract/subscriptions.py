"""CONFORMANCE 29, 31-33: subscriptions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from holdfast.config import ActorConfig, RetentionConfig
from holdfast.errors import EventGap, SessionNotFound
from holdfast.model import LATEST, Event
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing.clock import ManualClock
from holdfast.testing.contract.stores import OpenFaulty, OpenStore, StoreBase
from holdfast.testing.faults import FaultKind
from holdfast.testing.leaks import assert_no_leaks

__all__ = ["SubscriptionContract"]

PATIENCE_S = 20


async def take(events: AsyncIterator[Event], count: int) -> list[Any]:
    """The data of the next ``count`` events."""
    found = list[Any]()
    with anyio.fail_after(PATIENCE_S):
        while len(found) < count:
            found.append((await anext(events)).data)
    return found


async def collect(session: Session, into: list[Any], **query: Any) -> None:
    """Read a subscription until the session is closed."""
    async with session.subscribe(**query) as events:
        into.extend([event.data async for event in events])


class SubscriptionContract(StoreBase):
    """A subscription is a cursor: it skips nothing, repeats nothing, and shows only what is durable."""

    async def test_replays_then_goes_live(self, store: Supervisor) -> None:
        """C29: from the start, from an id, or only what is new."""
        session = await store.create()
        events = await session.append_many([0, 1, 2])
        async with (
            session.subscribe() as all_,
            session.subscribe(after=events[1].id) as rest,
            session.subscribe(after=LATEST) as new,
        ):
            assert await take(all_, 3) == [0, 1, 2]
            assert await take(rest, 1) == [2]
            await session.append(3)
            assert await take(all_, 1) == [3]
            assert await take(rest, 1) == [3]
            assert await take(new, 1) == [3]

    async def test_iterates_without_a_block(self, store: Supervisor) -> None:
        """C29: ``async for`` alone will do."""
        session = await store.create()
        await session.append_many([0, 1])
        await session.close()
        assert [event.data async for event in session.subscribe()] == [0, 1]

    async def test_replay_joins_live_while_writers_write(self, store: Supervisor, second: Supervisor) -> None:
        """C29: subscribers that come at any time see each event once, in order, on both instances."""
        session = await store.create("s")
        other = await second.require("s")
        results: list[list[Any]] = [[] for _ in range(12)]

        async def write(handle: Session, name: str) -> None:
            for number in range(40):
                await handle.append([name, number])

        async with anyio.create_task_group() as readers:
            async with anyio.create_task_group() as writers:
                for name in "abcd":
                    writers.start_soon(write, session, name)
                    writers.start_soon(write, other, name.upper())
                for number, result in enumerate(results):
                    readers.start_soon(collect, (session, other)[number % 2], result)
                    await anyio.sleep(0.001)
            await session.close()
            readers.cancel_scope.deadline = anyio.current_time() + PATIENCE_S
        expected = [event.data for event in await session.events()]
        assert len(expected) == 320
        for result in results:
            assert result == expected

    async def test_one_stream_only(self, store: Supervisor, second: Supervisor) -> None:
        """C30: live and replayed, from either instance."""
        session = await store.create("s")
        other = await second.require("s")
        results: list[list[Any]] = [[], []]
        await session.append_many(["a0", "a1"], stream="a")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: collect(session, results[0], stream="a"))
            tasks.start_soon(lambda: collect(other, results[1], stream="b"))
            for number in range(20):
                await (session, other)[number % 2].append(number, stream="ab"[number % 3 == 0])
            await other.close()
            tasks.cancel_scope.deadline = anyio.current_time() + PATIENCE_S
        assert results[0] == ["a0", "a1", *(number for number in range(20) if number % 3)]
        assert results[1] == [number for number in range(20) if number % 3 == 0]

    async def test_slow_subscriber_misses_nothing(self, open_store: OpenStore) -> None:
        """C31: far behind a small ring, it reads from the store."""
        async with open_store(actors=ActorConfig(ring_events=8)) as store:
            session = await store.create()
            async with session.subscribe() as slow, session.subscribe() as quick:
                await session.append(0)
                assert await take(slow, 1) == [0]
                for start in range(1, 2_001, 100):
                    await session.append_many(list(range(start, start + 100)))
                    await take(quick, 5)
                assert await take(slow, 2_000) == list(range(1, 2_001))
                await session.append("live")
                assert await take(slow, 1) == ["live"]
                assert await take(quick, 1) != ["live"]

    async def test_events_of_another_instance_arrive_live(self, store: Supervisor, second: Supervisor) -> None:
        """C32: a subscriber that waits on B is woken by an append on A."""
        session = await store.create("s")
        async with (await second.require("s")).subscribe() as events:
            for number in range(10):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(session.append, number)
                    assert await take(events, 1) == [number]

    @pytest.mark.parametrize("ending", ["close", "delete"])
    async def test_an_end_on_another_instance_arrives(self, store: Supervisor, second: Supervisor, ending: str) -> None:
        """C32: so does the end of the session."""
        session = await store.create("s")
        await session.append("last")
        async with (await second.require("s")).subscribe() as events:
            assert await take(events, 1) == ["last"]
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.close if ending == "close" else session.delete)
                with anyio.fail_after(PATIENCE_S):
                    with pytest.raises(StopAsyncIteration if ending == "close" else SessionNotFound):
                        await anext(events)

    async def test_not_shown_before_it_is_durable(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C33, P2: while its commit is under way an event is seen by nobody, and a value neither."""
        store, backend = open_faulty()
        async with store:
            session = await store.create()
            await session.set("k", "old")
            seen = list[Any]()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(collect, session, seen)
                await clock.settle()
                fault = backend.inject(FaultKind.HELD)
                acked = list[str]()

                async def write() -> None:
                    async with session.unit() as unit:
                        unit.append("x")
                        unit.set("k", "new")
                    acked.append("x")

                tasks.start_soon(write)
                await fault.struck()
                await clock.settle()
                assert (seen, acked) == ([], [])
                assert await session.events() == []
                assert await session.get("k") == "old"
                assert await session.get("k", cached=True) == "old"
                fault.release()
                with anyio.fail_after(PATIENCE_S):
                    while not acked:
                        await anyio.sleep(0.001)
                assert await session.get("k") == "new"
                await session.close()
            assert seen == ["x"]

    async def test_not_shown_if_it_fails(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C33: what was refused was never seen, and its number goes to the next."""
        store, backend = open_faulty()
        async with store:
            session = await store.create()
            seen = list[Any]()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(collect, session, seen)
                await clock.settle()
                backend.inject(FaultKind.REJECTED)
                with pytest.raises(Exception, match="injected"):
                    await session.append("refused")
                assert (await session.append("kept")).seq == 1
                await session.close()
            assert seen == ["kept"]

    async def test_ends_with_the_session(self, store: Supervisor) -> None:
        """C7: after the last event once closed; `SessionNotFound` once deleted or expired."""
        session = await store.create()
        await session.append("x")
        seen = list[Any]()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(collect, session, seen)
            async with session.unit() as unit:
                unit.append("bye")
                unit.close()
        assert seen == ["x", "bye"]
        assert [event.data async for event in session.subscribe()] == ["x", "bye"]

    async def test_deleted_under_a_subscriber(self, store: Supervisor) -> None:
        """C5: it is told."""
        session = await store.create()
        async with session.subscribe() as events:
            await session.append("x")
            assert await take(events, 1) == ["x"]
            await session.delete()
            with anyio.fail_after(PATIENCE_S), pytest.raises(SessionNotFound):
                await anext(events)

    async def test_overtaken_by_trimming(self, open_store: OpenStore) -> None:
        """C27, P7: a subscriber that the cap has overtaken gets a gap, not silence."""
        async with open_store(actors=ActorConfig(ring_events=2), retention=RetentionConfig(max_events=5)) as store:
            session = await store.create("s")
            async with session.subscribe() as events:
                await session.append(0)
                assert await take(events, 1) == [0]
                await session.append_many(list(range(1, 21)))
                with pytest.raises(EventGap) as caught:
                    await take(events, 1)
            first = caught.value.first_id
            assert first == (await session.events())[0].id

    async def test_store_closed_under_a_subscriber(self, open_store: OpenStore) -> None:
        """C51: close does not wait for subscribers, and does not leave them waiting."""
        async with assert_no_leaks():
            ended = list[str]()

            async def subscribe(session: Session) -> None:
                try:
                    async for _ in session.subscribe():
                        pass
                except Exception as exc:
                    ended.append(type(exc).__name__)
                else:
                    ended.append("end")

            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as tasks:
                    store = open_store()
                    async with store:
                        session = await store.create()
                        tasks.start_soon(subscribe, session)
                        await session.append("x")
            assert ended == ["StoreClosed"]

    async def test_subscriber_gives_up(self, store: Supervisor) -> None:
        """C49: a cancelled reader disturbs nobody, and can come back where it was."""
        session = await store.create()
        cursor: str | None = None
        seen = list[Any]()
        for number in range(30):
            await session.append(number)
            with anyio.move_on_after(0 if number % 3 else PATIENCE_S):
                async with session.subscribe(after=cursor) as events:
                    while not seen or seen[-1] != number:
                        event = await anext(events)
                        seen.append(event.data)
                        cursor = event.id
        async with session.subscribe(after=cursor) as events:
            await session.append("end")
            while seen[-1] != "end":
                seen += await take(events, 1)
        assert seen == [*range(30), "end"]
