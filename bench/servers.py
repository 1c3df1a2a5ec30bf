"""Where a run stores its data: a server of its own in an empty folder, or one that is named.

The servers are the tests' (`tests.servers`), set to what the durability in the tables' titles asks for.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import click
import pytest

from bench.competitors.base import Place
from bench.stores import STORES, StoreName

__all__ = ["NoServer", "layout_of", "place"]


class NoServer(click.ClickException):
    """The store's server cannot be started on this machine."""

    exit_code = 3


class _Layout(Protocol):
    """The module ``layout`` of a store's competitors."""

    def store_url(self, place: Place) -> str:
        """The URL with which Holdfast opens the place."""
        ...

    def stored(self, place: Place) -> list[int]:
        """How many events each session of Holdfast's layout has; see `Competitor.stored`."""
        ...

    def remove(self, place: Place) -> None:
        """Remove all that a run left on a server that is not ours to throw away. SQLite has none."""
        ...


def layout_of(store: StoreName) -> _Layout:
    """Imports the driver."""
    return cast("_Layout", import_module(f"bench.competitors.{store}.layout"))


@contextmanager
def place(store: StoreName, folder: Path, url: str | None = None, level: str | None = None) -> Generator[Place]:
    """A place in the empty ``folder``, or on the server at ``url``, where it is removed afterwards.

    Raises: `NoServer`.
    """
    level = level or STORES[store].levels[0]
    name = f"bench_{uuid.uuid4().hex[:12]}"
    with ExitStack() as stack:
        if url is None:
            yield Place(folder, _start(store, stack, folder, level), name, level)
        else:
            found = Place(folder, url, name, level)
            stack.callback(layout_of(store).remove, found)
            yield found


def _start(store: StoreName, stack: ExitStack, folder: Path, level: str) -> str:
    """The URL of a server that ends with ``stack``."""
    if store == "sqlite":
        return f"sqlite:///{folder}/bench.db"
    server_folder = folder / "server"
    server_folder.mkdir()
    try:
        if store == "postgres":
            return _start_postgres(stack, server_folder)
        if store == "valkey":
            return _start_valkey(stack, server_folder, level)
        return _start_dynamodb(stack, server_folder)
    except (pytest.skip.Exception, pytest.fail.Exception) as exc:
        raise NoServer(f"{STORES[store].title}: {exc}") from exc


def _start_postgres(stack: ExitStack, folder: Path) -> str:
    from tests.servers.postgres import PostgresServer, embedded_binaries

    settings = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "shared_buffers": "128MB"}
    server = PostgresServer(embedded_binaries(), folder, settings)
    server.initialise()
    server.start()
    stack.callback(server.stop)
    return server.url()


def _start_valkey(stack: ExitStack, folder: Path, level: str) -> str:
    from tests.servers.valkey import ALWAYS, EVERYSEC, ValkeyServer

    server = ValkeyServer(folder, ALWAYS if level == "disk" else EVERYSEC)
    server.start()
    stack.callback(server.kill)
    return server.url()


def _start_dynamodb(stack: ExitStack, folder: Path) -> str:
    """Dynoxide with a file; ministack (in memory) where that is not to be had."""
    from tests.servers import dynamodb

    os.environ |= dynamodb.CREDENTIALS | {"AWS_DEFAULT_REGION": "us-east-1"}
    if dynamodb.dynoxide() is None:
        return dynamodb.ministack_endpoint()
    _, port = stack.enter_context(dynamodb.own_dynoxide(folder / "data.db"))
    return f"http://127.0.0.1:{port}"
