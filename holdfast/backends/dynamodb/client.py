"""The table as the rest of the backend sees it: a few calls that try again, and speak Holdfast's errors.

The SDK's own retries are off. It would try a request again that may have been applied, and hide
that from us; here every write carries a condition that lets it take effect once only, so that what
comes back after a broken request tells what became of it.
"""

from __future__ import annotations

import asyncio
import functools
import io
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from hashlib import blake2b
from typing import Any, Final
from urllib.parse import urlsplit

import aiobotocore  # type: ignore[import-untyped]
import botocore  # type: ignore[import-untyped]
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore.exceptions import BotoCoreError, ProfileNotFound  # type: ignore[import-untyped]
from botocore.loaders import Loader, create_loader  # type: ignore[import-untyped]

from holdfast.backends.dynamodb.config import DynamoDBConfig
from holdfast.backends.dynamodb.errors import SDK_ERRORS, Kind, condition_failed, error_code, judge_failure, translate
from holdfast.backends.dynamodb.items import HEAD_KEY, Item, Stored, decode_head, key_of
from holdfast.errors import ConfigError, StoreClosed, Unavailable

__all__ = ["Table"]

_ATTEMPTS: Final = 5
_FIRST_DELAY_S: Final = 0.02
_LONGEST_DELAY_S: Final = 0.5
_GET_BATCH: Final = 100
"""Keys in one BatchGetItem."""
_WRITE_BATCH: Final = 25
"""Requests in one BatchWriteItem."""
_LARGE_BODY_BYTES: Final = 1 << 20


