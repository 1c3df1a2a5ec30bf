"""What goes wrong in the driver, the file or the disk, and what becomes of the data."""

from __future__ import annotations

import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from holdfast.backends.base import EventQuery, LoadRequest, Status
from holdfast.backends.sqlite import SQLiteBackend, SQLiteConfig
from holdfast.backends.sqlite.errors import translate
from holdfast.errors import OutcomeUnknown, Rejected, SchemaError, StoreClosed, StoreError, Unavailable
from holdfast.model import Durability
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head

TABLE = [
    (sqlite3.SQLITE_BUSY, Unavailable, "locked by another process"),
    (sqlite3.SQLITE_BUSY_SNAPSHOT, Unavailable, "locked by another process"),
    (sqlite3.SQLITE_BUSY_RECOVERY, Unavailable, "locked by another process"),
    (sqlite3.SQLITE_LOCKED, Unavailable, "locked"),
    (sqlite3.SQLITE_NOMEM, Unavailable, "out of memory"),
    (sqlite3.SQLITE_READONLY, Unavailable, "read-only"),
    (sqlite3.SQLITE_READONLY_DBMOVED, Unavailable, "read-only"),
    (sqlite3.SQLITE_INTERRUPT, Unavailable, "interrupted"),
    (sqlite3.SQLITE_IOERR, Unavailable, "I/O error"),
    (sqlite3.SQLITE_IOERR_FSYNC, Unavailable, "I/O error"),
    (sqlite3.SQLITE_CORRUPT, SchemaError, "corrupt"),
    (sqlite3.SQLITE_CORRUPT_INDEX, SchemaError, "corrupt"),
    (sqlite3.SQLITE_FULL, Unavailable, "disk is full"),
    (sqlite3.SQLITE_CANTOPEN, Unavailable, "cannot be opened"),
    (sqlite3.SQLITE_CANTOPEN_ISDIR, Unavailable, "cannot be opened"),
    (sqlite3.SQLITE_PROTOCOL, Unavailable, "contended"),
    (sqlite3.SQLITE_TOOBIG, Rejected, "larger"),
    (sqlite3.SQLITE_CONSTRAINT_UNIQUE, Rejected, "constraint"),
    (sqlite3.SQLITE_MISMATCH, Rejected, "type"),
    (sqlite3.SQLITE_RANGE, Rejected, "range"),
    (sqlite3.SQLITE_PERM, Unavailable, "denied"),
    (sqlite3.SQLITE_AUTH, Unavailable, "denied"),
    (sqlite3.SQLITE_NOTADB, SchemaError, "not an SQLite database"),
    (sqlite3.SQLITE_ERROR, SchemaError, "expected tables"),
    (sqlite3.SQLITE_NOLFS, Unavailable, "SQLite failed"),
]


def driver_error(code: int) -> sqlite3.OperationalError:
    exc = sqlite3.OperationalError("the driver's words")
    exc.sqlite_errorcode = code
    exc.sqlite_errorname = "SQLITE_NAME"
    return exc


@pytest.mark.parametrize(("code", "kind", "words"), TABLE)
def test_table_of_driver_errors(code: int, kind: type[StoreError], words: str) -> None:
    error = translate(driver_error(code))
    assert type(error) is kind
    assert words in str(error)
    assert "SQLITE_NAME: the driver's words" in str(error)


@pytest.mark.parametrize(("code", "kind", "words"), TABLE)
def test_in_a_commit_an_io_error_leaves_doubt_and_nothing_else_does(
    code: int, kind: type[StoreError], words: str
) -> None:
    in_doubt = code & 0xFF == sqlite3.SQLITE_IOERR
    assert type(translate(driver_error(code), io_error=OutcomeUnknown)) is (OutcomeUnknown if in_doubt else kind)


@pytest.mark.parametrize(
    ("exc", "kind"),
    [
        (OverflowError("Python int too large to convert to SQLite INTEGER"), Rejected),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), Rejected),
        (sqlite3.InterfaceError("type 'object' is not supported"), Rejected),
        (PermissionError(13, "Permission denied"), Unavailable),
        (sqlite3.ProgrammingError("Cannot operate on a closed database."), Unavailable),
    ],
)
def test_errors_of_the_module_itself(exc: Exception, kind: type[StoreError]) -> None:
    assert type(translate(exc)) is kind


@pytest.fixture
def config(path: Path) -> SQLiteConfig:
    return SQLiteConfig(path=str(path), busy_timeout_s=0.05)


