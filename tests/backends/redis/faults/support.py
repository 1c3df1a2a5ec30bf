"""A server to be abused, and the way to it: what the tests of faults share."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Iterator

from holdfast.backends.redis import RedisBackend
from holdfast.backends.urls import create_backend
from tests.servers.proxy import TcpProxy
from tests.servers.valkey import ALWAYS, CLUSTER, ValkeyServer, kept, new_prefix, own_server

__all__ = ["abused_server", "behind", "proxied"]


@functools.cache
def abused_server(kind: str) -> ValkeyServer:
    """For these tests alone; each leaves it as it was."""
    settings = {**ALWAYS, "busy-reply-threshold": "50"}
    return kept(own_server({**settings, **CLUSTER} if kind == "cluster" else settings))


@contextlib.contextmanager
def proxied(server: ValkeyServer) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", server.port) as proxy:
        if server.is_cluster:
            server.command("CONFIG", "SET", "cluster-announce-port", str(proxy.port))
        yield proxy
        if server.is_cluster:
            server.command("CONFIG", "SET", "cluster-announce-port", "0")


@contextlib.asynccontextmanager
async def behind(proxy: TcpProxy, *, timeout_s: float = 10.0, prefix: str = "") -> AsyncIterator[RedisBackend]:
    """A backend that reaches its server through the proxy. Short time-outs are for servers that never answer."""
    backend = create_backend(f"redis://127.0.0.1:{proxy.port}/?prefix={prefix or new_prefix()}&timeout_s={timeout_s}")
    assert isinstance(backend, RedisBackend)
    await backend.open()
    yield backend
    proxy.heal()
    await backend.close()
