"""The stores that are measured: who competes on each, at which size, and which bars are to be cleared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final, Literal, NamedTuple, cast, get_args

from bench.competitors.base import Competitor
from bench.figures import Bar

__all__ = ["STORES", "Peer", "Scale", "Store", "StoreName", "competitor"]

StoreName = Literal["sqlite", "postgres", "valkey", "dynamodb"]


class Scale(NamedTuple):
    """How many events one run appends in all: by stores that batch, and by those that flush for each."""

    batching: int
    single: int


class Peer(NamedTuple):
    """A competitor that Holdfast is divided by."""

    name: str
    ratio: str
    """What the tables call it."""
    bar: Bar | None = None
    """Of the throughput with 1,000 sessions waiting."""
    latency_bar: Bar | None = None
    """Of the median latency of a session alone."""


class Store(NamedTuple):
    """What is measured on one store."""

    title: str
    levels: Sequence[str]
    """The durability that everybody is held to; the first is the default."""
    competitors: Mapping[str, str]
    """Where each is found; imported only in the process that measures it."""
    peers: Sequence[Peer]
    scales: Mapping[int, Scale]
    """By the number of sessions; the largest is for any other number."""
    bursts: bool = True
    """Whether every competitor's rows come out right with several appends of a session in flight."""
    alone_only: frozenset[str] = frozenset()
    """Who competes only where one session is alone."""

    def names(self, sessions: int) -> list[str]:
        """The competitors where so many sessions are waiting."""
        return [name for name in self.competitors if sessions == 1 or name not in self.alone_only]

    def scale(self, sessions: int) -> Scale:
        return self.scales.get(sessions) or self.scales[max(self.scales)]


STORES: Final[Mapping[StoreName, Store]] = {
    "sqlite": Store(
        title="SQLite",
        levels=("disk",),
        competitors={
            "holdfast": "bench.competitors.sqlite.holdfast:HoldfastSqlite",
            "bulk": "bench.competitors.sqlite.bulk:AiosqliteBulk",
            "each": "bench.competitors.sqlite.each:AiosqliteEach",
            "inline": "bench.competitors.sqlite.inline:Sqlite3Inline",
            "mcp-persist": "bench.competitors.sqlite.mcp_persist:McpPersist",
        },
        alone_only=frozenset({"inline"}),
        peers=(
            Peer("bulk", "ceiling", Bar(at_least=0.5)),
            Peer("each", "a commit per append", latency_bar=Bar(at_most=1.5)),
            Peer("mcp-persist", "mcp-persist", Bar(at_least=5.0)),
        ),
        scales={1: Scale(2_000, 2_000), 100: Scale(50_000, 5_000), 1_000: Scale(100_000, 10_000)},
    ),
    "postgres": Store(
        title="PostgreSQL",
        levels=("disk",),
        competitors={
            "holdfast": "bench.competitors.postgres.holdfast:HoldfastPostgres",
            "bulk": "bench.competitors.postgres.bulk:AsyncpgBulk",
            "each": "bench.competitors.postgres.each:AsyncpgEach",
            "mcp-persist": "bench.competitors.postgres.mcp_persist:McpPersist",
        },
        peers=(
            Peer("bulk", "ceiling", Bar(at_least=0.4)),
            Peer("each", "a commit per append", Bar(at_least=5.0)),
            Peer("mcp-persist", "mcp-persist", Bar(at_least=5.0)),
        ),
        scales={1: Scale(2_000, 2_000), 100: Scale(50_000, 10_000), 1_000: Scale(100_000, 20_000)},
    ),
    "valkey": Store(
        title="Valkey",
        bursts=False,
        levels=("disk", "process"),
        competitors={
            "holdfast": "bench.competitors.valkey.holdfast:HoldfastValkey",
            "each": "bench.competitors.valkey.each:RedisEach",
            "mcp-persist": "bench.competitors.valkey.mcp_persist:McpPersist",
        },
        peers=(
            Peer("each", "a call per append", Bar(at_least=3.0)),
            Peer("mcp-persist", "mcp-persist", Bar(at_least=3.0)),
        ),
        scales={1: Scale(2_000, 2_000), 100: Scale(50_000, 10_000), 1_000: Scale(100_000, 20_000)},
    ),
    "dynamodb": Store(
        title="DynamoDB emulator",
        levels=("process",),
        competitors={
            "holdfast": "bench.competitors.dynamodb.holdfast:HoldfastDynamoDB",
            "each": "bench.competitors.dynamodb.each:TransactionEach",
            "pair": "bench.competitors.dynamodb.each:PairEach",
        },
        peers=(
            Peer("each", "a transaction per append", Bar(at_least=3.0)),
            Peer("pair", "two writes per append", Bar(at_least=3.0)),
        ),
        scales={1: Scale(200, 200), 100: Scale(10_000, 2_000), 1_000: Scale(20_000, 4_000)},
    ),
}

assert set(STORES) == set(get_args(StoreName))


def competitor(store: StoreName, name: str) -> type[Competitor]:
    """Its class; imports the driver. Raises: `KeyError`."""
    module, _, attribute = STORES[store].competitors[name].partition(":")
    return cast("type[Competitor]", getattr(import_module(module), attribute))
