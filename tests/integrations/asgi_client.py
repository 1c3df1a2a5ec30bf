"""An HTTP client for an ASGI app in the same process, whose responses stream and can be cut off."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
from anyio.abc import TaskGroup
from starlette.types import ASGIApp, Message

__all__ = ["in_process"]


class _Body(httpx2.AsyncByteStream):
    """Closing it is what a vanished peer looks like to the app."""

    def __init__(self, chunks: Any, gone: anyio.Event) -> None:
        self._chunks = chunks
        self._gone = gone

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with self._chunks:
            async for chunk in self._chunks:
                yield chunk

    async def aclose(self) -> None:
        self._gone.set()
        self._chunks.close()


class _Exchange:
    """One request through the app."""

    def __init__(self, app: ASGIApp, request: httpx2.Request, user: object) -> None:
        self._app = app
        self._request = request
        self._user = user
        self._gone = anyio.Event()
        self._started = anyio.Event()
        self._start: Message = {"status": 500, "headers": []}
        self._send, self._receive = anyio.create_memory_object_stream[bytes](math.inf)

    async def run(self, tasks: TaskGroup) -> httpx2.Response:
        body = await self._request.aread()
        tasks.start_soon(self._serve, self._scope(), body)
        await self._started.wait()
        return httpx2.Response(
            self._start["status"], headers=self._start["headers"], stream=_Body(self._receive, self._gone)
        )

    def _scope(self) -> dict[str, Any]:
        url = self._request.url
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self._request.method,
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path,
            "query_string": url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in self._request.headers.raw],
            "client": ("127.0.0.1", 9),
            "server": (url.host, url.port),
        }
        if self._user is not None:
            scope["user"] = self._user
        return scope

    async def _serve(self, scope: dict[str, Any], body: bytes) -> None:
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            await self._gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._start = message
                self._started.set()
                return
            if not self._gone.is_set() and message.get("body"):
                await self._send.send(message["body"])
            if not message.get("more_body", False):
                self._send.close()

        try:
            await self._app(scope, receive, send)
        finally:
            self._started.set()
            self._send.close()


class _Transport(httpx2.AsyncBaseTransport):
    def __init__(self, app: ASGIApp, tasks: TaskGroup, user: object) -> None:
        self._app = app
        self._tasks = tasks
        self._user = user

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return await _Exchange(self._app, request, self._user).run(self._tasks)


@asynccontextmanager
async def in_process(app: ASGIApp, *, user: object = None) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the app; ``user`` is what an authentication middleware would have found out."""
    async with anyio.create_task_group() as tasks:
        async with httpx2.AsyncClient(transport=_Transport(app, tasks, user), base_url="http://127.0.0.1:1") as client:
            yield client
        tasks.cancel_scope.cancel()
