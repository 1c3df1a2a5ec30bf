"""The engine against a plain model: two instances on one store, faults, crashes, time.

After every step the store itself is read, past the engine, and compared with the model. Hypothesis
prints the steps and the seed of a failure (``@reproduce_failure``).
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from holdfast.backends.base import Backend
from holdfast.backends.sqlite import SQLiteBackend, SQLiteConfig
from holdfast.errors import (
    Conflict,
    EventGap,
    Rejected,
    SessionClosed,
    SessionExists,
    SessionNotFound,
    StoreError,
)
from holdfast.model import Durability
from holdfast.supervisor.session import Session
from holdfast.testing import FaultKind, touches
from tests.engine.compared import ComparedMachine
from tests.engine.model import PlainSession

SECOND = 1_000_000
_DRIFT_US = 100_000
"""The clock flows a little during a call; the model notes the end of the call."""

names = st.sampled_from(["a", "b", "c"])
keys = st.sampled_from(["k", "l", "ü\x00"])
values = st.one_of(st.none(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
streams = st.sampled_from(["", "x"])
instances = st.sampled_from([0, 1])


class EngineMachine(ComparedMachine):
    """Rules are what callers, time and misfortune do. Bound to a loop and a store below."""

    # Callers

    @initialize()
    def begin(self) -> None:
        for name in ("a", "b"):
            self.create(0, name, None)

    @rule(instance=instances, name=names, ttl_s=st.sampled_from([None, None, 10.0]))
    def create(self, instance: int, name: str, ttl_s: float | None) -> None:
        store = self.instances[instance].store
        if self.model.live(name, self.now()) is not None:
            with pytest.raises(SessionExists):
                self.run(lambda: store.create(name, ttl_s=ttl_s))
            return
        session = self.run(lambda: store.create(name, ttl_s=ttl_s))
        ttl_us = None if ttl_s is None else int(ttl_s * SECOND)
        self.model.sessions[name] = PlainSession(session.incarnation, ttl_us, self.now(), self.now())
        self.touched.add(name)

    @rule(instance=instances, name=names)
    def delete(self, instance: int, name: str) -> None:
        expected = self.model.live(name, self.now()) is not None
        assert self.run(lambda: self.instances[instance].store.delete(name)) is expected
        self.model.sessions.pop(name, None)
        self.touched.add(name)

    @rule(instance=instances, name=names, key=keys, value=values)
    def set(self, instance: int, name: str, key: str, value: Any) -> None:
        self.write(instance, name, lambda session: session.set(key, value), lambda plain: plain.set(key, value))

    @rule(instance=instances, name=names, key=keys)
    def remove(self, instance: int, name: str, key: str) -> None:
        plain = self.model.live(name, self.now())
        if plain is not None and plain.closed and key not in plain.state:
            return  # writes nothing, so it is not refused
        self.write(instance, name, lambda session: session.remove(key), lambda plain: plain.remove(key))

    @rule(instance=instances, name=names, key=keys)
    def update(self, instance: int, name: str, key: str) -> None:
        def change(plain: PlainSession) -> Any:
            plain.state[key] = [plain.state.get(key)]
            return plain.state[key]

        self.write(instance, name, lambda session: session.update(key, lambda value: [value]), change)

    @rule(instance=instances, name=names, key=keys, value=values, stale=st.integers(0, 3))
    def compare_and_set(self, instance: int, name: str, key: str, value: Any, stale: int) -> None:
        session = self.handle(instance, name)
        if session is None or self.model.sessions[name].closed:
            return
        found, version = self.run(lambda: session.get_versioned(key))
        assert found == self.model.sessions[name].state.get(key)
        assert (version == 0) == (key not in self.model.sessions[name].state)
        self.noticed(name)
        if stale:
            with pytest.raises(Conflict) as caught:
                self.run(lambda: session.compare_and_set(key, value, version=version + stale))
            assert caught.value.actual == version
            self.touched.add(name)
            return
        newer = self.run(lambda: session.compare_and_set(key, value, version=version))
        assert newer > version
        self.model.change(name, self.now(), lambda plain: plain.set(key, value))
        self.touched.add(name)

    @rule(instance=instances, name=names, stream=streams, data=st.lists(values, min_size=1, max_size=5))
    def append(self, instance: int, name: str, stream: str, data: list[Any]) -> None:
        async def call(session: Session) -> list[int]:
            events = await session.append_many(data, stream=stream)
            for event in events:
                self.model.note_id(event.id, stream, event.data)
            return [event.seq for event in events]

        self.write(instance, name, call, lambda plain: [plain.append(stream, item) for item in data])

    @rule(
        instance=instances, name=names, key=keys, gone=keys, value=values, close=st.sampled_from([False] * 4 + [True])
    )
    def unit(self, instance: int, name: str, key: str, gone: str, value: Any, close: bool) -> None:
        async def call(session: Session) -> None:
            async with session.unit() as unit:
                unit.remove(gone)
                unit.set(key, value)
                unit.append(value)
                unit.set_metadata({"last": value})
                if close:
                    unit.close()

        def change(plain: PlainSession) -> None:
            plain.remove(gone)
            plain.set(key, value)
            plain.append("", value)
            plain.metadata = {"last": value}
            plain.closed = close

        self.write(instance, name, call, change)

    @rule(instance=instances, name=names)
    def close_session(self, instance: int, name: str) -> None:
        session = self.handle(instance, name)
        if session is None:
            return
        assert self.run(session.close) is not self.model.sessions[name].closed
        if not self.model.sessions[name].closed:
            self.model.change(name, self.now(), lambda plain: setattr(plain, "closed", True))
        self.touched.add(name)

    @rule(instance=instances, name=names)
    def clear(self, instance: int, name: str) -> None:
        def change(plain: PlainSession) -> int:
            count = len(plain.state)
            plain.state = {}
            return count

        self.write(instance, name, lambda session: session.clear(), change)

    @rule(instance=instances, name=names)
    def touch(self, instance: int, name: str) -> None:
        session = self.handle(instance, name)
        if session is not None:
            self.run(session.touch)
            self.model.change(name, self.now(), lambda _: None)

    @rule(instance=instances, name=names, which=st.integers(0, 20))
    def delete_events_before(self, instance: int, name: str, which: int) -> None:
        session = self.handle(instance, name)
        if session is None or not self.model.sessions[name].events:
            return
        events = self.run(session.events)
        event = events[which % len(events)]
        dropped = self.run(lambda: session.delete_events_before(event.id))
        assert dropped == self.model.change(name, self.now(), lambda plain: plain.drop_before(event.seq))
        self.touched.add(name)

    @rule(instance=instances, name=names, which=st.integers(0, 20), stream=st.sampled_from([None, "", "x"]))
    def read(self, instance: int, name: str, which: int, stream: str | None) -> None:
        session = self.handle(instance, name)
        if session is None:
            return
        plain = self.model.sessions[name]
        assert self.run(session.state) == plain.state
        expected = [event for event in plain.events if stream in (None, event[1])]
        assert _plain(self.run(lambda: session.events(stream=stream))) == expected
        assert _plain(self.run(lambda: session.last_events(3, stream=stream))) == expected[-3:]
        ids = [event_id for event_id in self.model.ids if event_id.startswith(_prefix(plain.incarnation))]
        if ids:
            self._read_after(session, plain, ids[which % len(ids)], stream)

    def _read_after(self, session: Session, plain: PlainSession, cursor: str, stream: str | None) -> None:
        seq = int(cursor.split(".")[1])
        first = plain.events[0][0] if plain.events else plain.last_seq + 1
        if seq < first - 1:
            with pytest.raises(EventGap):
                self.run(lambda: session.events(after=cursor, stream=stream))
            return
        found = _plain(self.run(lambda: session.events(after=cursor, stream=stream)))
        assert found == [event for event in plain.events if event[0] > seq and stream in (None, event[1])]

    @rule(instance=instances)
    def list_all(self, instance: int) -> None:
        live = {name for name in list(self.model.sessions) if self.model.live(name, self.now())}

        async def listed() -> list[str]:
            return [info.id async for info in self.instances[instance].store.scan()]

        found = self.run(listed)
        assert set(found) == live
        assert len(found) == len(live)

    @rule(name=names, each=st.integers(1, 6))
    def race(self, name: str, each: int) -> None:
        """Both instances increment a counter and append, at once."""
        sessions = [self.handle(instance, name) for instance in (0, 1)]
        plain = self.model.live(name, self.now())
        if plain is None or plain.closed:
            return

        async def increment(session: Session) -> None:
            await session.update("n", lambda value: value + 1, default=0)
            event = await session.append("race")
            self.model.note_id(event.id, "", "race")

        async def together() -> None:
            async with anyio.create_task_group() as tasks:
                for session in sessions * each:
                    assert session is not None
                    tasks.start_soon(increment, session)

        self.run(together)

        def change(plain: PlainSession) -> None:
            plain.state["n"] = plain.state.get("n", 0) + 2 * each
            for _ in range(2 * each):
                plain.append("", "race")

        self.model.change(name, self.now(), change)
        self.touched.add(name)

    # Time

    @rule(seconds=st.sampled_from([1.1, 4.3, 11.7]))
    def advance(self, seconds: float) -> None:
        """Reads' touches are stored first: how late they may be is not this test's question."""
        for instance in self.instances:
            self.run(instance.store.count)
        for plain in self.model.sessions.values():
            plain.stored_active_us = plain.active_us
        self.portal.call(self.clock.advance, seconds)

    @rule(instance=instances)
    def expire(self, instance: int) -> None:
        for expired in self.run(self.instances[instance].store.expire):
            plain = self.model.sessions.get(expired.id)
            assert plain is None or plain.incarnation != expired.incarnation or plain.expired(self.now())

    @rule(instance=instances)
    def trim(self, instance: int) -> None:
        self.run(self.instances[instance].store.trim)
        self.touched |= self.model.sessions.keys()

    # Misfortune

    @rule(
        instance=instances,
        kind=st.sampled_from([FaultKind.UNAVAILABLE, FaultKind.UNKNOWN_DONE, FaultKind.UNKNOWN_LOST]),
        times=st.integers(1, 3),
        skip=st.integers(0, 2),
    )
    def passing_fault(self, instance: int, kind: FaultKind, times: int, skip: int) -> None:
        """The next commits fail in passing: nobody may notice."""
        backend = self.instances[instance].backend
        backend.inject(kind, times=times, skip=skip)
        if times > 1:
            backend.inject(FaultKind.UNAVAILABLE, "resolve", times=times - 1)

    @rule(instance=instances, name=names)
    def rejected(self, instance: int, name: str) -> None:
        """The store refuses this session's writes for good: the caller is told, nothing happens."""
        session = self.handle(instance, name)
        if session is None or self.model.sessions[name].closed:
            return
        backend = self.instances[instance].backend
        backend.heal()
        fault = backend.inject(FaultKind.REJECTED, times=None, when=touches(name))
        with pytest.raises(Rejected):
            self.run(lambda: session.append("never"))
        fault.release()
        self.touched.add(name)

    @rule(instance=instances)
    def restart(self, instance: int) -> None:
        """A clean end stores everything that was noted."""
        self.instances[instance].backend.heal()
        self.instances[instance].close()
        report = self.instances[instance].store.drain_report
        assert report is not None
        assert report.complete
        self.instances[instance].open()

    @precondition(lambda self: self.model.sessions)
    @rule(
        instance=instances,
        kind=st.sampled_from(
            [FaultKind.HELD, FaultKind.HELD_DONE, FaultKind.UNAVAILABLE, FaultKind.UNKNOWN_DONE, FaultKind.UNKNOWN_LOST]
        ),
        units=st.lists(names, min_size=1, max_size=6),
    )
    def crash(self, instance: int, kind: FaultKind, units: list[str]) -> None:
        """The store fails for good with writes under way, and the instance ends undrained."""
        victim = self.instances[instance]
        sessions = {name: self.handle(instance, name) for name in units}
        victim.backend.heal()
        for operation in ("resolve", "load", "forget_markers"):
            victim.backend.inject(FaultKind.UNAVAILABLE, operation, times=None)
        victim.backend.inject(kind, times=None)
        writers = [
            self.portal.start_task_soon(self._write_into_the_void, session, number)
            for number, session in enumerate(sessions[name] for name in units)
            if session is not None
        ]
        self.portal.call(self.clock.settle)
        victim.kill()
        for writer in writers:
            writer.result(timeout=20)
        for name in list(self.model.sessions):
            self._reconcile(name)
        victim.open()

    @staticmethod
    async def _write_into_the_void(session: Session, number: int) -> None:
        with contextlib.suppress(StoreError, SessionClosed, SessionNotFound):
            async with session.unit() as unit:
                unit.set(f"unit {number}", number)
                unit.append(["unit", number])
            pytest.fail("acknowledged a write that the store never answered")

    def _reconcile(self, name: str) -> None:
        """What was not acknowledged is wholly there or wholly not; adopt what it is."""
        stored = self.portal.call(self.stored, name)
        plain = self.model.sessions[name]
        if stored is None:  # removed by the janitor; the model drops it when it is next asked for
            assert plain.expired(self.now())
            return
        numbers = [data[1] for seq, _, data in stored.events if seq > plain.last_seq and data[0] == "unit"]
        for number in numbers:

            def change(plain: PlainSession, number: int = number) -> None:
                plain.set(f"unit {number}", number)
                plain.append("", ["unit", number])

            plain = self.model.sessions[name] = self.model.changed(name, change)
        assert stored.picture() == plain.picture()
        assert stored.active_us >= plain.stored_active_us - _DRIFT_US or plain.ttl_us is None
        plain.active_us = plain.stored_active_us = stored.active_us


def _plain(events: list[Any]) -> list[tuple[int, str, Any]]:
    return [(event.seq, event.stream, event.data) for event in events]


def _prefix(incarnation: int) -> str:
    from holdfast.model import Cursor

    return str(Cursor(incarnation, 0, "")).split(".", maxsplit=1)[0] + "."


class SQLiteMachine(EngineMachine):
    durability = Durability.PROCESS

    def make_backend(self) -> Backend:
        return SQLiteBackend(SQLiteConfig(path=self.path))


class TrioMachine(EngineMachine):
    loop = "trio"


class TrioSQLiteMachine(SQLiteMachine):
    loop = "trio"


_EXAMPLES = int(os.environ.get("HOLDFAST_EXAMPLES", "40"))
_SETTINGS = settings(
    max_examples=_EXAMPLES,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
)


def _case(machine: type[EngineMachine]) -> Any:
    case = machine.TestCase
    case.settings = _SETTINGS
    return case


TestMemory = _case(EngineMachine)
TestMemoryOnTrio = _case(TrioMachine)
TestSQLite = _case(SQLiteMachine)
TestSQLiteOnTrio = _case(TrioSQLiteMachine)
