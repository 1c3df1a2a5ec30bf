"""The demo as a function and as a command."""

from __future__ import annotations

import secrets
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, cast

import anyio
import msgspec

import holdfast
from holdfast.backends.urls import create_backend
from holdfast.demo.instances import Instances
from holdfast.demo.postgres import embedded_postgres
from holdfast.demo.restarts import Restarts
from holdfast.demo.result import DemoResult
from holdfast.demo.timeline import Timeline
from holdfast.errors import ConfigError, StoreError
from holdfast.settings import load, redact, split_url

__all__ = ["main", "run_demo"]

_LIMIT_S: Final = 60.0


async def run_demo(
    url: str | None = None, *, instances: int | None = None, postgres: bool = False, quiet: bool = False
) -> DemoResult:
    """Run the demo on the store at ``url``; prints its timeline unless ``quiet``.

    Without a URL, the store is in a temporary folder: PostgreSQL with ``postgres``, else SQLite.
    Without ``instances``, there are two on PostgreSQL of the demo's own, else one.

    Raises: `ConfigError`, `StoreError` if the store cannot be used, `ServerFailed`, `TimeoutError`.
    """
    _check(url, postgres=postgres)
    timeline = Timeline(quiet=quiet)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-demo-")))
        stack.enter_context(anyio.fail_after(_LIMIT_S))
        if postgres:
            url, store = await stack.enter_async_context(embedded_postgres(folder / "postgres")), "PostgreSQL"
        elif url is None:
            url, store = f"sqlite:///{folder / 'sessions.db'}", "SQLite"
        else:
            store = redact(url)
        async with holdfast.open(url, background=False):
            pass  # a store that cannot be used is told here, not by each server
        instances = instances or (2 if postgres else 1)
        if instances == 1:
            timeline.title("An MCP server dies twice in mid-stream. Its sessions are in Holdfast.")
            return await Restarts(folder, url, timeline, name=f"demo-{secrets.token_hex(4)}", store=store).tell()
        timeline.title("MCP servers behind a proxy without sticky sessions, two of them killed. One Holdfast store.")
        return await Instances(folder, url, timeline, instances=instances, store=store).tell()


def _check(url: str | None, *, postgres: bool) -> None:
    """A mistake, or a missing driver, is told before anything is started."""
    if postgres and url is not None:
        raise ConfigError("postgres", "starts a server of the demo's own: give it or a store's URL, not both")
    url = "postgresql://127.0.0.1/postgres" if postgres else url
    if url is None:
        return
    create_backend(load(url).url)
    if split_url(url).scheme == "memory":
        raise ConfigError("url", "a memory:// store dies with its process, which is what the demo kills")


def main(url: str | None = None, *, instances: int | None = None, postgres: bool = False, json: bool = False) -> int:
    """Run the demo as a command. The exit code is 0 only if nothing was wrong.

    Raises: `ConfigError`, `StoreError`.
    """
    try:
        result = anyio.run(lambda: run_demo(url, instances=instances, postgres=postgres, quiet=json))
    except (ConfigError, StoreError):
        raise
    except Exception as exc:
        reason = "; ".join(_reasons(exc))
        if json:
            _print(msgspec.json.encode({"ok": False, "error": reason}).decode())
        else:
            sys.stderr.write(f"The demo failed: {reason}\n")
        return 1
    if json:
        _print(msgspec.json.encode(result).decode())
    return 0 if result.ok else 1


def _reasons(exc: BaseException) -> list[str]:
    if isinstance(exc, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", exc)
        return [reason for inner in group.exceptions for reason in _reasons(inner)]
    if isinstance(exc, TimeoutError):
        return [f"not done within {_LIMIT_S:g} s"]
    return [f"{type(exc).__name__}: {exc}"]


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
