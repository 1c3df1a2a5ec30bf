"""A filled store, and a way to call the command on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
from click.testing import CliRunner, Result

import holdfast
from holdfast.cli import main

ROOT = Path(__file__).parents[2]
Call = Callable[..., Result]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No settings from outside, an empty folder, and the log's own set-up put back."""
    for name in ("HOLDFAST_URL", "HOLDFAST_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def call() -> Call:
    def call(*args: str, env: dict[str, str] | None = None) -> Result:
        result = CliRunner().invoke(main, list(args), env=env)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


def documents(result: Result) -> list[Any]:
    """The JSON documents that the command printed, one a line."""
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@contextmanager
def running(*args: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process of its own, which is killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast.cli", *args],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def url() -> str:
    """A store with "cart", an active session of ann's, and "done", a closed one of nobody's."""

    async def fill() -> None:
        async with holdfast.open("sqlite:///sessions.db") as store:
            cart = await store.create("cart", owner="ann", ttl_s=3600, metadata={"agent": "curl"})
            await cart.set_many({"items": [1, 2], "note": "\x1b[31mred [bold]"})
            for number in range(1, 21):
                await cart.append({"n": number}, stream="even" if number % 2 == 0 else "", type="tick")
            done = await store.create("done", ttl_s=None)
            await done.append("bye")
            await done.close()

    anyio.run(fill)
    return "sqlite:///sessions.db"
