"""The stores that the kill tests and the histories run on: each a URL, and perhaps a server that can be killed.

A new store is one entry in `STORES`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from holdfast.backends.base import Backend
from holdfast.backends.urls import create_backend
from holdfast.settings import load
from holdfast.supervisor.supervisor import Supervisor

__all__ = ["SERVERS", "STORES", "Server", "Store", "open_store", "sqlite_url"]


class Server(Protocol):
    """A server of the tests' own that keeps its data over a kill."""

    def kill(self) -> None:
        """SIGKILL, of all its processes."""
        ...

    def restart(self) -> None:
        """Start it again on its data and its port; returns when it serves."""
        ...


class Store:
    """Where a test's sessions are. Empty at first, and nobody else's."""

    def __init__(self, url: str, *, server: Server | None = None) -> None:
        self.url = url
        self.server = server


def sqlite_url(path: Path | str) -> str:
    return f"sqlite:///{path}"


@contextmanager
def _sqlite(folder: Path) -> Generator[Store]:
    yield Store(sqlite_url(folder / "sessions.db"))


STORES: dict[str, Callable[[Path], AbstractContextManager[Store]]] = {"sqlite": _sqlite}
"""By name: opens a fresh store; the folder is an empty one, for those that need files."""

SERVERS: tuple[str, ...] = ()
"""Those of them whose server can be killed."""


def _unchanged(backend: Backend) -> Backend:
    return backend


def open_store(url: str, *, variant: Callable[[Backend], Backend] = _unchanged, **settings: Any) -> Supervisor:
    """A supervisor on the store that keeps everything for ever. ``settings`` may have dotted names."""
    loaded = load(url, env={}, overrides={"ttl_s": None, "retention.max_events": None, **settings})
    return Supervisor(variant(create_backend(loaded.url)), loaded.config)
