"""Checkpoints: when they are made, and that nobody can commit meanwhile."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import structlog

from holdfast.backends.sqlite import SQLiteBackend, SQLiteConfig
from holdfast.backends.sqlite.checkpoint import Checkpointer, Pacer
from holdfast.backends.sqlite.connection import connect
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct


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
def config(tmp_path: Path) -> SQLiteConfig:
    return SQLiteConfig(path=str(tmp_path / "sessions.db"), checkpoint_pages=50)


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
        for _ in range(16):
            checkpointer.after_commit(writer)
    assert [log["event"] for log in logs] == ["sqlite.checkpoint_failed"]


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
