"""A TCP proxy that fails on command: latency, reset, black hole, and a cut at a chosen reply or request.

It knows no protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final

from tests.servers.loop_thread import LoopThread

__all__ = ["TcpProxy"]

Matches = Callable[[bytes], bool]


class TcpProxy(LoopThread):
    """Forwards ``127.0.0.1:port`` to a server; ``with`` starts and stops it.

    All methods may be called from any thread, and have taken effect when they return.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__("tcp-proxy")
        self._target: Final = (host, port)
        self._links: Final[set[_Link]] = set()
        self._server: asyncio.Server | None = None
        self.port = 0
        self.accepted = 0
        """Connections so far."""
        self.cuts = 0
        """Connections cut by `cut_at_reply` and `cut_at_request`."""
        self.delay_s = 0.0
        """Held back for so long, each way."""
        self.flowing: Final = asyncio.Event()
        self.refusing = False
        self.at_reply: Matches | None = None
        self.at_request: Matches | None = None

    def black_hole(self) -> None:
        """Take bytes from both sides and forward none; new connections are accepted and get no answer."""
        self._call(self.flowing.clear)

    def heal(self) -> None:
        """Forward again, what was held back first. Take new connections again."""
        self.refusing = False
        self.delay_s = 0.0
        self._call(self.flowing.set)

    def reset(self) -> None:
        """End all connections that there are with a RST."""
        self._call(self._reset)

    def refuse(self) -> None:
        """Reset all connections, and every new one."""
        self.refusing = True
        self.reset()

    def cut_at_reply(self, matches: Matches) -> None:
        """Reset the next connection on which the server sends bytes that match; these do not get through."""
        self.at_reply = matches

    def cut_at_request(self, matches: Matches) -> None:
        """The same for bytes that the client sends."""
        self.at_request = matches

    def _call(self, function: Callable[[], None]) -> None:
        async def call() -> None:
            function()

        self._run(call())

    async def _start(self) -> None:
        self.flowing.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reset(self) -> None:
        for link in list(self._links):
            link.reset()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refusing:
            _abort(writer)
            return
        try:
            await self.flowing.wait()
            upstream = await asyncio.open_connection(*self._target)
        except (OSError, asyncio.CancelledError):
            _abort(writer)
            return
        link = _Link(self, (reader, writer), upstream)
        self._links.add(link)
        with contextlib.suppress(asyncio.CancelledError):  # by `_stop`; asyncio would log it
            await link.run()
        self._links.discard(link)


class _Link:
    """One connection through the proxy."""

    def __init__(
        self,
        proxy: TcpProxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server

    async def run(self) -> None:
        """Until both sides have ended."""
        try:
            await asyncio.gather(
                self._pump(self._client[0], self._server[1], replies=False),
                self._pump(self._server[0], self._client[1], replies=True),
            )
        finally:
            self.reset()

    def reset(self) -> None:
        for _, writer in (self._client, self._server):
            _abort(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, replies: bool) -> None:
        proxy = self._proxy
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if self._is_to_be_cut(data, replies=replies):
                    proxy.cuts += 1
                    self.reset()
                    return
                if proxy.delay_s:
                    await asyncio.sleep(proxy.delay_s)
                await proxy.flowing.wait()
                writer.write(data)
                await writer.drain()
            await proxy.flowing.wait()  # in a black hole, the end is not seen either
            writer.close()

    def _is_to_be_cut(self, data: bytes, *, replies: bool) -> bool:
        proxy = self._proxy
        matches = proxy.at_reply if replies else proxy.at_request
        if matches is None or not matches(data):
            return False
        if replies:
            proxy.at_reply = None
        else:
            proxy.at_request = None
        return True


def _abort(writer: asyncio.StreamWriter) -> None:
    """Close with a RST, so that the peer gets an error and not an orderly end."""
    found = writer.get_extra_info("socket")
    if found is not None and not writer.is_closing():
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    writer.transport.abort()
