"""The story of one server, which is killed in mid-stream and started again, twice."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import anyio
from mcp.client.session import ClientSession

from holdfast.demo.ledger import read_ledgers
from holdfast.demo.process import ServerProcess
from holdfast.demo.result import DemoResult
from holdfast.demo.story import FACTS, Story
from holdfast.demo.timeline import Timeline

__all__ = ["Restarts"]

_CUT_AT: Final = 8
_KILL_AT: Final = 26
_MISSED: Final = 6
"""Events that the client must get by replay."""


class Restarts(Story):
    """A server that is killed, a client that goes on."""

    def __init__(self, folder: Path, url: str, timeline: Timeline, *, name: str, store: str) -> None:
        """``name``: the server's, at each start, so that what its predecessor left undone is known at once.

        ``store``: what to call the store.
        """
        super().__init__(folder, timeline, instances=1)
        self.server = ServerProcess(folder, url, name=name)
        self._store = store

    async def tell(self) -> DemoResult:
        say, server = self.timeline.say, self.server
        async with server.running():
            say("server", f"up: process {server.pid}, MCP over HTTP on 127.0.0.1:{server.port}, {self._store}")
            async with self.client(server.url) as client:
                await self.remember(client)
                say("client", f"connected (the SDK's client); a tool wrote {len(FACTS)} facts")
                await self._lost_connection(client)
                await self._kill_in_mid_stream(client)
                await self.survey(client)
                return await self.judge(client)

    async def _lost_connection(self, client: ClientSession) -> None:
        """First the network goes, so that the server stores what the client does not get; then the server."""
        say = self.timeline.say
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.survey, client)
            await self.reach(_CUT_AT)
            self.network.cut()
            say("kill", f"the connection breaks after volume {self.volume}; the server works on")
            enough = len(self.network.received) + _MISSED
            while len(read_ledgers(self.folder)[1]) < enough:
                await anyio.sleep(0.01)
            await self._kill()
            await self._restart()

    async def _kill_in_mid_stream(self, client: ClientSession) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.survey, client)
            await self.reach(_KILL_AT)
            self.network.cut()
            await self._kill()
            await self._restart()

    async def _kill(self) -> None:
        pid = self.server.pid
        await self.server.kill()
        self.counts.kills += 1
        self.timeline.say("kill", f"kill -9 {pid}, in mid-stream")

    async def _restart(self) -> None:
        await self.server.start()
        self.timeline.say("server", f"up again: process {self.server.pid}, same port, same store")
        self.network.restore()
