"""The stores that the kill tests and the histories run on: each a URL, and perhaps a server that can be killed.

A new store is one entry in `STORES`, and one in `SERVERS` if there is a server of it that keeps its data.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from tests.crash.opening import sqlite_url
from tests.servers import dynamodb, postgres, valkey
from tests.servers.processes import wait_until

__all__ = ["SERVERS", "STORES", "Server", "Store"]

BOTH = ("process", "disk")


class Server(Protocol):
    """A server of the tests' own that keeps its data over a kill."""

    def kill(self) -> None:
        """SIGKILL, of all its processes."""
        ...

    def restart(self) -> None:
        """Start it again on its data and its port; returns when it serves."""
        ...


@dataclasses.dataclass(frozen=True)
class Store:
    """Where a test's sessions are. Empty at first, and nobody else's."""

    url: str
    durabilities: Sequence[str] = BOTH
    """What it can promise, the best last."""


@contextmanager
def _sqlite(folder: Path) -> Generator[Store]:
    yield Store(sqlite_url(folder / "sessions.db"))


# --- PostgreSQL --------------------------------------------------------------


@contextmanager
def _postgres(_folder: Path) -> Generator[Store]:
    """On the server of all tests, which syncs nothing."""
    yield Store(postgres.shared_url(schema=postgres.new_schema()), ("process",))


class _PostgresToKill(postgres.PostgresServer):
    """One whose processes are all killed at once: none of them can still do anything for another."""

    def kill(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        process.send(signal.SIGSTOP)  # from now on it starts no other
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        process.kill()
        wait_until(lambda: not any(map(_runs, children)), what="killed processes are still there")

    def restart(self) -> None:
        self.start()


def _runs(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


@contextmanager
def _postgres_to_kill(_folder: Path) -> Generator[tuple[Store, Server]]:
    with postgres.server_folder() as folder:
        server = _PostgresToKill(postgres.embedded_binaries(), folder, postgres.SAFE)
        server.initialise()
        server.start()
        try:
            yield Store(server.url()), server
        finally:
            server.stop()


# --- Valkey ------------------------------------------------------------------


_LOGGING_CLUSTER = {**valkey.ALWAYS, **valkey.CLUSTER}


@functools.cache
def _logging_valkey(*, cluster: bool = False) -> valkey.ValkeyServer:
    """One that keeps a log: without, it promises nothing that these tests could hold it to."""
    return valkey.kept(valkey.own_server(_LOGGING_CLUSTER if cluster else valkey.ALWAYS))


@contextmanager
def _valkey(_folder: Path) -> Generator[Store]:
    yield Store(_logging_valkey().url(prefix=valkey.new_prefix()))


@contextmanager
def _valkey_cluster(_folder: Path) -> Generator[Store]:
    """In cluster mode nothing is atomic but one session's script."""
    yield Store(_logging_valkey(cluster=True).url(prefix=valkey.new_prefix()))


@contextmanager
def _valkey_to_kill(_folder: Path) -> Generator[tuple[Store, Server]]:
    with valkey.own_server(valkey.ALWAYS) as server:
        yield Store(server.url()), server


@contextmanager
def _valkey_cluster_to_kill(_folder: Path) -> Generator[tuple[Store, Server]]:
    with valkey.own_server(_LOGGING_CLUSTER) as server:
        yield Store(server.url()), server


# --- DynamoDB ----------------------------------------------------------------


def _dynamodb_store(endpoint: str, journal_from: int = 0) -> Store:
    """Of an emulator, which is taken at its word for no more than "process"."""
    config = dynamodb.config_for(endpoint)
    parameters = f"journal_from={journal_from}&region={config.region}&endpoint={quote(endpoint, safe='')}&create=true"
    return Store(f"dynamodb://{config.table}?{parameters}", ("process",))


@contextmanager
def _dynamodb(_folder: Path) -> Generator[Store]:
    yield _dynamodb_store(dynamodb.fast_endpoint())


@contextmanager
def _dynamodb_journals(_folder: Path) -> Generator[Store]:
    """All that can goes through journals."""
    yield _dynamodb_store(dynamodb.fast_endpoint(), journal_from=1)


class _Dynoxide:
    """The emulator that keeps its data in a file."""

    def __init__(self, database: Path) -> None:
        self.port = 0
        self._database = database
        self._running = ExitStack()

    def restart(self) -> None:
        _, self.port = self._running.enter_context(dynamodb.own_dynoxide(self._database, self.port))

    def kill(self) -> None:
        """Leaving `own_dynoxide` is a SIGKILL."""
        self._running.close()


@contextmanager
def _dynoxide_to_kill(folder: Path, journal_from: int = 0) -> Generator[tuple[Store, Server]]:
    server = _Dynoxide(folder / "dynoxide.db")
    server.restart()
    try:
        yield _dynamodb_store(f"http://127.0.0.1:{server.port}", journal_from), server
    finally:
        server.kill()


STORES: dict[str, Callable[[Path], AbstractContextManager[Store]]] = {
    "sqlite": _sqlite,
    "postgres": _postgres,
    "valkey": _valkey,
    "valkey-cluster": _valkey_cluster,
    "dynamodb": _dynamodb,
    "dynamodb-journals": _dynamodb_journals,
}
"""By name: opens a fresh store; the folder is an empty one, for those that need files."""

SERVERS: dict[str, Callable[[Path], AbstractContextManager[tuple[Store, Server]]]] = {
    "postgres": _postgres_to_kill,
    "valkey": _valkey_to_kill,
    "valkey-cluster": _valkey_cluster_to_kill,
    "dynamodb": _dynoxide_to_kill,
    "dynamodb-journals": functools.partial(_dynoxide_to_kill, journal_from=1),
}
"""The same on a server of its own that keeps its data, and can be killed."""
