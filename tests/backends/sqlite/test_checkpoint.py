"""Checkpoints: when they are made, and that nobody can commit meanwhile."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
import structlog

from holdfast.backends.sqlite import SQLiteBackend, SQLiteConfig
from holdfast.backends.sqlite.checkpoint import Checkpointer, Pacer
from holdfast.backends.sqlite.connection import connect
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct

PATIENCE_S = 10


def commits_until_due(pacer: Pacer, limit: int = 100_000) -> int:
    return next(number for number in range(1, limit) if pacer.commit_is_due())


def test_pace_follows_the_growth_of_the_log() -> None:
    pacer = Pacer(1_000)
    first = commits_until_due(pacer)
    pacer.checkpointed(first * 100)
    assert commits_until_due(pacer) == 10
    pacer.checkpointed(10 * 50)
    assert commits_until_due(pacer) == 20


def test_pace_is_bounded() -> None:
    pacer = Pacer(1_000)
    first = commits_until_due(pacer)
    pacer.checkpointed(0)
    assert commits_until_due(pacer) == 4 * first, "a lull does not put checkpoints off for ever"
    pacer.checkpointed(10_000_000)
    assert commits_until_due(pacer) == 1


def test_failed_checkpoint_stays_due() -> None:
    pacer = Pacer(1_000)
    commits_until_due(pacer)
    assert pacer.commit_is_due()


@pytest.fixture
def config(path: Path) -> SQLiteConfig:
    return SQLiteConfig(path=str(path), checkpoint_pages=50)


@pytest.fixture
def writer(config: SQLiteConfig) -> Iterator[sqlite3.Connection]:
    with closing(connect(config, timeout_s=0.0)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
        yield connection


def test_nobody_can_commit_during_a_checkpoint(config: SQLiteConfig, writer: sqlite3.Connection) -> None:
    """This is what keeps the WAL-reset bug out."""
    checkpointer = Checkpointer(config)
    checkpointer.checkpoint(writer)
    attempts = list[str]()

    def attempt(statement: str) -> None:
        with closing(connect(config, timeout_s=0.0)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as exc:
                attempts.append(f"{statement}: {exc}")

    assert checkpointer._connection is not None
    checkpointer._connection.set_trace_callback(attempt)
    checkpointer.checkpoint(writer)
    checkpointer._connection.set_trace_callback(None)
    checkpointer.close()
    assert attempts == ["PRAGMA wal_checkpoint(PASSIVE): database is locked"]
    assert not writer.in_transaction


def test_whole_log_is_copied_and_starts_again(config: SQLiteConfig, writer: sqlite3.Connection) -> None:
    log = Path(config.path + "-wal")
    checkpointer = Checkpointer(config)
    pages = checkpointer.checkpoint(writer)
    assert pages >= 25
    size = log.stat().st_size
    for _ in range(20):
        writer.execute("UPDATE t SET x = zeroblob(100000)")
        checkpointer.checkpoint(writer)
    checkpointer.close()
    assert log.stat().st_size < 2 * size


def test_failure_is_logged_and_no_error(
    config: SQLiteConfig, writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> int:
        raise sqlite3.OperationalError("disk I/O error")

    checkpointer = Checkpointer(config)
    monkeypatch.setattr(checkpointer, "checkpoint", fail)
    with structlog.testing.capture_logs() as logs:
        checkpointer.run(writer)
    assert [log["event"] for log in logs] == ["sqlite.checkpoint_failed"]


@pytest.mark.anyio
async def test_callers_do_not_wait_for_a_checkpoint(
    config: SQLiteConfig, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have to wait for another process, and the commit before it is done."""
    begun, go = threading.Event(), threading.Event()
    checkpoint = Checkpointer.checkpoint

    def slow(checkpointer: Checkpointer, writer: sqlite3.Connection) -> int:
        begun.set()
        assert go.wait(PATIENCE_S)
        return checkpoint(checkpointer, writer)

    monkeypatch.setattr(Checkpointer, "checkpoint", slow)
    backend = SQLiteBackend(config)
    await backend.open()
    try:
        direct = Direct(backend, clock)
        head = await direct.create("s")
        with anyio.fail_after(PATIENCE_S / 2):
            while not begun.is_set():
                head = await direct.append(head, "x")
                await anyio.sleep(0.001)  # one that is queued now begins
    finally:
        go.set()
        await backend.close()
    assert not Path(config.path + "-wal").exists()


@pytest.mark.anyio
async def test_a_commit_that_outlives_its_store_leaves_no_checkpoint_behind(
    config: SQLiteConfig, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller was cancelled, and the checkpoint after it is queued behind the end."""
    monkeypatch.setattr(Pacer, "commit_is_due", lambda _: True)
    backend = SQLiteBackend(config)
    await backend.open()
    direct = Direct(backend, clock)
    head = await direct.create("s")
    await anyio.sleep(0.01)
    runs = list[int]()
    monkeypatch.setattr(Checkpointer, "run", lambda _, writer: runs.append(1))
    begun, go = threading.Event(), threading.Event()

    def busy(_: sqlite3.Connection) -> None:
        begun.set()
        assert go.wait(PATIENCE_S)

    assert backend._thread.run_later is not None
    backend._thread.run_later(busy)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(direct.append, head, "x")
        await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(backend.close)
        await anyio.sleep(0.01)
        go.set()
    assert begun.is_set()
    assert runs == []
    assert not Path(config.path + "-wal").exists()


@pytest.mark.anyio
@pytest.mark.parametrize("exclusive", [False, True])
async def test_log_stays_short(config: SQLiteConfig, clock: ManualClock, exclusive: bool) -> None:
    backend = SQLiteBackend(SQLiteConfig(path=config.path, checkpoint_pages=50, exclusive=exclusive))
    await backend.open()
    direct = Direct(backend, clock)
    head = await direct.create("s")
    longest = 0
    for _ in range(200):
        head = await direct.append(head, "x" * 8_000)
        longest = max(longest, Path(config.path + "-wal").stat().st_size)
    await backend.close()
    assert longest < 8 * 50 * 4096, "200 appends of 8 kB or more, without a checkpoint, take 1,200 pages"
    assert not Path(config.path + "-wal").exists()


@pytest.mark.anyio
async def test_shared_connections_make_no_checkpoint_by_themselves(config: SQLiteConfig) -> None:
    backend = SQLiteBackend(config)
    await backend.open()
    for run in (backend._write_connection_run, backend._read):
        assert await run(lambda c: c.execute("PRAGMA wal_autocheckpoint").fetchone()) == (0,)
    await backend.close()
