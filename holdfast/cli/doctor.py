"""``doctor``: is this store set up as it should be?"""

from __future__ import annotations

import platform
import sqlite3
from importlib import metadata, util
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import msgspec

from holdfast.backends.base import Backend, SessionFilter
from holdfast.backends.urls import create_backend
from holdfast.cli import output
from holdfast.cli.store import now_us, refuse_missing
from holdfast.config import Config
from holdfast.errors import ConfigError, HoldfastError, SchemaError
from holdfast.model import Durability
from holdfast.settings import load, redact, setting_types, split_url

__all__ = ["Check", "diagnose", "print_checks", "version"]

Status = Literal["ok", "warn", "fail"]


class Check(NamedTuple):
    """One thing looked at. ``fail``: a server would not start, or would not keep its promise."""

    name: str
    status: Status
    detail: str


async def diagnose(url: str | None, config: Path | None) -> tuple[list[Check], dict[str, Any]]:
    """Look at the settings, then at the store; stop where the next check makes no sense.

    Also returns the facts found, for programs.
    """
    checks = [_runtime()]
    try:
        settings = load(url, toml=config)
        backend = create_backend(settings.url)
    except ConfigError as exc:
        return [*checks, Check("config", "fail", str(exc))], {}
    facts: dict[str, Any] = {
        "url": redact(settings.url),
        "config": msgspec.to_builtins(settings.config),
    }
    checks += [Check("store", "ok", redact(settings.url)), _config(settings.config)]
    try:
        refuse_missing(split_url(settings.url))
        await backend.open()
    except SchemaError as exc:
        return [*checks, Check("schema", "fail", str(exc))], facts
    except HoldfastError as exc:
        return [*checks, Check("open", "fail", str(exc))], facts
    try:
        facts["capabilities"] = msgspec.to_builtins(backend.capabilities)
        facts["backend"] = described = await backend.describe()
        return checks + await _examine(backend, settings.config, described), facts
    except HoldfastError as exc:
        return [*checks, Check("read", "fail", str(exc))], facts
    finally:
        await backend.close()


def _runtime() -> Check:
    loops = [name for name in ("uvloop", "trio") if util.find_spec(name) is not None]
    also = f" (with {' and '.join(loops)})" if loops else ""
    return Check("runtime", "ok", f"holdfast {version()}, Python {platform.python_version()}{also}")


def version() -> str:
    """The installed version of Holdfast."""
    try:
        return metadata.version("holdfast")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _config(config: Config) -> Check:
    usual = Config()
    changed = [f"{name}={_read(config, name)}" for name in setting_types() if _read(config, name) != _read(usual, name)]
    return Check("config", "ok", ", ".join(changed) or "all defaults")


def _read(config: Config, name: str) -> object:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value.value if isinstance(value, Durability) else value


async def _examine(backend: Backend, config: Config, described: dict[str, object]) -> list[Check]:
    sessions = await backend.count_sessions(SessionFilter(now_us()))
    return [
        *(_sqlite(described) if backend.capabilities.name == "sqlite" else ()),
        _durability(backend, config),
        _sharing(backend),
        Check("read", "ok", f"{sessions:,} live sessions"),
    ]


def _sqlite(described: dict[str, object]) -> list[Check]:
    from holdfast.backends.sqlite.checkpoint import has_wal_bug

    version = Check("sqlite", "ok", sqlite3.sqlite_version)
    if has_wal_bug(sqlite3.sqlite_version_info) and not described["exclusive"]:
        detail = (
            f"{sqlite3.sqlite_version} has the WAL-reset bug (fixed in 3.51.3). Holdfast avoids it; let no other "
            "program write to the file, or checkpoint it, while a server runs"
        )
        version = Check("sqlite", "warn", detail)
    settings = f"journal mode {described['journal_mode']}, synchronous {described['synchronous']}"
    return [version, Check("schema", "ok", f"version {described['schema_version']}; {settings}")]


def _durability(backend: Backend, config: Config) -> Check:
    best = backend.capabilities.durability
    wanted = config.durability
    if wanted is not None and not best.covers(wanted):
        return Check("durability", "fail", f"{wanted.value} is asked for; the store reaches {best.value}")
    in_force = wanted or (best if Durability.DISK.covers(best) else Durability.DISK)
    survives = _SURVIVES[in_force]
    status: Status = "ok" if in_force.covers(Durability.PROCESS) else "warn"
    return Check("durability", status, f"{in_force.value}: an acknowledged write survives {survives}")


_SURVIVES: Final = {
    Durability.MEMORY: "nothing",
    Durability.PROCESS: "kill -9, not a power loss",
    Durability.DISK: "kill -9 and a power loss",
    Durability.REPLICATED: "the loss of the machine",
}


def _sharing(backend: Backend) -> Check:
    if backend.capabilities.exclusive:
        return Check("sharing", "ok", "exclusive: no other process can open it, reads need no I/O")
    return Check("sharing", "ok", "any number of processes")


def print_checks(checks: list[Check], facts: dict[str, Any], *, json: bool) -> None:
    """One line for each check, or one JSON document."""
    if json:
        passed = all(check.status != "fail" for check in checks)
        output.print_json({"ok": passed, "checks": [check._asdict() for check in checks], **facts})
        return
    output.verdicts((check.status, check.name, check.detail) for check in checks)
