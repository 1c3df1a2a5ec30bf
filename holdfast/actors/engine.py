"""The engine of one store: everything between a session's handle and its backend."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from holdfast.actors.actor import SessionActor
from holdfast.actors.log import EventLog
from holdfast.actors.registry import Registry
from holdfast.actors.unit import Unit
from holdfast.backends.base import Backend, Capabilities
from holdfast.backends.breaker import Breaker, read
from holdfast.backends.reader import Reader
from holdfast.backends.writer import Writer
from holdfast.clock import Clock
from holdfast.config import Config
from holdfast.errors import ConfigError, DeadlineExceeded, StoreClosed
from holdfast.model import Durability
from holdfast.waiting import Ack, ack_factory

__all__ = ["Engine", "durability_in_force", "time_left"]

_T = TypeVar("_T")


def durability_in_force(capabilities: Capabilities, wanted: object) -> Durability:
    """``wanted``, or the default: the best there is, up to "disk".

    Raises: `ConfigError` if the backend cannot promise it as it is set up now.
    """
    best = capabilities.durability
    if wanted is None:
        return best if Durability.DISK.covers(best) else Durability.DISK
    if not isinstance(wanted, Durability):
        levels = ", ".join(f"Durability.{level.name}" for level in Durability)
        raise ConfigError("durability", f"must be one of {levels}, not {wanted!r}")
    if not best.covers(wanted):
        raise ConfigError("durability", f"{capabilities.name} can promise {best.value!r} at most, not {wanted.value!r}")
    return wanted


def time_left(deadline_s: float | None) -> Callable[[], float | None]:
    """For a call of several steps under one deadline: how long there is still; None: for ever."""
    if deadline_s is None:
        return lambda: None
    end = anyio.current_time() + deadline_s
    return lambda: max(0.0, end - anyio.current_time())


class Engine:
    """Registry, writer, reader and log over one open backend, and the way a unit goes through them.

    Make it in the event loop that will use it; ``tasks`` holds the actors' tasks.
    """

    def __init__(self, backend: Backend, config: Config, clock: Clock, tasks: TaskGroup) -> None:
        self.backend = backend
        self.config = config
        self.clock = clock
        self.new_ack = ack_factory()
        self.breaker = Breaker(config.writer, clock)
        self.read_breaker = Breaker(config.writer, clock)
        """Of its own: a store that cannot write (a full disk, say) may still read."""
        self.writer = Writer(
            backend,
            config.writer,
            name=uuid.uuid4().hex,
            clock=clock,
            breaker=self.breaker,
            new_ack=self.new_ack,
            max_events=config.retention.max_events,
        )
        self.reader = Reader(backend, config, breaker=self.read_breaker, new_ack=self.new_ack)
        self.exclusive = backend.capabilities.exclusive
        self.registry = Registry(
            config,
            clock,
            writer=self.writer,
            reader=self.reader,
            tasks=tasks,
            new_ack=self.new_ack,
            exclusive=self.exclusive,
            max_unit_keys=backend.capabilities.max_unit_keys,
        )
        self.log = EventLog(
            backend,
            self.registry,
            self.read_breaker,
            read_timeout_s=config.writer.read_timeout_s,
            note_read=self.note_read,
        )
        self.durability = self.check_durability(config.durability)
        """Of writes that ask for none."""
        self.closed = False

    def check_durability(self, wanted: object) -> Durability:
        """As `durability_in_force`."""
        return durability_in_force(self.backend.capabilities, wanted)

    def offer(self, session_id: str, incarnation: int, unit: Unit) -> Ack | None:
        """Post a unit at once, if nothing has to be waited for first. The hot path: no coroutine of its own.

        Returns its ack; whoever awaits it must set ``withdrawn`` afterwards, as `submit` does. None: it
        was not posted (or has no ack); use `submit`.
        """
        actor = self.registry.hot.get(session_id)
        if (
            actor is None
            or actor.incarnation != incarnation
            or unit.ack is None
            or self.closed
            or actor.ended_for_certain(unit.accepted_us)
            or not self.registry.budget.admits(actor.mailbox, unit.size)
        ):
            return None
        if self.breaker.failures:
            self.breaker.check()
        actor.post(unit)
        return unit.ack

    async def submit(self, session_id: str, incarnation: int, unit: Unit, deadline_s: float | None) -> None:
        """Put a unit in its session's mailbox, and wait for its acknowledgement.

        Returns when it is stored at its durability (with no ``ack``: when it is accepted). Cancelled
        or past its deadline before a flush took it, it is withdrawn; later, it may be stored.
        Raises: what `Session`'s writes document.
        """
        if deadline_s is not None:
            await self.by_deadline(deadline_s, unit, lambda: self.submit(session_id, incarnation, unit, None))
            return
        ack = self.offer(session_id, incarnation, unit)
        if ack is None:
            if self.closed:
                raise StoreClosed("the store is closed")
            await self.post(await self.registry.hydrated(session_id, incarnation), unit)
            return
        try:
            await ack
        finally:
            unit.withdrawn = not unit.taken

    async def by_deadline(self, deadline_s: float, unit: Unit, submit: Callable[[], Awaitable[None]]) -> None:
        """Run ``submit`` for ``unit``. Raises: `DeadlineExceeded`, which says what is known of the unit."""
        with anyio.move_on_after(deadline_s) as scope:
            await submit()
        if scope.cancelled_caught and not unit.version:
            raise DeadlineExceeded(deadline_s, stored="unknown" if unit.taken else "no")

    async def post(self, actor: SessionActor, unit: Unit) -> None:
        """As `submit`, to an actor that is hot."""
        if self.closed:
            raise StoreClosed("the store is closed")
        self.breaker.check()
        budget = self.registry.budget
        if not budget.admits(actor.mailbox, unit.size):
            await budget.wait_for_room(actor.mailbox, unit.size)
            if actor.ended:  # meanwhile passivated, or gone: find its owner again
                await self.submit(actor.id, actor.incarnation, unit, None)
                return
        actor.post(unit)
        if unit.ack is None:
            return
        try:
            await unit.ack
        finally:
            unit.withdrawn = not unit.taken

    async def settled(self, actor: SessionActor) -> None:
        """Wait until all that was acknowledged on acceptance is stored, so that reads can show it."""
        await self.post(actor, self.touch_unit())

    def touch_unit(self) -> Unit:
        return Unit(
            accepted_us=self.clock.now_us(),
            size=0,
            durability=Durability.MEMORY,
            ack=self.new_ack(),
            touch_only=True,
        )

    async def readable(
        self, session_id: str, incarnation: int, *, cached: bool = False, state: bool = True
    ) -> SessionActor:
        """The actor, up to date for a read that begins now; the read counts as activity.

        Raises: `SessionNotFound`, `Unavailable`, `Overloaded`, `StoreClosed`.
        """
        if self.closed:
            raise StoreClosed("the store is closed")
        actor = self.registry.hot.get(session_id)
        if actor is not None and actor.barriers:
            await self.settled(actor)
        actor = await self.registry.find_incarnation(session_id, incarnation, cached=cached, state=state)
        await self.note_read(actor)
        return actor

    async def note_read(self, actor: SessionActor) -> None:
        """A read is activity: store it soon, or at once where it could come too late.

        That is, near the end of the session's stored life, where another instance might expire it
        before the keeper's next tick; and always where no keeper runs.
        Raises: `SessionNotFound` if the session was expired before the activity was stored.
        """
        now_us = self.clock.now_us()
        if not self.config.background:
            if actor.ttl_us is not None:
                await self.settled(actor)
        else:
            actor.touch(now_us)
            if not self.exclusive and actor.touched_us and actor.lapses_by(now_us + 2 * self.registry.tick_us):
                await self.settled(actor)

    async def within(self, deadline_s: float | None, read: Callable[[], Awaitable[_T]]) -> _T:
        """Run a read under its deadline. Raises: `DeadlineExceeded`, and what the read raises."""
        if deadline_s is None:
            return await read()
        with anyio.move_on_after(deadline_s):
            return await read()
        raise DeadlineExceeded(deadline_s, stored="no")

    async def read(self, function: Callable[[], Awaitable[_T]]) -> _T:
        """Ask the backend something, within ``read_timeout_s``. Raises: `Unavailable`."""
        return await read(function, self.read_breaker, self.config.writer.read_timeout_s)

    @property
    def idle(self) -> bool:
        """Nothing is waiting to be stored."""
        return self.writer.idle and not any(actor.mailbox.dirty_units for actor in self.registry.hot.values())

    def abandon(self) -> None:
        """After the tasks have ended: tell everybody who still waits."""
        error = StoreClosed("the store was closed before this was stored")
        self.writer.abandon(error)
        self.reader.abandon(StoreClosed("the store is closed"))
        self.registry.abandon(error)
