"""From a URL to an open store: places, credentials, and what a server may be like."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import holdfast
from holdfast.backends.redis import RedisBackend, RedisConfig
from holdfast.backends.redis import backend as backend_module
from holdfast.backends.redis.server import Facts, check, durability_of
from holdfast.backends.urls import create_backend
from holdfast.errors import ConfigError, SchemaError, StoreClosed, StoreError, Unavailable
from holdfast.model import Durability
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct
from tests.servers.processes import free_port
from tests.servers.valkey import (
    ALWAYS,
    EVERYSEC,
    ValkeyServer,
    new_prefix,
    own_server,
    packed,
    raw_command,
    shared_server,
)

SECRET = "s3cret-Pass"


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    """One for this module: its settings are changed, and set back."""
    with own_server() as server:
        yield server


def config_of(url: str) -> RedisConfig:
    backend = create_backend(url)
    assert isinstance(backend, RedisBackend)
    return backend._config


async def works(url: str) -> None:
    backend = create_backend(url)
    await backend.open()
    try:
        direct = Direct(backend, ManualClock())
        head = await direct.append(await direct.create("s"), "a")
        assert [event.data for event in await direct.events(head)] == ["a"]
    finally:
        await backend.close()


async def refused(url: str) -> Exception:
    backend = create_backend(url)
    with pytest.raises((StoreError, ConfigError)) as caught:
        await backend.open()
    await backend.close()
    return caught.value


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", RedisConfig()),
        ("redis://h:1/3?prefix=p", RedisConfig(host="h", port=1, db=3, prefix="p")),
        ("redis://u:p%40w@h", RedisConfig(host="h", username="u", password="p@w")),
        ("redis://:pw@h/0", RedisConfig(host="h", password="pw")),
        ("rediss://h?ssl_cert_reqs=none", RedisConfig(host="h", tls=True, ssl_cert_reqs="none")),
        ("redis+unix:///run/valkey.sock?db=2", RedisConfig(path="/run/valkey.sock", db=2)),
        ("redis+unix://u:p@/run/v.sock", RedisConfig(path="/run/v.sock", username="u", password="p")),
        ("redis://h?reap_after_s=none&timeout_s=2.5", RedisConfig(host="h", reap_after_s=None, timeout_s=2.5)),
        ("redis://h?server_durability=disk", RedisConfig(host="h", server_durability=Durability.DISK)),
    ],
)
def test_urls(url: str, expected: RedisConfig) -> None:
    assert config_of(url) == expected


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("redis://h/zero", "url"),
        ("redis://h1:6379,h2:6379/0", "url"),
        ("redis+unix://", "url"),
        ("redis+unix://host/file", "url"),
        ("redis://h?prefix=a%7Bb%7D", "prefix"),
        ("redis://h?prefix=a%20b", "prefix"),
        ("redis://h?prefix=a%0Ab", "prefix"),
        ("redis://h?pool_size=0", "pool_size"),
        ("redis://h?timeout_s=-1", "timeout_s"),
        ("redis://h?port=1", "port"),
        ("redis://h?password=x", "password"),
        ("redis://h?nonsense=1", "nonsense"),
        ("redis://h?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
    ],
)
def test_wrong_urls(url: str, field: str) -> None:
    """C54: the prefix is validated, never spliced."""
    with pytest.raises(ConfigError) as caught:
        create_backend(url)
    assert caught.value.field == field


def test_credentials_do_not_show() -> None:
    """C53."""
    config = config_of(f"redis://user:{SECRET}@h")
    assert SECRET not in repr(config)
    assert "user" not in repr(config)


@pytest.mark.anyio
async def test_places(server: ValkeyServer) -> None:
    prefix = new_prefix()
    await works(f"redis://127.0.0.1:{server.port}/0?prefix={prefix}")
    await works(f"redis://127.0.0.1:{server.port}/5?prefix={prefix}")  # another database: empty
    await works(f"redis+unix://{server.socket}?db=3&prefix={prefix}")


@pytest.mark.anyio
async def test_password(server: ValkeyServer) -> None:
    """C53: wrong credentials are said to be wrong, and not said."""
    server.command("ACL", "SETUSER", "app", "on", f">{SECRET}", "~*", "&*", "+@all")
    server.command("ACL", "SETUSER", "default", "off")
    try:
        place = f"127.0.0.1:{server.port}/?prefix={new_prefix()}"
        await works(f"redis://app:{SECRET}@{place}")
        for wrong in ("app:Wr0ng-Pass@", "nobody:Wr0ng-Pass@", ""):
            error = await refused(f"redis://{wrong}{place}")
            assert isinstance(error, Unavailable)
            assert "denied" in str(error)
            assert not any(word in str(error) + repr(error.__cause__) for word in ("Wr0ng", "app", "nobody"))
    finally:
        with contextlib.closing(_connect(server)) as admin:
            admin.command("AUTH", "app", SECRET)
            admin.command("ACL", "SETUSER", "default", "on")
        server.command("ACL", "DELUSER", "app")


class _connect:
    """One connection for several raw commands."""

    def __init__(self, server: ValkeyServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), timeout=5)

    def command(self, *words: str) -> bytes:
        self._socket.sendall(packed(*words))
        return self._socket.recv(1 << 16)

    def close(self) -> None:
        self._socket.close()


@pytest.mark.anyio
async def test_nobody_there() -> None:
    error = await refused(f"redis://127.0.0.1:{free_port()}/")
    assert isinstance(error, Unavailable)
    missing = await refused("redis+unix:///nowhere/there-is.sock")
    assert isinstance(missing, Unavailable)


@pytest.mark.anyio
@pytest.mark.parametrize(("kind", "db"), [("cluster", 1), ("valkey", 16)])
async def test_no_such_database(kind: str, db: int) -> None:
    error = await refused(f"redis://127.0.0.1:{shared_server(kind).port}/{db}")
    assert isinstance(error, ConfigError)
    assert error.field == "db"


@pytest.mark.anyio
@pytest.mark.parametrize(("stored", "words"), [("2", "version 2"), ("not ours", "another program's")])
async def test_other_layouts_are_refused(server: ValkeyServer, stored: str, words: str) -> None:
    """C52."""
    prefix = new_prefix()
    server.command("SET", f"{prefix}:schema", stored)
    error = await refused(server.url(prefix=prefix))
    assert isinstance(error, SchemaError)
    assert words in str(error)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({}, Durability.MEMORY),
        (EVERYSEC, Durability.PROCESS),
        ({"appendonly": "yes", "appendfsync": "no"}, Durability.PROCESS),
        (ALWAYS, Durability.DISK),
        ({**ALWAYS, "no-appendfsync-on-rewrite": "yes"}, Durability.PROCESS),
    ],
)
async def test_durability_is_what_the_server_does(settings: dict[str, str], level: Durability) -> None:
    """P1: read at open; asking for more is an error at open, never a silent downgrade."""
    with own_server(settings) as server:
        backend = create_backend(server.url())
        await backend.open()
        assert backend.capabilities.durability is level
        assert (await backend.describe())["durability"] == level.value
        await backend.close()
        if level is not Durability.DISK:
            with pytest.raises(ConfigError):
                async with holdfast.open(server.url(durability="disk")):
                    pass


@pytest.mark.anyio
async def test_no_promise_before_the_log_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """P1: appendonly was just switched on; until the log is written, a killed server loses all of it."""
    with own_server({"appendfsync": "always"}) as server:
        server.command("DEBUG", "POPULATE", "1000")
        server.command("CONFIG", "SET", "rdb-key-save-delay", "2000")
        assert server.command("CONFIG", "SET", "appendonly", "yes") == b"+OK\r\n"
        with monkeypatch.context() as patch:
            patch.setattr(backend_module, "_FIRST_LOG_ROUNDS", 2)
            with pytest.raises(Unavailable, match="not safe yet"):
                await create_backend(server.url()).open()
        server.command("CONFIG", "SET", "rdb-key-save-delay", "0")
        async with holdfast.open(server.url()) as store:
            assert store.capabilities.durability is Durability.DISK
            assert b"aof_rewrite_in_progress:0" in server.command("INFO", "persistence")


@pytest.mark.anyio
async def test_durability_where_config_is_forbidden() -> None:
    with own_server(ALWAYS) as server:
        server.command("ACL", "SETUSER", "default", "-config")
        for url, level in (
            (server.url(), Durability.MEMORY),
            (server.url(server_durability="disk"), Durability.DISK),
        ):
            backend = create_backend(url)
            await backend.open()
            assert backend.capabilities.durability is level
            await backend.close()


@pytest.mark.anyio
async def test_eviction_is_refused(server: ValkeyServer) -> None:
    """A policy that drops sessions; without a bound on memory it drops none."""
    server.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    try:
        await works(server.url(prefix=new_prefix()))
        server.command("CONFIG", "SET", "maxmemory", "1gb")
        error = await refused(server.url(prefix=new_prefix()))
        assert isinstance(error, ConfigError)
        assert error.field == "allow_eviction"
        assert "volatile-lru" in str(error)
        await works(server.url(prefix=new_prefix(), allow_eviction="true"))
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")


def test_old_redis_is_refused() -> None:
    facts = Facts("6.2.14", "redis", False, "master", 0, True, "always", True, True, 0, "noeviction", 0, 512 << 20)
    with pytest.raises(ConfigError, match=r"6\.2\.14"):
        check(facts, RedisConfig())
    check(facts._replace(version="7.0.15"), RedisConfig())
    check(facts._replace(version="9.1.2", product="valkey"), RedisConfig())
    assert durability_of(facts._replace(appendfsync=None), RedisConfig()) is Durability.MEMORY


@pytest.mark.anyio
async def test_closed_store(server: ValkeyServer) -> None:
    backend = create_backend(server.url(prefix=new_prefix()))
    with pytest.raises(StoreClosed):
        await backend.load([])
    with pytest.raises(StoreClosed):
        _ = backend.capabilities
    await backend.open()
    await backend.close()
    with pytest.raises(StoreClosed):
        await backend.watch(lambda _: None)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Self-signed, for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "cert.pem", folder / "key.pem"
    public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return public, private


@contextlib.contextmanager
def tls_relay(target: int, public: Path, private: Path) -> Iterator[int]:
    """TLS in front of a server that knows none; gives its port."""
    loop = asyncio.new_event_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pump(reader, upstream[1]), pump(upstream[0], writer))

    async def stop(server: asyncio.Server) -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, name="tls-relay", daemon=True)
    thread.start()

    def call(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)

    server = call(asyncio.start_server(accept, "127.0.0.1", 0, ssl=context))
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        call(stop(server))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.anyio
async def test_tls(server: ValkeyServer, tmp_path: Path) -> None:
    public, private = make_certificate(tmp_path)
    with tls_relay(server.port, public, private) as port:
        place = f"rediss://127.0.0.1:{port}/?prefix={new_prefix()}"
        await works(f"{place}&ssl_ca_certs={public}")
        await works(f"{place}2&ssl_cert_reqs=none")
        error = await refused(place)
        assert isinstance(error, Unavailable), "a certificate that nobody vouches for"
    assert raw_command(server.port, "PING").startswith(b"+PONG")
