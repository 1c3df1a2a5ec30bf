"""Kept-alive connections to one endpoint, with TLS and proxies as the SDK is told to have them."""

from __future__ import annotations

import asyncio
import io
import ssl
from collections.abc import Mapping
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
from botocore import httpsession, utils  # type: ignore[import-untyped]
from yarl import URL

from holdfast.backends.dynamodb.config import DynamoDBConfig
from holdfast.errors import ConfigError

__all__ = ["Connections", "Reply"]

_sdk_tls: Final[Any] = httpsession
_sdk_utils: Final[Any] = utils

_KEPT_IDLE_S: Final = 12.0
_LARGE_BODY_BYTES: Final = 1 << 20


class Reply(NamedTuple):
    """To one request."""

    status: int
    body: bytes
    checksum: str | None
    """CRC-32 of the body, as DynamoDB tells it."""


class Connections:
    """At most ``max_concurrency`` at a time. Of the event loop that opened it."""

    def __init__(self, http: aiohttp.ClientSession, url: str, proxy: URL | None) -> None:
        """Use `open`."""
        self._http: Final = http
        self._url: Final = URL(url, encoded=True)
        self._proxy: Final = proxy

    @classmethod
    async def open(cls, url: str, config: DynamoDBConfig, ca_bundle: str | None, user_agent: str) -> Connections:
        """Nothing is connected yet. Raises: `ConfigError`. ``ca_bundle``: a file; None: the usual authorities."""
        proxy = _proxy_for(url)
        tls: ssl.SSLContext | bool = True
        if url.startswith("https:") or (proxy is not None and proxy.scheme == "https"):
            tls = await asyncio.to_thread(_tls, ca_bundle)  # reads files
        http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=config.max_concurrency, ssl=tls, keepalive_timeout=_KEPT_IDLE_S),
            timeout=aiohttp.ClientTimeout(sock_connect=config.connect_timeout_s, sock_read=config.request_timeout_s),
            # packed answers would not fit their checksum
            headers={"User-Agent": user_agent, "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return cls(http, url, proxy)

    async def close(self) -> None:
        await self._http.close()

    async def post(self, headers: Mapping[str, str], body: bytes) -> Reply:
        """Raises: errors of aiohttp, `OSError`, `TimeoutError`. A cancellation leaves the request done or not."""
        # aiohttp warns of bodies beyond 1 MiB that are bytes: they would hold up the event loop
        data = io.BytesIO(body) if len(body) > _LARGE_BODY_BYTES else body
        async with self._http.post(
            self._url, data=data, headers=headers, proxy=self._proxy, allow_redirects=False
        ) as answer:
            return Reply(answer.status, await answer.read(), answer.headers.get("x-amz-crc32"))


def _proxy_for(url: str) -> URL | None:
    """By ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY``. The error does not say it: it may hold a password."""
    scheme = urlsplit(url).scheme
    found: str | None = _sdk_utils.get_environ_proxies(url).get(scheme)
    if not found:
        return None
    try:
        proxy = URL(found if "://" in found else f"http://{found.removeprefix('//')}")
    except ValueError:
        proxy = URL()
    if proxy.scheme not in ("http", "https") or not proxy.host:
        raise ConfigError("endpoint", f"the proxy for {scheme}:// is no http:// or https:// URL")
    return proxy


def _tls(ca_bundle: str | None) -> ssl.SSLContext:
    """Raises: `ConfigError`."""
    context: ssl.SSLContext = _sdk_tls.create_urllib3_context()
    context.check_hostname = True
    try:
        context.load_verify_locations(_sdk_tls.get_cert_path(ca_bundle or True))
    except OSError as exc:
        raise ConfigError("endpoint", f"the authorities in {ca_bundle} cannot be read: {exc}") from exc
    return context
