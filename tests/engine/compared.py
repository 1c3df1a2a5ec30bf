"""Two instances of the engine beside a plain model, and the store itself, read past the engine.

What the rules of a state machine stand on: how each call is made, and how what came of it is compared.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.from_thread
import msgspec
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant

from holdfast.backends.base import Backend, EventQuery, Head, LoadRequest
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.config import Config, RetentionConfig, WriterConfig
from holdfast.errors import SessionClosed
from holdfast.model import Durability
from holdfast.supervisor.session import Session
from holdfast.supervisor.supervisor import Supervisor
from holdfast.testing import FaultyBackend, ManualClock
from tests.engine.model import PlainSession, PlainStore

__all__ = ["ComparedMachine"]

T = TypeVar("T")
MAX_EVENTS = 12

QUICK = WriterConfig(
    # Real waiting is none of our business here: a microsecond of the manual clock is as good as a second.
    backoff_initial_s=1e-6, backoff_max_s=1e-5, retry_for_s=0.05, breaker_failures=1_000,
)  # fmt: skip


class Instance:
    """A supervisor that can be killed and opened again."""

    def __init__(self, machine: ComparedMachine) -> None:
        self._machine = machine
        self._stack = contextlib.ExitStack()
        self.backend: FaultyBackend
        self.store: Supervisor
        self.open()

    def open(self) -> None:
        machine = self._machine
        config = Config(
            durability=machine.durability,
            ttl_s=None,
            drain_timeout_s=5.0,
            retention=RetentionConfig(max_events=MAX_EVENTS),
            writer=QUICK,
        )
        self.backend = FaultyBackend(machine.make_backend())
        supervisor = Supervisor(self.backend, config, clock=machine.clock)
        self.store = self._stack.enter_context(machine.portal.wrap_async_context_manager(supervisor))

    def close(self) -> None:
        self._stack.close()
        self._stack = contextlib.ExitStack()

    def kill(self) -> None:
        """End without a drain worth the name."""
        self.store.config = msgspec.structs.replace(self.store.config, drain_timeout_s=0.001)
        self.close()


class ComparedMachine(RuleBasedStateMachine):
    """Does each thing with an instance and with the model; knows no rule of its own."""

    loop: ClassVar[str] = "asyncio"
    durability: ClassVar[Durability | None] = None
    """Awaited writes, on a store that can promise no more than memory too."""

    def __init__(self) -> None:
        super().__init__()
        self._resources = contextlib.ExitStack()
        self.path = str(Path(self._resources.enter_context(tempfile.TemporaryDirectory())) / "sessions.db")
        """For a store that is a file."""
        self._memory = MemoryData()
        self.portal = self._resources.enter_context(anyio.from_thread.start_blocking_portal(self.loop))
        self.clock = ManualClock()
        self.model = PlainStore(MAX_EVENTS)
        self.touched: set[str] = set()
        """Sessions to compare after this step."""
        self._check = self.make_backend()
        self.portal.call(self._check.open)
        self.instances = [Instance(self), Instance(self)]

    def make_backend(self) -> Backend:
        return MemoryBackend(shared=self._memory)

    def teardown(self) -> None:
        try:
            for instance in self.instances:
                instance.backend.heal()
                instance.close()
            for name in list(self.model.sessions):
                self.compare(name)
        finally:
            self.portal.call(self._check.close)
            self._resources.close()

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        async def call() -> T:
            async with self.clock.flowing(1e-5):
                with anyio.fail_after(20):
                    return await function()

        return self.portal.call(call)

    def now(self) -> int:
        return self.clock.now_us()

    def handle(self, instance: int, name: str) -> Session | None:
        """The session on that instance; None where the model has none either."""
        plain = self.model.live(name, self.now())
        session = self.run(lambda: self.instances[instance].store.get(name))
        assert (session is None) == (plain is None), f"get({name!r}) gives {session}, the model has {plain}"
        if session is None or plain is None:
            return None
        assert session.incarnation == plain.incarnation
        self.noticed(name)
        return session

    def noticed(self, name: str) -> None:
        """A read went through: activity."""
        self.model.sessions[name].active_us = max(self.model.sessions[name].active_us, self.now())

    def write(
        self, instance: int, name: str, call: Callable[[Session], Awaitable[Any]], change: Callable[[PlainSession], Any]
    ) -> None:
        """A write by the engine and by the model; the results must be equal."""
        session = self.handle(instance, name)
        if session is None:
            return
        if self.model.sessions[name].closed:
            with pytest.raises(SessionClosed):
                self.run(lambda: call(session))
            return
        result = self.run(lambda: call(session))
        expected = self.model.change(name, self.now(), change)
        assert result == expected
        self.touched.add(name)

    async def _head(self, name: str) -> tuple[Head, dict[str, Any], dict[str, int]] | None:
        (snapshot,) = await self._check.load([LoadRequest(name)])
        if snapshot is None:
            return None
        assert snapshot.state is not None
        state = {key: msgspec.json.decode(value.raw) for key, value in snapshot.state.items()}
        return snapshot.head, state, {key: value.version for key, value in snapshot.state.items()}

    async def stored(self, name: str) -> PlainSession | None:
        """The session as the store has it."""
        found = await self._head(name)
        if found is None:
            return None
        head, state, versions = found
        page = await self._check.read_events(EventQuery(name, head.incarnation))
        assert page is not None
        for event in page.events:
            self.model.note_id(event.id, event.stream, event.data)
        assert [event.seq for event in page.events] == list(range(page.first_seq, page.last_seq + 1))
        return PlainSession(
            incarnation=head.incarnation,
            ttl_us=head.ttl_us,
            active_us=head.active_us,
            stored_active_us=head.active_us,
            state=state,
            versions=versions,
            events=[(event.seq, event.stream, event.data) for event in page.events],
            last_seq=head.last_seq,
            closed=head.status == "closed",
            metadata=msgspec.json.decode(head.metadata),
        )

    def compare(self, name: str) -> None:
        """What the store has is what the model has; an expired session's row may wait for the janitor."""
        stored = self.portal.call(self.stored, name)
        plain = self.model.sessions.get(name)
        if plain is None:
            assert stored is None or stored.expired(self.now())
        elif stored is None:
            assert plain.expired(self.now())
        else:
            assert stored.picture() == plain.picture()

    @invariant()
    def store_equals_model(self) -> None:
        for name in self.touched:
            self.compare(name)
        self.touched.clear()
