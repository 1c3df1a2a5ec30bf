"""TLS with a real server: which connections are encrypted, whom they trust, and what is said of those that fail.

The embedded PostgreSQL is built without TLS: Debian's is used.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import anyio
import pytest

from holdfast.backends.postgres import PostgresBackend
from holdfast.backends.urls import create_backend
from holdfast.errors import ConfigError, HoldfastError, StoreClosed, Unavailable
from holdfast.testing import ManualClock
from holdfast.testing.contract.direct import Direct
from tests.backends.postgres.support import sql
from tests.servers.certificates import Authority
from tests.servers.postgres import PASSWORD, PostgresServer, debian_binaries, new_schema, server_folder

pytestmark = pytest.mark.anyio

LOGIN = """
hostssl certified all 127.0.0.1/32 cert
hostssl postgres  all 127.0.0.1/32 scram-sha-256
"""
"""Who gets in (pg_hba.conf): nobody without TLS, and to one database nobody without a certificate of his own."""


class Place(NamedTuple):
    server: PostgresServer
    folder: Path

    def url(self, host: str = "127.0.0.1", database: str = "postgres", **params: str) -> str:
        """``ca.crt`` as a parameter means the file of that name here."""
        given = {
            name: str(self.folder / value) if value.endswith((".crt", ".key")) else value
            for name, value in params.items()
        }
        password = "" if database == "certified" else f":{PASSWORD}"
        return f"postgresql://holdfast{password}@{host}:{self.server.port}/{database}?{urlencode(given)}"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with server_folder() as folder:
        authority, other = Authority(folder, "ca"), Authority(folder, "other-ca")
        certificate, key = authority.issue("server", "127.0.0.1")
        authority.issue("holdfast", password=b"key-secret")  # a role's name
        authority.issue("somebody")
        other.issue("stranger")
        settings = {"ssl": "on", "ssl_cert_file": certificate, "ssl_key_file": key, "ssl_ca_file": authority.file}
        server = PostgresServer(debian_binaries(15), folder, {name: str(value) for name, value in settings.items()})
        server.initialise()
        (server.data / "pg_hba.conf").write_text(LOGIN)
        server.start()
        try:
            server.run("psql", f"{server.libpq_url('postgres')}?sslmode=require", "-c", "CREATE DATABASE certified")
            yield Place(server, folder)
        finally:
            server.stop()


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    """The driver leaves the transport of a refused TLS connection to its loop, which has ended by then under trio."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def opened_at(url: str) -> PostgresBackend:
    """Raises what opening raises, with nothing left behind and no secret told."""
    backend = create_backend(f"{url}&schema={new_schema()}")
    assert isinstance(backend, PostgresBackend)
    try:
        await backend.open()
    except HoldfastError as exc:
        assert PASSWORD not in str(exc)
        assert "key-secret" not in str(exc)
        with pytest.raises(StoreClosed):
            await backend.describe()
        raise
    return backend


IN_CLEAR = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE client_port > 0 AND NOT ssl"
BY_APPLICATION = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"


@pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
async def test_all_connections_are_encrypted(place: Place, clock: ManualClock, mode: str) -> None:
    """Those of the pool, the one that sends hints, and the one that listens for them."""
    url = place.url(sslmode=mode, sslrootcert="ca.crt", application_name=f"web-{mode}")
    backend = await opened_at(url)
    try:
        direct = Direct(backend, clock)
        head = await direct.append(await direct.create("s"), "a")
        heard = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(backend.watch, lambda _: heard.set())
            with anyio.fail_after(10):
                await heard.wait()
                beside = place.url(sslmode="require")
                while (await sql(beside, BY_APPLICATION, f"web-{mode}"))[0][0] < 3:
                    await anyio.sleep(0.01)
            assert (await sql(beside, IN_CLEAR))[0][0] == 0
            tasks.cancel_scope.cancel()
        assert [event.data for event in await direct.events(head)] == ["a"]
    finally:
        await backend.close()


