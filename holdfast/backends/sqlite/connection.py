"""Connections: how they are opened, what they are set to, transactions on them.

All functions here that take a `sqlite3.Connection` block, and run in that connection's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import aiosqlite

from holdfast.backends.bridge import HeadStart
from holdfast.backends.sqlite.config import SQLiteConfig
from holdfast.backends.sqlite.errors import translate
from holdfast.backends.sqlite.flush import prepare_connection
from holdfast.errors import StoreError, Unavailable
from holdfast.model import Durability

__all__ = [
    "Connection",
    "closed_on_error",
    "connect",
    "open_reader",
    "open_writer",
    "read_transaction",
    "set_durability",
    "single_statement",
    "write_transaction",
]

T = TypeVar("T")
_Step = Callable[[sqlite3.Connection], object]

_LOCK_RETRY_S: Final = 0.01
_STATEMENTS: Final = 256
"""Prepared statements kept per connection: more than there are forms of bulk statements."""
_PAGE_BYTES: Final = 4_096
"""SQLite's default."""


class Connection(aiosqlite.Connection):
    """A connection in a thread of its own that runs whole functions there: one hop for a batch.

    aiosqlite's public calls hop once a statement. The names with an underscore used here are its
    own, not public; its version is pinned for them.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, 64)

    async def start(self) -> None:
        """Start the thread and open. If that fails, the thread has ended when this returns."""
        try:
            _ = await self  # itself
        except BaseException:
            while self._thread.is_alive():  # it still reports to this loop
                await asyncio.sleep(0.001)
            raise

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """``function(connection)`` in the thread, after all that was asked for before.

        A cancelled caller leaves at once; the function runs, or goes on, to its end nevertheless.
        """
        return await self._submit(function)

    async def run_ahead(self, function: Callable[[sqlite3.Connection], T], head_start: HeadStart | None) -> T:
        """As `run`, with a head start before this event loop, if one is given."""
        future = self._submit(function)
        if head_start is not None:
            head_start.wait()
        return await future

    def run_later(self, function: Callable[[sqlite3.Connection], object]) -> None:
        """As `run`, but nobody waits for it, and any thread may ask for it, its own too."""
        self._put((None, partial(function, self._conn)))

    def _submit(self, function: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put((future, partial(function, self._conn)))
        return future

    def _put(self, item: tuple[asyncio.Future[Any] | None, Callable[[], object]]) -> None:
        put = cast("Callable[[Any], None]", self._tx.put_nowait)  # pyright: ignore[reportUnknownMemberType]
        put(item)


def connect(config: SQLiteConfig, *, timeout_s: float) -> sqlite3.Connection:
    """A bare connection in autocommit mode: transactions are begun and ended by hand."""
    connection = sqlite3.connect(config.path, timeout=timeout_s, isolation_level=None, cached_statements=_STATEMENTS)
    with closed_on_error(connection):
        # A large flush makes SQLite keep its rows aside; there may be no folder for temporary files.
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA cache_size = {-config.cache_bytes // 1024}")
        # On macOS fsync does not reach the disk; elsewhere these change nothing.
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
    return connection


@contextmanager
def closed_on_error(connection: sqlite3.Connection) -> Generator[None]:
    """For the steps of an opening."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


def open_writer(config: SQLiteConfig, check: _Step, migrate: _Step) -> sqlite3.Connection:
    """The connection that makes every write.

    ``check`` is called before anything in the file changes, ``migrate`` when it is locked as it will be.

    Raises: what these raise; `Unavailable` if the file is locked, or cannot have a write-ahead log.
    """
    is_new = not Path(config.path).exists()
    connection = connect(config, timeout_s=config.busy_timeout_s)
    with closed_on_error(connection):
        if config.exclusive:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        check(connection)
        _use_wal(connection, config.busy_timeout_s)
        # Shared by several connections, a checkpoint needs care that SQLite's own does not take.
        connection.execute(f"PRAGMA wal_autocheckpoint = {config.checkpoint_pages if config.exclusive else 0}")
        # After a surge, or a reader that held the log up: let it shrink again.
        connection.execute(f"PRAGMA journal_size_limit = {4 * config.checkpoint_pages * _PAGE_BYTES}")
        if config.exclusive:
            _hold(connection)
        migrate(connection)
        prepare_connection(connection)
        if is_new:
            _sync_folder(Path(config.path).parent)
    return connection


def open_reader(config: SQLiteConfig) -> sqlite3.Connection:
    connection = connect(config, timeout_s=config.busy_timeout_s)
    with closed_on_error(connection):
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


def _use_wal(connection: sqlite3.Connection, patience_s: float) -> None:
    """Switch the file to write-ahead logging. SQLite's busy handler is not asked there, so wait here."""
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
            time.sleep(_LOCK_RETRY_S)
        else:
            break
    if mode != "wal":
        raise Unavailable(f"the file system cannot keep a write-ahead log (journal mode {mode!r})")


def _hold(connection: sqlite3.Connection) -> None:
    """Take the exclusive lock, which stays with the connection, and check that it is held."""
    with write_transaction(connection):
        mode: str = connection.execute("PRAGMA locking_mode").fetchone()[0]
    if mode != "exclusive":
        raise Unavailable(f"the file cannot be held exclusively (locking mode {mode!r})")


def _sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as its content."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_durability(connection: sqlite3.Connection, durability: Durability) -> None:
    """Choose what the commits that follow survive; call it outside a transaction.

    FULL syncs the log at each commit. NORMAL leaves it to the system's cache, which outlives the
    process. OFF would save nothing more but the syncs of a checkpoint, on which earlier, durable
    commits rely.
    """
    level = "FULL" if durability is Durability.DISK else "NORMAL"
    connection.execute(f"PRAGMA synchronous = {level}")


@contextmanager
def write_transaction(
    connection: sqlite3.Connection, *, commit_io_error: type[StoreError] = Unavailable
) -> Generator[None]:
    """All or nothing, with the write lock held from the start.

    ``commit_io_error``: what to raise for an I/O error of the COMMIT itself, by which time the log
    may have the transaction.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        _roll_back(connection)
        raise
    try:
        connection.execute("COMMIT")
    except sqlite3.Error as exc:
        _roll_back(connection)
        raise translate(exc, io_error=commit_io_error) from exc


@contextmanager
def single_statement(connection: sqlite3.Connection, *, io_error: type[StoreError]) -> Generator[None]:
    """For one statement that is a transaction by itself, of which no part is left if it fails.

    ``io_error``: what to raise for an I/O error, which may be one of its commit.
    """
    try:
        yield
    except sqlite3.OperationalError as exc:
        _roll_back(connection)
        raise translate(exc, io_error=io_error) from exc


def _roll_back(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:  # some errors have ended it by themselves
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


@contextmanager
def read_transaction(connection: sqlite3.Connection) -> Generator[None]:
    """Everything read within is of one moment."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        _roll_back(connection)
