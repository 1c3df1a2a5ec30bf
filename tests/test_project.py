"""What the project promises about itself: its public face, its imports, its pins, its pages."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import holdfast
from holdfast import errors
from holdfast.backends.urls import backend_schemes
from holdfast.settings import setting_types

ROOT = Path(__file__).parents[1]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted((ROOT / "holdfast").rglob("*.py"))


# --- the public face ---------------------------------------------------------


def test_the_public_names_are_these() -> None:
    """A name added or removed here is a decision, and a line in the changelog."""
    assert sorted(holdfast.__all__) == [
        "Config",
        "DrainReport",
        "Durability",
        "Event",
        "EventData",
        "HoldfastError",
        "LATEST",
        "Session",
        "SessionInfo",
        "Supervisor",
        "open",
    ]
    for name in holdfast.__all__:
        assert hasattr(holdfast, name), name


def test_every_error_is_in_the_tree_that_its_module_draws() -> None:
    tree = re.findall(r"── (\w+)", inspect.getdoc(errors) or "")
    classes = {name for name in errors.__all__ if inspect.isclass(getattr(errors, name))}
    assert {*tree, "HoldfastError"} == classes
    for name in classes:
        assert issubclass(getattr(errors, name), holdfast.HoldfastError)


def test_the_typing_marker_is_shipped() -> None:
    assert (ROOT / "holdfast/py.typed").exists()


# --- imports -----------------------------------------------------------------


def test_importing_holdfast_loads_no_driver() -> None:
    drivers = [
        "aiosqlite",
        "sqlite3",
        "asyncpg",
        "aiobotocore",
        "botocore",
        "redis",
        "mcp",
        "fastmcp",
        "trio",
        "uvloop",
    ]
    drivers += ["click", "pytest", "uvicorn", "starlette", "httpx"]
    program = f"import sys, holdfast; print([name for name in {drivers} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_has_one_job(path: Path) -> None:
    """Up to 500 lines, a docstring that says what for, and names that exist in ``__all__``."""
    source = path.read_text()
    assert source.count("\n") <= 500
    tree = ast.parse(source)
    assert ast.get_docstring(tree), "no docstring"
    defined = {name for node in ast.walk(tree) for name in _names(node)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            assert set(ast.literal_eval(node.value)) <= defined


def _names(node: ast.AST) -> list[str]:
    match node:
        case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.ImportFrom(names=names) | ast.Import(names=names):
            return [alias.asname or alias.name for alias in names]
        case ast.Name(id=name, ctx=ast.Store()):
            return [name]
        case _:
            return []


# --- packaging ---------------------------------------------------------------


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {_normal(name): version for name, version in pairs}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _requirements(extra: str | None) -> list[str]:
    project = PYPROJECT["project"]
    listed = project["dependencies"] if extra is None else project["optional-dependencies"][extra]
    return [requirement.partition("#")[0].strip() for requirement in listed]


@pytest.mark.parametrize("extra", [None, "trio", "uvloop", "mcp", "dev"])
def test_what_the_tests_run_with_is_pinned(extra: str | None) -> None:
    for requirement in _requirements(extra):
        name = re.split(r"[\[<>=;! ]", requirement)[0]
        assert name == "holdfast" or _normal(name) in pins(), name


def test_pins_are_names_and_versions_only() -> None:
    assert pins()
    for name, version in pins().items():
        assert re.fullmatch(r"[a-z0-9-]+", name)
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version)


def test_all_is_all() -> None:
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    [everything] = _requirements("all")
    assert set(re.findall(r"\w+", everything)) - {"holdfast"} == extras - {"all", "dev"}


def test_backends_are_found_from_a_source_tree_as_when_installed() -> None:
    declared = PYPROJECT["project"]["entry-points"]["holdfast.backends"]
    found = backend_schemes()
    assert {scheme: found[scheme] for scheme in declared} == declared
    for target in declared.values():
        module, _, attribute = target.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute))


def test_the_driver_is_one_whose_private_method_we_know() -> None:
    """`holdfast.backends.sqlite` runs functions in the thread of an `aiosqlite.Connection`."""
    assert re.match(r"0\.22\.", metadata.version("aiosqlite"))


def test_no_file_names_a_registry_or_this_machine() -> None:
    suspects = re.compile(r"pypi\.org/simple|files\.pythonhosted|/root/|/work/|--index-url|extra-index|find-links")
    for path in [ROOT / "Makefile", ROOT / ".ci/run", ROOT / "constraints.txt", ROOT / "pyproject.toml"]:
        assert not suspects.search(path.read_text()), path


# --- pages -------------------------------------------------------------------


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_page_is_that_of_the_code() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    updated = _load(ROOT / "docs/update_configuration.py").updated(page)
    assert page == updated, "run: python docs/update_configuration.py"
    for name in setting_types():
        assert f"| `{name}` |" in page


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_row_of_the_seed_table_names_proof_that_exists() -> None:
    """Each row of docs/from-the-seed.md is planned, or names a test or a command that is there."""
    rows = [
        line.split("|") for line in (ROOT / "docs/from-the-seed.md").read_text().splitlines() if line.startswith("|")
    ]
    table = [[cell.strip() for cell in row[1:-1]] for row in rows if len(row) == 5]
    body = [row for row in table if row[0] not in ("seed", "---")]
    assert len(body) > 40
    for seed, _, proof in body:
        assert proof, seed
        if proof == "planned":
            continue
        targets = re.findall(r"`([^`]+)`", proof)
        assert targets, seed
        for target in targets:
            _check_proof(target)


def _check_proof(target: str) -> None:
    if target.startswith(("make ", "holdfast ", "python -m ")):
        return
    path, _, test = target.partition("::")
    assert (ROOT / path).exists(), target
    if test:
        assert re.search(rf"def {test}\b|^#+ {re.escape(test)}$", (ROOT / path).read_text(), re.MULTILINE), target
