"""A store as an ASGI lifespan."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from starlette.applications import Starlette

import holdfast
from holdfast.backends.memory import MemoryBackend
from holdfast.integrations.asgi import StoreMiddleware, lifespan
from holdfast.testing import FaultyBackend
from holdfast.testing.faults import FaultKind

pytestmark = pytest.mark.anyio


class Server:
    """Sends lifespan events as a server does, and notes the answers with the store's state at that time."""

    def __init__(self, app: Any, store: holdfast.Supervisor) -> None:
        self.app = app
        self.store = store
        self.heard: list[tuple[str, bool]] = []
        self.stopping = anyio.Event()
        self.started = anyio.Event()
        self._asked = 0

    async def receive(self) -> dict[str, str]:
        self._asked += 1
        if self._asked == 1:
            return {"type": "lifespan.startup"}
        await self.stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def send(self, message: Any) -> None:
        self.heard.append((message["type"].removeprefix("lifespan."), self.store.is_open))
        self.started.set()

    async def run(self) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.app, {"type": "lifespan"}, self.receive, self.send)
            await self.started.wait()
            self.stopping.set()


LIFE = [("startup.complete", True), ("shutdown.complete", False)]


async def test_around_an_application_with_a_lifespan_of_its_own() -> None:
    store = holdfast.open("memory://")
    server = Server(StoreMiddleware(Starlette(), store), store)
    await server.run()
    assert server.heard == LIFE
    assert store.drain_report is not None


async def test_around_an_application_without_lifespan() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http", scope["type"]

    store = holdfast.open("memory://")
    server = Server(StoreMiddleware(application, store), store)
    await server.run()
    assert server.heard == LIFE


async def test_an_application_that_fails_to_start_leaves_nothing_open() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("cannot start")

    store = holdfast.open("memory://")
    server = Server(StoreMiddleware(application, store), store)
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="cannot start")):
        await server.run()
    assert not store.is_open


async def test_a_store_that_cannot_be_opened_fails_the_startup() -> None:
    backend = FaultyBackend(MemoryBackend())
    backend.inject(FaultKind.UNAVAILABLE, "open")
    store = holdfast.Supervisor(backend)
    server = Server(StoreMiddleware(Starlette(), store), store)
    await server.run()
    assert server.heard == [("startup.failed", False)]


async def test_requests_find_the_store() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(scope["state"]["holdfast"])

    store = holdfast.open("memory://")
    found: list[Any] = []

    async def send(message: Any) -> None:
        found.append(message)

    await StoreMiddleware(application, store)({"type": "http"}, send, send)  # type: ignore[arg-type]
    assert found == [store]


async def test_starlette_lifespan() -> None:
    store = holdfast.open("memory://")
    async with lifespan(store)(object()) as state:
        assert state == {"holdfast": store}
        assert store.is_open
    assert not store.is_open
