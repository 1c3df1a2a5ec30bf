"""Checkpoints of a file that several connections share, made so that none can corrupt it.

SQLite before 3.51.3 (but 3.50.7 and 3.44.6) has the "WAL-reset bug"
(https://sqlite.org/wal.html#walresetbug): if a connection commits and so restarts the log while
another one is just beginning a checkpoint, the checkpoint can mark pages of the new log as copied
that were not. They are lost later. The automatic checkpoint after a commit is open to this, because
it has let go of the write lock.

Here a checkpoint runs on a connection of its own *while the write connection holds the write lock*:
nobody can commit, hence nobody can restart the log, until it has ended. That closes the race between
all of our processes on any version, and costs nothing, for it takes the time that the automatic one
would take. Checkpoints that other programs make on the file remain a risk; hence the warning at open.
The checkpoint of the last connection to close is safe in itself: it holds the whole file.
"""

from __future__ import annotations

import sqlite3
from typing import Final

import structlog

from holdfast.backends.sqlite.config import SQLiteConfig
from holdfast.backends.sqlite.connection import connect

__all__ = ["Checkpointer", "Pacer", "has_wal_bug"]

_log: Final = structlog.get_logger("holdfast.sqlite")


def has_wal_bug(version: tuple[int, int, int]) -> bool:
    """Whether that version of SQLite can corrupt a log that several connections checkpoint."""
    if version[:2] == (3, 44):
        return version < (3, 44, 6)
    if version[:2] == (3, 50):
        return version < (3, 50, 7)
    return version < (3, 51, 3)


class Pacer:
    """Decides after which commits to checkpoint, so that the log has about ``pages`` pages by then.

    The log's length is only known from a checkpoint, so the number of commits until the next one
    follows from what the last ones have grown it by. Other processes' commits are in it, too.
    """

    _FIRST: Final = 16
    _FASTEST_GROWTH: Final = 4

    def __init__(self, pages: int) -> None:
        self._pages: Final = pages
        self._interval = self._FIRST
        self._commits = 0

    def commit_is_due(self) -> bool:
        """Count a commit; whether a checkpoint should follow it."""
        self._commits += 1
        return self._commits >= self._interval

    def checkpointed(self, log_pages: int) -> None:
        """A checkpoint found the log so long."""
        aimed_at = self._commits * self._pages // max(log_pages, 1)
        self._interval = max(1, min(aimed_at, self._interval * self._FASTEST_GROWTH))
        self._commits = 0


class Checkpointer:
    """Lives in the write connection's thread."""

    def __init__(self, config: SQLiteConfig) -> None:
        self._config: Final = config
        self._pacer: Final = Pacer(config.checkpoint_pages)
        self._connection: sqlite3.Connection | None = None

    def commit_is_due(self) -> bool:
        """Count a commit; whether it is time to `run`."""
        return self._pacer.commit_is_due()

    def run(self, writer: sqlite3.Connection) -> None:
        """Checkpoint. A failure harms nobody: it is made up for after the next commit."""
        try:
            self._pacer.checkpointed(self.checkpoint(writer))
        except sqlite3.Error as exc:
            _log.warning("sqlite.checkpoint_failed", error=str(exc))

    def checkpoint(self, writer: sqlite3.Connection) -> int:
        """Copy as much of the log as readers allow; returns the log's length in pages."""
        if self._connection is None:
            self._connection = connect(self._config, timeout_s=0.0)
        writer.execute("BEGIN IMMEDIATE")
        try:
            row: tuple[int, int, int] = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            writer.execute("ROLLBACK")
        return row[1]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
