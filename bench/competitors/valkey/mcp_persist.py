"""mcp-persist's Redis event store: what one would add to an MCP server for resumable streams."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, ClassVar, Final

from mcp_persist import RedisEventStore
from mcp_types import JSONRPCNotification

from bench.competitors.base import Place, Workload, await_appends
from bench.competitors.valkey import layout
from bench.payload import MESSAGE
from bench.runner import Loop, Void, run_on

_CONNECTIONS: Final = 16


class McpPersist:
    """A call per event (its script). The pool is ours: with its own, which does not wait, a thousand callers fail.

    Its batching wrapper acknowledges before anything is sent, so it is left out. The message is built beforehand;
    the store makes its JSON.
    """

    label: ClassVar[str] = "mcp-persist"
    loops: ClassVar[tuple[Loop, ...]] = ("asyncio", "uvloop")
    batches: ClassVar[bool] = False

    def __init__(self, place: Place, workload: Workload) -> None:
        self._place = place
        self._workload = workload
        self._streams = [f"session-{index + 1}:_GET_stream" for index in range(workload.sessions)]
        self._message = JSONRPCNotification.model_validate(MESSAGE)
        self._client: Any = None

    async def setup(self) -> None:
        self._client = layout.new_client(self._place, self._workload.connections or _CONNECTIONS)

    async def run(self, latencies_s: list[float] | None) -> None:
        message, streams = self._message, self._streams
        store = RedisEventStore(self._client, key_prefix=_prefix(self._place), ttl=3600)

        def append(index: int) -> Awaitable[object]:
            return store.store_event(streams[index], message)

        await await_appends(self._workload, latencies_s, append)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def stored(self) -> Sequence[int]:
        return run_on("asyncio", _stored, self._place)


def _prefix(place: Place) -> str:
    return f"{place.name}:mcp:"


async def _stored(place: Place) -> list[int]:
    async with layout.new_client(place) as client:
        streams = await layout.scan(client, f"{_prefix(place)}stream:*")
        counts = [int(await client.zcard(stream)) for stream in streams]
        events = len(await layout.scan(client, f"{_prefix(place)}event:*"))
    if events != sum(counts):
        raise Void(f"the streams name {sum(counts)} events, {events} are there")
    return counts
