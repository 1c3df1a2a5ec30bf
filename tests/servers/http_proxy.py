"""An HTTP proxy before a DynamoDB endpoint that fails on command, and writes down what it is asked.

What no emulator does by itself: throttling, conflicts, half-done batches, errors and broken
connections before and after a request has taken effect.
"""

from __future__ import annotations

import asyncio
import enum
import json
from collections import Counter
from typing import Any, Final

import aiohttp
from aiohttp import web

from tests.servers.loop_thread import LoopThread

__all__ = ["Failing", "HttpFault", "HttpProxy"]


class Failing(enum.Enum):
    """What happens to a request."""

    THROTTLED = "ProvisionedThroughputExceededException"
    CONTROL_THROTTLED = "ThrottlingException"
    CONFLICT = "TransactionConflictException"
    IN_PROGRESS = "TransactionInProgressException"
    EXPIRED = "ExpiredTokenException"
    DENIED = "AccessDeniedException"
    NO_TABLE = "ResourceNotFoundException"
    INVALID = "ValidationException"
    """The answer is this error (400); not forwarded."""
    CANCELLED = "transaction cancelled"
    """A transaction's answer is that it met another one; not forwarded."""
    ERROR_BEFORE = "500, not done"
    ERROR_AFTER = "500, done"
    UNAVAILABLE = "503, not done"
    RESET_BEFORE = "reset, not done"
    RESET_AFTER = "reset, done"
    SILENT_BEFORE = "no answer, not done"
    SILENT_AFTER = "no answer, done"
    UNPROCESSED = "half of a batch is left undone"


_REFUSALS: Final = {
    Failing.THROTTLED, Failing.CONTROL_THROTTLED, Failing.CONFLICT, Failing.IN_PROGRESS, Failing.EXPIRED,
    Failing.DENIED, Failing.NO_TABLE, Failing.INVALID,
}  # fmt: skip


_READS: Final = {"GetItem", "BatchGetItem", "Query"}
_METERED: Final = _READS | {"PutItem", "UpdateItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"}


class HttpFault:
    """A planned fault: strikes ``times`` requests (None: until `heal`) that fit, after ``skip`` others."""

    def __init__(self, failing: Failing, action: str | None, times: int | None, skip: int, text: bytes) -> None:
        self.failing = failing
        self.hits = 0
        self._action = action
        self._times = times
        self._skip = skip
        self._text = text

    def strikes(self, action: str, body: bytes) -> bool:
        if (self._action not in (None, action)) or self._text not in body:
            return False
        if self._times is not None and self.hits >= self._times:
            return False
        if self._skip:
            self._skip -= 1
            return False
        self.hits += 1
        return True


class HttpProxy(LoopThread):
    """``with HttpProxy(endpoint) as proxy``: use ``proxy.url`` as the endpoint."""

    def __init__(self, endpoint: str, *, idle_s: float = 60.0) -> None:
        """``idle_s``: how long a connection may be idle until it is closed."""
        super().__init__("http-proxy")
        self.url = ""
        self.actions: Counter[str] = Counter()
        """Requests by action, those that failed included."""
        self.connections = set[int]()
        """All that made requests so far, by the client's port."""
        self.metered = False
        """Ask for the capacity that each request consumes, and add it up."""
        self.read_units: float = 0.0
        self.write_units: float = 0.0
        self._endpoint: Final = endpoint
        self._idle_s: Final = idle_s
        self._faults: list[HttpFault] = []
        self._client: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None

    def inject(
        self, failing: Failing, action: str | None = None, *, times: int | None = 1, skip: int = 0, text: bytes = b""
    ) -> HttpFault:
        """Only requests of ``action`` (PutItem, …) with ``text`` in their body are struck."""
        fault = HttpFault(failing, action, times, skip, text)
        self._faults.append(fault)
        return fault

    def heal(self) -> None:
        self._faults.clear()

    @property
    def open_connections(self) -> int:
        """Of clients, now."""
        assert self._runner is not None
        assert self._runner.server is not None
        return len(self._runner.server.connections)

    async def _start(self) -> None:
        self._client = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application(client_max_size=32 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, keepalive_timeout=self._idle_s)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        assert self._runner is not None
        assert self._client is not None
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        action = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        self.actions[action] += 1
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername")[1])
        fault = next((fault for fault in self._faults if fault.strikes(action, body)), None)
        if fault is None:
            return await self._forward(request, body)
        return await self._fail(fault.failing, request, body)

    async def _fail(self, failing: Failing, request: web.Request, body: bytes) -> web.StreamResponse:
        if failing in _REFUSALS:
            return _error(400, failing.value)
        if failing is Failing.CANCELLED:
            reasons = [{"Code": "None"} for _ in json.loads(body)["TransactItems"]]
            reasons[-1] = {"Code": "TransactionConflict", "Message": "injected"}
            return _error(400, "TransactionCanceledException", CancellationReasons=reasons)
        if failing is Failing.UNPROCESSED:
            return await self._forward_half(request, body)
        answer = await self._forward(request, body) if failing.value.endswith(", done") else None
        if failing in (Failing.ERROR_BEFORE, Failing.ERROR_AFTER):
            return _error(500, "InternalServerError")
        if failing is Failing.UNAVAILABLE:
            return _error(503, "ServiceUnavailable")
        if failing in (Failing.SILENT_BEFORE, Failing.SILENT_AFTER):
            await asyncio.sleep(60)
        assert request.transport is not None
        request.transport.abort()
        return answer or web.Response()

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        assert self._client is not None
        headers = {name: value for name, value in request.headers.items() if name not in ("Host", "Content-Length")}
        action = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        if self.metered and action in _METERED:
            body = json.dumps(json.loads(body) | {"ReturnConsumedCapacity": "INDEXES"}).encode()
        async with self._client.request(
            request.method, self._endpoint + request.path_qs, data=body, headers=headers
        ) as got:
            content = await got.read()
            if self.metered and action in _METERED:
                self._count(action, json.loads(content))
            return web.Response(status=got.status, body=content, content_type="application/x-amz-json-1.0")

    def _count(self, action: str, answer: dict[str, Any]) -> None:
        consumed = answer.get("ConsumedCapacity", [])
        for each in consumed if isinstance(consumed, list) else [consumed]:
            if action in _READS:
                self.read_units += each["CapacityUnits"]
            else:
                self.write_units += each["CapacityUnits"]

    async def _forward_half(self, request: web.Request, body: bytes) -> web.Response:
        """Of the first table's keys or requests; the rest comes back as unprocessed."""
        asked = json.loads(body)
        [(table, work)] = asked["RequestItems"].items()
        items = work["Keys"] if isinstance(work, dict) else work
        done, left = items[: len(items) // 2], items[len(items) // 2 :]
        if isinstance(work, dict):
            asked["RequestItems"] = {table: work | {"Keys": done}}
            unprocessed = {"UnprocessedKeys": {table: work | {"Keys": left}}}
        else:
            asked["RequestItems"] = {table: done}
            unprocessed = {"UnprocessedItems": {table: left}}
        answer: dict[str, Any] = {"Responses": {table: []}}
        if done:
            answer = json.loads((await self._forward(request, json.dumps(asked).encode())).body or b"")
        return web.json_response(answer | unprocessed, content_type="application/x-amz-json-1.0")


def _error(status: int, code: str, **more: Any) -> web.Response:
    body = {"__type": f"com.amazonaws.dynamodb.v20120810#{code}", "message": "injected", **more}
    return web.json_response(body, status=status, content_type="application/x-amz-json-1.0")
