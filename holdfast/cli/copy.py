"""``copy``: all sessions of one store into another."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from holdfast.cli import output
from holdfast.cli.store import load_settings, open_backend, open_or_create
from holdfast.copying import Copier, Phase, Report
from holdfast.settings import redact

__all__ = ["copy_store"]


async def copy_store(source_url: str, target_url: str, *, verify: bool, json: bool) -> bool:
    """Copy, and print what became of it; whether everything is at the target.

    Raises: `ConfigError` for a store that cannot be copied, or both being the same one; `Unavailable`, `SchemaError`.
    """
    source_settings, target_settings = load_settings(source_url, None), load_settings(target_url, None)
    async with open_backend(source_settings) as source, open_or_create(target_settings) as target:
        with _bar() as bar:
            copier = Copier(source, target, target_settings.config.writer, progress=bar.advance)
            bar.total = await copier.count()
            report = await copier.run(verify=verify)
    if json:
        output.print_json(_document(report, redact(source_settings.url), redact(target_settings.url)))
    else:
        _print(report)
    return report.complete


class _Bar:
    """A progress bar for each phase, from its first step on."""

    def __init__(self, progress: Progress) -> None:
        self.total = 0
        self._progress: Final = progress
        self._tasks: dict[Phase, TaskID] = {}
        self._events: dict[Phase, int] = {}

    def advance(self, phase: Phase, sessions: int, events: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=self.total, events="0")
        count = self._events[phase] = self._events.get(phase, 0) + events
        self._progress.update(self._tasks[phase], advance=sessions, events=f"{count:,}")


@contextmanager
def _bar() -> Generator[_Bar]:
    """On standard error, and only if that is a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:>11}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sessions, {task.fields[events]} events"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield _Bar(progress)


def _document(report: Report, source: str, target: str) -> dict[str, object]:
    counts = msgspec.structs.asdict(report) | {"problems": list(report.problems.values())}
    return {"source": source, "target": target, "complete": report.complete, **counts}


def _print(report: Report) -> None:
    for problem in report.problems.values():
        output.note(f"{problem.kind}: session {problem.session_id!r}: {problem.detail}")
    caught_up = f"; {report.caught_up:,} had changed and were copied on" if report.caught_up else ""
    there = f"; {report.already_there:,} were there already" if report.already_there else ""
    click.echo(f"copied {report.copied:,} sessions, {report.events:,} events{there}{caught_up}")
    if report.verified is not None:
        click.echo(f"verified {report.verified:,} sessions, {report.verified_events:,} events: the same in both stores")
    if report.problems:
        click.echo(f"{len(report.problems):,} sessions are not, or not exactly, at the target")
