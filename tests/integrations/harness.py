"""MCP server instances in one process, over one store, that can be killed; and a client that speaks raw HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.lowlevel
import httpx2
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.applications import Starlette
from starlette.routing import Route

from holdfast import Config, Supervisor
from holdfast.backends.memory import MemoryBackend, MemoryData
from holdfast.clock import Clock
from holdfast.config import ActorConfig, WriterConfig
from holdfast.integrations.mcp import HoldfastSessionManager
from holdfast.testing import FaultKind, FaultyBackend
from tests.integrations.asgi_client import in_process

PATH = "/mcp"
VERSION = "2025-11-25"
_OPERATIONS = ("commit", "resolve", "load", "read_events", "list_sessions", "expire", "trim")

# A dead store is given up at once, so that a killed instance does not linger.
CONFIG = Config(
    drain_timeout_s=0.01,
    writer=WriterConfig(retry_for_s=0.001, backoff_initial_s=0.001),
    actors=ActorConfig(overload_wait_s=0.01),
)


class Endpoint:
    """What the SDK's ASGI app is: a class, so that the router does not take it for a plain handler."""

    def __init__(self, manager: HoldfastSessionManager) -> None:
        self.manager = manager

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.manager.handle_request(scope, receive, send)


class Instance:
    """One server process, as far as one event loop can play it."""

    def __init__(self, server: Any, data: MemoryData, clock: Clock, config: Config, options: dict[str, Any]) -> None:
        self.backend = FaultyBackend(MemoryBackend(data))
        self.store = Supervisor(self.backend, config, clock=clock)
        self.manager = HoldfastSessionManager(server, self.store, **options)
        self.app = Starlette(routes=[Route(PATH, Endpoint(self.manager), methods=["GET", "POST", "DELETE"])])
        self.http: httpx2.AsyncClient
        self.user: Any = None
        self._scope = anyio.CancelScope()
        self._stopping = anyio.Event()
        self._ended = anyio.Event()

    async def run(self, *, task_status: Any) -> None:
        try:
            with self._scope:
                async with self.store, self.manager.run(), in_process(self._with_user) as self.http:
                    task_status.started()
                    await self._stopping.wait()
        finally:
            self._ended.set()

    async def _with_user(self, scope: Any, receive: Any, send: Any) -> None:
        if self.user is not None:
            scope = {**scope, "user": self.user}
        await self.app(scope, receive, send)

    def cut_off(self) -> None:
        """Its store does not answer any more."""
        for operation in _OPERATIONS:
            self.backend.inject(FaultKind.UNAVAILABLE, operation, times=None)

    async def kill(self) -> None:
        """As SIGKILL: nothing is stored any more, nothing given up, and all tasks end."""
        self.cut_off()
        self.manager._give_up = anyio.lowlevel.checkpoint
        self._scope.cancel()
        await self.stop()

    async def stop(self) -> None:
        """A clean stop."""
        self._stopping.set()
        with anyio.fail_after(5):
            await self._ended.wait()


@asynccontextmanager
async def instances(server: Any, clock: Clock, **defaults: Any) -> AsyncIterator[Any]:
    """Gives a function that starts an instance; all of them share one store."""
    data = MemoryData()
    async with anyio.create_task_group() as tasks:
        started: list[Instance] = []

        async def start(user: Any = None, config: Config = CONFIG, **options: Any) -> Instance:
            instance = Instance(server, data, clock, config, {**defaults, **options})
            instance.user = user
            started.append(instance)
            await tasks.start(instance.run)
            return instance

        yield start
        for instance in started:
            await instance.stop()


def user(client_id: str, subject: str | None = None) -> AuthenticatedUser:
    return AuthenticatedUser(AccessToken(token="secret-token", client_id=client_id, scopes=[], subject=subject))


def headers(session_id: str | None = None, last_event_id: str | None = None, version: str = VERSION) -> dict[str, str]:
    found = {"accept": "application/json, text/event-stream", "content-type": "application/json"}
    if session_id is not None:
        found |= {"mcp-session-id": session_id, "mcp-protocol-version": version}
    if last_event_id is not None:
        found["last-event-id"] = last_event_id
    return found


def message(method: str | None, params: Any = None, id: Any = None, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"jsonrpc": "2.0", **more}
    if method is not None:
        found["method"] = method
    if params is not None:
        found["params"] = params
    if id is not None:
        found["id"] = id
    return found


def tool_call(name: str, id: Any = 1, /, *, progress: bool = False, **arguments: Any) -> dict[str, Any]:
    params: dict[str, Any] = {"name": name, "arguments": arguments}
    if progress:
        params["_meta"] = {"progressToken": f"token-{id}"}
    return message("tools/call", params, id)


INITIALIZE = {
    "protocolVersion": VERSION,
    "clientInfo": {"name": "raw", "version": "1"},
    "capabilities": {"sampling": {}, "elicitation": {}},
}


async def initialize(http: httpx2.AsyncClient, version: str = VERSION) -> str:
    """The handshake; the session's id."""
    body = message("initialize", {**INITIALIZE, "protocolVersion": version}, 0)
    async with http.stream("POST", PATH, json=body, headers=headers()) as response:
        assert response.status_code == 200, await response.aread()
        session_id = response.headers["mcp-session-id"]
        events = [event async for event in Events(response)]
    assert "result" in events[-1].data, events
    response = await http.post(
        PATH, json=message("notifications/initialized"), headers=headers(session_id, version=version)
    )
    assert response.status_code == 202
    return session_id


class SSE:
    """One server-sent event; ``data`` is None for a priming event."""

    def __init__(self, fields: dict[str, str]) -> None:
        self.id = fields.get("id")
        self.retry = fields.get("retry")
        self.data = json.loads(fields["data"]) if fields.get("data") else None

    def __repr__(self) -> str:
        return f"SSE({self.id}, {self.data})"


class Events:
    """The events of a response, one by one; without priming events if the test does not ask for them."""

    def __init__(self, response: httpx2.Response, *, primings: bool = True) -> None:
        self._lines = response.aiter_lines()
        self._primings = primings

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> SSE:
        fields: dict[str, str] = {}
        async for line in self._lines:
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
            elif fields.get("data") or ("data" in fields and self._primings):
                return SSE(fields)
            else:
                fields = {}  # a comment: a keep-alive
        raise StopAsyncIteration

    async def take(self, count: int) -> list[SSE]:
        return [await anext(self) for _ in range(count)]

    async def rest(self) -> list[SSE]:
        return [event async for event in self]


async def call(http: httpx2.AsyncClient, session_id: str, body: Any, version: str = VERSION) -> list[SSE]:
    """A POST, and all events of its response."""
    async with http.stream("POST", PATH, json=body, headers=headers(session_id, version=version)) as response:
        assert response.status_code == 200, await response.aread()
        return await Events(response).rest()


@asynccontextmanager
async def resumed(
    http: httpx2.AsyncClient, session_id: str, last_event_id: str | None, *, primings: bool = False
) -> AsyncIterator[Events]:
    """A GET, with or without a cursor."""
    async with http.stream("GET", PATH, headers=headers(session_id, last_event_id)) as response:
        assert response.status_code == 200, await response.aread()
        yield Events(response, primings=primings)


async def refused_get(http: httpx2.AsyncClient, session_id: str, last_event_id: str | None = None) -> httpx2.Response:
    response = await http.get(PATH, headers=headers(session_id, last_event_id))
    assert response.status_code >= 400
    return response
