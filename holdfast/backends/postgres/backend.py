"""`PostgresBackend`: the `Backend` protocol over a pool of connections."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final, TypeVar

import anyio
import anyio.lowlevel
import asyncpg  # type: ignore[import-untyped]
import structlog

from holdfast.backends.base import (
    Batch,
    Capabilities,
    EventPage,
    EventQuery,
    Expired,
    LoadRequest,
    Marker,
    Outcome,
    SessionFilter,
    SessionPage,
    Snapshot,
    Status,
    TrimPolicy,
)
from holdfast.backends.bridge import Bridge
from holdfast.backends.postgres import commit, reads, upkeep
from holdfast.backends.postgres.config import PostgresConfig, check_dsn
from holdfast.backends.postgres.driver import Connection, connect
from holdfast.backends.postgres.errors import translated
from holdfast.backends.postgres.facts import Facts, describe, find_facts, is_pooled
from holdfast.backends.postgres.hints import Listener, Notifier
from holdfast.backends.postgres.names import Names
from holdfast.backends.postgres.pool import Pool, guarded
from holdfast.backends.postgres.schema import prepare
from holdfast.errors import StoreClosed, StoreError, Unavailable

__all__ = ["PostgresBackend"]

T = TypeVar("T")

_log: Final = structlog.get_logger("holdfast.postgres")

_COMMITTED: Final = Status.COMMITTED
_PREFERRED_LANES: Final = 4
_USUAL_COMMIT_S: Final = 1.0
_MAX_FIELD_BYTES: Final = 1 << 28
"""A quarter of PostgreSQL's own limit on a value, which holds for an array of them too."""


class _Open:
    """What there is while the backend is open. Lives on the driver's event loop."""

    def __init__(self, config: PostgresConfig, names: Names, facts: Facts, *, pooled: bool) -> None:
        connect_one = partial(connect, config, pooled=pooled)
        timeout_s = config.reply_timeout_s
        self.facts: Final = facts
        self.pooled: Final = pooled
        self.pool: Final = Pool(
            connect_one, size=config.pool_max, wait_s=config.pool_timeout_s, reply_timeout_s=timeout_s
        )
        self.notifier: Final = Notifier(connect_one, names.channel, timeout_s=timeout_s)
        self.notifier.start()
        self._new_listener: Final = partial(
            Listener, connect_one, names.channel, own=self.notifier.instance, timeout_s=timeout_s
        )
        self._listeners: Final = set[Listener]()

    async def listen(self) -> Listener:
        listener = self._new_listener()
        self._listeners.add(listener)
        return listener

    async def end(self, listener: Listener) -> None:
        self._listeners.discard(listener)
        await listener.stop()

    async def close(self) -> None:
        for listener in list(self._listeners):
            await self.end(listener)
        await self.notifier.stop()
        await self.pool.close()


class _Once:
    """A commit that several calls may wait for, and that no cancelled one ends."""

    def __init__(self, function: Callable[[_Open], Awaitable[list[Outcome]]]) -> None:
        self._function: Final = function
        self._task: asyncio.Task[list[Outcome]] | None = None

    async def run(self, inner: _Open) -> list[Outcome]:
        if self._task is None:
            self._task = asyncio.ensure_future(self._function(inner))
            self._task.add_done_callback(_ask)
        return await asyncio.shield(self._task)


def _ask(task: asyncio.Task[list[Outcome]]) -> None:
    """So that asyncio does not log an error whose receiver has left."""
    if not task.cancelled():
        task.exception()