@pytest.mark.parametrize(
    ("mode", "host", "root", "words"),
    [
        ("require", "127.0.0.1", "other-ca.crt", "not trusted"),
        ("verify-ca", "127.0.0.1", "other-ca.crt", "not trusted"),
        ("verify-full", "127.0.0.1", "other-ca.crt", "not trusted"),
        ("verify-full", "localhost", "ca.crt", "not valid for 'localhost'"),
        ("disable", "127.0.0.1", "ca.crt", "no encryption"),
    ],
)
async def test_who_is_not_trusted(place: Place, mode: str, host: str, root: str, words: str) -> None:
    with pytest.raises(Unavailable, match=words):
        await opened_at(place.url(host, sslmode=mode, sslrootcert=root))


async def test_host_name_matters_to_verify_full_alone(place: Place) -> None:
    await (await opened_at(place.url("localhost", sslmode="verify-ca", sslrootcert="ca.crt"))).close()


async def test_client_with_a_certificate(place: Place, clock: ManualClock) -> None:
    url = partial(place.url, database="certified", sslmode="verify-full", sslrootcert="ca.crt")
    backend = await opened_at(url(sslcert="holdfast.crt", sslkey="holdfast.key", sslpassword="key-secret"))
    try:
        await Direct(backend, clock).create("s")
    finally:
        await backend.close()
    for files, words in (
        ({}, "valid client certificate|connection"),
        ({"sslcert": "somebody.crt", "sslkey": "somebody.key"}, "28000|connection"),
        ({"sslcert": "stranger.crt", "sslkey": "stranger.key"}, "connection"),
    ):
        with pytest.raises(Unavailable, match=words):
            await opened_at(url(**files))


@pytest.mark.parametrize(
    ("params", "field", "words"),
    [
        ({"sslrootcert": "/nowhere/root"}, "sslrootcert", "No such file"),
        ({"sslrootcert": "server.key"}, "sslrootcert", "holds no certificates"),
        ({"sslcert": "/nowhere/mine"}, "sslcert", "No such file"),
        ({"sslcert": "holdfast.crt"}, "sslcert", "does not fit its key"),
        ({"sslcert": "holdfast.crt", "sslkey": "somebody.key"}, "sslcert", "does not fit its key"),
        (
            {"sslcert": "holdfast.crt", "sslkey": "holdfast.key", "sslpassword": "no"},
            "sslcert",
            "check sslkey",
        ),
        ({"sslcrl": "server.key"}, "sslcrl", "revocation"),
        ({"sslmode": "verify"}, "url", "verify-ca"),
        ({"ssl_min_protocol_version": "TLSv9"}, "url", "TLSv9"),
    ],
)
async def test_wrong_tls_settings_are_named(place: Place, params: dict[str, str], field: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        await opened_at(place.url(**({"sslmode": "require"} | params)))
    assert caught.value.field == field


async def test_files_do_not_matter_without_tls(place: Place) -> None:
    with pytest.raises(Unavailable, match="no encryption"):
        await opened_at(place.url(sslmode="disable", sslrootcert="/nowhere/root"))


def test_doctor_says_why(place: Place) -> None:
    """One line and an exit code, whatever the driver raises."""
    schema = new_schema()
    for params, code, words in (
        ({"sslmode": "verify-full", "sslrootcert": "ca.crt"}, 0, "ok"),
        ({"sslmode": "verify-full", "sslrootcert": "other-ca.crt"}, 1, "the database's certificate is not trusted"),
        ({"sslmode": "verify-full", "sslrootcert": "/nowhere/root"}, 1, "sslrootcert: the file cannot be read"),
    ):
        ran = subprocess.run(
            [sys.executable, "-m", "holdfast.cli", "doctor", f"{place.url(**params)}&schema={schema}"],
            capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "300"},
        )  # fmt: skip
        said = ran.stdout + ran.stderr
        assert ran.returncode == code, said
        assert words in said
        assert "Traceback" not in said
        assert PASSWORD not in said
