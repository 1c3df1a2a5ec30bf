"""`SQLiteBackend`: the `Backend` protocol over two connections, each in a thread of its own."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import anyio
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
    TrimPolicy,
)
from holdfast.backends.bridge import Bridge, HeadStart
from holdfast.backends.sqlite import commit, reads, upkeep
from holdfast.backends.sqlite.checkpoint import has_wal_bug
from holdfast.backends.sqlite.config import SQLiteConfig
from holdfast.backends.sqlite.connection import Connection, open_reader
from holdfast.backends.sqlite.describe import describe
from holdfast.backends.sqlite.errors import translated
from holdfast.backends.sqlite.trusted import TrustedFlush, trusted_flush
from holdfast.backends.sqlite.writer import WriterThread
from holdfast.errors import StoreClosed
from holdfast.model import Durability

__all__ = ["SQLiteBackend"]

T = TypeVar("T")

_log: Final = structlog.get_logger("holdfast.sqlite")

_MANY_WRITES: Final = 32
"""From so many on, a commit is worth starting before the event loop goes on."""
_ROW_OVERHEAD_BYTES: Final = 4_096
"""More than what a row has beside its value."""


class SQLiteBackend:
    """One file. Every write goes through one connection, every read through another.

    Held exclusively, there is only one connection, and nobody else can open the file. Shared, any
    number of processes may; they take turns at writing.

    A cancelled call leaves at once, and its function goes on in the connection's thread: what it
    began, it ends. `resolve` queues behind it there, so its answer is final.
    """

    def __init__(self, config: SQLiteConfig) -> None:
        self._config: Final = config
        self._bridge: Final = Bridge("holdfast-sqlite")
        self._thread = WriterThread(config)
        self._writer: Connection | None = None
        self._reader: Connection | None = None
        self._capabilities: Capabilities | None = None
        self._expired_to = 0
        self._trimmed_to = 0
        self._last_ahead: HeadStart | None = None
        """Of the newest large commit, until it has ended."""

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise StoreClosed("the store is not open")
        return self._capabilities

    async def open(self) -> None:
        """As the protocol says. Waits up to ``busy_timeout_s``, uncancelled, for a file that is in use."""
        with anyio.CancelScope(shield=True):
            try:
                await self._bridge.start()
                with translated():
                    await self._connect()
            except BaseException:
                await self.close()
                raise
        await anyio.lowlevel.checkpoint()

    async def _connect(self) -> None:
        self._thread = WriterThread(self._config)
        writer = Connection(self._thread.open)
        await self._bridge.call(writer.start)
        self._thread.run_later = writer.run_later
        self._writer = self._reader = writer
        if not self._config.exclusive:
            reader = Connection(partial(open_reader, self._config))
            await self._bridge.call(reader.start)
            self._reader = reader
            if has_wal_bug(_version()):
                _log.warning("sqlite.wal_bug", version=sqlite3.sqlite_version, fixed_in="3.51.3")
        largest = await self._write_connection_run(lambda c: c.getlimit(sqlite3.SQLITE_LIMIT_LENGTH))
        self._capabilities = Capabilities(
            name="sqlite",
            durability=Durability.DISK,
            exclusive=self._config.exclusive,
            preferred_lanes=2,
            commits_queue=True,
            max_value_bytes=largest - _ROW_OVERHEAD_BYTES,
            max_event_bytes=largest - _ROW_OVERHEAD_BYTES,
        )

    async def close(self) -> None:
        """Waits for what is under way in the threads; then they are gone."""
        writer, self._writer = self._writer, None
        reader, self._reader = self._reader, None
        with anyio.CancelScope(shield=True), translated():
            try:
                if reader is not None and reader is not writer:
                    await self._bridge.call(reader.close)
            finally:
                try:
                    if writer is not None:
                        await self._bridge.call(writer.run, self._thread.close)
                        await self._bridge.call(writer.close)
                finally:
                    await self._bridge.stop()

    async def commit(self, batch: Batch) -> list[Outcome]:
        trusted = trusted_flush(batch)
        if trusted is None or len(batch.writes) < _MANY_WRITES:
            return await self._write_connection_run(lambda connection: self._thread.commit(connection, batch, trusted))
        return await self._commit_ahead(batch, trusted)

    async def _commit_ahead(self, batch: Batch, trusted: TrustedFlush) -> list[Outcome]:
        """With a head start before the event loop: now, or as soon as the commit before it has ended."""
        head_start = HeadStart()
        before, self._last_ahead = self._last_ahead, head_start
        function = partial(self._thread.commit, batch=batch, trusted=trusted, head_start=head_start)
        ahead = head_start if before is None else None
        try:
            with translated():
                run = self._opened(self._writer).run_ahead
                return await self._bridge.call(run, function, ahead, head_start=ahead)
        finally:
            self._ended(head_start)

    def _ended(self, head_start: HeadStart) -> None:
        """A large commit has; another may have been handed over meanwhile: let the thread begin it first."""
        newest = self._last_ahead
        if newest is head_start:
            self._last_ahead = None
        elif newest is not None:
            newest.wait()

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        return await self._write_connection_run(lambda connection: commit.resolve_marker(connection, marker))

    async def forget_markers(self, writer: str | None, before_us: int) -> None:
        await self._write(lambda connection: commit.forget_markers(connection, writer, before_us))

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        return await self._read(lambda connection: reads.load_sessions(connection, requests))

    async def read_events(self, query: EventQuery) -> EventPage | None:
        return await self._read(lambda connection: reads.read_event_page(connection, query))

    async def list_sessions(self, where: SessionFilter, after: int, limit: int) -> SessionPage:
        return await self._read(lambda connection: reads.list_sessions(connection, where, after, limit))

    async def count_sessions(self, where: SessionFilter) -> int:
        return await self._read(lambda connection: reads.count_sessions(connection, where))

    async def expire(self, now_us: int, limit: int) -> list[Expired]:
        """Shielded once begun, so that the ids of what was removed reach the caller."""
        gone = list[Expired]()
        circuit = upkeep.Circuit(self._expired_to)
        with anyio.CancelScope(shield=True):
            while len(gone) < limit and not circuit.done:
                find = partial(upkeep.find_expired, after=circuit.position, now_us=now_us, limit=limit - len(gone))
                candidates, scanned = await self._read(find)
                if candidates:
                    gone += await self._write(partial(upkeep.remove_expired, incarnations=candidates, now_us=now_us))
                circuit.advance(scanned)
        self._expired_to = circuit.position
        return gone

    async def trim(self, ids: Sequence[tuple[str, int]] | None, policy: TrimPolicy, limit: int) -> int:
        if ids is not None:
            targets = await self._read(lambda connection: upkeep.find_trimmable_of(connection, ids, policy))
            return await self._trim(targets, limit)
        deleted = 0
        circuit = upkeep.Circuit(self._trimmed_to)
        while deleted < limit and not circuit.done:
            targets, scanned = await self._read(partial(upkeep.find_trimmable, after=circuit.position, policy=policy))
            deleted += await self._trim(targets, limit - deleted)
            circuit.advance(scanned)
        self._trimmed_to = circuit.position
        return deleted

    async def _trim(self, targets: Sequence[upkeep.TrimTarget], limit: int) -> int:
        if not targets:
            return 0
        return await self._write(lambda connection: upkeep.trim(connection, targets, limit))

    async def watch(self, changed: Callable[[Collection[int] | None], None]) -> None:
        """Polls on the write connection, whose own commits do not count there."""
        if self._config.exclusive:
            await anyio.sleep_forever()
        await self._write_connection_run(self._thread.others_have_committed)
        changed(None)
        while True:
            if await self._write_connection_run(self._thread.others_have_committed):
                changed(None)
            await anyio.sleep(self._config.poll_interval_s)

    async def describe(self) -> dict[str, object]:
        facts = await self._write_connection_run(describe)
        path = Path(self._config.path)
        sizes = {"file_bytes": _size(path), "wal_bytes": _size(path.with_name(path.name + "-wal"))}
        return {"backend": "sqlite", "path": str(path), "exclusive": self._config.exclusive, **facts, **sizes}

    async def _read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return await self._run(self._reader, function)

    async def _write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return await self._run(self._writer, lambda connection: self._thread.write(connection, function))

    async def _write_connection_run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        return await self._run(self._writer, function)

    async def _run(self, connection: Connection | None, function: Callable[[sqlite3.Connection], T]) -> T:
        with translated():
            return await self._bridge.call(self._opened(connection).run, function)

    @staticmethod
    def _opened(connection: Connection | None) -> Connection:
        if connection is None:
            raise StoreClosed("the store is closed")
        return connection


def _version() -> tuple[int, int, int]:
    major, minor, patch = sqlite3.sqlite_version_info[:3]
    return major, minor, patch


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
