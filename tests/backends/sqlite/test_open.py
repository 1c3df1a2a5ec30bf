"""Opening a file: who may, what is refused, how an older schema becomes a current one."""

from __future__ import annotations

import inspect
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
import structlog

from holdfast.backends.sqlite import SQLiteBackend, SQLiteConfig, from_url, schema
from holdfast.backends.sqlite.checkpoint import has_wal_bug
from holdfast.errors import ConfigError, SchemaError, StoreClosed, Unavailable
from holdfast.model import Durability, Event
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct
from holdfast.testing.leaks import assert_no_leaks


def backend_for(path: Path, **settings: object) -> SQLiteBackend:
    return SQLiteBackend(SQLiteConfig(path=str(path), **{"busy_timeout_s": 0.05, **settings}))  # type: ignore[arg-type]


async def assert_refused(backend: SQLiteBackend, error: type[Exception], match: str) -> Exception:
    """Opening fails so, and leaves nothing open."""
    async with assert_no_leaks():
        return await refusal(backend, error, match)


async def refusal(backend: SQLiteBackend, error: type[Exception], match: str) -> Exception:
    with pytest.raises(error, match=match) as caught:
        await backend.open()
    with pytest.raises(StoreClosed):
        _ = backend.capabilities
    return caught.value


@pytest.mark.parametrize("path", [":memory:", "", "a\0b"])
def test_paths_that_are_no_files(path: str) -> None:
    with pytest.raises(ConfigError, match="path"):
        SQLiteConfig(path=path)


@pytest.mark.parametrize("field", ["busy_timeout_s", "poll_interval_s", "checkpoint_pages", "cache_bytes"])
def test_settings_must_be_positive(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        SQLiteConfig(path="x", **{field: 0})  # type: ignore[arg-type]


def test_url() -> None:
    params = {"exclusive": "true", "busy_timeout_s": "2"}
    backend = from_url(urlsplit("sqlite:////tmp/a%20b.db"), params)
    assert backend._config == SQLiteConfig(path="/tmp/a b.db", exclusive=True, busy_timeout_s=2.0)
    assert params == {}
    with pytest.raises(ConfigError, match="path"):
        from_url(urlsplit("sqlite:///:memory:"), {})


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
        ((4, 0, 0), False),
    ],
)
def test_versions_with_the_wal_bug(version: tuple[int, int, int], affected: bool) -> None:
    assert has_wal_bug(version) is affected


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("exclusive", "version", "warned"), [(False, (3, 40, 1), 1), (False, (3, 51, 3), 0), (True, (3, 40, 1), 0)]
)
async def test_wal_bug_is_warned_of(
    path: Path, monkeypatch: pytest.MonkeyPatch, exclusive: bool, version: tuple[int, int, int], warned: int
) -> None:
    """With one connection, and nobody else, there is nothing to race with."""
    monkeypatch.setattr("holdfast.backends.sqlite.backend._version", lambda: version)
    backend = backend_for(path, exclusive=exclusive)
    with structlog.testing.capture_logs() as logs:
        await backend.open()
        await backend.close()
    assert [log["event"] for log in logs] == ["sqlite.wal_bug"] * warned


@pytest.mark.anyio
async def test_exclusive_locks_everybody_out(path: Path, clock: ManualClock) -> None:
    holder = backend_for(path, exclusive=True)
    await holder.open()
    assert holder.capabilities.exclusive
    try:
        # While this process has locks on the file, SQLite keeps the descriptors of it: no leak.
        await refusal(backend_for(path), Unavailable, "locked by another process")
        await refusal(backend_for(path, exclusive=True), Unavailable, "locked by another process")
        direct = Direct(holder, clock)
        head = await direct.append(await direct.create("s"), "one")
        assert [event.data for event in await direct.events(head)] == ["one"]
    finally:
        await holder.close()
    shared = backend_for(path)
    await shared.open()
    assert not shared.capabilities.exclusive
    assert await Direct(shared, clock).exists("s")
    await shared.close()


