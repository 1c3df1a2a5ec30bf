"""What all of the demo's stories share: one client, one tool that takes its time, a verdict."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2
from mcp.client.session import ClientSession
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from holdfast.demo.ledger import read_ledgers
from holdfast.demo.network import Network
from holdfast.demo.result import Counts, DemoResult, judge
from holdfast.demo.server import PATH, VOLUMES
from holdfast.demo.timeline import Timeline
from holdfast.integrations.mcp import REQUEST_LOST

__all__ = ["FACTS", "Story"]

FACTS: Final = {"owner": "Ada", "title": "The Holdfast Library", "motto": "tiens bon — 持ちこたえろ ⚓"}


class Story:
    """One run. Servers keep their ledgers in ``folder``."""

    def __init__(self, folder: Path, timeline: Timeline, *, instances: int) -> None:
        self.folder = folder
        self.timeline = timeline
        self.counts = Counts(instances=instances)
        self.network = Network()
        self.volume = 0
        """The last one that the client was told of."""
        self._reached = anyio.Event()
        self._until = VOLUMES

    @asynccontextmanager
    async def client(self, url: str) -> AsyncGenerator[ClientSession, None]:
        """The SDK's client, connected."""
        async with (
            httpx2.AsyncClient(transport=self.network, timeout=30) as http,
            streamable_http_client(url + PATH, http_client=http) as (read, write),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            while not self.network.streams:  # the stream that belongs to no call, opened beside what follows
                await anyio.sleep(0.01)
            yield client

    async def remember(self, client: ClientSession) -> list[int]:
        """Have a tool write the facts; the instances that did."""
        instances: list[int] = []
        for name, value in FACTS.items():
            await client.call_tool("remember", {"name": name, "value": value})
            instances.append(self.network.runner)
        return instances

    async def survey(self, client: ClientSession) -> None:
        """One call of the streaming tool, from the request to its end, over however many connections."""
        first, before = self.volume + 1, len(self.network.received)
        try:
            result = await client.call_tool("survey", {}, progress_callback=self._on_progress)
            done: dict[str, Any] = result.structured_content or {}
            outcome = f"the tool went on from its checkpoint at volume {done.get('from')} and finished"
        except MCPError as exc:
            if exc.error.code != REQUEST_LOST:
                raise
            self.counts.errors += 1
            outcome = f"error {exc.error.code}: {exc.error.message.partition('.')[0]}"
        replayed = sum(event.replayed for event in self.network.received[before:])
        if replayed:
            events = "1 event" if replayed == 1 else f"{replayed} events"
            self.timeline.say("client", f"got {events} of this call after it had resumed with its last event id")
        self.timeline.progress(f"volumes {first}–{self.volume}", first, self.volume, VOLUMES)
        self.timeline.say("client", outcome)

    async def reach(self, volume: int) -> None:
        """Wait until the client was told of ``volume``."""
        self._until, self._reached = volume, anyio.Event()
        if self.volume < volume:
            await self._reached.wait()

    async def _on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        self.volume = int(progress)
        if self.volume >= self._until:
            self._reached.set()

    async def judge(self, client: ClientSession) -> DemoResult:
        """Look at everything, once the last call is done."""
        recalled = (await client.call_tool("recall", {})).structured_content
        return judge(
            self.counts,
            ledgers=read_ledgers(self.folder),
            received=self.network.received,
            answered=self.network.answered,
            state_intact=recalled == {"facts": FACTS, "volumes": list(range(1, VOLUMES + 1))},
            timeline=self.timeline,
        )
