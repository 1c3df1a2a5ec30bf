"""ASGI handiwork: bodies read ahead, headers added, responses watched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from mcp_types import ErrorData, JSONRPCError
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

__all__ = ["SendWatch", "error_response", "read_body", "replay_body", "with_header"]


async def read_body(receive: Receive) -> bytes | None:
    """A request's whole body; None if the client left before it was all there."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)


def replay_body(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives the body that was read already, then goes on with the real one."""
    pending: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replayed() -> Message:
        nonlocal pending
        if pending is None:
            return await receive()
        message, pending = pending, None
        return message

    return replayed


def with_header(scope: Scope, name: str, value: str) -> Scope:
    """A copy of the scope whose header ``name`` (lower case) is ``value``."""
    key = name.encode("ascii")
    others = [header for header in scope["headers"] if header[0].lower() != key]
    return {**scope, "headers": [*others, (key, value.encode("ascii"))]}


class SendWatch:
    """A ``send`` that remembers the status.

    ``before`` runs before the start of a successful response is passed on: it is what must be done
    by the time that the client sees it.
    """

    def __init__(self, send: Send, *, before: Callable[[], Awaitable[object]] | None = None) -> None:
        self.status: int | None = None
        self._send = send
        self._before = before

    @property
    def succeeded(self) -> bool:
        return self.status is not None and self.status < 400

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self._before is not None and self.succeeded:
                await self._before()
        await self._send(message)


def error_response(status: int, code: int, message: str, data: object = None) -> Response:
    """An HTTP error that carries a JSON-RPC error without a request id, as the SDK's own do."""
    error = ErrorData(code=code, message=message) if data is None else ErrorData(code=code, message=message, data=data)
    body = JSONRPCError(jsonrpc="2.0", id=None, error=error)
    return Response(
        body.model_dump_json(by_alias=True, exclude_unset=True), status_code=status, media_type="application/json"
    )
