"""A pytest plugin for the SDK's own tests: Holdfast's event store in place of theirs.

Their tests have one store for all sessions, count its ids from 1, and look into its list of events;
Holdfast's is bound to one session, and its ids are opaque. So this adapter gives all of a test's MCP
sessions one Holdfast session, whose sequence numbers are the ids. Storing, ordering and replaying
are `SessionEventStore`'s, on SQLite. The manager is the SDK's; its transports are Holdfast's, since a
tool may close a stream while it is replayed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore, StreamableHTTPServerTransport
from mcp_types import JSONRPCMessage

import holdfast
from holdfast.integrations.mcp import SessionEventStore
from holdfast.integrations.mcp._sdk import DurableTransport
from holdfast.model import Cursor

_open_store: holdfast.Supervisor | None = None


class SharedEventStore(EventStore):
    """What the SDK's tests expect of a store."""

    def __init__(self) -> None:
        self._lock = anyio.Lock()
        self._session: holdfast.Session | None = None
        self._inner: SessionEventStore | None = None
        self._rows: dict[int, tuple[str, JSONRPCMessage | None]] = {}
        self._stored = anyio.Event()

    async def _bound(self) -> SessionEventStore:
        async with self._lock:
            if self._inner is None:
                assert _open_store is not None
                self._session = await _open_store.create()
                self._inner = SessionEventStore(self._session)
                self._inner.primes = True
            return self._inner

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        inner = await self._bound()
        seq = Cursor.parse(await inner.store_event(stream_id, message)).seq
        self._rows[seq] = (stream_id, message)
        self._stored.set()
        self._stored = anyio.Event()
        return str(seq)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """An id that is none gets an empty replay here; Holdfast's manager refuses it before."""
        inner = await self._bound()
        if not last_event_id.isdecimal() or int(last_event_id) not in self._rows:
            return None
        assert self._session is not None
        seq = int(last_event_id)
        cursor = Cursor(self._session.incarnation, seq, self._rows[seq][0])

        async def send(event: EventMessage) -> None:
            assert event.event_id is not None
            await send_callback(EventMessage(event.message, str(Cursor.parse(event.event_id).seq)))

        await inner.replay_events_after(str(cursor), send)
        return None

    def close_tail(self, stream: str) -> None:
        if self._inner is not None:
            self._inner.close_tail(stream)

    async def wait_until_stored(self, count: int) -> None:
        while len(self._rows) < count:
            await self._stored.wait()


class SequencedStore(SharedEventStore):
    """In place of the interaction tests' store."""

    @property
    def _events(self) -> list[Any]:
        return [row for _, row in sorted(self._rows.items())]


class SimpleStore(SharedEventStore):
    """In place of the shared tests' store."""

    @property
    def _events(self) -> list[Any]:
        return [(stream, str(seq), message) for seq, (stream, message) in sorted(self._rows.items())]


def transport(mcp_session_id: Any, event_store: Any = None, **options: Any) -> StreamableHTTPServerTransport:
    if isinstance(event_store, SharedEventStore):
        return DurableTransport(mcp_session_id, event_store, **options)  # type: ignore[arg-type]
    return StreamableHTTPServerTransport(mcp_session_id, event_store=event_store, **options)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        module = getattr(item, "module", None)
        for name, substitute in (("SequencedEventStore", SequencedStore), ("SimpleEventStore", SimpleStore)):
            if hasattr(module, name):
                setattr(module, name, substitute)


@pytest.fixture(autouse=True)
async def holdfast_store(anyio_backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """One store a test, open before its event stores are made."""
    global _open_store
    monkeypatch.setattr("mcp.server.streamable_http_manager.StreamableHTTPServerTransport", transport)
    async with holdfast.open(f"sqlite:///{tmp_path / 'sessions.db'}") as _open_store:
        yield
    _open_store = None
