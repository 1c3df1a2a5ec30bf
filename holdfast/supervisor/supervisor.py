"""The supervisor: what a server embeds. It owns the engine, its tasks and its end."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from inspect import isawaitable
from types import EllipsisType, TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import anyio
import msgspec
import structlog
from anyio.abc import TaskStatus

from holdfast.actors.actor import SessionActor
from holdfast.actors.engine import Engine, durability_in_force, time_left
from holdfast.actors.mailbox import Dropped
from holdfast.actors.registry import RegistryStatistics
from holdfast.actors.unit import Unit
from holdfast.backends.base import Backend, Capabilities, Expired, Head, SessionFilter, SessionPage
from holdfast.backends.reader import ReaderStatistics
from holdfast.backends.writer import LaneStatistics
from holdfast.clock import Clock, SystemClock
from holdfast.config import Config
from holdfast.errors import (
    DeadlineExceeded,
    HoldfastError,
    InvalidInput,
    LimitExceeded,
    SessionNotFound,
    StoreClosed,
)
from holdfast.model import Durability, SessionInfo, SessionStatus, new_incarnation, new_session_id
from holdfast.restart import RestartPolicy
from holdfast.supervisor.checks import Checks, check_session_id, seconds_to_us
from holdfast.supervisor.session import Session, session_info
from holdfast.supervisor.watcher import Watcher
from holdfast.supervisor.workers import Janitor, Keeper, Passivator, Trimmer, Worker, WorkerStatistics, supervise

__all__ = ["DrainReport", "SessionList", "Statistics", "Supervisor"]

_log = structlog.stdlib.get_logger("holdfast.supervisor")

_T = TypeVar("_T")
_ExpiredSessions = list[Expired]  # within the class, `list` is its method
ExpiredCallback = Callable[[Sequence[Expired]], Awaitable[None] | None]


class SessionList(msgspec.Struct, frozen=True):
    """One page of `Supervisor.list`. ``next``: pass it as ``after`` for the next page; None: that was all."""

    sessions: list[SessionInfo]
    next: int | None


class DrainReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `Supervisor.close` could not store before its deadline, or cannot tell whether it has."""

    sessions: int
    units: int
    bytes: int

    @property
    def complete(self) -> bool:
        return self.units == 0


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """A picture of the engine now."""

    registry: RegistryStatistics
    queued: int
    """Sessions whose writes wait for a lane."""
    lanes: list[LaneStatistics]
    reader: ReaderStatistics
    breaker: str
    """Of writes: "closed", "open" or "half-open"."""
    breaker_opened: int
    read_breaker: str
    read_breaker_opened: int
    workers: dict[str, WorkerStatistics]


class _Parts(NamedTuple):
    """What a supervisor holds while it is open."""

    engine: Engine
    checks: Checks
    janitor: Janitor
    trimmer: Trimmer
    workers: list[Worker]
    scope: anyio.CancelScope
    """Of all tasks."""
    ended: anyio.Event
    """All tasks have ended."""
    closed: anyio.Event
    """`Supervisor.close` is done."""


def _background_workers(engine: Engine, janitor: Janitor, trimmer: Trimmer) -> list[Worker]:
    if not engine.config.background:
        return []
    workers: list[Worker] = [janitor, trimmer, Keeper(engine), Passivator(engine)]
    if not engine.exclusive:
        workers.append(Watcher(engine))
    return workers


