"""The README's examples run as they stand, on both event loops."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import holdfast

README = (Path(__file__).parents[1] / "README.md").read_text()


def examples() -> list[Any]:
    """Each Python block, at its own line so that a traceback points into the README."""
    found: list[Any] = []
    for block in re.finditer(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        line = README.count("\n", 0, block.start()) + 2
        found.append(pytest.param("\n" * (line - 1) + block[1], id=f"line-{line}"))
    return found


def is_program(source: str) -> bool:
    return "anyio.run(" in source


PROGRAMS = [example for example in examples() if is_program(example.values[0])]
SNIPPETS = [example for example in examples() if not is_program(example.values[0])]


@pytest.mark.anyio
@pytest.mark.parametrize("source", SNIPPETS)
async def test_an_example_runs(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = compile(source, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    async with holdfast.open("sqlite:///readme.db") as store:
        names = {"holdfast": holdfast, "store": store, "session": await store.create("readme")}
        ran = eval(code, names)
        if inspect.iscoroutine(ran):
            await ran


@pytest.mark.parametrize("source", PROGRAMS)
def test_a_program_runs(source: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr


def test_there_is_an_example_of_every_call() -> None:
    code = "\n".join(example.values[0] for example in examples())
    for owner, cls in (("store", holdfast.Supervisor), ("session", holdfast.Session)):
        for name, member in vars(cls).items():
            if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                assert f"{owner}.{name}" in code, f"{owner}.{name} has no example"
