"""`DynamoDBBackend`: the `Backend` protocol over one table."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, TypeVar, TypeVarTuple

import anyio

from holdfast.backends.base import (
    Batch,
    Capabilities,
    EventPage,
    EventQuery,
    Expired,
    LoadRequest,
    Marker,
    Outcome,
    SessionFilter,
    SessionPage,
    Snapshot,
    TrimPolicy,
)
from holdfast.backends.bridge import Bridge
from holdfast.backends.dynamodb import limits, reads
from holdfast.backends.dynamodb.cache import HeadCache
from holdfast.backends.dynamodb.client import Table
from holdfast.backends.dynamodb.commit import Committer
from holdfast.backends.dynamodb.config import DynamoDBConfig
from holdfast.backends.dynamodb.heads import Heads
from holdfast.backends.dynamodb.markers import forget_markers, has_marker, leave_marker
from holdfast.backends.dynamodb.schema import create_table, describe_table, verify_table
from holdfast.backends.dynamodb.upkeep import Upkeep
from holdfast.errors import Rejected, StoreClosed
from holdfast.model import Durability

__all__ = ["DynamoDBBackend"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_PREFERRED_LANES: Final = 4
_AWS_DOMAINS: Final = (".amazonaws.com", ".amazonaws.com.cn", ".api.aws")


class DynamoDBBackend:
    """One table, any number of instances. Nothing runs in the background, and nothing is pending between calls."""

    def __init__(self, config: DynamoDBConfig) -> None:
        self._config: Final = config
        self._bridge: Final = Bridge("holdfast-dynamodb")
        self._table: Final = Table(config)
        self._heads: Final = Heads(self._table, HeadCache())
        self._committer: Final = Committer(self._heads, config.journal_from)
        self._upkeep: Final = Upkeep(self._heads)
        self._capabilities: Capabilities | None = None

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise StoreClosed("the store is not open")
        return self._capabilities

    async def open(self) -> None:
        """As the protocol says. With neither ``create`` nor ``verify``, nothing is sent."""
        try:
            await self._bridge.start()
            await self._bridge.call(self._table.open)
            if self._config.create:
                await self._bridge.call(create_table, self._table, self._config.create_timeout_s)
            elif self._config.verify:
                await self._bridge.call(verify_table, self._table)
        except BaseException:
            await self.close()
            raise
        self._capabilities = self._find_capabilities()

    def _find_capabilities(self) -> Capabilities:
        """AWS acknowledges a write when it is on storage in two zones. What an emulator does, nobody says."""
        host = self._table.endpoint.rpartition(":")[0] or self._table.endpoint
        at_aws = host.endswith(_AWS_DOMAINS)
        return Capabilities(
            name="dynamodb",
            durability=Durability.REPLICATED if at_aws else Durability.PROCESS,
            exclusive=False,
            watches=False,
            preferred_lanes=_PREFERRED_LANES,
            max_value_bytes=limits.MAX_VALUE_BYTES,
            max_event_bytes=limits.MAX_EVENT_BYTES,
            max_unit_bytes=limits.MAX_UNIT_BYTES,
            max_unit_keys=limits.MAX_UNIT_KEYS,
        )

    async def close(self) -> None:
        """As the protocol says. What is in journals is put in its place, as far as that is soon done."""
        with anyio.CancelScope(shield=True):
            try:
                with contextlib.suppress(StoreClosed):
                    await self._bridge.call(self._heads.close)
                    await self._bridge.call(self._table.close)
            finally:
                await self._bridge.stop()

    async def commit(self, batch: Batch) -> list[Outcome]:
        if not batch.writes:
            await self._run(leave_marker, self._table, batch)
            return []
        return await self._run(self._committer.commit, batch)

    async def resolve(self, marker: Marker) -> list[Outcome] | None:
        """Finish the flush, if this object attempted it; so the answer is None only for what it never did."""
        attempt = self._committer.attempt(marker)
        if attempt is None:
            return [] if await self._run(has_marker, self._table, marker) else None
        try:
            return await self._run(attempt.run)
        except Rejected:  # it will be tried again, in halves; what of it is done is known then
            return None

    async def forget_markers(self, writer: str | None, before_us: int) -> None:
        self._committer.forget(writer, before_us)
        await self._run(forget_markers, self._table, writer, before_us)

    async def load(self, requests: Sequence[LoadRequest]) -> list[Snapshot | None]:
        return await self._run(reads.load, self._heads, requests)

    async def read_events(self, query: EventQuery) -> EventPage | None:
        return await self._run(reads.read_events, self._heads, query)

    async def list_sessions(self, where: SessionFilter, after: int, limit: int) -> SessionPage:
        return await self._run(reads.list_sessions, self._heads, where, after, limit)

    async def count_sessions(self, where: SessionFilter) -> int:
        return await self._run(reads.count_sessions, self._heads, where)

    async def expire(self, now_us: int, limit: int) -> list[Expired]:
        """Shielded once begun, so that the ids of what was removed reach the caller."""
        gone = list[Expired]()
        with anyio.CancelScope(shield=True):
            gone += await self._run(self._upkeep.expire, now_us, limit)
        return gone

    async def trim(self, ids: Sequence[tuple[str, int]] | None, policy: TrimPolicy, limit: int) -> int:
        if ids is None:
            return await self._run(self._upkeep.trim_all, policy, limit)
        return await self._run(self._upkeep.trim_these, ids, policy, limit)

    async def watch(self, changed: Callable[[Collection[int] | None], None]) -> None:
        """Never called: nothing tells of others' commits, so the engine polls what somebody listens to."""
        await anyio.sleep_forever()

    async def describe(self) -> dict[str, object]:
        found = await self._run(describe_table, self._table)
        billing: dict[str, str] = found.get("BillingModeSummary") or {}
        return {
            "backend": "dynamodb",
            "table": self._table.name,
            "region": self._table.region,
            "endpoint": self._table.endpoint,
            "durability": self.capabilities.durability.value,
            "status": found.get("TableStatus"),
            "billing": billing.get("BillingMode", "PROVISIONED"),
            "items_some_hours_ago": found.get("ItemCount"),
            "bytes_some_hours_ago": found.get("TableSizeBytes"),
        }

    async def _run(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        return await self._bridge.call(function, *args)