class Table:
    """A client of one table. Every coroutine runs on the asyncio loop that opened it."""

    def __init__(self, config: DynamoDBConfig) -> None:
        self.name: Final = config.table
        self._config: Final = config
        self._exits: AsyncExitStack | None = None
        self._client: Any = None
        self._slots = asyncio.Semaphore(config.max_concurrency)

    async def open(self) -> None:
        """Make the client; nothing is sent. Raises: `ConfigError`."""
        config = self._config
        self._slots = asyncio.Semaphore(config.max_concurrency)  # of this event loop
        exits = AsyncExitStack()
        try:
            session: Any = AioSession(profile=config.profile)
            session.register_component("data_loader", _loader())
            self._client = await exits.enter_async_context(
                session.create_client(
                    "dynamodb",
                    region_name=config.region,
                    endpoint_url=config.endpoint,
                    config=AioConfig(
                        retries={"total_max_attempts": 1},
                        max_pool_connections=config.max_concurrency,
                        connect_timeout=config.connect_timeout_s,
                        read_timeout=config.request_timeout_s,
                        parameter_validation=False,
                        tcp_keepalive=True,
                        user_agent=_user_agent(),  # else the SDK puts it together anew, twice for each request
                    ),
                )
            )
        except ProfileNotFound as exc:
            await exits.aclose()
            raise ConfigError("profile", str(exc)) from exc
        except (BotoCoreError, ValueError) as exc:
            await exits.aclose()
            raise ConfigError("region" if "region" in str(exc) else "endpoint", str(exc)) from exc
        self._exits = exits
        self._client.meta.events.register("before-send.dynamodb", _send_large_bodies_in_pieces)

    async def close(self) -> None:
        exits, self._exits, self._client = self._exits, None, None
        if exits is not None:
            await exits.aclose()

    @property
    def endpoint(self) -> str:
        """Host and port that requests go to."""
        return urlsplit(str(self._connected.meta.endpoint_url)).netloc

    @property
    def region(self) -> str:
        return str(self._connected.meta.region_name)

    @property
    def _connected(self) -> Any:
        if self._client is None:
            raise StoreClosed("the store is closed")
        return self._client

    async def call(self, operation: str, *, writes: bool = False, attempts: int = _ATTEMPTS, **params: Any) -> Any:
        """One request, tried again on passing errors with growing, jittered delays.

        Raises: `ConditionFailed`; `OutcomeUnknown` if it ``writes`` and may have taken effect; else
        `Unavailable`, `Rejected` or `SchemaError`, with nothing done. A cancellation leaves the
        request done or not.
        """
        backoff, was_sent = _Backoff(attempts), False
        while True:
            try:
                async with self._slots:
                    return await getattr(self._connected, operation)(**params)
            except SDK_ERRORS as exc:
                failed = condition_failed(exc)
                if failed is not None:
                    raise failed from exc
                kind = judge_failure(exc).kind
                was_sent |= writes and kind is Kind.BROKEN
                if kind is Kind.REFUSED or not backoff.may_go_on:
                    raise translate(exc, was_sent=was_sent) from exc
            await backoff.wait()

    async def create(self, definition: dict[str, Any]) -> None:
        """Ask for the table; another instance may have been faster."""
        try:
            await self._connected.create_table(**definition)
        except SDK_ERRORS as exc:
            if error_code(exc) != "ResourceInUseException":
                raise translate(exc) from exc

    async def get_head(self, session_id: str) -> Stored | None:
        """The head item as it is now: a strongly consistent read."""
        answer = await self.call("get_item", TableName=self.name, Key=key_of(session_id, HEAD_KEY), ConsistentRead=True)
        return decode_head(answer["Item"]) if answer.get("Item") else None

    async def get_heads(self, ids: Sequence[str]) -> dict[str, Stored]:
        """Those that are there, strongly consistent."""
        if len(ids) == 1:
            only = await self.get_head(ids[0])
            return {} if only is None else {only.id: only}
        unique = list(dict.fromkeys(ids))
        batches = [unique[start : start + _GET_BATCH] for start in range(0, len(unique), _GET_BATCH)]
        found = await asyncio.gather(*(self._get_batch(batch) for batch in batches))
        return {stored.id: stored for batch in found for stored in batch}

    async def _get_batch(self, ids: Sequence[str]) -> list[Stored]:
        keys: Any = [key_of(session_id, HEAD_KEY) for session_id in ids]
        found: list[Stored] = []
        backoff = _Backoff()
        while True:
            request = {self.name: {"Keys": keys, "ConsistentRead": True}}
            answer = await self.call("batch_get_item", RequestItems=request)
            items = answer.get("Responses", {}).get(self.name, [])
            found += [decode_head(item) for item in items]
            keys = answer.get("UnprocessedKeys", {}).get(self.name, {}).get("Keys", [])
            if not keys:
                return found
            if items:  # the answer was full; that is no throttling
                backoff = _Backoff()
                continue
            await backoff.wait_or_raise("DynamoDB leaves the keys of a batch unread")

    async def put_head(self, head: Stored, found: Stored | None) -> None:
        """Write the head if it is still as found. Raises: as `call`."""
        await self.call("put_item", writes=True, **self._head_put(head, found))

    async def transact(self, head: Stored, found: Stored | None, puts: Sequence[Item], deletes: Sequence[Item]) -> None:
        """`put_head` and the other items, all or nothing."""
        head_put = self._head_put(head, found)
        items = [{"Put": head_put}]
        items += [{"Put": {"TableName": self.name, "Item": item}} for item in puts]
        items += [{"Delete": {"TableName": self.name, "Key": key}} for key in deletes]
        await self.call("transact_write_items", writes=True, TransactItems=items, ClientRequestToken=_token(head_put))

    def _head_put(self, head: Stored, found: Stored | None) -> dict[str, Any]:
        return {"TableName": self.name, "Item": head.item(), **_condition(found)}

    async def put_copy(self, item: Item) -> None:
        """An event item of committed events: unconditional, for its content cannot differ."""
        await self.call("put_item", TableName=self.name, Item=item)

    async def delete_head(self, found: Stored) -> None:
        """Remove a tombstone if it is still as found. Raises: as `call`."""
        key = key_of(found.id, HEAD_KEY)
        await self.call("delete_item", writes=True, TableName=self.name, Key=key, **_condition(found))

    async def delete_items(self, keys: Sequence[Item]) -> None:
        """Delete all of them; a cancellation or an error leaves some."""
        for start in range(0, len(keys), _WRITE_BATCH):
            requests: Any = [{"DeleteRequest": {"Key": key}} for key in keys[start : start + _WRITE_BATCH]]
            backoff = _Backoff()
            while True:
                answer = await self.call("batch_write_item", RequestItems={self.name: requests})
                requests = answer.get("UnprocessedItems", {}).get(self.name, [])
                if not requests:
                    break
                await backoff.wait_or_raise("DynamoDB leaves the requests of a batch undone")

    async def query(self, condition: str, values: dict[str, Any], **params: Any) -> AsyncIterator[list[Item]]:
        """The pages of a query, to the end."""
        params |= {"TableName": self.name, "KeyConditionExpression": condition}
        params["ExpressionAttributeValues"] = values
        while True:
            answer = await self.call("query", **params)
            yield answer.get("Items", [])
            if not answer.get("LastEvaluatedKey"):
                return
            params["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def range(self, session_id: str, low: str, high: str, **params: Any) -> AsyncIterator[list[Item]]:
        """The items of a session with sort keys from ``low`` to ``high``, strongly consistent."""
        values = {":p": {"S": session_id}, ":a": {"S": low}, ":b": {"S": high}}
        async for page in self.query("pk = :p AND sk BETWEEN :a AND :b", values, ConsistentRead=True, **params):
            yield page


def _send_large_bodies_in_pieces(request: Any, **_: Any) -> None:
    """Aiohttp warns of bodies beyond 1 MiB that are bytes: they would hold up the event loop."""
    if isinstance(request.body, bytes) and len(request.body) > _LARGE_BODY_BYTES:
        request.body = io.BytesIO(request.body)


@functools.cache
def _loader() -> Loader:
    """The SDK's service descriptions, which take a tenth of a second to read: once per process."""
    return create_loader()


def _user_agent() -> str:
    return f"holdfast aiobotocore/{aiobotocore.__version__} Botocore/{botocore.__version__}"


class _Backoff:
    """Growing, jittered delays between a few attempts. The engine's writer goes on from there, for longer."""

    def __init__(self, attempts: int = _ATTEMPTS) -> None:
        self._left = attempts - 1
        self._delay_s = _FIRST_DELAY_S

    @property
    def may_go_on(self) -> bool:
        return self._left > 0

    async def wait(self) -> None:
        """Before the next attempt."""
        self._left -= 1
        await asyncio.sleep(self._delay_s * random.uniform(0.5, 1.0))
        self._delay_s = min(self._delay_s * 2, _LONGEST_DELAY_S)

    async def wait_or_raise(self, reason: str) -> None:
        """Raises: `Unavailable` if there were enough attempts."""
        if not self.may_go_on:
            raise Unavailable(reason)
        await self.wait()


def _condition(found: Stored | None) -> dict[str, Any]:
    """That the head is as it was found. The incarnation is part of it: a new life counts its revisions anew."""
    if found is None:
        return {
            "ConditionExpression": "attribute_not_exists(pk)",
            "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
        }
    return {
        "ConditionExpression": "i = :i AND r = :r",
        "ExpressionAttributeValues": {":i": {"N": str(found.incarnation)}, ":r": {"N": str(found.rev)}},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def _token(head_put: dict[str, Any]) -> str:
    """Names a transaction by its head, which has the mark of its flush: the same one only if it is sent again."""
    item = head_put["Item"]
    named = f"{item['pk']['S']} {item['i']['N']} {item['r']['N']} ".encode() + item["d"]["B"]
    return blake2b(named, digest_size=16).hexdigest()
