"""What the tests of journals share: two instances on one table, and ten sessions that are appended to together."""

from __future__ import annotations

from typing import Any

from holdfast.backends.base import Head, Outcome, Status
from holdfast.backends.dynamodb import DynamoDBBackend, journals
from holdfast.backends.dynamodb.items import Item
from holdfast.backends.dynamodb.journal import partition
from holdfast.testing.contract.direct import Direct, blind, new_event, texts
from tests.servers.http_proxy import HttpProxy

SECOND = 1_000_000
DAY_S = 86_400
IDS = [f"s{number}" for number in range(10)]
ANY_JOURNAL = partition("").encode()
"""In the body of a request to one."""


class Crowd:
    """Ten sessions that are appended to together, and what was acknowledged."""

    def __init__(self, direct: Direct, heads: list[Head]) -> None:
        self.direct = direct
        self.heads = heads
        self.acked: dict[str, list[str]] = {head.id: [] for head in heads}

    async def append(self, times: int = 1, *, only: int = 10, **fields: Any) -> None:
        for _ in range(times):
            heads = self.heads[:only]
            texts = [str(len(self.acked[head.id]) + 1) for head in heads]
            writes = [blind(head, events=[new_event(text)], **fields) for head, text in zip(heads, texts, strict=True)]
            outcomes = await self.direct.commit(*writes)
            self.settle(outcomes)

    def settle(self, outcomes: list[Outcome] | None) -> None:
        assert outcomes is not None
        for head, outcome in zip(self.heads, outcomes, strict=False):
            assert outcome.status is Status.COMMITTED
            assert outcome.base_seq == len(self.acked[head.id])
            self.acked[head.id].append(str(outcome.base_seq + 1))

    async def check(self, reader: Direct) -> None:
        for head in self.heads:
            events = await reader.events(head)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert texts(events) == self.acked[head.id], head.id


def journals_of(backend: DynamoDBBackend) -> list[journals.Journal]:
    return backend._heads.journals.open_ones


async def slots(backend: DynamoDBBackend, journal: str) -> list[Item]:
    return [item async for page in backend._table.range(partition(journal), "0", "9") for item in page]


async def head_item(backend: DynamoDBBackend, session_id: str) -> Item:
    [[item]] = [page async for page in backend._table.range(session_id, "H", "H")]
    return item


def puts(proxy: HttpProxy) -> int:
    return proxy.actions["PutItem"] + proxy.actions["TransactWriteItems"]
