"""CONFORMANCE 47, 49-51, 53, 54: limits, cancellation and the end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from holdfast.config import ActorConfig, Limits
from holdfast.errors import HoldfastError, LimitExceeded, StoreClosed, StoreError
from holdfast.model import Durability
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing.clock import ManualClock
from holdfast.testing.contract.stores import OpenFaulty, OpenStore, StoreBase
from holdfast.testing.faults import FaultKind
from holdfast.testing.leaks import assert_no_leaks

__all__ = ["LimitContract"]

PATIENCE_S = 30
SMALL = Limits(
    max_key_bytes=20,
    max_value_bytes=1_000,
    max_state_keys=5,
    max_state_bytes=2_500,
    max_event_bytes=1_000,
    max_unit_events=10,
    max_unit_bytes=3_000,
    max_metadata_bytes=200,
    max_name_bytes=30,
)

TOO_MUCH: dict[str, tuple[Callable[[Session], Awaitable[Any]], int]] = {
    "value": (lambda session: session.set("k", "x" * 1_001), 1_000),
    "key": (lambda session: session.set("k" * 21, 1), 20),
    "key in bytes": (lambda session: session.set("ü" * 11, 1), 20),
    "one of many values": (lambda session: session.set_many({"ok": 1, "k": "x" * 1_001}), 1_000),
    "event": (lambda session: session.append("x" * 1_001), 1_000),
    "one of many events": (lambda session: session.append_many(["ok", "x" * 1_001]), 1_000),
    "events in a unit": (lambda session: session.append_many(["ok"] * 11), 10),
    "bytes in a unit": (lambda session: session.append_many(["x" * 900] * 4), 3_000),
    "event type": (lambda session: session.append("x", type="t" * 31), 30),
    "event stream": (lambda session: session.append("x", stream="ü" * 16), 30),
    "metadata": (lambda session: session.set_metadata({"m": "x" * 200}), 200),
    "keys of a session": (lambda session: session.set_many({f"k{n}": n for n in range(6)}), 5),
    "bytes of a session": (lambda session: session.set_many({f"k{n}": "x" * 900 for n in range(3)}), 2_500),
    "updated value": (lambda session: session.update("k", lambda _: "x" * 1_001), 1_000),
    "compared value": (lambda session: session.compare_and_set("k", "x" * 1_001, version=0), 1_000),
}


class LimitContract(StoreBase):
    """Too much is refused by name; who gives up harms nobody; the end is clean and honest."""

    @pytest.mark.parametrize("what", TOO_MUCH)
    async def test_past_a_limit(self, open_store: OpenStore, what: str) -> None:
        """C47: `LimitExceeded` with the limit, and nothing is written."""
        call, limit = TOO_MUCH[what]
        async with open_store(limits=SMALL) as store:
            session = await store.create()
            with pytest.raises(LimitExceeded) as caught:
                await call(session)
            assert caught.value.limit == limit
            assert caught.value.actual > limit
            assert f"{limit:,}" in str(caught.value)
            assert await session.state() == {}
            assert await session.events() == []
            await session.set("k", "x" * 998)
            await session.append("x" * 998)

    async def test_state_grows_to_its_limit_only(self, open_store: OpenStore) -> None:
        """C47: also by many small writes; replacing and removing stays possible."""
        async with open_store(limits=SMALL) as store:
            session = await store.create()
            for number in range(5):
                await session.set(f"k{number}", number)
            with pytest.raises(LimitExceeded):
                await session.set("k5", 5)
            await session.set("k4", "other")
            await session.remove("k0")
            await session.set("k5", 5)
            assert sorted(await session.keys()) == ["k1", "k2", "k3", "k4", "k5"]

    async def test_too_much_does_not_harm_its_neighbours(self, open_store: OpenStore) -> None:
        """C47, P11: hundreds of calls at once, some of them impossible."""
        async with open_store(limits=SMALL) as store:
            sessions = [await store.create(f"s{number}") for number in range(20)]
            refused = list[str]()

            async def write(session: Session, number: int) -> None:
                try:
                    await session.append("x" * (2_000 if number % 4 == 0 else 10))
                    await session.set("k", float("nan") if number % 4 == 1 else number)
                except HoldfastError:
                    refused.append(session.id)

            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(write, sessions[number % 20], number)
            assert len(refused) == 100
            for number, session in enumerate(sessions):
                assert len(await session.events()) == (0 if number % 4 == 0 else 10)
                assert (await session.get("k") is None) == (number % 4 < 2)

    async def test_maximum_of_sessions(self, open_store: OpenStore, clock: ManualClock) -> None:
        """C47: sessions are limited too, by name."""
        async with open_store(limits=Limits(max_sessions=3), ttl_s=None) as store:
            for _ in range(3):
                await store.create()
            with pytest.raises((LimitExceeded, StoreError)) as caught:
                await store.create()
            assert "3" in str(caught.value)
            assert await store.count() == 3

    @pytest.mark.parametrize("steps", range(12))
    async def test_caller_gives_up(self, store: Supervisor, steps: int) -> None:
        """C49: after any number of steps: what it began is whole or nothing, and the order holds."""
        session = await store.create("s")
        begun = list[int]()

        async def append(number: int) -> None:
            begun.append(number)
            await session.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(append, number)

            async def unit() -> None:
                async with session.unit() as unit:
                    unit.append("unit")
                    unit.set("unit", 1)

            tasks.start_soon(unit)
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        await session.append("after")
        events = await session.events()
        found = [event.data for event in events]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert found[-1] == "after"
        assert len(set(map(str, found))) == len(found)
        stored = [value for value in found if isinstance(value, int)]
        assert stored == [number for number in begun if number in stored]
        assert ("unit" in found) == (await session.get("unit") == 1)

    async def test_giving_up_at_the_lock(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C49: callers that give up while a flush is held: those taken are stored, the others withdrawn."""
        store, backend = open_faulty()
        async with store:
            session = await store.create("s", ttl_s=None)
            fault = backend.inject(FaultKind.HELD)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(session.append, "taken")
                await fault.struck()
                tasks.start_soon(session.append, "waiting")
                await clock.settle()
                tasks.cancel_scope.cancel()
            fault.release()
            with anyio.fail_after(PATIENCE_S):
                await session.append("after")
            assert [event.data for event in await session.events()] == ["taken", "after"]

    async def test_close_drains(self, open_store: OpenStore) -> None:
        """C50: everything accepted before close is stored, at any durability."""
        store = open_store(durability=Durability.MEMORY)
        async with store:
            sessions = [await store.create(f"s{number}", ttl_s=None) for number in range(20)]
            for number in range(10):
                for session in sessions:
                    await session.append(number)
                    await session.set("k", number)
            report = await store.close()
        assert report.units == 0
        async with open_store() as again:
            for number in range(20):
                session = await again.require(f"s{number}")
                assert [event.data for event in await session.events()] == list(range(10))
                assert await session.get("k") == 9

    async def test_close_under_load(self, open_store: OpenStore) -> None:
        """C50: callers get their acknowledgement or `StoreClosed`; exactly the acknowledged is stored."""
        acked = list[int]()
        other = list[Exception]()
        async with open_store() as store:
            session = await store.create("s", ttl_s=None)

            async def write(worker: int) -> None:
                number = worker
                while True:
                    try:
                        await session.append(number)
                    except StoreClosed:
                        return
                    except HoldfastError as exc:
                        other.append(exc)
                        return
                    acked.append(number)
                    number += 10

            async with anyio.create_task_group() as tasks:
                for worker in range(10):
                    tasks.start_soon(write, worker)
                while len(acked) < 100:
                    await anyio.sleep(0.001)
                with anyio.fail_after(PATIENCE_S):
                    await store.close()
        assert other == []
        async with open_store() as again:
            stored = [event.data for event in await (await again.require("s")).events()]
        assert sorted(stored) == sorted(acked)

    async def test_close_reports_what_it_could_not_flush(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C50: within the drain's deadline, and says so."""
        store, backend = open_faulty(drain_timeout_s=0.2, durability=Durability.MEMORY)
        async with store:
            session = await store.create("s", ttl_s=None)
            await session.append("stored", durability=None)
            with anyio.fail_after(PATIENCE_S):
                while not backend.calls["commit"]:
                    await anyio.sleep(0.001)
                await anyio.sleep(0.01)
            backend.inject(FaultKind.HELD, times=None)
            for number in range(7):
                await session.append(number)
            async with clock.flowing():
                with anyio.fail_after(PATIENCE_S):
                    report = await store.close()
        assert report.units == 7
        store, _ = open_faulty()
        async with store:
            assert [event.data for event in await (await store.require("s")).events()] in (["stored"], [])

    async def test_close_while_the_store_is_down(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C50: close reports instead of raising; callers that wait are told."""
        store, backend = open_faulty(drain_timeout_s=0.1)
        failed = list[str]()

        async def append(session: Session) -> None:
            try:
                await session.append("x")
            except StoreError as exc:
                failed.append(type(exc).__name__)

        with anyio.fail_after(PATIENCE_S):
            async with store, anyio.create_task_group() as tasks:
                session = await store.create("s", ttl_s=None)
                for operation in ("commit", "resolve", "load", "forget_markers"):
                    backend.inject(FaultKind.UNAVAILABLE, operation, times=None)
                for _ in range(3):
                    tasks.start_soon(append, session)
                await clock.settle()
                report = await store.close()
                assert report.units == 3
        assert len(failed) == 3

    async def test_close_survives_a_failing_clean_up(self, open_faulty: OpenFaulty) -> None:
        """C50: everything is stored; that the writer's markers stay behind is no error of the caller's."""
        store, backend = open_faulty()
        async with store:
            await (await store.create("s")).append("x")
            backend.inject(FaultKind.UNAVAILABLE, "forget_markers", times=None)
            assert (await store.close()).units == 0

    async def test_closed_store_says_so(self, open_store: OpenStore) -> None:
        """C51: every call afterwards, and close again is harmless."""
        async with open_store() as store:
            session = await store.create("s")
            await session.set("k", 1)
        for call in (
            lambda: store.create(),
            lambda: store.get("s"),
            lambda: store.list(),
            lambda: store.count(),
            lambda: store.delete("s"),
            lambda: session.get("k"),
            lambda: session.set("k", 2),
            lambda: session.append("x"),
            lambda: session.events(),
        ):
            with anyio.fail_after(PATIENCE_S / 10), pytest.raises(StoreClosed):
                await call()
        await store.close()

    @pytest.mark.parametrize("how", ["plain", "cancelled", "error"])
    async def test_nothing_outlives_close(self, open_store: OpenStore, how: str) -> None:
        """C51: timers, connections, threads and tasks are gone, however the block is left."""
        async with assert_no_leaks():
            with anyio.CancelScope() as scope:
                try:
                    async with open_store() as store:
                        session = await store.create()
                        await session.append("x")
                        await session.get("k")
                        if how == "cancelled":
                            scope.cancel()
                        if how == "error":
                            raise ZeroDivisionError
                        await anyio.lowlevel.checkpoint()
                except* ZeroDivisionError:
                    pass

    async def test_passive_sessions_come_back(self, open_store: OpenStore, clock: ManualClock) -> None:
        """P10: with room for few hot sessions, many are served all the same."""
        async with open_store(actors=ActorConfig(max_hot_sessions=5)) as store:
            sessions = [await store.create(f"s{number}") for number in range(40)]
            for round_ in range(3):
                for number, session in enumerate(sessions):
                    await session.set("k", [number, round_])
                    await session.append(round_)
            for number, session in enumerate(sessions):
                assert await session.get("k") == [number, 2]
                assert [event.data for event in await session.events()] == [0, 1, 2]

    async def test_durability_beyond_the_store_is_refused(self, open_store: OpenStore) -> None:
        """P1: at open and at the call, never a silent downgrade."""
        async with open_store() as store:
            best = store.capabilities.durability
            session = await store.create()
            for level in Durability:
                if best.covers(level):
                    await session.append(level.value, durability=level)
                else:
                    with pytest.raises(HoldfastError, match=level.value):
                        await session.append("x", durability=level)
        too_much = [level for level in Durability if not best.covers(level)]
        for level in too_much:
            with pytest.raises(HoldfastError, match=level.value):
                async with open_store(durability=level):
                    pass

    async def test_deadline_of_every_kind(self, store: Supervisor) -> None:
        """C44: a generous deadline changes nothing."""
        session = await store.create("s", deadline_s=30)
        await session.set("k", 1, deadline_s=30)
        assert await session.get("k", deadline_s=30) == 1
        assert len(await session.append_many([1, 2], deadline_s=30)) == 2
        assert len(await session.events(deadline_s=30)) == 2

    async def test_statistics_and_description(self, store: Supervisor) -> None:
        """C53: figures to read; no payload in them."""
        session = await store.create("s", owner="owner-secret")
        await session.set("k", "state-secret")
        await session.append("event-secret")
        text = repr(store.statistics()) + repr(await store.describe()) + repr(store) + repr(session)
        assert "secret" not in text
        assert store.statistics() is not store.statistics()
