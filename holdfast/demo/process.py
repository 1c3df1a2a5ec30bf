"""The demo's child processes: servers that are started, killed and started again, and the proxy before them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import Process

__all__ = ["ProxyProcess", "ServerFailed", "ServerProcess", "end_with_parent", "free_port"]

_START_WITHIN_S = 20.0
_URL_VARIABLE = "HOLDFAST_URL"


class ServerFailed(Exception):
    """A process did not come up, or ended by itself; with the end of what it logged."""


class _LoopbackProcess:
    """Listens on one loopback port, in one process after another. It ends when this process does."""

    def __init__(self, module: str, arguments: Sequence[str], log: Path) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-m", module, str(self.port), *arguments]
        self._environment: dict[str, str] = {}
        self._log = log
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Returns when it takes connections. Raises: `ServerFailed`."""
        environment = {**os.environ, **self._environment}
        with self._log.open("ab") as log:
            self._process = await anyio.open_process(
                self._command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment
            )
        with anyio.move_on_after(_START_WITHIN_S):
            while self._process.returncode is None:
                if await self._answers():
                    return
                await anyio.sleep(0.05)
        raise ServerFailed(f"the server did not start:\n{self._log.read_text(errors='replace')[-2000:]}")

    async def _answers(self) -> bool:
        try:
            stream = await anyio.connect_tcp("127.0.0.1", self.port)
        except OSError:
            return False
        await stream.aclose()
        return True

    async def kill(self) -> None:
        """SIGKILL: it gets no chance to save or say anything."""
        process = self._process
        assert process is not None
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await process.wait()
        await process.aclose()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Run it; killed at the end, whatever happens."""
        try:
            await self.start()
            yield
        finally:
            with anyio.CancelScope(shield=True):
                if self._process is not None:
                    await self.kill()


class ServerProcess(_LoopbackProcess):
    """One instance of the MCP server, over the store at ``url``; its ledger and log are in ``folder``."""

    def __init__(
        self, folder: Path, url: str, *, number: int = 1, name: str | None = None, lease_s: float = 15.0
    ) -> None:
        """``name``, ``lease_s``: see `Lease`."""
        arguments = [str(folder), str(number), str(lease_s), *([name] if name else [])]
        super().__init__("holdfast.demo.serve", arguments, folder / f"server-{number}.log")
        self._environment = {_URL_VARIABLE: url}  # not as an argument: it may hold a password
        self.number = number


class ProxyProcess(_LoopbackProcess):
    """The round-robin proxy before some instances."""

    def __init__(self, folder: Path, instances: Sequence[ServerProcess]) -> None:
        super().__init__("holdfast.demo.proxy", [instance.url for instance in instances], folder / "proxy.log")


def end_with_parent() -> None:
    """In a child: end when standard input does, which is when the parent is gone, however it went."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="end-with-parent").start()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
