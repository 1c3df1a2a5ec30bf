"""The plain driver, append by append: by a transaction, or by two writes that are not atomic together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, ClassVar, Final

from bench.competitors.base import Place, Workload, await_appends
from bench.competitors.dynamodb import layout
from bench.runner import Loop

_CONNECTIONS: Final = 32


class _Each:
    loops: ClassVar[tuple[Loop, ...]] = ("asyncio", "uvloop")
    batches: ClassVar[bool] = False

    def __init__(self, place: Place, workload: Workload) -> None:
        self.place = place
        self._workload = workload
        self._last_seq = [0] * workload.sessions
        self._resources = AsyncExitStack()
        self.client: Any = None

    async def setup(self) -> None:
        connections = self._workload.connections or _CONNECTIONS
        self.client = await self._resources.enter_async_context(layout.new_client(self.place, connections))
        await layout.create_table(self.place, self.client)

    async def run(self, latencies_s: list[float] | None) -> None:
        async def append(index: int) -> None:
            seq = self._last_seq[index] = self._last_seq[index] + 1
            await self.append(index, seq)

        await await_appends(self._workload, latencies_s, append)

    @abstractmethod
    async def append(self, index: int, seq: int) -> None: ...

    async def close(self) -> None:
        await self._resources.aclose()

    def stored(self) -> Sequence[int]:
        return layout.stored_plainly(self.place)


class TransactionEach(_Each):
    """Event and head in one call of TransactWriteItems, atomic as Holdfast's commits are. Costs twice the units."""

    label: ClassVar[str] = "aiobotocore, a transaction per append"

    async def append(self, index: int, seq: int) -> None:
        await self.client.transact_write_items(
            TransactItems=[
                {"Put": layout.event_put(self.place, index, seq)},
                {"Update": layout.head_update(self.place, index)},
            ]
        )


class PairEach(_Each):
    """PutItem of the event, then UpdateItem of the head: the cheapest in units; a crash may come in between."""

    label: ClassVar[str] = "aiobotocore, PutItem and UpdateItem per append"

    async def append(self, index: int, seq: int) -> None:
        await self.client.put_item(**layout.event_put(self.place, index, seq))
        await self.client.update_item(**layout.head_update(self.place, index))