class Supervisor:
    """Opens a backend, runs the engine over it, and closes both. Use it with ``async with``.

    It belongs to the event loop that entered it. Leaving the block drains every mailbox within
    ``drain_timeout_s``; what could not be stored is logged and in `drain_report`.
    """

    def __init__(self, backend: Backend, config: Config | None = None, *, clock: Clock | None = None) -> None:
        self.config = config if config is not None else Config()
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.drain_report: DrainReport | None = None
        """Set by `close`."""
        self._backend = backend
        self._parts: _Parts | None = None
        """Set by opening, and kept after closing."""
        self._stack: AsyncExitStack | None = None
        self._callbacks: list[ExpiredCallback] = []
        self._session_count = 0
        self._counted_at = float("-inf")

    def __repr__(self) -> str:
        return f"<Supervisor {'open' if self.is_open else 'closed'}>"

    # Opening and closing

    async def __aenter__(self) -> Self:
        """Raises: `ConfigError`, `SchemaError`, `Unavailable`; nothing is left open then."""
        if self._parts is not None:
            raise StoreClosed("a supervisor can be opened once; make a new one")
        async with AsyncExitStack() as stack:
            await self._backend.open()
            stack.push_async_callback(self._backend.close)
            durability_in_force(self._backend.capabilities, self.config.durability)
            host = await stack.enter_async_context(anyio.create_task_group())
            self._parts = await host.start(self._run)
            self._stack = stack.pop_all()
        engine = self._engine
        _log.info("store.opened", backend=engine.backend.capabilities.name, durability=engine.durability.value)
        return self

    async def _run(self, *, task_status: TaskStatus[_Parts]) -> None:
        """Hold every task of the engine until `close` cancels them; no scope of a caller's does."""
        ended = anyio.Event()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.cancel_scope.shield = True  # only `close` ends them, when they have drained
                engine = Engine(self._backend, self.config, self.clock, tasks)
                janitor, trimmer = Janitor(engine, self._notify_expired), Trimmer(engine)
                workers = _background_workers(engine, janitor, trimmer)
                tasks.start_soon(engine.writer.run)
                tasks.start_soon(engine.reader.run)
                for worker in workers:
                    tasks.start_soon(supervise, worker, RestartPolicy(self.config.restart))
                checks = Checks(self.config.limits, engine.backend.capabilities)
                task_status.started(
                    _Parts(engine, checks, janitor, trimmer, workers, tasks.cancel_scope, ended, anyio.Event())
                )
        finally:
            ended.set()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.close()
        finally:
            if self._stack is not None:
                await self._stack.aclose()

    async def close(self) -> DrainReport:
        """Take no more work, store what waits, stop every task, close the backend.

        Leaving the ``async with`` block calls it; calling it earlier, from any task of the same event
        loop, is fine. Idempotent. A cancellation does not cut the drain short: it has its own deadline.
        """
        parts = self._open_parts
        engine = parts.engine
        if engine.closed:
            await parts.closed.wait()
        else:
            engine.closed = True
            registry = engine.registry
            lost = -registry.lost_units
            try:
                await self._drain(engine)
            finally:
                lost += registry.lost_units
                dropped = registry.budget.dropped = Dropped()  # a flush that is under way may still end well
                try:
                    with anyio.CancelScope(shield=True):
                        await self._stop(parts)
                finally:
                    self.drain_report = DrainReport(
                        sessions=len(dropped.mailboxes), units=dropped.units + lost, bytes=dropped.bytes
                    )
            if self.drain_report.complete:
                _log.info("store.closed")
            else:
                _log.error("store.closed_unflushed", **msgspec.to_builtins(self.drain_report))
        assert self.drain_report is not None
        return self.drain_report

    async def _stop(self, parts: _Parts) -> None:
        parts.scope.cancel()
        await parts.ended.wait()
        parts.engine.abandon()
        try:
            await self._backend.close()
        finally:
            parts.closed.set()

    async def _drain(self, engine: Engine) -> None:
        engine.registry.store_touches()
        with anyio.move_on_after(self.config.drain_timeout_s, shield=True):
            await _until_idle(engine)
            engine.registry.store_touches()  # noted while a write of the session was under way
            await _until_idle(engine)
            try:
                await self._backend.forget_markers(engine.writer.name, 0)
            except HoldfastError as exc:  # the janitor of another run will
                _log.warning("markers.left", error=str(exc))

    @property
    def is_open(self) -> bool:
        """Entered, and not closed yet."""
        return self._parts is not None and not self._parts.engine.closed

    @property
    def _open_parts(self) -> _Parts:
        if self._parts is None:
            raise StoreClosed("the store is not open: use it with 'async with'")
        return self._parts

    @property
    def _engine(self) -> Engine:
        engine = self._open_parts.engine
        if engine.closed:
            raise StoreClosed("the store is closed")
        return engine

    # Sessions

    async def create(
        self,
        id: str | None = None,
        *,
        owner: str | None = None,
        ttl_s: float | EllipsisType | None = ...,
        lifetime_s: float | EllipsisType | None = ...,
        metadata: dict[str, Any] | None = None,
        durability: Durability | None = None,
        deadline_s: float | None = None,
    ) -> Session:
        """Create a session; durable when this returns.

        ``id``: 1 to 128 visible ASCII characters, by default a UUIDv7. ``owner``: a principal that
        must be given to find it. ``ttl_s``: seconds of idleness until it expires; ``lifetime_s``:
        seconds until it does however busy; left out, the settings apply, None: never.
        Raises: `SessionExists`; `InvalidInput`; as a `Session`'s writes.
        """
        engine, checks, now_us = self._engine, self._open_parts.checks, self.clock.now_us()
        incarnation = new_incarnation(now_us)
        head = Head(
            id=new_session_id(incarnation) if id is None else check_session_id(id),
            incarnation=incarnation,
            owner=None if owner is None else checks.name("owner", owner),
            created_us=now_us,
            active_us=now_us,
            ttl_us=seconds_to_us("ttl_s", self.config.ttl_s if ttl_s is ... else ttl_s),
            deadline_us=self._deadline_us(now_us, self.config.lifetime_s if lifetime_s is ... else lifetime_s),
            status="active",
            metadata=checks.metadata(metadata if metadata is not None else {}),
            first_seq=1,
            last_seq=0,
            version=0,
        )
        level = engine.check_durability(durability) if durability is not None else engine.durability
        unit = Unit(accepted_us=now_us, size=len(head.metadata) + 256, durability=level, ack=engine.new_ack())
        if deadline_s is None:
            await self._create(head, unit)
        else:
            await engine.by_deadline(deadline_s, unit, lambda: self._create(head, unit))
        return self._handle(engine, head.id, incarnation)  # closed meanwhile or not: the session is there

    async def _create(self, head: Head, unit: Unit) -> None:
        engine = self._engine
        await self._check_session_count()
        await engine.registry.make_room()
        hot = engine.registry.hot.get(head.id)
        if hot is not None and hot.touched_us:  # a live session must not look expired to the commit
            with contextlib.suppress(SessionNotFound):
                await engine.settled(hot)
        actor = SessionActor(engine.registry, head, {}, create=True)
        engine.registry.creating.add(actor)
        await engine.post(actor, unit)

    @staticmethod
    def _deadline_us(now_us: int, lifetime_s: float | None) -> int | None:
        lifetime_us = seconds_to_us("lifetime_s", lifetime_s)
        return None if lifetime_us is None else now_us + lifetime_us

    async def _check_session_count(self) -> None:
        limit = self.config.limits.max_sessions
        if limit is None:
            return
        now = self.clock.monotonic()
        if now - self._counted_at > self.config.janitor.interval_s or self._session_count >= limit:
            self._session_count = await self.count()
            self._counted_at = now
        if self._session_count >= limit:
            raise LimitExceeded("the store", limit=limit, actual=self._session_count, unit="sessions")
        self._session_count += 1

    async def get(self, id: str, *, owner: str | None = None, deadline_s: float | None = None) -> Session | None:
        """The session, or None if it is unknown, expired, or (``owner`` given) somebody else's."""
        engine = self._engine
        check_session_id(id)
        actor = await engine.within(deadline_s, lambda: self._find(id, owner))
        return None if actor is None else self._handle(self._engine, id, actor.incarnation)

    async def _find(self, session_id: str, owner: str | None) -> SessionActor | None:
        engine = self._engine
        actor = await engine.registry.find(session_id, state=engine.exclusive)
        if actor is None or (owner is not None and actor.owner != owner):
            return None
        try:
            await engine.note_read(actor)
        except SessionNotFound:
            return None
        return actor

    async def require(self, id: str, *, owner: str | None = None, deadline_s: float | None = None) -> Session:
        """As `get`. Raises: `SessionNotFound` instead of answering None."""
        session = await self.get(id, owner=owner, deadline_s=deadline_s)
        if session is None:
            raise SessionNotFound(id)
        return session

    async def delete(self, id: str, *, owner: str | None = None, deadline_s: float | None = None) -> bool:
        """Remove a session with its state and events. False if there is none (of this owner)."""
        left_s = time_left(deadline_s)
        session = await self.get(id, owner=owner, deadline_s=left_s())
        return session is not None and await session.delete(deadline_s=left_s())

    async def list(
        self,
        *,
        owner: str | None = None,
        status: SessionStatus | None = None,
        limit: int = 100,
        after: int | None = None,
        deadline_s: float | None = None,
    ) -> SessionList:
        """One page of live sessions, oldest first. Sessions that come and go do not shift the pages."""
        if type(limit) is not int or not 1 <= limit <= 10_000:
            raise InvalidInput(f"limit must be a whole number from 1 to 10,000, not {limit!r}")
        engine = self._engine

        async def read() -> SessionPage:
            await engine.registry.touches_stored()
            where = SessionFilter(self.clock.now_us(), owner, status)
            return await engine.read(lambda: engine.backend.list_sessions(where, after or 0, limit))

        page = await engine.within(deadline_s, read)
        return SessionList([session_info(head) for head in page.heads], page.next_after)

    async def scan(
        self, *, owner: str | None = None, status: SessionStatus | None = None, deadline_s: float | None = None
    ) -> AsyncIterator[SessionInfo]:
        """All pages of `list`, one session at a time. The deadline is for each page."""
        after: int | None = None
        while True:
            page = await self.list(owner=owner, status=status, limit=1_000, after=after, deadline_s=deadline_s)
            for info in page.sessions:
                yield info
            after = page.next
            if after is None:
                return

    async def count(
        self, *, owner: str | None = None, status: SessionStatus | None = None, deadline_s: float | None = None
    ) -> int:
        """How many sessions `scan` would give now."""
        engine = self._engine

        async def read() -> int:
            await engine.registry.touches_stored()
            where = SessionFilter(self.clock.now_us(), owner, status)
            return await engine.read(lambda: engine.backend.count_sessions(where))

        return await engine.within(deadline_s, read)

    def _handle(self, engine: Engine, session_id: str, incarnation: int) -> Session:
        return Session(engine, self._open_parts.checks, session_id, incarnation)

    # Upkeep

    def on_expired(self, callback: ExpiredCallback) -> None:
        """Call ``callback`` (plain or async) with each batch of sessions that this instance expires."""
        self._callbacks.append(callback)

    async def _notify_expired(self, sessions: Sequence[Expired]) -> None:
        for callback in self._callbacks:
            try:
                result = callback(sessions)
                if isawaitable(result):
                    await result
            except Exception as exc:  # a user's callback
                _log.error("on_expired.failed", exc_info=exc)

    async def expire(self, *, deadline_s: float | None = None) -> _ExpiredSessions:
        """One pass of the janitor now; exactly the sessions that it removed.

        Raises: `DeadlineExceeded`: what was removed by then is gone, and was told to the callbacks batch by
        batch, where the deadline may cut an async one short; `Unavailable`.
        """
        _ = self._engine  # raises if it is closed
        return await self._by_deadline(deadline_s, self._open_parts.janitor.pass_over)

    async def trim(self, *, deadline_s: float | None = None) -> int:
        """One pass of the trimmer over all sessions now; how many event rows it deleted.

        Raises: `DeadlineExceeded`: what was deleted by then is gone; `Unavailable`.
        """
        _ = self._engine
        return await self._by_deadline(deadline_s, self._open_parts.trimmer.sweep)

    @staticmethod
    async def _by_deadline(deadline_s: float | None, work: Callable[[], Awaitable[_T]]) -> _T:
        if deadline_s is None:
            return await work()
        with anyio.move_on_after(deadline_s):
            return await work()
        raise DeadlineExceeded(deadline_s, stored="unknown")

    @property
    def capabilities(self) -> Capabilities:
        """What the backend can promise, as found out when it was opened."""
        return self._open_parts.engine.backend.capabilities

    async def describe(self) -> dict[str, object]:
        """Facts about the store: versions, schema, durability in force. No credentials."""
        engine = self._engine
        return await engine.read(engine.backend.describe)

    def statistics(self) -> Statistics:
        engine = self._open_parts.engine
        return Statistics(
            registry=engine.registry.statistics(),
            queued=engine.writer.queued,
            lanes=[lane.statistics() for lane in engine.writer.lanes],
            reader=engine.reader.statistics(),
            breaker=engine.breaker.state,
            breaker_opened=engine.breaker.opened,
            read_breaker=engine.read_breaker.state,
            read_breaker_opened=engine.read_breaker.opened,
            workers={worker.name: worker.statistics() for worker in self._open_parts.workers},
        )


async def _until_idle(engine: Engine) -> None:
    """Polled, so that the hot path need not report."""
    while not engine.idle:
        await anyio.sleep(0.001)
