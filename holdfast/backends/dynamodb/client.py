"""The table as the rest of the backend sees it: a few calls that try again, and speak Holdfast's errors.

The SDK's own retries are not used. It would try a request again that may have been applied, and hide
that from us; here every write carries a condition that lets it take effect once only, so that what
comes back after a broken request tells what became of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from typing import Any, Final

from holdfast.backends.dynamodb.config import DynamoDBConfig
from holdfast.backends.dynamodb.errors import ERRORS, Kind, condition_failed, error_code, judge_failure, translate
from holdfast.backends.dynamodb.items import HEAD_KEY, Item, Stored, decode_head, key_of
from holdfast.backends.dynamodb.sender import Sender
from holdfast.errors import Unavailable

__all__ = ["Table"]

_ATTEMPTS: Final = 5
_FIRST_DELAY_S: Final = 0.02
_LONGEST_DELAY_S: Final = 0.5
_GET_BATCH: Final = 100
"""Keys in one BatchGetItem."""
_WRITE_BATCH: Final = 25
"""Requests in one BatchWriteItem."""


class Table:
    """A client of one table. Every coroutine runs on the asyncio loop that opened it."""

    def __init__(self, config: DynamoDBConfig) -> None:
        self.name: Final = config.table
        self._max_concurrency: Final = config.max_concurrency
        self._sender: Final = Sender(config)
        self._slots = asyncio.Semaphore(config.max_concurrency)

    async def open(self) -> None:
        """Nothing is sent. Raises: as `Sender.open`."""
        self._slots = asyncio.Semaphore(self._max_concurrency)  # of this event loop
        await self._sender.open()

    async def close(self) -> None:
        await self._sender.close()

    @property
    def endpoint(self) -> str:
        """Host and port that requests go to."""
        return self._sender.endpoint

    @property
    def region(self) -> str:
        return self._sender.region

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
                    return await self._sender.send(operation, params)
            except ERRORS as exc:
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
            await self._sender.send("CreateTable", definition)
        except ERRORS as exc:
            if error_code(exc) != "ResourceInUseException":
                raise translate(exc) from exc

    async def get_head(self, session_id: str) -> Stored | None:
        """The head item as it is now: a strongly consistent read."""
        answer = await self.call("GetItem", TableName=self.name, Key=key_of(session_id, HEAD_KEY), ConsistentRead=True)
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
            answer = await self.call("BatchGetItem", RequestItems=request)
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
        await self.call("PutItem", writes=True, **self._head_put(head, found))

    async def transact(self, head: Stored, found: Stored | None, puts: Sequence[Item], deletes: Sequence[Item]) -> None:
        """`put_head` and the other items, all or nothing."""
        head_put = self._head_put(head, found)
        items = [{"Put": head_put}]
        items += [{"Put": {"TableName": self.name, "Item": item}} for item in puts]
        items += [{"Delete": {"TableName": self.name, "Key": key}} for key in deletes]
        await self.call("TransactWriteItems", writes=True, TransactItems=items, ClientRequestToken=_token(head_put))

    def _head_put(self, head: Stored, found: Stored | None) -> dict[str, Any]:
        return {"TableName": self.name, "Item": head.item(), **_condition(found)}

    async def put_slot(self, item: Item, previous: int | None) -> None:
        """An item of a journal, if its slot has the position ``previous``, or nothing (None). Raises: as `call`."""
        condition: dict[str, Any] = {"ConditionExpression": "attribute_not_exists(pk)"}
        if previous is not None:
            condition = {
                "ConditionExpression": "p = :p",
                "ExpressionAttributeValues": {":p": {"N": str(previous)}},
            }
        condition["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD"
        await self.call("PutItem", writes=True, TableName=self.name, Item=item, **condition)

    async def put_copy(self, item: Item) -> None:
        """An event item of committed events: unconditional, for its content cannot differ."""
        await self.call("PutItem", TableName=self.name, Item=item)

    async def delete_head(self, found: Stored) -> None:
        """Remove a tombstone if it is still as found. Raises: as `call`."""
        key = key_of(found.id, HEAD_KEY)
        await self.call("DeleteItem", writes=True, TableName=self.name, Key=key, **_condition(found))

    async def delete_items(self, keys: Sequence[Item]) -> None:
        """Delete all of them; a cancellation or an error leaves some."""
        for start in range(0, len(keys), _WRITE_BATCH):
            requests: Any = [{"DeleteRequest": {"Key": key}} for key in keys[start : start + _WRITE_BATCH]]
            backoff = _Backoff()
            while True:
                answer = await self.call("BatchWriteItem", RequestItems={self.name: requests})
                requests = answer.get("UnprocessedItems", {}).get(self.name, [])
                if not requests:
                    break
                await backoff.wait_or_raise("DynamoDB leaves the requests of a batch undone")

    async def query(self, condition: str, values: dict[str, Any], **params: Any) -> AsyncIterator[list[Item]]:
        """The pages of a query, to the end."""
        params |= {"TableName": self.name, "KeyConditionExpression": condition}
        params["ExpressionAttributeValues"] = values
        while True:
            answer = await self.call("Query", **params)
            yield answer.get("Items", [])
            if not answer.get("LastEvaluatedKey"):
                return
            params["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    async def range(self, session_id: str, low: str, high: str, **params: Any) -> AsyncIterator[list[Item]]:
        """The items of a session with sort keys from ``low`` to ``high``, strongly consistent."""
        values = {":p": {"S": session_id}, ":a": {"S": low}, ":b": {"S": high}}
        async for page in self.query("pk = :p AND sk BETWEEN :a AND :b", values, ConsistentRead=True, **params):
            yield page


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
        "ExpressionAttributeValues": {":i": {"N": str(found.incarnation)}, ":r": {"N": str(found.item_rev)}},
        "ReturnValuesOnConditionCheckFailure": "ALL_OLD",
    }


def _token(head_put: dict[str, Any]) -> str:
    """Names a transaction by its head, which has the mark of its flush: the same one only if it is sent again."""
    item = head_put["Item"]
    place = item.get("g", {"S": ""})["S"]  # when it is sent again, its journal may have got further
    named = f"{item['pk']['S']} {item['i']['N']} {item['r']['N']} {place} ".encode() + item["d"]["B"]
    return blake2b(named, digest_size=16).hexdigest()
