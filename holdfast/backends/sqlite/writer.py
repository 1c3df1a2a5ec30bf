"""What the write connection's thread does and remembers."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final, TypeVar

from holdfast.backends.base import Batch, Outcome
from holdfast.backends.bridge import HeadStart
from holdfast.backends.sqlite import schema
from holdfast.backends.sqlite.checkpoint import Checkpointer
from holdfast.backends.sqlite.commit import commit_batch
from holdfast.backends.sqlite.config import SQLiteConfig
from holdfast.backends.sqlite.connection import closed_on_error, open_writer, set_durability
from holdfast.backends.sqlite.trusted import TrustedFlush
from holdfast.model import Durability

__all__ = ["WriterThread"]

T = TypeVar("T")


class WriterThread:
    """Every method blocks and belongs in the write connection's thread."""

    def __init__(self, config: SQLiteConfig) -> None:
        self._config: Final = config
        self._checkpointer = None if config.exclusive else Checkpointer(config)
        self._checkpoint_is_queued = False
        self.run_later: Callable[[Callable[[sqlite3.Connection], object]], None] | None = None
        """`Connection.run_later` of the write connection."""
        self._durability: Durability | None = None
        self._data_version = 0

    def open(self) -> sqlite3.Connection:
        connection = open_writer(self._config, schema.check, schema.migrate)
        with closed_on_error(connection):
            self._data_version = data_version(connection)
        return connection

    def close(self, _connection: sqlite3.Connection) -> None:
        """Leave the write connection alone in this process, so that closing it empties the log."""
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    def commit(
        self,
        connection: sqlite3.Connection,
        batch: Batch,
        trusted: TrustedFlush | None,
        head_start: HeadStart | None = None,
    ) -> list[Outcome]:
        if batch.durability is not self._durability:
            set_durability(connection, batch.durability)
            self._durability = batch.durability
        outcomes = commit_batch(connection, batch, trusted, head_start)
        self._after_commit()
        return outcomes

    def write(self, connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
        """Any transaction other than the commit of a batch."""
        result = function(connection)
        self._after_commit()
        return result

    def _after_commit(self) -> None:
        """Queue a checkpoint if it is time: callers first, for it may wait for other processes' commits."""
        if self._checkpointer is None or not self._checkpointer.commit_is_due() or self._checkpoint_is_queued:
            return
        self._checkpoint_is_queued = True
        assert self.run_later is not None
        self.run_later(self._checkpoint)

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        self._checkpoint_is_queued = False
        if self._checkpointer is not None:
            self._checkpointer.run(connection)

    def others_have_committed(self, connection: sqlite3.Connection) -> bool:
        """Whether another connection has, since the last call or the opening."""
        known, self._data_version = self._data_version, data_version(connection)
        return self._data_version != known


def data_version(connection: sqlite3.Connection) -> int:
    """Changes when another connection has committed, and only then."""
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version
