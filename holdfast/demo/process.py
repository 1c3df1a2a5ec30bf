"""The demo's server process: started, killed, started again."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
from anyio.abc import Process

__all__ = ["ServerFailed", "ServerProcess"]

_START_WITHIN_S = 20.0


class ServerFailed(Exception):
    """The server process did not come up, or ended by itself; with the end of what it logged."""


class ServerProcess:
    """Serves on one loopback port, over one folder, in one process after another."""

    def __init__(self, folder: Path) -> None:
        self.port = _free_port()
        self._folder = folder
        self._log = folder / "server.log"
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Returns when it takes connections. Raises: `ServerFailed`."""
        command = [sys.executable, "-m", "holdfast.demo.serve", str(self._folder), str(self.port)]
        with self._log.open("ab") as log:
            self._process = await anyio.open_process(command, stdin=None, stdout=log, stderr=log)
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
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
        await self._process.wait()

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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
