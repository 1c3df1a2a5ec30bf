"""The registry: which sessions are hot, and who owns them.

At most one actor per session id is hot in a process. An actor is hydrated when it is first needed,
and passivated when idle, or when it is the least recently used of too many (second-chance order). A
passive session costs no memory.
"""

from __future__ import annotations

import contextlib
import sys
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any
from weakref import WeakSet

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup

from holdfast.actors.actor import SessionActor
from holdfast.actors.context import Subscriber
from holdfast.actors.fan_in import FanIn
from holdfast.actors.mailbox import Budget
from holdfast.actors.room import Room
from holdfast.actors.unit import Unit
from holdfast.backends.base import LoadRequest, Snapshot
from holdfast.backends.reader import Reader
from holdfast.backends.writer import Writer
from holdfast.clock import Clock
from holdfast.config import Config
from holdfast.errors import Overloaded, SessionClosed, SessionNotFound
from holdfast.model import Durability
from holdfast.restart import RestartPolicy
from holdfast.waiting import Ack, Signal

__all__ = ["Registry", "RegistryStatistics"]

_log = structlog.stdlib.get_logger("holdfast.registry")


_SHORTEST_TICK_US = 20_000
_REST_S = 1e-6
"""Between two looks for room, for each hot session: a look goes over all of them, and under load each flush
gives cause for one."""


class RegistryStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Now, and counted since the start."""

    hot_sessions: int
    hot_bytes: int
    """State and recent events of the hot sessions: what ``max_hot_bytes`` bounds."""
    ring_bytes: int
    """Recent events alone, which are kept for subscribers."""
    subscribed_sessions: int
    dirty_bytes: int
    hydrated: int
    passivated: int
    given_up: int
    """Actors that crashed too often."""
    lost_writes: int
    """Acknowledged on acceptance (durability "memory"), then not storable."""
    overloaded: int


class _Load:
    """A load under way. What ends or begins meanwhile is newer than what it may have read."""

    __slots__ = ("actor", "begun", "ended", "number", "reading", "version")

    def __init__(self, actor: SessionActor | None, number: int) -> None:
        self.number = number
        self.actor = actor
        """Who was hot when it was asked for, at ``version``."""
        self.version = None if actor is None else actor.version
        self.begun: set[int] = set()
        self.ended: set[int] = set()
        self.reading = True
        """Not waiting for room: what it reads is to be held against the actor that is hot now."""


class Registry:
    """Hydrates, finds, passivates and ends actors; their `ActorContext`."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        *,
        writer: Writer,
        reader: Reader,
        tasks: TaskGroup,
        new_ack: Callable[[], Ack],
        exclusive: bool,
        max_unit_keys: int | None = None,
    ) -> None:
        self.config = config
        self.clock = clock
        self.new_ack = new_ack
        self.exclusive = exclusive
        self.max_unit_keys = max_unit_keys or sys.maxsize
        self.budget = Budget(config.actors, new_ack)
        self.restart_policy = RestartPolicy(config.restart)
        self.hot: OrderedDict[str, SessionActor] = OrderedDict()
        """By session id, coldest first (roughly). Read it; change it only here."""
        self.creating: WeakSet[SessionActor] = WeakSet()
        """Actors of sessions whose row is not in the store yet; a lane holds them while there is hope."""
        self.lost_units = 0
        self.untrimmed: set[tuple[str, int]] = set()
        """Sessions with dropped events whose rows may still be there; those deleted are among them."""
        self.subscribed: set[SessionActor] = set()
        self.liveness = Signal(new_ack)
        """Set when there is activity to store, or a subscription to keep alive."""
        self.shorter_tick = Signal(new_ack)
        """Set when ``tick_us`` has changed."""
        self.audience = Signal(new_ack)
        """Set when the first session is subscribed to, and when the last no longer is."""
        self.tick_us = round(config.janitor.touch_interval_s * 1_000_000)
        """Activity of reads is stored at most so late; well within the shortest TTL seen."""
        self._touched: set[SessionActor] = set()
        self._room = Room(self.budget, new_ack)
        self.schedule = writer.schedule
        self.loads_begun = 0
        self._reader = reader
        self._tasks = tasks
        self._loads: dict[str, set[_Load]] = {}
        self._state_bytes = self._ring_bytes = 0
        self._hydrated = self._passivated = self._given_up = 0

    # Finding and hydrating

    async def find(self, session_id: str, *, cached: bool = False, state: bool = True) -> SessionActor | None:
        """The session's actor, hydrated and up to date; None if there is no such live session.

        Up to date: it has seen everything acknowledged anywhere before the call. With ``cached``, a
        hot actor is taken as it is; without ``state``, only its head is brought up to date.
        Raises: `Unavailable`, `Overloaded`.
        """
        actor = self.hot.get(session_id)
        if actor is None or not (self._is_truth(actor) or (cached and not actor.expired(self.clock.now_us()))):
            actor = await self._up_to_date(session_id, state=state)
        if actor is None or actor.expired(self.clock.now_us()):
            return None
        actor.used = True
        return actor

    def _is_truth(self, actor: SessionActor) -> bool:
        return self.exclusive and actor.exact

    async def _up_to_date(self, session_id: str, *, state: bool) -> SessionActor | None:
        """Load until no own write has overtaken the load, and if that goes on, in a turn of the actor's."""
        actor = await self._refresh(session_id, head_only=not state)
        for _ in range(2):
            if actor is None or actor.exact or (actor.head_exact and not state):
                return actor
            actor = await self._refresh(session_id)
        if actor is not None and not actor.exact:
            ack = self.new_ack()
            actor.post(
                Unit(
                    accepted_us=self.clock.now_us(),
                    size=0,
                    durability=Durability.MEMORY,
                    ack=ack,
                    touch_only=True,
                    compute=lambda _view, _unit: None,
                )
            )
            with contextlib.suppress(SessionNotFound, SessionClosed):
                await ack
            actor = self.hot.get(session_id)
            if actor is not None and not actor.exact:  # closed in that moment: it will not change again
                actor = await self._refresh(session_id)
        return actor

    async def find_incarnation(
        self, session_id: str, incarnation: int, *, cached: bool = False, state: bool = True
    ) -> SessionActor:
        """As `find`, of one certain life of the session. Raises: also `SessionNotFound`."""
        actor = await self.find(session_id, cached=cached, state=state)
        if actor is None or actor.incarnation != incarnation:
            raise SessionNotFound(session_id)
        return actor

    async def hydrated(self, session_id: str, incarnation: int) -> SessionActor:
        """The actor to post to or to listen to: hot as it is, or hydrated. A commit checks the rest.

        Raises: `SessionNotFound`, `Unavailable`, `Overloaded`.
        """
        actor = self.hot.get(session_id)
        if actor is None or actor.incarnation != incarnation:
            actor = await self._refresh(session_id)
            if actor is None or actor.incarnation != incarnation:
                raise SessionNotFound(session_id)
        if actor.ended_for_certain(self.clock.now_us()):
            raise SessionNotFound(session_id)
        return actor

    async def refresh_head(self, session_id: str) -> None:
        """Learn what others did to a hot session. Its subscribers are woken if there is news."""
        await self._refresh(session_id, head_only=session_id in self.hot)

    async def load(self, actor: SessionActor) -> None:
        while not actor.ended and not actor.exact:
            await self._refresh(actor.id)

    async def _refresh(self, session_id: str, *, head_only: bool = False) -> SessionActor | None:
        """Load the session; bring its hot actor up to date, or make one."""
        self.loads_begun += 1
        load = _Load(self.hot.get(session_id), self.loads_begun)
        loads = self._loads.setdefault(session_id, set())
        loads.add(load)
        try:
            snapshot = await self._reader.load(self._request(session_id, head_only=head_only))
            actor = self._reconcile(session_id, snapshot, load)
            if actor is not None or snapshot is None or snapshot.head.incarnation in load.ended:
                return actor
            if snapshot.state is None:  # asked for while an actor was hot that has been dropped since
                snapshot = await self._reader.load(LoadRequest(session_id))
                if snapshot is None or snapshot.state is None or snapshot.head.incarnation in load.ended:
                    return None
            load.reading = False
            await self.make_room(session_id)
            if session_id in self.hot or snapshot.head.incarnation in load.ended:
                return self._reconcile(session_id, snapshot, load)
            if not load.begun:
                return self._install(SessionActor(self, snapshot.head, snapshot.state))
        finally:
            loads.discard(load)
            self._room.freed()
            if not loads and self._loads.get(session_id) is loads:
                del self._loads[session_id]
        return await self._refresh(session_id)  # it was hot meanwhile, and may have changed

    def _request(self, session_id: str, *, head_only: bool) -> LoadRequest:
        actor = self.hot.get(session_id)
        if actor is None:
            return LoadRequest(session_id)
        if not actor.exact:
            return LoadRequest(session_id, head_only=head_only)
        return LoadRequest(session_id, actor.incarnation, actor.version, head_only)

    def _reconcile(self, session_id: str, snapshot: Snapshot | None, load: _Load) -> SessionActor | None:
        """Hold a snapshot against the hot actor of the id; returns the actor that is hot afterwards."""
        actor = self.hot.get(session_id)
        if actor is None:
            return None
        found = snapshot.head.incarnation if snapshot is not None else -1
        if snapshot is not None and found == actor.incarnation:
            actor.adopt(snapshot, load.number, load.version if load.actor is actor else None)
        elif found in load.ended:
            pass  # news of an earlier life
        elif found > actor.incarnation or actor.incarnation not in load.begun:
            actor.end()
        return self.hot.get(session_id)

    def _install(self, actor: SessionActor) -> SessionActor:
        previous = self.hot.get(actor.id)
        if previous is not None:
            previous.end()
        for load in self._loads.get(actor.id, ()):
            load.begun.add(actor.incarnation)
        self.hot[actor.id] = actor
        self._hydrated += 1
        self._state_bytes += actor.state_bytes
        ttl_us = actor.ttl_us
        if ttl_us is not None and ttl_us // 4 < self.tick_us:
            self.tick_us = max(ttl_us // 4, _SHORTEST_TICK_US)
            self.shorter_tick.set()
        return actor

    # Room for hot sessions

    async def make_room(self, session_id: str | None = None) -> None:
        """Passivate until one more session fits, or until this one is hot. Who comes first is served first.

        Raises: `Overloaded` if every hot session stays in use for ``overload_wait_s``.
        """
        limits = self.config.actors

        def enough() -> bool:
            return session_id in self.hot or self._shrink_to(limits.max_hot_sessions - 1)

        if not self._room.awaited and enough():
            return
        with anyio.move_on_after(limits.overload_wait_s):
            await self._room.wait_until(enough, self.store_touches, lambda: len(self.hot) * _REST_S)
            return
        if not enough():  # a subscription collected in another thread has told nobody
            raise Overloaded("max_hot_sessions", limit=limits.max_hot_sessions)

    def look_for_room(self) -> None:
        """A session may have come out of use: whoever waits for room looks again."""
        self._room.freed()

    def _shrink_to(self, sessions: int) -> bool:
        """Passivate the coldest until so many are hot, and within the byte budget. False: they are in use."""
        max_bytes = self.config.actors.max_hot_bytes
        in_use = 0
        """So many in a row."""
        while in_use < len(self.hot) and (len(self.hot) > sessions or self._hot_bytes > max_bytes):
            session_id, actor = next(iter(self.hot.items()))
            passivable = self._may_passivate(actor)
            if passivable and not actor.used:
                self._passivate(actor)
            else:
                actor.used = False
                self.hot.move_to_end(session_id)
            in_use = 0 if passivable else in_use + 1
        return len(self.hot) <= sessions

    def passivate_idle(self) -> int:
        """Passivate what has not been used since the last call; returns how many."""
        idle = [actor for actor in self.hot.values() if not actor.used and self._may_passivate(actor)]
        for actor in idle:
            self._passivate(actor)
        for actor in self.hot.values():
            actor.used = False
        self._shrink_to(self.config.actors.max_hot_sessions)
        return len(idle)

    def _may_passivate(self, actor: SessionActor) -> bool:
        return not (actor.busy or any(load.reading for load in self._loads.get(actor.id, ())))

    def _passivate(self, actor: SessionActor) -> None:
        self._drop(actor)
        actor.ended = True
        self._passivated += 1

    def _drop(self, actor: SessionActor) -> None:
        if self.hot.get(actor.id) is actor:
            del self.hot[actor.id]
            self._state_bytes -= actor.state_bytes
        self._drop_ring(actor)
        self._touched.discard(actor)
        self.subscribed.discard(actor)
        self._room.freed()

    def _drop_ring(self, actor: SessionActor) -> None:
        if actor.ring is not None:
            self._ring_bytes -= actor.ring.bytes
            actor.ring = None

    @property
    def _hot_bytes(self) -> int:
        return self._state_bytes + self._ring_bytes

    # Activity

    def store_touches(self) -> None:
        """Write down all activity that is not stored yet."""
        for actor in self._touched:
            if not actor.mailbox.dirty_units:  # else what is under way there stores it
                self._store_touch(actor, None)

    async def touches_stored(self) -> None:
        """Write down all activity so far, and wait for that. Sessions that are gone meanwhile do not matter.

        Raises: what keeps one of them from being stored.
        """
        if self._touched:
            stored = FanIn(len(self._touched), self.new_ack)
            for actor in self._touched:
                self._store_touch(actor, stored)
            await stored

    @staticmethod
    def _store_touch(actor: SessionActor, ack: Ack | None) -> None:
        actor.post(Unit(accepted_us=actor.touched_us, size=0, durability=Durability.MEMORY, ack=ack, touch_only=True))

    def subscribe(self, actor: SessionActor, subscriber: Subscriber) -> None:
        """Wake ``subscriber`` at each change of the session, and keep the session alive meanwhile."""
        if actor.subscribers is None:
            actor.subscribers = set()
            self.subscribed.add(actor)
            self.audience.set()
            self.liveness.set()
        actor.subscribers.add(subscriber)

    def unsubscribe(self, actor: SessionActor, subscriber: Subscriber) -> None:
        """Undo `subscribe`."""
        if actor.subscribers is not None:
            actor.subscribers.discard(subscriber)
            self.check_audience(actor)

    def subscription_collected(self) -> None:
        """In whichever thread; its session may have come out of use."""
        self._room.freed_by_collector()

    def check_audience(self, actor: SessionActor) -> None:
        """Let go of what is kept for subscribers, if there is none any more."""
        if actor.subscribers is not None and not actor.subscribers:
            actor.subscribers = None
            self._drop_ring(actor)
            self.subscribed.discard(actor)
            self.audience.set()
            self._room.freed()

    # What actors report (`ActorContext`)

    def spawn(self, task: Callable[[], Coroutine[Any, Any, None]], /) -> None:
        self._tasks.start_soon(task)

    def touched(self, actor: SessionActor) -> None:
        if not self._touched:
            self.liveness.set()
        self._touched.add(actor)

    def untouched(self, actor: SessionActor) -> None:
        self._touched.discard(actor)

    @property
    def has_touches(self) -> bool:
        return bool(self._touched)

    def resized(self, delta: int) -> None:
        self._state_bytes += delta

    def ring_resized(self, delta: int) -> None:
        self._ring_bytes += delta

    def rewound(self, actor: SessionActor) -> None:
        self._drop_ring(actor)
        for subscriber in list(actor.subscribers or ()):
            subscriber.rewound(actor.last_seq)

    def grown(self, actor: SessionActor) -> None:
        self._note_untrimmed(actor.id, actor.incarnation)

    def _note_untrimmed(self, session_id: str, incarnation: int) -> None:
        if self.config.background:  # else nobody would take it out again
            self.untrimmed.add((session_id, incarnation))

    def created(self, actor: SessionActor) -> None:
        self.creating.discard(actor)
        hot = self.hot.get(actor.id)
        if hot is not None and hot.incarnation == actor.incarnation:
            actor.ended = True  # somebody has found the row already, and hydrated it
        else:
            self._install(actor)
            self._shrink_to(self.config.actors.max_hot_sessions)

    def ended(self, actor: SessionActor) -> None:
        self.creating.discard(actor)
        self.forget(actor.id, actor.incarnation)
        self._drop(actor)

    def gave_up(self, actor: SessionActor) -> None:
        self._drop(actor)
        self._given_up += 1

    def forget(self, session_id: str, incarnation: int) -> None:
        """The session is gone from the store: what a load has read of it is old news."""
        self._note_untrimmed(session_id, incarnation)
        for load in self._loads.get(session_id, ()):
            load.ended.add(incarnation)

    def lost(self, actor: SessionActor, units: int, error: Exception) -> None:
        self.lost_units += units
        _log.error("write.lost", session_id=actor.id, units=units, error=str(error))

    def end(self, session_id: str, incarnation: int) -> None:
        """The session is gone: end its actor, if one is hot."""
        actor = self.hot.get(session_id)
        if actor is not None and actor.incarnation == incarnation:
            actor.end()
        else:
            self.forget(session_id, incarnation)

    def abandon(self, error: Exception) -> None:
        """The engine has stopped: tell those who wait or listen."""
        actors = [*self.hot.values(), *self.creating]
        self.hot.clear()
        for actor in actors:
            actor.fail_waiting(error)
            actor.ended = True
            actor.wake_subscribers()
        self._room.freed()

    def statistics(self) -> RegistryStatistics:
        return RegistryStatistics(
            hot_sessions=len(self.hot),
            hot_bytes=self._hot_bytes,
            ring_bytes=self._ring_bytes,
            subscribed_sessions=len(self.subscribed),
            dirty_bytes=self.budget.dirty_bytes,
            hydrated=self._hydrated,
            passivated=self._passivated,
            given_up=self._given_up,
            lost_writes=self.lost_units,
            overloaded=self.budget.refused,
        )
