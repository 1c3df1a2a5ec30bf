"""CONFORMANCE 43, 44, 46, 48: a store that fails, as far as one host can stage it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from holdfast.config import WriterConfig
from holdfast.errors import (
    ActorCrashed,
    DeadlineExceeded,
    HoldfastError,
    OutcomeUnknown,
    Overloaded,
    Rejected,
    StoreError,
    Unavailable,
)
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing.clock import ManualClock
from holdfast.testing.contract.stores import OpenFaulty, StoreBase
from holdfast.testing.faults import FaultKind, Operation, touches

__all__ = ["FaultContract"]

PATIENCE_S = 30

_READS: dict[str, tuple[Operation, Callable[[Supervisor, Session], Awaitable[object]]]] = {
    "list": ("list_sessions", lambda store, _: store.list(deadline_s=0.05)),
    "count": ("count_sessions", lambda store, _: store.count(deadline_s=0.05)),
    "events": ("read_events", lambda _, session: session.events(deadline_s=0.05)),
    "last_events": ("read_events", lambda _, session: session.last_events(1, deadline_s=0.05)),
}


async def data(session: Session) -> list[Any]:
    return [event.data for event in await session.events()]


class FaultContract(StoreBase):
    """Faults stay where they are; what was acknowledged is there, once; recovery needs nobody."""

    @pytest.mark.parametrize("kind", [FaultKind.UNKNOWN_DONE, FaultKind.UNKNOWN_LOST, FaultKind.UNAVAILABLE])
    @pytest.mark.parametrize("times", [1, 3])
    async def test_passing_fault_neither_loses_nor_doubles(
        self, open_faulty: OpenFaulty, clock: ManualClock, kind: FaultKind, times: int
    ) -> None:
        """C43: the caller notices nothing."""
        store, backend = open_faulty()
        async with store, clock.flowing():
            session = await store.create("s")
            backend.inject(kind, times=times)
            with anyio.fail_after(PATIENCE_S):
                for number in range(5):
                    assert (await session.append(number)).seq == number + 1
                    assert await session.update("n", lambda value: value + 1, default=0) == number + 1
            assert await data(session) == list(range(5))

    @pytest.mark.parametrize("kind", [FaultKind.UNKNOWN_DONE, FaultKind.UNKNOWN_LOST])
    async def test_unknown_outcome_of_a_create(
        self, open_faulty: OpenFaulty, clock: ManualClock, kind: FaultKind
    ) -> None:
        """C43: a create is not refused for its own first attempt."""
        store, backend = open_faulty()
        async with store, clock.flowing():
            backend.inject(kind)
            with anyio.fail_after(PATIENCE_S):
                session = await store.create("s", owner="o")
                await session.set("k", 1)
            assert (await session.info()).owner == "o"

    @pytest.mark.parametrize("kind", [FaultKind.UNKNOWN_DONE, FaultKind.UNKNOWN_LOST])
    async def test_unknown_outcome_under_load(
        self, open_faulty: OpenFaulty, clock: ManualClock, kind: FaultKind
    ) -> None:
        """C43: every fifth commit breaks off while hundreds of callers wait: exactly once, in order."""
        store, backend = open_faulty()
        async with store, clock.flowing():
            sessions = [await store.create(f"s{number}") for number in range(20)]
            faults = [backend.inject(kind, skip=skip * 4) for skip in range(10)]

            async def write(session: Session) -> None:
                for number in range(10):
                    await session.append(number)

            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as tasks:
                    for session in sessions:
                        tasks.start_soon(write, session)
            for fault in faults:
                fault.release()
            for session in sessions:
                assert await data(session) == list(range(10))

    async def test_unknown_while_resolve_fails(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C43: not even asking works at first: nothing is sent again before the answer is known."""
        store, backend = open_faulty()
        async with store, clock.flowing():
            session = await store.create("s")
            backend.inject(FaultKind.UNKNOWN_DONE)
            backend.inject(FaultKind.UNAVAILABLE, "resolve", times=3)
            with anyio.fail_after(PATIENCE_S):
                await session.append("once")
                await session.append("next")
            assert await data(session) == ["once", "next"]

    async def test_outcome_that_stays_unknown_is_said_so(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C43: the store stays away: the error says "may be stored"; afterwards the truth is shown."""
        store, backend = open_faulty(writer=WriterConfig(retry_for_s=1.0))
        async with store, clock.flowing():
            session = await store.create("s")
            backend.inject(FaultKind.UNKNOWN_DONE)
            down = [backend.inject(FaultKind.UNAVAILABLE, op, times=None) for op in ("resolve", "commit", "load")]
            with anyio.fail_after(PATIENCE_S), pytest.raises(OutcomeUnknown):
                await session.append("perhaps")
            for fault in down:
                fault.release()
            with anyio.fail_after(PATIENCE_S):
                await _until(lambda: session.append("later"))
            assert await data(session) == ["perhaps", "later"]

    async def test_store_down_errors_are_clear_and_recovery_by_itself(
        self, open_faulty: OpenFaulty, clock: ManualClock
    ) -> None:
        """C44: thirty seconds without a store; callers get a clear error; then all goes on."""
        store, backend = open_faulty(writer=WriterConfig(retry_for_s=2.0))
        async with store:
            session = await store.create("s", ttl_s=None)
            await session.set("k", "before")
            down = [backend.inject(FaultKind.UNAVAILABLE, op, times=None) for op in ("commit", "load", "read_events")]
            async with clock.flowing():
                with anyio.fail_after(PATIENCE_S):
                    for _ in range(3):
                        with pytest.raises(Unavailable):
                            await session.append("lost")
                    with pytest.raises(StoreError):
                        await store.create("t")
            assert await session.get("k", cached=True) == "before"
            await clock.advance(30)
            for fault in down:
                fault.release()
            async with clock.flowing():
                with anyio.fail_after(PATIENCE_S):
                    await _until(lambda: session.append("after"))
            assert await data(session) == ["after"]
            assert await session.get("k") == "before"
            assert await store.get("t") is None

    async def test_callers_deadline(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C44: a call with a deadline ends by it, and says whether the write may be stored."""
        store, backend = open_faulty()
        async with store:
            session = await store.create("s", ttl_s=None)
            fault = backend.inject(FaultKind.HELD)
            with anyio.fail_after(PATIENCE_S):
                async with clock.flowing(0.01):
                    with pytest.raises(DeadlineExceeded) as taken:
                        await session.append("begun", deadline_s=0.05)
                    assert taken.value.stored == "unknown"
                    with pytest.raises(DeadlineExceeded) as waiting:
                        await session.append("not begun", deadline_s=0.05)
                    assert waiting.value.stored == "no"
                fault.release()
                await session.append("next")
            assert await data(session) == ["begun", "next"]

    @pytest.mark.parametrize("name", _READS)
    async def test_deadline_of_a_read(self, open_faulty: OpenFaulty, clock: ManualClock, name: str) -> None:
        """C44: a read with a deadline ends by it, whatever the store does."""
        store, backend = open_faulty()
        async with store:
            session = await store.create("s", ttl_s=None)
            await session.append("x")
            operation, call = _READS[name]
            fault = backend.inject(FaultKind.HELD, operation)
            with anyio.fail_after(PATIENCE_S):
                async with clock.flowing(0.01):
                    with pytest.raises(DeadlineExceeded):
                        await call(store, session)
            fault.release()

    async def test_bounded_while_the_store_hangs(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C44, P10: a full mailbox holds callers back, then says `Overloaded`; nothing of it is stored."""
        from holdfast.config import ActorConfig

        store, backend = open_faulty(actors=ActorConfig(mailbox_units=3, overload_wait_s=0.05))
        async with store:
            session = await store.create("s", ttl_s=None)
            fault = backend.inject(FaultKind.HELD)
            done, refused = list[int](), list[int]()

            async def append(number: int) -> None:
                try:
                    await session.append(number)
                except Overloaded:
                    refused.append(number)
                else:
                    done.append(number)

            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as tasks:
                    for number in range(8):
                        tasks.start_soon(append, number)
                    await fault.struck()
                    async with clock.flowing(0.01):
                        while len(refused) < 5:
                            await anyio.sleep(0.005)
                    fault.release()
            assert (len(done), len(refused)) == (3, 5)
            assert sorted(await data(session)) == sorted(done)

    async def test_disk_full(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C46: a clear error, nothing half-written, recovery when there is space again."""
        store, backend = open_faulty(writer=WriterConfig(retry_for_s=0.5))
        async with store, clock.flowing():
            session = await store.create("s")
            full = backend.inject(FaultKind.FULL, times=None)
            with anyio.fail_after(PATIENCE_S):
                with pytest.raises(Unavailable, match=r"full|unavailable"):
                    async with session.unit() as unit:
                        unit.set("k", 1)
                        unit.append("x")
                full.release()
                await _until(lambda: session.append("y"))
            assert await session.state() == {}
            assert await data(session) == ["y"]

    async def test_rejected_session_does_not_harm_its_batch(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C47, P11: the batch is divided until the culprit is alone; only its caller gets the error."""
        store, backend = open_faulty()
        async with store, clock.flowing():
            sessions = {name: await store.create(name) for name in (*(f"s{n}" for n in range(30)), "bad")}
            hold = backend.inject(FaultKind.HELD)
            backend.inject(FaultKind.REJECTED, times=None, when=touches("bad"))
            errors = dict[str, Exception]()

            async def append(session: Session) -> None:
                try:
                    await session.append("x")
                except HoldfastError as exc:
                    errors[session.id] = exc

            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(append, sessions["s0"])
                    await hold.struck()
                    for session in sessions.values():
                        tasks.start_soon(append, session)
                    await clock.settle()
                    hold.release()
            assert list(errors) == ["bad"]
            assert isinstance(errors["bad"], Rejected)
            backend.heal()
            assert await data(sessions["bad"]) == []
            assert len(await data(sessions["s0"])) == 2
            for number in range(1, 30):
                assert await data(sessions[f"s{number}"]) == ["x"]
            await sessions["bad"].append("works again")
            assert backend.largest_batch >= 2

    async def test_bug_in_a_commit_stays_where_it_is(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C48: a commit that raises what it should not: done once or an error, and all goes on."""
        store, backend = open_faulty()
        async with store, clock.flowing():
            bad, good = await store.create("bad"), await store.create("good")
            crash = backend.inject(FaultKind.CRASH, when=touches("bad"))
            acked = 0
            with anyio.fail_after(PATIENCE_S):
                try:
                    await bad.append("x")
                    acked = 1
                except HoldfastError:
                    pass
                assert crash.hits == 1
                await good.append("fine")
                await _until(lambda: bad.append("again"))
            assert await data(good) == ["fine"]
            assert await data(bad) == ["x"] * acked + ["again"]
            assert [event.seq for event in await bad.events()] == list(range(1, acked + 2))

    async def test_bug_in_a_load_fails_only_its_reader(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C48: a load that raises what it should not."""
        store, backend = open_faulty()
        async with store:
            await (await store.create("s")).set("k", 1)
        store, backend = open_faulty()
        async with store, clock.flowing():
            backend.inject(FaultKind.CRASH, "load")
            with anyio.fail_after(PATIENCE_S):
                with pytest.raises(HoldfastError):
                    await (await store.require("s")).get("k")
                assert await (await store.require("s")).get("k") == 1

    async def test_reads_fail_and_recover(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C44: a read that the store cannot serve says so; the next is served."""
        store, _ = open_faulty()
        async with store:
            session = await store.create("s")
            await session.append_many([1, 2, 3])
        store, backend = open_faulty()
        async with store, clock.flowing():
            for operation in ("load", "read_events", "list_sessions", "count_sessions"):
                backend.inject(FaultKind.UNAVAILABLE, operation, times=None)
            with anyio.fail_after(PATIENCE_S):
                for read in (lambda: store.require("s"), lambda: store.list(), lambda: store.count()):
                    with pytest.raises(StoreError):
                        await read()
                backend.heal()
                await _until(store.count)
                assert await data(await store.require("s")) == [1, 2, 3]

    async def test_subscription_outlives_an_outage(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C44, P7: after an outage it goes on where it was, or ends with an error; it never skips."""
        store, backend = open_faulty(writer=WriterConfig(retry_for_s=1.0))
        async with store, clock.flowing():
            session = await store.create("s", ttl_s=None)
            seen = list[Any]()
            cursor: str | None = None

            async def follow() -> None:
                nonlocal cursor
                while True:
                    try:
                        async for event in session.subscribe(after=cursor):
                            seen.append(event.data)
                            cursor = event.id
                        return
                    except Unavailable:
                        await anyio.sleep(0.001)

            with anyio.fail_after(PATIENCE_S):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(follow)
                    for number in range(3):
                        await session.append(number)
                        for operation in ("commit", "load", "read_events"):
                            backend.inject(FaultKind.UNAVAILABLE, operation, times=2)
                    await _until(session.close)
            assert seen == [0, 1, 2]

    async def test_crashes_in_a_row_end_in_a_clear_error(self, open_faulty: OpenFaulty, clock: ManualClock) -> None:
        """C48: restart intensity: an actor that crashes again and again does not spin."""
        store, backend = open_faulty()
        async with store, clock.flowing():
            bad, good = await store.create("bad"), await store.create("good")
            crash = backend.inject(FaultKind.CRASH, times=None, when=touches("bad"))
            with anyio.fail_after(PATIENCE_S):
                for _ in range(12):
                    with pytest.raises((ActorCrashed, StoreError)):
                        await bad.append("x")
                    await good.append("y")
                assert crash.hits < 200
                crash.release()
                await _until(lambda: bad.append("again"))
            assert len(await data(good)) == 12


async def _until(call: Callable[[], Any]) -> None:
    """Call again until it succeeds."""
    while True:
        try:
            await call()
        except StoreError:
            await anyio.sleep(0.002)
        except ActorCrashed:
            await anyio.sleep(0.002)
        else:
            return
