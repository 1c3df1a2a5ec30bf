"""Many processes that open an empty database at once."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.backends.postgres import schema as schema_module
from tests.backends.postgres.support import sql
from tests.servers.postgres import own_server

INSTANCES = 10


def test_ten_processes_open_an_empty_database() -> None:
    """C52: one creates schema and tables under the advisory lock, the others wait for it; all ten work at once."""
    with own_server() as server, contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_instance(server.url(), number)) for number in range(INSTANCES)]
        _each(processes, "ready")
        _each(processes, "written")
        _each(processes, f"read {INSTANCES}")
        for process in processes:
            _, errors = process.communicate("\n", timeout=30)
            assert process.returncode == 0, errors
        rows = asyncio.run(sql(server.url(), "SELECT version FROM holdfast.schema_version"))
        assert [row[0] for row in rows] == [len(schema_module.STEPS)]


@contextlib.contextmanager
def _instance(url: str, number: int) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.backends.postgres.instance", url, str(number)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[3],
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def _each(processes: list[subprocess.Popen[str]], expected: str) -> None:
    """Wait until all have said it."""
    if expected != "ready":
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
    for process in processes:
        assert process.stdout is not None
        said = process.stdout.readline().rstrip()
        if said != expected:
            process.kill()
            pytest.fail(f"said {said!r} in place of {expected!r}; {process.communicate()[1]}")