@pytest.mark.anyio
async def test_exclusive_needs_the_file_alone(path: Path) -> None:
    """The other one need not be doing anything: to have the file open is enough."""
    shared = backend_for(path)
    await shared.open()
    try:
        await refusal(backend_for(path, exclusive=True), Unavailable, "locked by another process")
    finally:
        await shared.close()


@pytest.mark.anyio
async def test_not_a_database(path: Path) -> None:
    path.write_text("These are my notes, and no database. " * 50)
    await assert_refused(backend_for(path), SchemaError, "not an SQLite database")
    assert path.read_text().startswith("These are my notes")


@pytest.mark.anyio
async def test_another_programs_database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (name TEXT)")
    connection.close()
    before = path.read_bytes()
    await assert_refused(backend_for(path), SchemaError, "another program")
    assert path.read_bytes() == before, "not even its journal mode may change"


@pytest.mark.anyio
async def test_folder_that_is_not_there(tmp_path: Path) -> None:
    await assert_refused(backend_for(tmp_path / "missing" / "x.db"), Unavailable, "cannot be opened")


@pytest.mark.anyio
async def test_damaged_pages(path: Path, clock: ManualClock) -> None:
    backend = backend_for(path)
    await backend.open()
    await Direct(backend, clock).create("s")
    await backend.close()
    page_bytes = 4096
    content = bytearray(path.read_bytes())
    content[page_bytes:] = b"\xa5" * (len(content) - page_bytes)
    path.write_bytes(content)
    backend = backend_for(path)
    await backend.open()
    try:
        with pytest.raises(SchemaError, match="corrupt"):
            await Direct(backend, clock).exists("s")
        with pytest.raises(SchemaError, match="corrupt"):
            await Direct(backend, clock).create("t")
    finally:
        await backend.close()


@pytest.mark.anyio
async def test_tables_missing(path: Path, clock: ManualClock) -> None:
    backend = backend_for(path)
    await backend.open()
    direct = Direct(backend, clock)
    head = await direct.create("s")
    try:
        await backend._write_connection_run(lambda c: c.execute("DROP TABLE events").close())
        with pytest.raises(SchemaError, match="no such table: events"):
            await direct.append(head, "x")
    finally:
        await backend.close()


NEXT_STEP = ("ALTER TABLE sessions ADD COLUMN note TEXT NOT NULL DEFAULT 'none'", "CREATE TABLE extra (x INTEGER)")


@pytest.mark.anyio
async def test_older_schema_is_migrated_and_a_newer_one_refused(path: Path, clock: ManualClock) -> None:
    """The step is the test's: what ships has one version so far."""
    backend = backend_for(path)
    await backend.open()
    direct = Direct(backend, clock)
    await direct.append(await direct.create("s", metadata=b'{"a":1}'), "one")
    await backend.close()

    later = (*schema.STEPS, NEXT_STEP)
    connection = sqlite3.connect(path, isolation_level=None)
    schema.migrate(connection, later)
    schema.migrate(connection, later)
    assert connection.execute("SELECT id, metadata, last_seq, note FROM sessions").fetchall() == [
        ("s", '{"a":1}', 1, "none")
    ]
    assert connection.execute("SELECT data FROM events").fetchall() == [('"one"',)]
    connection.close()

    error = await assert_refused(backend_for(path), SchemaError, "version 2")
    assert isinstance(error, SchemaError)
    assert (error.found, error.supported) == (2, 1)