async def pragma(backend: SQLiteBackend, text: str) -> int:
    value: int = await backend._write_connection_run(lambda c: c.execute(f"PRAGMA {text}").fetchone()[0])
    return value


@pytest.mark.anyio
async def test_full_disk(backend: SQLiteBackend, direct: Direct) -> None:
    """C46: a clear error, nothing half-written, and all is well when there is space again."""
    head = await direct.append(await direct.create("s"), "one")
    pages = await pragma(backend, "page_count")
    await pragma(backend, f"max_page_count = {pages + 2}")
    large = blind(head, sets={"k": (b"1", 1)}, events=[new_event("x" * 100_000)])
    with pytest.raises(Unavailable, match="disk is full") as caught:
        await direct.commit(large)
    assert isinstance(caught.value.__cause__, sqlite3.Error)
    assert await backend.resolve(direct.last_marker) is None
    assert await direct.head("s") == head
    assert await direct.state("s") == {}
    await pragma(backend, f"max_page_count = {pages + 1_000}")
    assert (await direct.one(large)).base_seq == 1
    assert [event.seq for event in await direct.events(head)] == [1, 2]


@pytest.mark.anyio
async def test_io_error_at_commit_leaves_the_outcome_open(backend: SQLiteBackend, direct: Direct, path: Path) -> None:
    """The log may not grow: the writes at COMMIT fail. Then the marker settles what happened."""
    head = await direct.create("s")
    write = blind(head, events=[new_event("x" * 50_000)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.with_name("sessions.db-wal").stat().st_size, hard))
    try:
        with pytest.raises(OutcomeUnknown, match="I/O error"):
            await direct.commit(write, durability=Durability.DISK)
        assert await backend.resolve(direct.last_marker) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await direct.head("s") == head
    assert (await direct.one(write)).base_seq == 0
    assert [event.seq for event in await direct.events(head)] == [1]


@pytest.mark.anyio
async def test_locked_by_another_process(backend: SQLiteBackend, direct: Direct, path: Path) -> None:
    head = await direct.create("s")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked by another process"):
            await direct.append(head, "x")
        assert await direct.events(head) == [], "reading goes on meanwhile"
        other.execute("ROLLBACK")
    await direct.append(head, "x")


@pytest.mark.anyio
async def test_read_only(backend: SQLiteBackend, direct: Direct) -> None:
    await backend._write_connection_run(lambda c: c.execute("PRAGMA query_only = ON").close())
    with pytest.raises(Unavailable, match="read-only"):
        await direct.create("s")


@pytest.mark.anyio
async def test_too_large_for_sqlite(backend: SQLiteBackend, direct: Direct) -> None:
    """Rejected for good; without it the rest of the batch commits."""
    await backend._write_connection_run(lambda c: c.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 20_000))
    one, two = await direct.create("one"), await direct.create("two")
    small, large = blind(one, events=[new_event("x")]), blind(two, events=[new_event("x" * 30_000)])
    with pytest.raises(Rejected):
        await direct.commit(small, large)
    assert (await direct.one(small)).status is Status.COMMITTED
    assert (await direct.head("two")).last_seq == 0


@pytest.mark.anyio
@pytest.mark.parametrize(
    "fields",
    [
        {"sets": {"\ud800": (b"1", 1)}},
        {"active_us": 1 << 70},
    ],
    ids=["lone surrogate", "integer beyond 64 bits"],
)
async def test_values_that_the_driver_cannot_take(direct: Direct, fields: dict[str, object]) -> None:
    """The engine lets none of these by; the backend does not rely on it."""
    head = await direct.create("s")
    with pytest.raises(Rejected):
        await direct.one(blind(head, **fields))
    assert await direct.head("s") == head
    await direct.append(head, "x")


@pytest.mark.anyio
async def test_every_call_on_a_closed_store(clock: ManualClock, path: Path) -> None:
    backend = SQLiteBackend(SQLiteConfig(path=str(path)))
    direct = Direct(backend, clock)
    for opened in (False, True):
        if opened:
            await backend.open()
            await backend.close()
        with pytest.raises(StoreClosed):
            await direct.one(creation(new_head("s", 1)))
        with pytest.raises(StoreClosed):
            await backend.load([LoadRequest("s")])
        with pytest.raises(StoreClosed):
            await backend.read_events(EventQuery("s", 1))
        with pytest.raises(StoreClosed):
            await backend.watch(lambda _: None)
