"""How a command reaches a store: read through the backend alone, so that looking changes nothing.

No supervisor runs: a session's time to live is not extended, nothing is reaped or trimmed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult

import anyio

from holdfast.backends.base import Backend, Head, LoadRequest, Snapshot
from holdfast.backends.urls import create_backend, file_path
from holdfast.clock import SystemClock
from holdfast.errors import ConfigError, InvalidCursor, SessionNotFound, Unavailable
from holdfast.model import Cursor
from holdfast.settings import Settings, load, split_url

__all__ = ["find", "load_settings", "now_us", "open_backend", "open_or_create", "refuse_missing", "start_seq"]

_CLOCK: Final = SystemClock()
now_us = _CLOCK.now_us

_FILE_SCHEMES: Final = frozenset({"sqlite"})


def load_settings(url: str | None, config: Path | None) -> Settings:
    """The settings of a store that another process may be using.

    Raises: `ConfigError`, also for a store that lives in its own process only.
    """
    settings = load(url, toml=config)
    if split_url(settings.url).scheme == "memory":
        raise ConfigError("url", "a memory:// store lives inside its own process and cannot be seen from here")
    return settings


@asynccontextmanager
async def open_backend(settings: Settings) -> AsyncGenerator[Backend, None]:
    """The store's backend, open; it is closed at the end, whatever happens.

    Raises: `ConfigError`, `Unavailable` (also for a missing file: a typo must not make a new store), `SchemaError`.
    """
    refuse_missing(split_url(settings.url))
    async with open_or_create(settings) as backend:
        yield backend


@asynccontextmanager
async def open_or_create(settings: Settings) -> AsyncGenerator[Backend, None]:
    """As `open_backend`, of a store that need not be there yet."""
    backend = create_backend(settings.url)
    await backend.open()
    try:
        yield backend
    finally:
        with anyio.CancelScope(shield=True):
            await backend.close()


def refuse_missing(url: SplitResult) -> None:
    """Raise `Unavailable` if the URL names a file that is not there."""
    if url.scheme in _FILE_SCHEMES:
        path = Path(file_path(url))
        if not path.is_file():
            reason = "is not a file" if path.exists() else "does not exist"
            raise Unavailable(f"{path.absolute()} {reason}")


async def find(backend: Backend, session_id: str, *, with_state: bool = False) -> Snapshot:
    """The session as committed.

    Raises: `SessionNotFound` if it is unknown or expired.
    """
    [snapshot] = await backend.load([LoadRequest(session_id, head_only=not with_state)])
    if snapshot is None:
        raise SessionNotFound(session_id)
    expires_us = snapshot.head.expires_us
    if expires_us is not None and expires_us <= now_us():
        raise SessionNotFound(session_id)
    return snapshot


def start_seq(head: Head, after: str) -> int:
    """Where a cursor points to in a session's log.

    Raises: `InvalidCursor`.
    """
    cursor = Cursor.parse(after)
    if cursor.incarnation != head.incarnation:
        raise InvalidCursor(after, "foreign")
    if cursor.seq > head.last_seq:
        raise InvalidCursor(after, "ahead")
    return cursor.seq
