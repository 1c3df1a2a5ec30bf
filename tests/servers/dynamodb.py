"""DynamoDB emulators, started by the tests: once per session, on a free port of the loopback.

ministack pins a botocore that does not go with ours, so it lives in an environment of its own, made
once in the folder ``.servers`` beside the tests. dynoxide is a static binary from npm; it is ten
times as fast, and used where npm is there. ``HOLDFAST_TEST_DYNAMODB_URL`` (an endpoint) takes the place of both.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from holdfast.backends.dynamodb import DynamoDBConfig
from tests.servers.processes import Process, cannot_start, free_port, not_here

__all__ = ["config_for", "dynoxide", "fast_endpoint", "ministack_endpoint", "own_dynoxide"]

MINISTACK = "ministack==1.5.33"
DYNOXIDE = "@dynoxide/linux-x64@1.2.1"
SERVERS = Path(os.environ.get("HOLDFAST_TEST_SERVERS") or Path(__file__).parents[2] / ".servers")
INSTALL_S = 300

# Emulators take any; without some the SDK would go looking for them.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests"}


def config_for(endpoint: str, **settings: Any) -> DynamoDBConfig:
    """A table of its own, to be made at open; credentials in the environment."""
    os.environ.update(CREDENTIALS)
    given: dict[str, Any] = {"table": f"holdfast-{uuid.uuid4().hex[:12]}", "region": "us-east-1", "create": True}
    return DynamoDBConfig(endpoint=endpoint, **(given | settings))


@functools.cache
def ministack_endpoint() -> str:
    """Of the server of this session."""
    if given := os.environ.get("HOLDFAST_TEST_DYNAMODB_URL"):
        return given
    return _started(_ministack)


@functools.cache
def fast_endpoint() -> str:
    """Of dynoxide, if it is to be had, else ministack's."""
    if given := os.environ.get("HOLDFAST_TEST_DYNAMODB_URL"):
        return given
    return (
        _started(lambda port, _: [str(binary), "--port", str(port)]) if (binary := dynoxide()) else ministack_endpoint()
    )


def _started(command: Callable[[int, Path], list[str]]) -> str:
    folder = Path(tempfile.mkdtemp(prefix="holdfast-dynamodb-"))
    folder.chmod(0o755)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    port = free_port()
    server = Process(
        command(port, folder),
        folder / "log",
        env=os.environ | {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "HOME": str(folder)},
        cwd=folder,
    )
    atexit.register(server.kill)
    server.wait_until_ready(lambda: _answers(port))
    return f"http://127.0.0.1:{port}"


@contextmanager
def own_dynoxide(database: Path, port: int = 0) -> Generator[tuple[Process, int]]:
    """A server that keeps its data in a file, for tests that kill it. Yields it with its port."""
    binary = dynoxide()
    if binary is None:
        not_here(f"npm cannot fetch {DYNOXIDE}")
    port = port or free_port()
    command = [str(binary), "--port", str(port), "--db-path", str(database)]
    server = Process(command, database.with_suffix(".log"))
    try:
        server.wait_until_ready(lambda: _answers(port))
        yield server, port
    finally:
        server.stop(signal.SIGKILL)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# --- installed once ----------------------------------------------------------


def _ministack(_port: int, _folder: Path) -> list[str]:
    command = _installed("ministack-1.5.33", _install_ministack) / "bin" / "ministack"
    return [str(command)]


def _install_ministack(folder: Path) -> None:
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, MINISTACK])


@functools.cache
def dynoxide() -> Path | None:
    """The binary; None where it does not run, or npm is not there or has not got it."""
    if sys.platform != "linux" or os.uname().machine != "x86_64" or shutil.which("npm") is None:
        return None
    try:
        return _installed("dynoxide-1.2.1", _install_dynoxide) / "package" / "dynoxide"
    except (AssertionError, subprocess.TimeoutExpired):
        return None


def _install_dynoxide(folder: Path) -> None:
    folder.mkdir()
    _run(["npm", "pack", "--silent", "--pack-destination", str(folder), DYNOXIDE])
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extractall(folder, filter="data")
    (folder / "package" / "dynoxide").chmod(0o755)


def _installed(name: str, install: Callable[[Path], None]) -> Path:
    """The folder, filled by whichever test process comes first; a half-done one is done again."""
    SERVERS.mkdir(exist_ok=True)
    folder = SERVERS / name
    with (SERVERS / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            try:
                install(folder)
            except (OSError, AssertionError, StopIteration) as exc:
                if name.startswith("ministack"):
                    cannot_start(f"{name} cannot be installed: {exc}")
                raise AssertionError(str(exc)) from exc
            (folder / ".done").touch()
    return folder


def _run(command: list[str]) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    assert ran.returncode == 0, ran.stderr[-500:]
