"""The demo's round-robin proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import httpx2
import pytest
from anyio.abc import SocketAttribute, SocketStream

from holdfast.demo.process import free_port
from holdfast.demo.proxy import SERVED_BY, RoundRobin
from tests.integrations.asgi_client import in_process

pytestmark = pytest.mark.anyio

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Backend:
    """Sends one piece of a body, and the rest when it may."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.go_on = anyio.Event()
        self.left = anyio.Event()
        self.url = ""

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            self.requests.append(await stream.receive())
            await stream.send(HEAD + b"3\r\none\r\n")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._notice, stream)
                await self.go_on.wait()
                tasks.cancel_scope.cancel()
            if not self.left.is_set():
                await stream.send(b"3\r\ntwo\r\n0\r\n\r\n")

    async def _notice(self, stream: SocketStream) -> None:
        with anyio.move_on_after(30):
            try:
                while True:
                    await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                self.left.set()
                self.go_on.set()


@asynccontextmanager
async def serving(*backends: Backend) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        for backend in backends:
            listener = await stack.enter_async_context(await anyio.create_tcp_listener(local_host="127.0.0.1"))
            backend.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
            tasks.start_soon(listener.serve, backend.serve)
        with anyio.fail_after(20):
            yield
        tasks.cancel_scope.cancel()


def dead() -> str:
    return f"http://127.0.0.1:{free_port()}"


async def served_by(http: httpx2.AsyncClient) -> str:
    return (await http.post("/x", content=b"{}")).headers[SERVED_BY]


async def test_each_request_goes_to_the_next_backend_and_a_dead_one_is_passed_over() -> None:
    first, third = Backend(), Backend()
    first.go_on.set()
    third.go_on.set()
    async with serving(first, third), in_process(RoundRobin([first.url, dead(), third.url])) as http:
        assert [await served_by(http) for _ in range(5)] == ["1", "3", "1", "3", "1"]
    assert first.requests[0].startswith(b"POST /x HTTP/1.1")


async def test_a_body_is_passed_on_piece_by_piece() -> None:
    backend = Backend()
    async with serving(backend), in_process(RoundRobin([backend.url])) as http, http.stream("GET", "/x") as response:
        pieces = response.aiter_raw()
        assert await anext(pieces) == b"one"
        backend.go_on.set()
        assert await anext(pieces) == b"two"


async def test_a_client_that_leaves_leaves_the_backend_too() -> None:
    backend = Backend()
    async with serving(backend), in_process(RoundRobin([backend.url])) as http:
        async with http.stream("GET", "/x") as response:
            assert await anext(response.aiter_raw()) == b"one"
        await backend.left.wait()


async def test_without_any_backend_the_service_is_unavailable() -> None:
    async with in_process(RoundRobin([dead(), dead()])) as http:
        assert (await http.get("/x")).status_code == 503
