"""The client's side of the network: it can be cut, and it writes down every event that passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator

import anyio
import httpx2
import msgspec

from holdfast.demo.ledger import Received
from holdfast.demo.proxy import SERVED_BY

__all__ = ["Network"]


class Network(httpx2.AsyncBaseTransport):
    """An HTTP transport for the MCP client, around the real one.

    While it is down, open responses break and new requests wait. Nothing else is done for the
    client: that it reconnects, and from where, is its own doing.
    """

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answered: Counter[int] = Counter()
        """How many requests each instance has answered."""
        self.runner = 1
        """The instance that took the newest call."""
        self.streams: set[_Watched] = set()
        """The responses that are open."""
        self._inner = httpx2.AsyncHTTPTransport()
        self._up = anyio.Event()
        self._up.set()

    def cut(self) -> None:
        """Break every open connection, and let no new one through."""
        self._up = anyio.Event()
        for stream in self.streams:
            stream.sever()

    def restore(self) -> None:
        self._up.set()

    def break_call(self) -> None:
        """Break the connection of the call that runs, alone and once."""
        for stream in self.streams:
            if stream.is_call:
                stream.sever()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await self._up.wait()
        response = await self._inner.handle_async_request(request)
        instance = int(response.headers.get(SERVED_BY, "1"))
        self.answered[instance] += 1
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            return response
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        if request.method == "POST":
            self.runner = instance
        stream = _Watched(response.stream, self, request, instance)
        return httpx2.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Watched(httpx2.AsyncByteStream):
    """A response's body: passed on event by event, and noted."""

    def __init__(self, inner: httpx2.AsyncByteStream, network: Network, request: httpx2.Request, instance: int) -> None:
        self.is_call = request.method == "POST"
        self._inner = inner
        self._network = network
        self._replayed = "last-event-id" in request.headers
        self._instance = instance
        self._severed = False
        self._reading: anyio.CancelScope | None = None
        network.streams.add(self)

    def sever(self) -> None:
        self._severed = True
        if self._reading is not None:
            self._reading.cancel()

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        pending = b""
        chunks = aiter(self._inner)
        while (chunk := await self._next(chunks)) is not None:
            *events, pending = (pending + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                self._check()
                self._note(event)
                yield event + b"\n\n"

    async def _next(self, chunks: AsyncIterator[bytes]) -> bytes | None:
        """The next piece; None at the end."""
        self._check()
        chunk: bytes | None = None
        with anyio.CancelScope() as self._reading:
            chunk = await anext(chunks, None)
        self._check()
        return chunk

    def _check(self) -> None:
        if self._severed:
            raise httpx2.ReadError("the network was cut")

    def _note(self, event: bytes) -> None:
        fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line and line[:1] != b":")
        if fields.get(b"id") and fields.get(b"data"):
            data = msgspec.json.decode(fields[b"data"])
            self._network.received.append(Received(fields[b"id"].decode(), data, self._replayed, self._instance))

    async def aclose(self) -> None:
        self._network.streams.discard(self)
        await self._inner.aclose()
