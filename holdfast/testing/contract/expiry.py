"""CONFORMANCE 36-42: expiry."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar

import anyio
import pytest

from holdfast.backends.base import Expired, Status
from holdfast.config import JanitorConfig
from holdfast.errors import InvalidInput, SessionNotFound
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing.clock import ManualClock
from holdfast.testing.contract.base import MakeBackend
from holdfast.testing.contract.direct import Direct, creation, new_head
from holdfast.testing.contract.sessions import EVERY_CALL
from holdfast.testing.contract.stores import OpenStore, StoreBase

__all__ = ["ExpiryContract"]


async def _replay(session: Session) -> None:
    async for _ in session.replay():
        pass


ACTIVITIES: dict[str, Callable[[Session], Awaitable[Any]]] = {
    "touch": lambda session: session.touch(),
    "get": lambda session: session.get("k"),
    "get absent": lambda session: session.get("absent"),
    "get cached": lambda session: session.get("k", cached=True),
    "state": lambda session: session.state(),
    "keys": lambda session: session.keys(),
    "set": lambda session: session.set("k", 2),
    "update": lambda session: session.update("k", lambda value: value, default=1),
    "append": lambda session: session.append("x"),
    "events": lambda session: session.events(),
    "last_events": lambda session: session.last_events(1),
    "replay": _replay,
}


class ExpiryContract(StoreBase):
    """TTL means TTL: unreadable at once, extended by any activity, and never cut short."""

    mass_expiry_sessions: ClassVar[int] = 3_000
    """How many sessions expire together in the test of C41."""

    @pytest.mark.parametrize("background", [True, False])
    async def test_unreadable_the_moment_its_ttl_has_passed(
        self, open_store: OpenStore, clock: ManualClock, background: bool
    ) -> None:
        """C36, C42: reaped or not."""
        async with open_store(background=background) as store:
            session = await store.create("s", ttl_s=10)
            stays = await store.create("t", ttl_s=10.000_001)
            await clock.advance(9.999_999)
            assert (await store.list()).sessions[0].id == "s"
            await clock.advance(0.000_001)
            assert await store.get("s") is None
            assert [info.id for info in (await store.list()).sessions] == ["t"]
            assert await store.count() == 1
            with pytest.raises(SessionNotFound):
                await session.get("k")
            assert await stays.get("k") is None

    @pytest.mark.parametrize("call", EVERY_CALL)
    async def test_every_call_on_an_expired_session(self, open_store: OpenStore, clock: ManualClock, call: str) -> None:
        """C36, C3: `SessionNotFound`, without a janitor, on an instance that has it hot and on one that has not."""
        async with open_store(background=False) as store:
            session = await store.create("s", ttl_s=10)
            await session.set("k", 0)
            await clock.advance(10)
            with anyio.fail_after(10), pytest.raises(SessionNotFound):
                await EVERY_CALL[call](session)
            assert await session.delete() is False
        async with open_store(background=False) as again:
            assert await again.get("s") is None
            assert await again.delete("s") is False
            assert await (await again.create("s")).state() == {}

    @pytest.fixture
    async def row(
        self, store: Supervisor, make_backend: MakeBackend, clock: ManualClock
    ) -> AsyncIterator[Direct | None]:
        """The store itself, to see what has been written there. None if it is exclusive: nobody can look."""
        if store.capabilities.exclusive:
            yield None
            return
        backend = make_backend()
        await backend.open()
        yield Direct(backend, clock)
        await backend.close()

    @pytest.mark.parametrize("activity", ACTIVITIES)
    async def test_activity_extends(
        self, store: Supervisor, second: Supervisor, row: Direct | None, clock: ManualClock, activity: str
    ) -> None:
        """C37: seven tenths of the TTL at a time, for ever; and then it ends. Others know of it soon."""
        session = await store.create("s", ttl_s=10)
        await session.set("k", 1)
        for _ in range(5):
            await clock.advance(7)
            await ACTIVITIES[activity](session)
        last_us = clock.now_us()
        await _stored(row, last_us, clock)
        await clock.advance(9.5 - (clock.now_us() - last_us) / 1e6)
        assert await store.expire() == []
        assert await second.expire() == []
        assert [info.id for info in (await second.list()).sessions] == ["s"]
        await clock.advance(0.5)
        assert await second.get("s") is None
        assert await store.get("s") is None

    async def test_activity_extends_without_background(self, open_store: OpenStore, clock: ManualClock) -> None:
        """C37: reads count also where no janitor runs, and after a restart."""
        async with open_store(background=False) as store:
            session = await store.create("s", ttl_s=10)
            for _ in range(5):
                await clock.advance(7)
                await session.get("k")
            assert await store.expire() == []
        async with open_store(background=False) as again:
            await clock.advance(7)
            assert await again.get("s") is not None

    async def test_open_subscription_extends(
        self, store: Supervisor, second: Supervisor, row: Direct | None, clock: ManualClock
    ) -> None:
        """C37: as long as somebody listens, it lives, for every instance."""
        session = await store.create("s", ttl_s=10)
        async with session.subscribe() as events:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(events.__anext__)
                for _ in range(8):
                    await clock.advance(4)
                    await _stored(row, clock.now_us(), clock)
                    assert [info.id for info in (await second.list()).sessions] == ["s"]
                    assert await second.expire() == []
                tasks.cancel_scope.cancel()
        await clock.advance(25)
        assert await store.get("s") is None

    async def test_subscriber_of_an_expired_session_is_told(self, store: Supervisor, clock: ManualClock) -> None:
        """C40: when the absolute lifetime ends, so does the subscription."""
        session = await store.create("s", lifetime_s=10)
        async with session.subscribe() as events:
            async with anyio.create_task_group() as tasks:
                ended = list[str]()

                async def listen() -> None:
                    with pytest.raises(SessionNotFound):
                        await anext(events)
                    ended.append("told")

                tasks.start_soon(listen)
                with anyio.fail_after(20):
                    while not ended:
                        await clock.advance(5)
                        await anyio.sleep(0.001)

    async def test_expire_returns_exactly_the_removed(
        self, store: Supervisor, second: Supervisor, clock: ManualClock
    ) -> None:
        """C38: with their owners; each is told once, whoever removes it; the hook hears of them."""
        told = list[Expired]()
        store.on_expired(told.extend)
        for number in range(30):
            await store.create(f"s{number}", ttl_s=10 if number % 3 else 1_000, owner=f"o{number}")
        await clock.advance(10)
        removed = await second.expire() + await store.expire()
        expected = {f"s{number}" for number in range(30) if number % 3}
        assert {session.id for session in removed} | {session.id for session in told} == expected
        assert all(session.owner == f"o{session.id[1:]}" for session in removed)
        assert len(removed) == len({session.id for session in removed})
        assert await store.count() == 10
        assert await store.expire() == []

    async def test_expire_races_with_activity(self, store: Supervisor, second: Supervisor, clock: ManualClock) -> None:
        """C38: a session whose activity came first is kept, by every instance."""
        sessions = [await store.create(f"s{number}", ttl_s=10) for number in range(40)]
        await clock.advance(9.999_999)
        async with anyio.create_task_group() as tasks:
            for number, session in enumerate(sessions[:20]):
                activity = (session.touch, session.keys, lambda s=session: s.append("x"))[number % 3]
                tasks.start_soon(activity)
        await clock.advance(0.000_001)
        removed = list[Expired]()
        async with anyio.create_task_group() as tasks:
            for instance in (store, second):

                async def reap(instance: Supervisor = instance) -> None:
                    removed.extend(await instance.expire())

                tasks.start_soon(reap)
        gone = {session.id for session in removed}
        assert gone <= {f"s{number}" for number in range(20, 40)}
        for number in range(40):
            assert (await second.get(f"s{number}") is not None) == (number < 20)

    async def test_one_ttl_governs(self, open_store: OpenStore, clock: ManualClock) -> None:
        """C39: the session's own, not the default, before a restart and after."""
        async with open_store(ttl_s=1_800) as store:
            await store.create("two-hours", ttl_s=7_200)
            await store.create("default")
            await store.create("for-ever", ttl_s=None)
            await clock.advance(1_801)
            assert {session.id for session in await store.expire()} <= {"default"}
            assert await store.get("default") is None
        async with open_store(ttl_s=60) as again:
            await clock.advance(5_398)
            assert await again.get("for-ever") is not None
            assert [info.id async for info in again.scan()] == ["two-hours", "for-ever"]
            await clock.advance(1)
            await again.expire()
            assert [info.id async for info in again.scan()] == ["for-ever"]

    async def test_lifetime_ends_an_active_session(self, store: Supervisor, clock: ManualClock) -> None:
        """C40: activity does not extend it."""
        session = await store.create("s", ttl_s=10, lifetime_s=30)
        for _ in range(5):
            await clock.advance(5)
            await session.set("k", 1)
        await clock.advance(4.999_999)
        assert await session.get("k") == 1
        await clock.advance(0.000_001)
        assert await store.get("s") is None
        with pytest.raises(SessionNotFound):
            await session.set("k", 2)

    async def test_default_lifetime(self, open_store: OpenStore, clock: ManualClock) -> None:
        """C40: from the config, for sessions created without one."""
        async with open_store(ttl_s=None, lifetime_s=30) as store:
            await store.create("default")
            await store.create("own", lifetime_s=None)
            await clock.advance(30)
            assert [info.id async for info in store.scan()] == ["own"]

    @pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "10"])
    async def test_unusable_ttl_is_refused(self, store: Supervisor, bad: Any) -> None:
        """C54: before anything is written."""
        with pytest.raises((InvalidInput, TypeError)):
            await store.create("s", ttl_s=bad)
        with pytest.raises((InvalidInput, TypeError)):
            await store.create("s", lifetime_s=bad)
        assert await store.get("s") is None

    async def test_janitor_reaps_by_itself(
        self, open_store: OpenStore, clock: ManualClock, make_backend: MakeBackend
    ) -> None:
        """C38: some time after their end the rows are gone, and nobody had to ask."""
        told = list[str]()
        async with open_store() as store:
            store.on_expired(lambda sessions: told.extend(session.id for session in sessions))
            await store.create("s", ttl_s=10)
            with anyio.fail_after(20):
                while not told:
                    await clock.advance(20)
                    await anyio.sleep(0.001)
        assert told == ["s"]
        backend = make_backend()
        await backend.open()
        assert not await Direct(backend, clock).exists("s")
        await backend.close()

    async def test_mass_expiry_in_bounded_batches(
        self, make_backend: MakeBackend, open_store: OpenStore, clock: ManualClock
    ) -> None:
        """C41: while they are cleaned, writes go on."""
        await self._create_in_bulk(make_backend, clock)
        batches = JanitorConfig(batch=max(1, self.mass_expiry_sessions // 30))
        async with open_store(background=False, janitor=batches) as store:
            live = await store.create("live", ttl_s=None)
            await clock.advance(10)
            removed = 0
            await live.append(0)  # so that what takes its time only once is done
            appended = 1
            async with anyio.create_task_group() as tasks:

                async def write() -> None:
                    nonlocal appended
                    while removed == 0:
                        await live.append(appended)
                        appended += 1

                tasks.start_soon(write)
                removed = len(await store.expire())
            assert removed == self.mass_expiry_sessions
            assert appended >= 2
            assert [event.data for event in await live.events()] == list(range(appended))
            assert [info.id async for info in store.scan()] == ["live"]

    async def _create_in_bulk(self, make_backend: MakeBackend, clock: ManualClock) -> None:
        backend = make_backend()
        await backend.open()
        direct = Direct(backend, clock)
        size = min(1_000, backend.capabilities.max_batch_sessions or 1_000)
        for start in range(0, self.mass_expiry_sessions, size):
            count = min(size, self.mass_expiry_sessions - start)
            heads = [new_head(f"s{start + n}", clock.now_us(), ttl_us=5_000_000) for n in range(count)]
            outcomes = await direct.commit(*(creation(head) for head in heads))
            assert {outcome.status for outcome in outcomes} == {Status.COMMITTED}
        await backend.close()


async def _stored(row: Direct | None, active_us: int, clock: ManualClock) -> None:
    """Let time pass until activity of that time, or later, has reached the store; it must be soon.

    Where nobody else can look (``row`` is None), it need not have reached it.
    """
    if row is None:
        return
    for _ in range(20):
        if (await row.head("s")).active_us >= active_us:
            return
        await clock.advance(0.2)
        await anyio.sleep(0.02)
    pytest.fail("activity is not stored within four seconds")
