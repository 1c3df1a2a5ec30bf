"""The handle that users hold: one session's state, events and life."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final, TypeVar, overload

from holdfast import codec
from holdfast.actors.actor import SessionActor
from holdfast.actors.engine import Engine, time_left
from holdfast.actors.subscription import Subscription
from holdfast.actors.unit import Compute, StateView, Unit
from holdfast.backends.base import Head, expiry_us
from holdfast.errors import Conflict, InvalidInput, SessionClosed, SessionNotFound
from holdfast.model import Durability, Event, Latest, SessionInfo
from holdfast.supervisor.checks import Checks
from holdfast.supervisor.unit_of_work import EVENT_OVERHEAD, EventData, UnitOfWork, numbered

__all__ = ["Session", "session_info"]

T = TypeVar("T")

_MEMORY: Final = Durability.MEMORY  # the member of an enumeration takes 0.1 µs to look up


class Session:
    """One life of one session. A handle holds no resources, and may be kept, shared and dropped freely.

    Every write takes ``durability`` (default: the store's) and every call ``deadline_s`` (seconds).
    A write returns when it has reached that durability; with ``Durability.MEMORY``, on acceptance, unless
    it has something to answer (an old value, a count, a version, whether it was the first).

    Every call raises `SessionNotFound` if the session was deleted or has expired, and
    `StoreClosed`, `Unavailable`, `Overloaded`, `DeadlineExceeded`. Writes also raise
    `SessionClosed`, `InvalidInput` for what may not be stored, `Rejected`, and `OutcomeUnknown` if
    the store died in mid-commit and cannot be asked. A cancelled write was either not begun, and
    never will be, or is completed; it never applies by halves or out of order.
    """

    __slots__ = ("_checks", "_engine", "id", "incarnation")

    _unit_of_work: ClassVar[type[UnitOfWork]] = UnitOfWork
    """What `unit` gives."""

    def __init__(self, engine: Engine, checks: Checks, session_id: str, incarnation: int) -> None:
        self._engine = engine
        self._checks = checks
        self.id = session_id
        self.incarnation = incarnation
        """Tells this session from an earlier or later one of the same id."""

    def __repr__(self) -> str:
        return f"<Session {self.id!r}>"

    # Life

    async def info(self, *, deadline_s: float | None = None) -> SessionInfo:
        """The session's head: owner, times, status, metadata, extent of the log."""
        actor = await self._readable(deadline_s, state=False)
        return session_info(actor.head, touched_us=actor.touched_us)

    async def touch(self, *, durability: Durability | None = None, deadline_s: float | None = None) -> None:
        """Extend the session's life by its TTL from now, and store that."""
        await self._submit(self._unit(durability, touch_only=True), deadline_s)

    async def close(self, *, durability: Durability | None = None, deadline_s: float | None = None) -> bool:
        """Close the session for writing. True the first time, then False."""
        try:
            await self._submit(self._unit(durability, answers=True, close=True), deadline_s)
        except SessionClosed:
            return False
        return True

    async def delete(self, *, durability: Durability | None = None, deadline_s: float | None = None) -> bool:
        """Remove the session, its state and its events. False if it was gone already."""
        try:
            await self._submit(self._unit(durability, answers=True, delete=True), deadline_s)
        except SessionNotFound:
            return False
        return True

    async def set_metadata(
        self, metadata: dict[str, Any], *, durability: Durability | None = None, deadline_s: float | None = None
    ) -> None:
        """Replace the metadata; state and events are not touched by it."""
        await self._submit(self._unit(durability, metadata=self._checks.metadata(metadata)), deadline_s)

    # State

    @overload
    async def get(
        self, key: str, default: Any = None, *, cached: bool = False, deadline_s: float | None = None
    ) -> Any: ...
    @overload
    async def get(
        self,
        key: str,
        default: T | None = None,
        *,
        type: type[T],
        cached: bool = False,
        deadline_s: float | None = None,
    ) -> T | None: ...
    async def get(
        self,
        key: str,
        default: Any = None,
        *,
        type: type[Any] | None = None,
        cached: bool = False,
        deadline_s: float | None = None,
    ) -> Any:
        """The committed value of ``key``, or ``default``. A fresh object each time: change it freely.

        With ``type`` (a dataclass, msgspec struct, attrs or pydantic class, TypedDict …) an instance
        of it; raises `StateTypeError` if the value does not fit. ``cached`` allows a value that
        another instance may have overwritten since.
        """
        actor = await self._readable(deadline_s, cached=cached)
        entry = actor.state.get(key)
        if entry is None:
            return default
        return codec.decode(entry.raw) if type is None else codec.decode_as(entry.raw, type, key)

    async def get_versioned(self, key: str, *, deadline_s: float | None = None) -> tuple[Any, int]:
        """The value (None if absent) and its version (0 if absent), for `compare_and_set`."""
        actor = await self._readable(deadline_s)
        entry = actor.state.get(key)
        return (None, 0) if entry is None else (codec.decode(entry.raw), entry.version)

    async def get_many(self, keys: Iterable[str], *, deadline_s: float | None = None) -> dict[str, Any]:
        """The values of those keys that are there, all of one moment."""
        state = (await self._readable(deadline_s)).state
        return {key: codec.decode(state[key].raw) for key in keys if key in state}

    async def state(self, *, deadline_s: float | None = None) -> dict[str, Any]:
        """All keys and values, of one moment."""
        state = (await self._readable(deadline_s)).state
        return {key: codec.decode(entry.raw) for key, entry in sorted(state.items())}

    async def keys(self, *, deadline_s: float | None = None) -> list[str]:
        """All keys, sorted."""
        return sorted((await self._readable(deadline_s)).state)

    async def set(
        self, key: str, value: Any, *, durability: Durability | None = None, deadline_s: float | None = None
    ) -> None:
        """Store ``value`` (JSON, or a structured object that becomes JSON) under ``key``."""
        raw = self._checks.value(self._checks.key(key), value)
        await self._submit(self._unit(durability, size=len(key) + len(raw), sets={key: raw}), deadline_s)

    async def set_many(
        self, values: Mapping[str, Any], *, durability: Durability | None = None, deadline_s: float | None = None
    ) -> None:
        """Set many keys in one atomic unit."""
        async with self.unit(durability=durability, deadline_s=deadline_s) as unit:
            for key, value in values.items():
                unit.set(key, value)

    async def remove(
        self,
        key: str,
        default: Any = None,
        *,
        durability: Durability | None = None,
        deadline_s: float | None = None,
    ) -> Any:
        """Remove ``key``; its old value, or ``default``. Of racing removers, one gets the value."""

        def compute(view: StateView, unit: Unit) -> None:
            old = view.get(key)
            unit.result = default if old is None else codec.decode(old.raw)
            unit.removes = None if old is None else {key}

        return await self._compute(self._checks.key(key), compute, durability, deadline_s)

    async def clear(self, *, durability: Durability | None = None, deadline_s: float | None = None) -> int:
        """Remove all keys; how many there were."""

        def compute(view: StateView, unit: Unit) -> None:
            unit.result = len(view.keys())
            unit.cleared = True

        return int(await self._compute("", compute, durability, deadline_s))

    async def update(
        self,
        key: str,
        function: Callable[[Any], Any],
        default: Any = None,
        *,
        type: type[Any] | None = None,
        durability: Durability | None = None,
        deadline_s: float | None = None,
    ) -> Any:
        """Set ``key`` to ``function(value, or default)``; the new value. Serialisable over all instances.

        ``function`` is plain (not async), fast, and free of side effects: it runs in the session's
        turn, and again if another instance wrote in between. What it raises, this call raises, and
        nothing is written.
        """

        def compute(view: StateView, unit: Unit) -> None:
            old = view.get(key)
            if old is None:
                value = default
            else:
                value = codec.decode(old.raw) if type is None else codec.decode_as(old.raw, type, key)
            unit.result = function(value)
            unit.sets = {key: self._checks.value(key, unit.result)}

        return await self._compute(self._checks.key(key), compute, durability, deadline_s)

    async def compare_and_set(
        self,
        key: str,
        value: Any,
        *,
        version: int,
        durability: Durability | None = None,
        deadline_s: float | None = None,
    ) -> int:
        """Set ``key`` if it is still at ``version`` (of `get_versioned`; 0: absent); its new version.

        Raises: `Conflict` with the expected and the actual version; nothing was written.
        """
        raw = self._checks.value(self._checks.key(key), value)

        def compute(view: StateView, unit: Unit) -> None:
            old = view.get(key)
            actual = 0 if old is None else old.version
            if actual != version:
                raise Conflict(self.id, key, expected=version, actual=actual)
            unit.sets = {key: raw}

        unit = self._unit(durability, answers=True, size=len(key) + len(raw), compute=compute)
        await self._submit(unit, deadline_s)
        return unit.version

    @asynccontextmanager
    async def unit(
        self, *, durability: Durability | None = None, deadline_s: float | None = None
    ) -> AsyncGenerator[UnitOfWork]:
        """One atomic unit: what is called on it in the block commits together at its end, or not at all.

        If the block raises, nothing is written. Afterwards ``unit.events`` holds the appended events.
        """
        work = self._unit_of_work(self._checks, self._engine.clock)
        try:
            yield work
        finally:
            work.seal()
        if work.is_empty:
            return
        level = self._level(durability)
        unit = work.build(level, self._ack(level, durability))
        await self._submit(unit, deadline_s)
        work.events = numbered(unit, self.id, self.incarnation)

    # Events

    async def append(
        self,
        data: Any,
        *,
        type: str = "message",
        stream: str = "",
        retry_ms: int | None = None,
        durability: Durability | None = None,
        deadline_s: float | None = None,
    ) -> Event:
        """Append one event to the session's log; the event with its id.

        ``retry_ms`` is kept for SSE. Acknowledged on acceptance, the event has no id yet.
        """
        engine = self._engine
        now_us = engine.clock.now_us()
        event = self._checks.event(data, stream, type, retry_ms, now_us)
        level = engine.durability if durability is None else engine.check_durability(durability)
        unit = Unit(
            accepted_us=now_us,
            size=len(event.raw) + EVENT_OVERHEAD,
            durability=level,
            ack=engine.new_ack() if level is not _MEMORY else self._ack(level, durability),
            keys=0,
            events=(event,),
            only_events=True,
        )
        ack = engine.offer(self.id, self.incarnation, unit) if deadline_s is None else None
        if ack is None:
            await engine.submit(self.id, self.incarnation, unit, deadline_s)
        else:
            try:
                await ack
            finally:
                unit.withdrawn = not unit.taken
        return event.numbered(self.id, self.incarnation, unit.first_seq)

    async def append_many(
        self,
        items: Iterable[Any],
        *,
        type: str = "message",
        stream: str = "",
        durability: Durability | None = None,
        deadline_s: float | None = None,
    ) -> list[Event]:
        """Append many events as one atomic unit, with consecutive ids. Items: data, or `EventData`."""
        async with self.unit(durability=durability, deadline_s=deadline_s) as unit:
            for item in items:
                if isinstance(item, EventData):
                    unit.append(item.data, type=item.type, stream=item.stream, retry_ms=item.retry_ms)
                else:
                    unit.append(item, type=type, stream=stream)
        return unit.events

    async def events(
        self,
        *,
        after: str | None = None,
        stream: str | None = None,
        limit: int | None = None,
        deadline_s: float | None = None,
    ) -> list[Event]:
        """Events after the id ``after`` (None: all that are held), oldest first, at most ``limit``.

        Raises: `EventGap` if events right after the cursor are gone; `InvalidCursor`.
        """
        _check_count("limit", limit)

        async def read() -> list[Event]:
            actor = await self._engine.readable(self.id, self.incarnation, state=False)
            pages = self._engine.log.pages(actor, after, stream, limit)
            return [event async for page in pages for event in page]

        return await self._engine.within(deadline_s, read)

    async def replay(self, *, after: str | None = None, stream: str | None = None) -> AsyncIterator[Event]:
        """As `events`, page by page, in bounded memory. Ends with the newest event at the start."""
        actor = await self._readable(None, state=False)
        async for page in self._engine.log.pages(actor, after, stream):
            for event in page:
                yield event

    async def last_events(
        self, count: int, *, stream: str | None = None, deadline_s: float | None = None
    ) -> list[Event]:
        """The newest ``count`` events, oldest first."""
        _check_count("count", count)

        async def read() -> list[Event]:
            actor = await self._engine.readable(self.id, self.incarnation, state=False)
            return await self._engine.log.last(actor, count, stream)

        return await self._engine.within(deadline_s, read)

    async def delete_events_before(
        self, event_id: str, *, durability: Durability | None = None, deadline_s: float | None = None
    ) -> int:
        """Drop all events older than this one, of every stream; how many that were."""
        left_s = time_left(deadline_s)
        actor = await self._readable(left_s(), state=False)
        seq = self._engine.log.position(actor, event_id)
        unit = self._unit(durability, answers=True, touch_only=True, floor_seq=seq)
        await self._submit(unit, left_s())
        return unit.dropped_events

    def subscribe(self, *, after: str | Latest | None = None, stream: str | None = None) -> Subscription:
        """All events after a cursor (None: all held; `LATEST`: none), then each new one as it is stored."""
        if stream is not None:
            self._checks.name("event stream", stream)
        engine = self._engine
        return Subscription(engine.log, self.id, self.incarnation, after=after, stream=stream, new_ack=engine.new_ack)

    # How calls reach the engine

    def _level(self, durability: Durability | None) -> Durability:
        engine = self._engine
        return engine.durability if durability is None else engine.check_durability(durability)

    def _ack(self, level: Durability, asked: Durability | None) -> Any:
        """None (acknowledge on acceptance) only where the caller, or the settings, ask for "memory"."""
        if level is _MEMORY and (asked is not None or self._engine.config.durability is not None):
            return None
        return self._engine.new_ack()

    def _unit(self, durability: Durability | None, *, size: int = 0, answers: bool = False, **what: Any) -> Unit:
        """A unit for the mailbox. One that ``answers`` waits for its outcome whatever the durability."""
        level = self._engine.durability if durability is None else self._level(durability)
        return Unit(
            accepted_us=self._engine.clock.now_us(),
            size=size,
            durability=level,
            ack=self._engine.new_ack() if answers else self._ack(level, durability),
            **what,
        )

    async def _submit(self, unit: Unit, deadline_s: float | None) -> None:
        await self._engine.submit(self.id, self.incarnation, unit, deadline_s)

    async def _compute(
        self, key: str, compute: Compute, durability: Durability | None, deadline_s: float | None
    ) -> Any:
        """Submit a unit that reads before it writes, and wait for its result whatever the durability."""
        unit = self._unit(durability, answers=True, size=len(key), compute=compute)
        await self._submit(unit, deadline_s)
        return unit.result

    async def _readable(self, deadline_s: float | None, *, cached: bool = False, state: bool = True) -> SessionActor:
        engine = self._engine
        if deadline_s is None:
            return await engine.readable(self.id, self.incarnation, cached=cached, state=state)
        return await engine.within(
            deadline_s, lambda: engine.readable(self.id, self.incarnation, cached=cached, state=state)
        )


def session_info(head: Head, *, touched_us: int = 0) -> SessionInfo:
    """A head as users see it, with activity that is not stored yet."""
    active_us = max(head.active_us, touched_us)
    return SessionInfo(
        id=head.id,
        incarnation=head.incarnation,
        owner=head.owner,
        created_us=head.created_us,
        active_us=active_us,
        expires_us=expiry_us(active_us, head.ttl_us, head.deadline_us),
        ttl_s=None if head.ttl_us is None else head.ttl_us / 1_000_000,
        status=head.status,
        metadata=codec.decode(head.metadata),
        first_seq=head.first_seq,
        last_seq=head.last_seq,
        version=head.version,
    )


def _check_count(name: str, count: int | None) -> None:
    if count is not None and (type(count) is not int or count < 0):
        raise InvalidInput(f"{name} must be a whole number from 0, not {count!r}")
