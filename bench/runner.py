"""How measurements are run: each in a process of its own, on the loop asked for, round after round."""

from __future__ import annotations

import gc
import logging
import sys
import tempfile
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar, TypeVarTuple

import anyio
import msgspec
import structlog

__all__ = ["LOOPS", "Loop", "Settings", "Void", "empty_folder", "isolated", "quietly", "run_on"]

Args = TypeVarTuple("Args")
T = TypeVar("T")

Loop = Literal["asyncio", "uvloop", "trio"]
LOOPS: tuple[Loop, ...] = ("asyncio", "uvloop", "trio")


class Void(Exception):
    """A run whose store did not hold afterwards what was acknowledged: its figures count for nothing."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line asks of every benchmark."""

    loop: Loop = "asyncio"
    rounds: int = 5
    quick: bool = False
    """Tiny sizes, to see that everything works."""
    folder: Path | None = None
    """Where the databases are made; None: the system's folder for temporary files."""
    isolate: bool = True
    """Each measurement in a fresh process, so that none inherits another's heap, threads or caches."""
    url: str | None = None
    """Of a server to use, as its plain driver takes it; None: start one."""
    level: str | None = None
    """The durability that everybody is held to; None: the store's default."""
    progress: Callable[[str], None] = lambda _line: None

    @property
    def parent_folder(self) -> Path:
        """The folder that all databases of the run are made below."""
        return self.folder or Path(tempfile.gettempdir())


def run_on(loop: Loop, function: Callable[[*Args], Coroutine[Any, Any, T]], *args: *Args) -> T:
    """Run the async ``function`` to its end on a new event loop, on a clean heap."""
    gc.collect()
    if loop == "trio":
        return anyio.run(function, *args, backend="trio")
    return anyio.run(function, *args, backend="asyncio", backend_options={"use_uvloop": loop == "uvloop"})


def isolated(settings: Settings, measure: Callable[[Path], T]) -> T:
    """Call ``measure`` with an empty folder, in a fresh process if ``settings`` say so.

    ``measure`` must then be picklable. What it raises is raised here.
    """
    with empty_folder(settings) as folder:
        if not settings.isolate:
            return quietly(measure, folder)
        with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
            return pool.submit(quietly, measure, folder).result()


@contextmanager
def empty_folder(settings: Settings) -> Generator[Path]:
    """A folder for one measurement, where ``settings`` say."""
    with tempfile.TemporaryDirectory(dir=settings.parent_folder, prefix="holdfast-bench-") as name:
        yield Path(name)


def quietly(measure: Callable[[*Args], T], *args: *Args) -> T:
    """Log as a server in production would: errors only, and not among the figures on standard output."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        return measure(*args)
    finally:
        structlog.configure(**before)
