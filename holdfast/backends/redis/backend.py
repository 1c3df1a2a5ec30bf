"""`RedisBackend`: the `Backend` protocol over scripts, on one server or a cluster."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, NamedTuple, TypeVar, TypeVarTuple

import anyio
import msgspec
from redis.exceptions import TimeoutError as DriverTimeout

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
    TrimPolicy,
)
from holdfast.backends.bridge import Bridge
from holdfast.backends.redis import server
from holdfast.backends.redis.cluster import ClusterLink
from holdfast.backends.redis.commit import Committer
from holdfast.backends.redis.config import RedisConfig
from holdfast.backends.redis.errors import BrokenOff
from holdfast.backends.redis.index import Index, checked
from holdfast.backends.redis.keys import Keys
from holdfast.backends.redis.link import Command, Link, Node, SingleLink
from holdfast.backends.redis.reads import Reads
from holdfast.backends.redis.scripts import run
from holdfast.backends.redis.upkeep import Janitor, Trimmer
from holdfast.backends.redis.watch import Listener
from holdfast.errors import ConfigError, OutcomeUnknown, SchemaError, StoreClosed, Unavailable
from holdfast.model import Durability

__all__ = ["RedisBackend"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_SCHEMA: Final = 1
"""The version of the layout of keys and values."""

_MAX_UNIT_BYTES: Final = 128 << 20
_SHARE_OF_A_CALL: Final = 4
"""A unit may have this part of what the server takes as one argument: its encoding is larger."""

_FIRST_LOG_WAIT_S: Final = 0.1
_FIRST_LOG_ROUNDS: Final = 50


class _Store(NamedTuple):
    """What an open backend consists of. Commits have connections of their own, so that reads cannot crowd them out."""

    writes: Link
    reads: Link
    committer: Committer
    reader: Reads
    janitor: Janitor
    trimmer: Trimmer


class RedisBackend:
    """One server, or a cluster. Several instances share it, and several stores, each with its own prefix.

    A cancelled call leaves at once. What it sent may be carried out; of a commit, `resolve` then makes sure.
    """

    def __init__(self, config: RedisConfig) -> None:
        self._config: Final = config
        self._keys: Final = Keys(config.prefix)
        self._instance = b""
        self._bridge: Final = Bridge("holdfast-redis")
        self._store: _Store | None = None
        self._capabilities: Capabilities | None = None

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise StoreClosed("the store is not open")
        return self._capabilities

    async def open(self) -> None:
        """As the protocol says. `ConfigError` for a server that is too old or may drop sessions."""
        try:
            await self._bridge.start()
            await self._bridge.call(self._connect)
        except BaseException:
            await self.close()
            raise

    async def _connect(self) -> None:
        config = self._config
        self._instance = uuid.uuid4().bytes
        cluster = await self._is_cluster()
        make = ClusterLink if cluster else SingleLink
        writes, reads = make(config), make(config)
        self._store = _Store(
            writes,
            reads,
            Committer(writes, self._keys, config, self._instance),
            Reads(reads, self._keys),
            Janitor(writes, self._keys, self._instance),
            Trimmer(writes, self._keys),
        )
        await _reading(self._check_schema)
        durability, max_bulk_bytes = await _reading(self._inspect)
        self._store.committer.max_call_bytes = max_bulk_bytes
        max_unit_bytes = min(_MAX_UNIT_BYTES, max_bulk_bytes // _SHARE_OF_A_CALL)
        self._capabilities = Capabilities(
            name="redis",
            durability=durability,
            exclusive=False,
            watch_is_complete=False,
            preferred_lanes=4,
            max_value_bytes=max_unit_bytes,
            max_event_bytes=max_unit_bytes,
            max_unit_bytes=max_unit_bytes,
        )

    async def _is_cluster(self) -> bool:
        """Ask the server that the settings name. Raises: `ConfigError` if it does not have our database."""
        db, size = self._config.db, len(server.INSPECTION)
        node = Node(msgspec.structs.replace(self._config, db=0))
        try:
            replies = await _reading(node.send, [*server.INSPECTION, *([(b"SELECT", db)] if db else [])])
        finally:
            await asyncio.shield(node.close())
        facts = server.facts_from(replies[:size])
        for refusal in replies[size:]:
            if isinstance(refusal, Exception):
                raise ConfigError("db", f"the server has no database {db}") from refusal
        if facts.cluster and db:
            raise ConfigError("db", "a server in cluster mode has only database 0")
        return facts.cluster

    async def _check_schema(self) -> None:
        key = self._keys.schema
        commands = [Command(key, (b"SET", key, b"%d" % _SCHEMA, b"NX")), Command(key, (b"GET", key))]
        store = self._open_store()
        (_,), (found,) = [checked(await run(store.writes, [command])) for command in commands]
        if not found.isdigit():
            raise SchemaError(f"{self._config.prefix!r} is another program's prefix", supported=_SCHEMA)
        if int(found) > _SCHEMA:
            raise SchemaError(
                f"the store has layout version {int(found)}; this version of Holdfast knows up to {_SCHEMA}",
                found=int(found),
                supported=_SCHEMA,
            )

    async def _inspect(self) -> tuple[Durability, int]:
        """Check every server; the least that one of them promises, and the fewest bytes that one takes at once.

        Waits for a server that writes its first log. Raises: `Unavailable` if that takes long.
        """
        for _ in range(_FIRST_LOG_ROUNDS):
            facts = await self._facts()
            if self._config.server_durability is not None or all(each.log_has_begun for each in facts):
                break
            await asyncio.sleep(_FIRST_LOG_WAIT_S)
        else:
            raise Unavailable(
                "the server's log is being written for the first time: what it acknowledges is not safe yet"
            )
        for each in facts:
            server.check(each, self._config)
        levels = [server.durability_of(each, self._config) for each in facts]
        return min(levels, key=lambda level: level.rank), min(each.max_bulk_bytes for each in facts)

    async def _facts(self) -> list[server.Facts]:
        replies = await self._open_store().reads.send_everywhere(server.INSPECTION)
        size = len(server.INSPECTION)
        return [server.facts_from(replies[start : start + size]) for start in range(0, len(replies), size)]

    async def close(self) -> None:
        store, self._store = self._store, None
        with anyio.CancelScope(shield=True):
            try:
                if store is not None:
                    await self._bridge.call(store.writes.close)
                    await self._bridge.call(store.reads.close)
            finally:
                await self._bridge.stop()

    async def commit(self, batch: Batch) -> list[Outcome]:
        return await self._bridge.call(self._open_store().committer.commit, batch)

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        return await self._read(self._open_store().committer.resolve, marker)

    async def forget_markers(self, writer: str | None, before_us: int) -> None:
        await self._read(self._open_store().committer.forget_markers, writer, before_us)

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        return await self._read(self._open_store().reader.load, requests)

    async def read_events(self, query: EventQuery) -> EventPage | None:
        return await self._read(self._open_store().reader.read_events, query)

    async def list_sessions(self, where: SessionFilter, after: int, limit: int) -> SessionPage:
        return await self._read(self._open_store().reader.list_sessions, where, after, limit)

    async def count_sessions(self, where: SessionFilter) -> int:
        return await self._read(self._open_store().reader.count_sessions, where)

    async def expire(self, now_us: int, limit: int) -> list[Expired]:
        """If it fails or is cancelled, the next call tells of what this one removed."""
        return await self._read(self._open_store().janitor.expire, now_us, limit)

    async def trim(self, ids: Sequence[tuple[str, int]] | None, policy: TrimPolicy, limit: int) -> int:
        trimmer = self._open_store().trimmer
        if ids is None:
            return await self._read(trimmer.sweep, policy, limit)
        return await self._read(trimmer.trim, ids, policy, limit)

    async def watch(self, changed: Callable[[Collection[int] | None], None]) -> None:
        """Connects again by itself, for as long as it takes."""
        listener = Listener(self._open_store().reads, self._keys, self._instance)
        try:
            while True:
                changed(await self._bridge.call(listener.next))
        finally:
            with anyio.CancelScope(shield=True):
                await self._bridge.call(listener.close)

    async def describe(self) -> dict[str, object]:
        return await self._read(self._describe)

    async def _describe(self) -> dict[str, object]:
        store, capabilities = self._open_store(), self.capabilities
        facts = await self._facts()
        return {
            "backend": "redis",
            "address": self._config.address,
            "prefix": self._config.prefix,
            "layout_version": _SCHEMA,
            "durability": capabilities.durability.value,
            "cluster": facts[0].cluster,
            "indexed_sessions": await Index(self._keys).size(store.reads),
            "servers": [each._asdict() for each in facts],
        }

    async def _read(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        return await self._bridge.call(_reading, function, *args)

    def _open_store(self) -> _Store:
        if self._store is None:
            raise StoreClosed("the store is closed")
        return self._store


async def _reading(function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """A call that may simply be made again, and is, once, if its connection breaks: it may have been an old one."""
    for last in (False, True):
        try:
            return await function(*args)
        except BrokenOff:
            raise
        except OutcomeUnknown as exc:
            if last or isinstance(exc.__cause__, DriverTimeout):
                raise Unavailable(str(exc)) from exc
    raise AssertionError
