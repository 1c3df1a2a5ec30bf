"""The story of several servers on one store, behind a proxy without sticky sessions; two of them are killed."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import anyio
from mcp.client.session import ClientSession

from holdfast.demo.process import ProxyProcess, ServerProcess
from holdfast.demo.result import DemoResult
from holdfast.demo.story import FACTS, Story
from holdfast.demo.timeline import Timeline

__all__ = ["Instances"]

_BREAK_AT: Final = 8
_KILL_AT: Final = 20
_KILL_AGAIN_AT: Final = 30
_LEASE_S: Final = 3.0


class Instances(Story):
    """Any instance answers any request."""

    def __init__(self, folder: Path, url: str, timeline: Timeline, *, instances: int, store: str) -> None:
        """``store``: what to call the store."""
        super().__init__(folder, timeline, instances=instances)
        numbers = range(1, instances + 1)
        self.servers = [ServerProcess(folder, url, number=number, lease_s=_LEASE_S) for number in numbers]
        self.proxy = ProxyProcess(folder, self.servers)
        self._store = store

    async def tell(self) -> DemoResult:
        async with AsyncExitStack() as stack:
            async with anyio.create_task_group() as tasks:
                for process in (*self.servers, self.proxy):
                    tasks.start_soon(stack.enter_async_context, process.running())
            self._introduce()
            async with self.client(self.proxy.url) as client:
                await self._write_and_read(client)
                await self._follow_elsewhere(client)
                await self._kill_in_mid_stream(client)
                await self.survey(client)
                return await self.judge(client)

    def _introduce(self) -> None:
        say = self.timeline.say
        pids = ", ".join(str(server.pid) for server in self.servers)
        say("server", f"{len(self.servers)} instances up on {self._store}: processes {pids}")
        say("server", f"a proxy on 127.0.0.1:{self.proxy.port} gives each request to the next of them")

    async def _write_and_read(self, client: ClientSession) -> None:
        say = self.timeline.say
        writers = await self.remember(client)
        say("client", f"connected (the SDK's client); a tool wrote {len(FACTS)} facts: {_named(writers)}")
        readers: list[int] = []
        while len(set(readers)) < len(self.servers) and len(readers) < 3 * len(self.servers):
            recalled = (await client.call_tool("recall", {})).structured_content
            if recalled == {"facts": FACTS, "volumes": []}:
                readers.append(self.network.runner)
        self.counts.readers = len(set(readers))
        say("client", f"a tool read all of them back: {_named(readers)}")

    async def _follow_elsewhere(self, client: ClientSession) -> None:
        """The tool runs on one instance, the client follows it through another, and the first is killed."""
        say = self.timeline.say
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.survey, client)
            await self.reach(_BREAK_AT)
            say("client", f"follows a tool that runs on instance {self.network.runner}")
            self.network.break_call()
            say("kill", f"the connection breaks after volume {self.volume}; the tool works on")
            await self.reach(_KILL_AT)
            follower = self.network.received[-1].instance
            say("client", f"resumed with its last event id at instance {follower}, follows the tool live from there")
            await self._kill(self.network.runner)
            say("client", f"still connected to instance {follower}, which waits for the dead one's lease to run out")
            await self._restart(self.network.runner)

    async def _kill_in_mid_stream(self, client: ClientSession) -> None:
        """The instance that the client is connected to, and that runs the tool. It stays dead."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.survey, client)
            await self.reach(_KILL_AGAIN_AT)
            await self._kill(self.network.runner)
        self.timeline.say("server", "the proxy passes it over from now on")

    async def _kill(self, number: int) -> None:
        server = self.servers[number - 1]
        pid = server.pid
        await server.kill()
        self.counts.kills += 1
        self.timeline.say("kill", f"kill -9 {pid}: instance {number}, in mid-stream")

    async def _restart(self, number: int) -> None:
        server = self.servers[number - 1]
        await server.start()
        self.timeline.say("server", f"instance {number} up again: process {server.pid}")


def _named(instances: list[int]) -> str:
    return f"instances {', '.join(map(str, instances))}"
