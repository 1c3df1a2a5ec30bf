"""``python -m holdfast.demo.proxy PORT BACKEND_URL…``: a small load balancer without sticky sessions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Final

import anyio
import httpx2
import uvicorn
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from holdfast.demo.process import end_with_parent

__all__ = ["SERVED_BY", "RoundRobin", "main"]

SERVED_BY: Final = "served-by"
"""The response header that names the backend, counted from 1."""

_HOP_BY_HOP: Final = frozenset({"connection", "host", "keep-alive", "transfer-encoding", "upgrade"})
_TIMEOUT: Final = httpx2.Timeout(None, connect=5.0)


class RoundRobin:
    """An ASGI app: each request goes to the next backend, or to the one after it where that is down.

    A response is passed on as it comes. If its backend dies in the middle, the client's connection breaks too.
    """

    def __init__(self, backends: Sequence[str]) -> None:
        self._backends = list(backends)
        self._next = 0
        # No connection is used twice, so that a backend that is down is noticed before anything was sent to it.
        self._client = httpx2.AsyncClient(timeout=_TIMEOUT, limits=httpx2.Limits(max_keepalive_connections=0))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            return
        async with anyio.create_task_group() as tasks:

            async def stop_when_left() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(stop_when_left)
            await self._serve(scope, body, receive, send)
            tasks.cancel_scope.cancel()

    async def _serve(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        for number in self._turns():
            try:
                response = await self._client.send(self._request(number, scope, body), stream=True)
            except httpx2.ConnectError:
                continue  # nothing was sent, so the next may have it
            except httpx2.TransportError as exc:
                await PlainTextResponse(f"the backend failed: {type(exc).__name__}", 502)(scope, receive, send)
                return
            await _pass_on(response, number, send)
            return
        await PlainTextResponse("no backend is up", 503)(scope, receive, send)

    def _turns(self) -> Iterator[int]:
        """Every backend once, first the one whose turn it is."""
        for _ in self._backends:
            number, self._next = self._next, (self._next + 1) % len(self._backends)
            yield number

    def _request(self, number: int, scope: Scope, body: bytes) -> httpx2.Request:
        headers = [(name, value) for name, value in Headers(scope=scope).items() if name not in _HOP_BY_HOP]
        return self._client.build_request(
            scope["method"], self._backends[number] + scope["path"], headers=headers, content=body
        )


async def _pass_on(response: httpx2.Response, number: int, send: Send) -> None:
    headers = [(name, value) for name, value in response.headers.items() if name not in _HOP_BY_HOP]
    headers.append((SERVED_BY, str(number + 1)))
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    try:
        await send({"type": "http.response.start", "status": response.status_code, "headers": raw})
        async for chunk in response.aiter_raw():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        with anyio.CancelScope(shield=True):
            await response.aclose()


def main(port: int, backends: Sequence[str]) -> None:
    """Serve on loopback until killed."""
    end_with_parent()
    uvicorn.run(
        RoundRobin(backends),
        host="127.0.0.1",
        port=port,
        log_level="warning",
        lifespan="off",
        server_header=False,
        date_header=False,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