class PostgresBackend:
    """One schema of one database. Each operation is one statement on any connection of the pool.

    A cancelled call leaves at once, and its statement goes on: what it began, it ends. `resolve` waits for
    it in the database, by the row of its marker, so its answer is final.
    """

    def __init__(self, config: PostgresConfig) -> None:
        self._config: Final = config
        self._names: Final = Names(config.schema, config.table_prefix)
        self._bridge: Final = Bridge("holdfast-postgres")
        self._committer: Final = commit.Committer(self._names)
        self._inner: _Open | None = None
        self._capabilities: Capabilities | None = None
        self._last_now_us = 0
        self._retained_to = 0
        self._expired_page: Final = upkeep.PageSize(upkeep.MAX_EXPIRED)
        self._trimmed_page: Final = upkeep.PageSize(upkeep.MAX_TRIMMED)
        self._retained_page: Final = upkeep.PageSize(upkeep.MAX_SCANNED_EVENTS)

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise StoreClosed("the store is not open")
        return self._capabilities

    async def open(self) -> None:
        """As the protocol says."""
        try:
            await self._bridge.start()
            self._inner = inner = await self._bridge.call(self._connect)
        except BaseException:
            await self.close()
            raise
        self._capabilities = Capabilities(
            name="postgres",
            durability=inner.facts.durability,
            exclusive=False,
            watches=not inner.pooled,
            watch_is_complete=False,
            preferred_lanes=self._config.lanes or _PREFERRED_LANES,
            max_value_bytes=_MAX_FIELD_BYTES,
            max_event_bytes=_MAX_FIELD_BYTES,
            max_unit_bytes=_MAX_FIELD_BYTES,
        )

    async def _connect(self) -> _Open:
        """Look at the server and its schema by a first connection, then make the pool."""
        config = self._config
        check_dsn(config.dsn)
        with translated():
            connection, pooled = await self._find_way()
            try:
                facts = await guarded(connection, self._look(connection), config.reply_timeout_s)
            finally:
                connection.terminate()
        inner = _Open(config, self._names, facts, pooled=pooled)
        try:
            await inner.pool.warm(config.pool_min)
        except BaseException:
            await inner.close()
            raise
        return inner

    async def _look(self, connection: Connection) -> Facts:
        facts = await find_facts(connection)
        await prepare(connection, self._names, migrate=self._config.migrate)
        return facts

    async def _find_way(self) -> tuple[Connection, bool]:
        """A first connection, and whether it goes through a pooler.

        A pooler may refuse what we set for a connection; if it does not, it is known by its process number.
        """
        config = self._config
        if config.pgbouncer is not None:
            return await connect(config, pooled=config.pgbouncer, cache_statements=False), config.pgbouncer
        try:
            connection = await connect(config, pooled=False, cache_statements=False)
        except asyncpg.ProtocolViolationError:
            return await connect(config, pooled=True), True
        try:
            pooled = await guarded(connection, is_pooled(connection), config.reply_timeout_s)
        except BaseException:
            connection.terminate()
            raise
        if pooled:
            connection.terminate()
            connection = await connect(config, pooled=True)
        return connection, pooled

    async def close(self) -> None:
        """Waits for what is under way, but a few seconds at most."""
        inner, self._inner = self._inner, None
        with anyio.CancelScope(shield=True):
            try:
                if inner is not None:
                    await self._bridge.call(inner.close)
            finally:
                await self._bridge.stop()

    async def commit(self, batch: Batch) -> list[Outcome]:
        """A cancellation waits for the end of a commit that takes no longer than usual."""
        self._last_now_us = max(self._last_now_us, batch.now_us)
        call = _Once(partial(self._commit, batch))
        with anyio.move_on_after(_USUAL_COMMIT_S, shield=True):
            return await self._call(call.run)
        return await self._call(call.run)

    async def _commit(self, batch: Batch, inner: _Open) -> list[Outcome]:
        outcomes = await inner.pool.run(lambda connection: self._committer.commit(connection, batch), commits=True)
        if not inner.pooled:
            changed = [
                write.incarnation
                for write, outcome in zip(batch.writes, outcomes, strict=True)
                if outcome.status is _COMMITTED and (write.units or write.floor_seq or write.delete)
            ]
            if changed:
                inner.notifier.tell(changed)
        return outcomes

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        return await self._run(partial(commit.resolve, names=self._names, marker=marker, now_us=self._last_now_us))

    async def forget_markers(self, writer: str | None, before_us: int) -> None:
        await self._run(partial(commit.forget_markers, names=self._names, writer=writer, before_us=before_us))

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        return await self._run(partial(reads.load_sessions, names=self._names, requests=requests))

    async def read_events(self, query: EventQuery) -> EventPage | None:
        return await self._run(partial(reads.read_event_page, names=self._names, query=query))

    async def list_sessions(self, where: SessionFilter, after: int, limit: int) -> SessionPage:
        return await self._run(partial(reads.list_sessions, names=self._names, where=where, after=after, limit=limit))

    async def count_sessions(self, where: SessionFilter) -> int:
        return await self._run(partial(reads.count_sessions, names=self._names, where=where))

    async def expire(self, now_us: int, limit: int) -> list[Expired]:
        """Each transaction is shielded, so that the ids of what was removed reach the caller.

        So they do if a later one fails, or the call is cancelled: it ends behind the transaction that is under way,
        and returns what it has removed, if anything.
        """
        gone = list[Expired]()
        more = True
        while more and len(gone) < limit:
            with anyio.CancelScope(shield=True):
                try:
                    some, more = await self._expire_page(now_us, limit - len(gone))
                except StoreError:
                    if not gone:
                        raise
                    break
                gone += some
            if not gone:
                await anyio.lowlevel.checkpoint_if_cancelled()
            elif anyio.current_effective_deadline() == -math.inf:  # cancelled
                break
        return gone

    async def _expire_page(self, now_us: int, limit: int) -> tuple[list[Expired], bool]:
        """One transaction. If it took too long: nothing, and more to do."""
        limit = min(limit, self._expired_page.now)
        try:
            page = await self._run(partial(upkeep.expire_some, names=self._names, now_us=now_us, limit=limit))
        except Unavailable as exc:
            if not self._expired_page.shrink(exc):
                raise
            return [], True
        self._expired_page.grow()
        return page

    async def trim(self, ids: Sequence[tuple[str, int]] | None, policy: TrimPolicy, limit: int) -> int:
        incarnations = None if ids is None else [incarnation for _, incarnation in ids]
        bounded = policy.min_time_us is not None or policy.max_bytes is not None
        if not bounded:
            return await self._trim(incarnations, limit)
        if incarnations is not None:
            following: upkeep.Place | None = upkeep.Place(0)
            while following is not None:
                following = await self._retain(incarnations, following, policy)
            return await self._trim(incarnations, limit)
        return await self._trim_all(policy, limit)

    async def _trim_all(self, policy: TrimPolicy, limit: int) -> int:
        """One walk over all sessions that begins where the last one stopped."""
        deleted = await self._trim(None, limit)
        start = self._retained_to
        place = upkeep.Place(start)
        wrapped = start == 0
        while deleted < limit:
            following = await self._retain(None, place, policy)
            deleted += await self._trim(None, limit - deleted)
            place = following or upkeep.Place(0)
            self._retained_to = place.start
            if wrapped and (following is None or place.start >= start > 0):
                break
            wrapped = wrapped or following is None
        return deleted

    async def _retain(
        self, incarnations: Sequence[int] | None, place: upkeep.Place, policy: TrimPolicy
    ) -> upkeep.Place | None:
        size = self._retained_page

        async def page(connection: Connection) -> upkeep.Place | None:
            return await upkeep.retain_some(connection, self._names, incarnations, place, policy, size.now)

        return await self._resized(size, page)

    async def _trim(self, incarnations: Sequence[int] | None, limit: int) -> int:
        deleted, more = 0, True
        size = self._trimmed_page

        async def page(connection: Connection) -> tuple[int, bool]:
            return await upkeep.trim_some(connection, self._names, incarnations, min(limit - deleted, size.now))

        while more and deleted < limit:
            some, more = await self._resized(size, page)
            deleted += some
        return deleted

    async def _resized(self, size: upkeep.PageSize, page: Callable[[Connection], Awaitable[T]]) -> T:
        """One transaction of upkeep, tried with less if it took longer than a statement may."""
        while True:
            try:
                done = await self._run(page)
            except Unavailable as exc:
                if not size.shrink(exc):
                    raise
            else:
                size.grow()
                return done

    async def watch(self, changed: Callable[[Collection[int] | None], None]) -> None:
        """Each new connection begins with a hint of anything."""
        inner = self._opened()
        listener = await self._bridge.call(inner.listen)
        try:
            while True:
                changed(await self._bridge.call(listener.next))
        finally:
            with anyio.CancelScope(shield=True):
                if self._inner is inner:
                    await self._bridge.call(inner.end, listener)

    async def describe(self) -> dict[str, object]:
        facts = await self._run(partial(describe, names=self._names))
        inner = self._opened()
        return {"backend": "postgres", "pooler": inner.pooled, "connections": inner.pool.connections, **facts}

    def _opened(self) -> _Open:
        if self._inner is None:
            raise StoreClosed("the store is closed")
        return self._inner

    async def _run(self, function: Callable[[Connection], Awaitable[T]]) -> T:
        return await self._call(lambda inner: inner.pool.run(function))

    async def _call(self, function: Callable[[_Open], Awaitable[T]]) -> T:
        return await self._bridge.call(function, self._opened())
