"""One request, sent once: what lies between the table and the network.

The SDK finds credentials (and renews them), region and endpoint, and has the connections, with TLS and
proxies as it is configured. What it does in between for every request, by the descriptions of all
services, is most of the time that a request costs; here that is `wire` and `signing`.
"""

from __future__ import annotations

import functools
import io
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, cast
from urllib.parse import urlsplit

import aiobotocore  # type: ignore[import-untyped]
import botocore  # type: ignore[import-untyped]
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore.awsrequest import AWSPreparedRequest  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    NoCredentialsError,
    ProfileNotFound,
)
from botocore.loaders import Loader, create_loader  # type: ignore[import-untyped]

from holdfast.backends.dynamodb.config import DynamoDBConfig
from holdfast.backends.dynamodb.errors import ERRORS, translate
from holdfast.backends.dynamodb.signing import Signer
from holdfast.backends.dynamodb.wire import decode_answer, decode_error, encode
from holdfast.errors import ConfigError, StoreClosed

__all__ = ["Sender"]

_LARGE_BODY_BYTES: Final = 1 << 20


class Sender:
    """Every coroutine runs on the asyncio loop that opened it."""

    def __init__(self, config: DynamoDBConfig) -> None:
        self._config: Final = config
        self._exits: AsyncExitStack | None = None
        self._signer: Signer | None = None
        self._credentials: Any = None
        self._connections: Any = None
        self.region = ""

    async def open(self) -> None:
        """Find out where and as whom to send; nothing is sent to DynamoDB.

        Raises: `ConfigError`; `Unavailable` if there should be credentials and they cannot be had.
        """
        session: Any = AioSession(profile=self._config.profile)
        session.register_component("data_loader", _loader())
        try:
            self._credentials = await session.get_credentials()
        except ProfileNotFound as exc:
            raise ConfigError("profile", str(exc)) from exc
        except ERRORS as exc:
            raise translate(exc) from exc
        exits = AsyncExitStack()
        client = await exits.enter_async_context(self._client(session))
        if client.meta.config.account_id_endpoint_mode == "required":
            await exits.aclose()
            raise ConfigError("endpoint", "requests go to the region's endpoint; one by account id cannot be required")
        self._exits = exits
        self.region = str(client.meta.region_name)
        self._signer = Signer(str(client.meta.endpoint_url), self.region, _user_agent())
        self._connections = client._endpoint.http_session  # noqa: SLF001 - a test pins it

    @asynccontextmanager
    async def _client(self, session: Any) -> AsyncGenerator[Any]:
        """The SDK's, for all that it finds out when it is made. Raises: `ConfigError`."""
        config = self._config
        settings = AioConfig(
            max_pool_connections=config.max_concurrency,
            connect_timeout=config.connect_timeout_s,
            read_timeout=config.request_timeout_s,
            tcp_keepalive=True,
        )
        named = {"region_name": config.region, "endpoint_url": config.endpoint, "config": settings}
        async with AsyncExitStack() as exits:
            try:
                client = await exits.enter_async_context(session.create_client("dynamodb", **named))
            except (BotoCoreError, ValueError) as exc:
                raise ConfigError("region" if "region" in str(exc) else "endpoint", str(exc)) from exc
            yield client

    async def close(self) -> None:
        exits, self._exits, self._signer = self._exits, None, None
        self._connections = self._credentials = None
        if exits is not None:
            await exits.aclose()

    @property
    def endpoint(self) -> str:
        """Host and port that requests go to."""
        return urlsplit(self._opened.url).netloc

    @property
    def _opened(self) -> Signer:
        if self._signer is None:
            raise StoreClosed("the store is closed")
        return self._signer

    async def send(self, operation: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """DynamoDB's answer.

        Raises: `ErrorAnswer`, `Garbled`, `StoreClosed`, and the SDK's errors of credentials and connections.
        A cancellation leaves the request done or not.
        """
        signer = self._opened
        if self._credentials is None:
            raise NoCredentialsError
        credentials = await self._credentials.get_frozen_credentials()  # the SDK renews them in good time
        body = encode(params)
        headers = signer.headers(operation, body, credentials)
        # aiohttp warns of bodies beyond 1 MiB that are bytes: they would hold up the event loop
        data = io.BytesIO(body) if len(body) > _LARGE_BODY_BYTES else body
        request = AWSPreparedRequest("POST", signer.url, headers, data, stream_output=False)
        answer = await self._connections.send(request)
        content, checksum = cast("bytes", await answer.content), answer.headers.get("x-amz-crc32")
        if answer.status_code >= 300:
            raise decode_error(answer.status_code, content, checksum)
        return decode_answer(content, checksum)


@functools.cache
def _loader() -> Loader:
    """The SDK's service descriptions, which take a tenth of a second to read: once per process."""
    return create_loader()


def _user_agent() -> str:
    return f"holdfast aiobotocore/{aiobotocore.__version__} Botocore/{botocore.__version__}"
