"""One request, sent once: what lies between the table and the network.

The SDK finds credentials (and renews them), region, endpoint, authorities and proxies, wherever it may be
told of them. What it does for every request, by the descriptions of all services, is most of the time
that a request costs; so that is done here, in `signing`, `wire` and `connections`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import aiobotocore  # type: ignore[import-untyped]
import botocore  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore.exceptions import (  # type: ignore[import-untyped]
    BotoCoreError,
    NoCredentialsError,
    ProfileNotFound,
)
from botocore.loaders import Loader, create_loader  # type: ignore[import-untyped]

from holdfast.backends.dynamodb.config import DynamoDBConfig
from holdfast.backends.dynamodb.connections import Connections
from holdfast.backends.dynamodb.errors import ERRORS, translate
from holdfast.backends.dynamodb.signing import Signer
from holdfast.backends.dynamodb.wire import decode_answer, decode_error, encode
from holdfast.errors import ConfigError, StoreClosed

__all__ = ["Sender"]


class Sender:
    """Every coroutine runs on the asyncio loop that opened it."""

    def __init__(self, config: DynamoDBConfig) -> None:
        self._config: Final = config
        self._credentials: Any = None
        self._signer: Signer | None = None
        self._connections: Connections | None = None
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
        endpoint, self.region = await self._find_endpoint(session)
        signer = Signer(endpoint, self.region)
        ca_bundle = session.get_config_variable("ca_bundle")
        self._connections = await Connections.open(signer.url, self._config, ca_bundle, _user_agent())
        self._signer = signer

    async def _find_endpoint(self, session: Any) -> tuple[str, str]:
        """Endpoint and region, as a client of the SDK finds them when it is made. Raises: `ConfigError`."""
        config = self._config
        new_client = session.create_client("dynamodb", region_name=config.region, endpoint_url=config.endpoint)
        try:
            async with new_client as client:
                found = client.meta
        except (BotoCoreError, ValueError) as exc:
            raise ConfigError("region" if "region" in str(exc) else "endpoint", str(exc)) from exc
        if found.config.account_id_endpoint_mode == "required":
            raise ConfigError("endpoint", "requests go to the region's endpoint; one by account id cannot be required")
        return str(found.endpoint_url), str(found.region_name)

    async def close(self) -> None:
        connections, self._connections = self._connections, None
        self._signer = self._credentials = None
        if connections is not None:
            await connections.close()

    @property
    def endpoint(self) -> str:
        """Host and port that requests go to. Raises: `StoreClosed`."""
        if self._signer is None:
            raise StoreClosed("the store is closed")
        return urlsplit(self._signer.url).netloc

    async def send(self, operation: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """DynamoDB's answer.

        Raises: one of `ERRORS`, `StoreClosed`. A cancellation leaves the request done or not.
        """
        connections, signer = self._connections, self._signer
        if connections is None or signer is None:
            raise StoreClosed("the store is closed")
        if self._credentials is None:
            raise NoCredentialsError
        credentials = await self._credentials.get_frozen_credentials()  # the SDK renews them in good time
        body = encode(params)
        status, answer, checksum = await connections.post(signer.headers(operation, body, credentials), body)
        if status >= 300:
            raise decode_error(status, answer, checksum)
        return decode_answer(answer, checksum)


@functools.cache
def _loader() -> Loader:
    """The SDK's service descriptions, which take a tenth of a second to read: once per process."""
    return create_loader()


def _user_agent() -> str:
    return f"holdfast aiobotocore/{aiobotocore.__version__} Botocore/{botocore.__version__}"
