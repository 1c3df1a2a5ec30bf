"""Server processes that do not outlive the tests, and refuse to run as root."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

__all__ = ["NOBODY", "Process", "cannot_start", "free_port", "not_here", "unprivileged", "wait_until"]

NOBODY = 65_534
START_S = 30.0


def cannot_start(reason: str) -> NoReturn:
    """Skip, or fail in CI: there, every server must start."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def not_here(reason: str) -> NoReturn:
    """Skip: a second server to test against, which only some machines have."""
    pytest.skip(reason)


@functools.cache
def unprivileged() -> tuple[str, ...]:
    """What to put before a command that refuses to run as root: it sees itself as another user."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return ()
    prefix = ("unshare", "--user", "--map-user=1000", "--map-group=1000")
    if shutil.which("unshare") and subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
        return prefix
    return ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def wait_until(condition: Callable[[], bool], *, what: str, patience_s: float = START_S) -> None:
    """Raises: AssertionError if it does not become true in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {patience_s} s"
        time.sleep(0.01)


class Process:
    """A server process, ended by the kernel when the tests end for whatever reason.

    To be started by the main thread: the kernel ends it with the thread that it was started by.
    """

    def __init__(self, command: Sequence[str], log: Path, **options: Any) -> None:
        self._log = log
        dies_with_us = ("setpriv", "--pdeathsig", "INT") if sys.platform == "linux" else ()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*unprivileged(), *dies_with_us, *command], stdout=output, stderr=output, **options
            )

    def wait_until_ready(self, is_ready: Callable[[], bool]) -> None:
        """Raises: AssertionError with its last words if it ends, or is not ready in time."""

        def settled() -> bool:
            assert self._process.poll() is None, f"the server has ended: {self.said()}"
            return is_ready()

        wait_until(settled, what="the server is not ready")

    def said(self) -> str:
        return self._log.read_text(errors="replace")[-2_000:]

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def stop(self, number: int = signal.SIGINT, *, patience_s: float = 10.0) -> None:
        """End it, by force if it does not end by itself."""
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