def test_failed_migration_changes_nothing(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    schema.migrate(connection)
    with pytest.raises(sqlite3.OperationalError):
        schema.migrate(connection, (*schema.STEPS, (*NEXT_STEP, "NONSENSE")))
    assert schema.check(connection) == 1
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert "extra" not in tables
    connection.close()


def test_released_steps_do_not_change() -> None:
    """Append a step; do not edit this one: files that have had it are out there."""
    connection = sqlite3.connect(":memory:")
    for statement in schema.STEPS[0]:
        connection.execute(statement)
    columns = {
        table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        for table in ("sessions", "state", "events", "graveyard", "markers")
    }
    connection.close()
    assert columns == {
        "sessions": [
            "incarnation", "id", "owner", "created_us", "active_us", "ttl_us", "deadline_us", "status", "metadata",
            "first_seq", "last_seq", "version", "trimmed_seq",
        ],
        "state": ["incarnation", "key", "value", "version"],
        "events": ["incarnation", "seq", "stream", "type", "data", "retry_ms", "time_us"],
        "graveyard": ["incarnation"],
        "markers": ["writer", "lane", "flush", "outcomes", "time_us"],
    }  # fmt: skip


PROCESS = """
import sys, anyio
from holdfast.backends.base import Status
from holdfast.backends.sqlite import SQLiteBackend, SQLiteConfig
from holdfast.model import Durability, Event
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct, blind, creation, new_event, new_head

async def main(path, name, appends):
    backend = SQLiteBackend(SQLiteConfig(path=path, busy_timeout_s=30.0, checkpoint_pages=20))
    sys.stdin.readline()
    await backend.open()
    direct = Direct(backend, ManualClock(), name)
    await direct.one(creation(new_head("shared", 1)))
    head = await direct.head("shared")
    for number in range(int(appends)):
        write = blind(head, events=[new_event(f"{name}-{number}")])
        (outcome,) = await direct.commit(write, durability=Durability.DISK)
        assert outcome.status is Status.COMMITTED
    await backend.close()

anyio.run(main, *sys.argv[1:])
"""


def test_ten_processes_at_once(path: Path) -> None:
    """All open (one of them makes the schema), all append to one session, each event once and in order."""
    processes, appends = 10, 20
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(path), f"p{number}", str(appends)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    failures = [stderr for child in children for stderr in [child.communicate(timeout=120)[1]] if child.returncode]
    assert failures == []

    events = anyio.run(_events_of, path, "shared")
    assert [event.seq for event in events] == list(range(1, processes * appends + 1))
    for number in range(processes):
        own = [event.data for event in events if event.data.startswith(f"p{number}-")]
        assert own == [f"p{number}-{n}" for n in range(appends)]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


async def _events_of(path: Path, session_id: str) -> list[Event]:
    backend = backend_for(path)
    await backend.open()
    direct = Direct(backend, ManualClock())
    events = await direct.events(await direct.head(session_id))
    await backend.close()
    return events


@pytest.mark.anyio
async def test_facts(path: Path, clock: ManualClock) -> None:
    backend = backend_for(path)
    await backend.open()
    direct = Direct(backend, clock)
    head = await direct.create("s")
    facts = await backend.describe()
    assert facts["sqlite_version"] == sqlite3.sqlite_version
    assert (facts["schema_version"], facts["journal_mode"], facts["synchronous"]) == (1, "wal", "NORMAL")
    await direct.commit(*[], durability=Durability.DISK)
    await direct.append(head, "x")
    sizes = await backend.describe()
    assert isinstance(sizes["wal_bytes"], int)
    assert sizes["wal_bytes"] > 0
    await backend.close()
    assert not path.with_name("sessions.db-wal").exists(), "the last to close empties the log"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("durability", "synchronous"),
    [(Durability.MEMORY, "NORMAL"), (Durability.PROCESS, "NORMAL"), (Durability.DISK, "FULL")],
)
async def test_durability_in_force(path: Path, clock: ManualClock, durability: Durability, synchronous: str) -> None:
    backend = backend_for(path)
    await backend.open()
    direct = Direct(backend, clock)
    for level in (Durability.DISK, Durability.PROCESS, durability):
        await direct.commit(durability=level)
    assert (await backend.describe())["synchronous"] == synchronous
    await backend.close()


@pytest.mark.anyio
async def test_open_is_not_cut_short(path: Path) -> None:
    """A cancelled open has opened or closed everything: there is no half."""
    async with assert_no_leaks():
        backend = backend_for(path)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await backend.open()
        await backend.close()


def test_private_names_of_the_driver() -> None:
    """`Connection` relies on these; the dependency is pinned to the minor version that has them."""
    from importlib.metadata import version

    import aiosqlite

    assert version("aiosqlite").startswith("0.22.")
    assert "self._tx.put_nowait((future, function))" in inspect.getsource(aiosqlite.Connection._execute)
    assert isinstance(aiosqlite.Connection._conn, property)
