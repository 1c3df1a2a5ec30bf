"""The command line: ``python -m bench append | live | scaling | units | get | memory | replay | all``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import click
from rich.console import Console

from bench import append as append_bench
from bench import get as get_bench
from bench import live as live_bench
from bench import memory as memory_bench
from bench import replay as replay_bench
from bench import scaling as scaling_bench
from bench.figures import Section
from bench.machine import look_at_machine
from bench.report import Report, as_json, print_report
from bench.runner import Loop, Settings, Void
from bench.stores import STORES, StoreName

__all__ = ["main"]

_SCALES = (1, 100, 1_000)
_QUICK_SCALES = (1, 10)
_QUICK_FSYNCS = 20
_FILE_WIDTH = 110

Benchmark = Callable[[Settings], list[Section]]


def _shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """The flags that every benchmark takes."""
    options = [
        click.option("--loop", type=click.Choice(get_args(Loop)), default="asyncio", show_default=True),
        click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Interleaved rounds."),
        click.option("--quick", is_flag=True, help="One tiny round, to see that everything works."),
        click.option("--json", "json_output", is_flag=True, help="One JSON object, every round's values included."),
        click.option(
            "--folder",
            type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
            help="Where to make the databases: choose the disk that matters to you.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _append_options(command: Callable[..., None]) -> Callable[..., None]:
    sessions = click.option(
        "--sessions", type=click.IntRange(min=1), multiple=True, help="Waiting sessions; repeatable.  [1, 100, 1000]"
    )
    events = click.option("--events", type=click.IntRange(min=1), help="Events in each run, of every competitor.")
    connections = click.option(
        "--connections", type=click.IntRange(min=1), help="Of the plain drivers, in place of their fastest number."
    )
    burst = click.option(
        "--burst", type=click.IntRange(min=1), default=1, help="Appends that each session has in flight.  [1]"
    )
    return sessions(events(connections(burst(command))))


def _store_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Which store; the first of ``names`` is the default."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        store = click.option("--store", type=click.Choice(names), default=names[0], show_default=True)
        url = click.option(
            "--url",
            help="Of a server to use (dynamodb: its endpoint), as its plain driver takes it; else one is started.",
        )
        level = click.option("--durability", "level", help="That everybody is held to; valkey has disk and process.")
        return store(url(level(command)))

    return add


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure Holdfast against what one would use instead, on this machine."""


@main.command()
@_store_options(*STORES)
@_append_options
@_shared_options
def append(
    store: StoreName,
    sessions: tuple[int, ...],
    events: int | None,
    connections: int | None,
    burst: int,
    **options: Any,
) -> None:
    """Durable appends per second, and the latency of one alone."""
    _check_place(store, options)
    if burst > 1 and not STORES[store].bursts:
        raise click.UsageError(f"{store}: the plain driver's rows would come out of order with --burst")
    _run([_append_benchmark(store, sessions, events=events, connections=connections, burst=burst)], **options)


@main.command()
@_shared_options
def get(**options: Any) -> None:
    """A hot get where nobody else can write."""
    _run([get_bench.run], **options)


@main.command()
@_shared_options
def memory(**options: Any) -> None:
    """Bytes of an idle hot session."""
    _run([memory_bench.run], **options)


@main.command()
@_shared_options
def replay(**options: Any) -> None:
    """Reading 10,000 events back."""
    _run([replay_bench.run], **options)


@main.command()
@_store_options("postgres", "valkey", "sqlite")
@click.option("--rate", type=click.IntRange(min=1), help="Events per second.  [1000]")
@_shared_options
def live(store: StoreName, rate: int | None, **options: Any) -> None:
    """From an append in one instance to a subscriber in another."""
    _check_place(store, options)
    _run([partial(live_bench.run, store=store, rate=rate)], **options)


@main.command()
@_store_options("postgres", "valkey", "sqlite", "dynamodb")
@_shared_options
def scaling(store: StoreName, **options: Any) -> None:
    """One, two and four instances on one store."""
    _check_place(store, options)
    _run([partial(scaling_bench.run, store=store)], **options)


@main.command()
@_shared_options
@click.option("--url", help="The endpoint of a DynamoDB to use; else an emulator is started.")
def units(**options: Any) -> None:
    """What an append costs on DynamoDB."""
    from bench import units as units_bench  # imports the driver

    _run([units_bench.run], **options)


@main.command("all")
@_append_options
@_shared_options
def run_all(sessions: tuple[int, ...], events: int | None, connections: int | None, burst: int, **options: Any) -> None:
    """Append on SQLite, get, memory and replay: what needs no server."""
    append_on_sqlite = _append_benchmark("sqlite", sessions, events=events, connections=connections, burst=burst)
    _run([append_on_sqlite, get_bench.run, memory_bench.run, replay_bench.run], **options)


def _check_place(store: StoreName, options: dict[str, Any]) -> None:
    """Raises: `click.UsageError`."""
    if store == "sqlite" and options["url"] is not None:
        raise click.UsageError("sqlite has no server: choose its disk with --folder")
    levels = STORES[store].levels
    if options["level"] not in (None, *levels):
        raise click.UsageError(f"{store} is measured at {' or '.join(levels)}")


def _append_benchmark(store: StoreName, sessions: tuple[int, ...], **sizes: Any) -> Benchmark:
    def run(settings: Settings) -> list[Section]:
        chosen = sessions or (_QUICK_SCALES if settings.quick else _SCALES)
        return append_bench.run(settings, store, chosen, **sizes)

    return run


def _run(
    benchmarks: Sequence[Benchmark],
    *,
    loop: str,
    rounds: int,
    quick: bool,
    json_output: bool,
    folder: Path | None,
    url: str | None = None,
    level: str | None = None,
) -> None:
    """Run, then print. A void run ends with exit code 1. A missed bar does not: the table says it."""
    errors = Console(stderr=True)
    with errors.status("") as status:
        settings = Settings(
            loop=cast("Loop", loop),
            rounds=1 if quick else rounds,
            quick=quick,
            folder=folder,
            isolate=not quick,
            url=url,
            level=level,
            progress=status.update,
        )
        machine = look_at_machine(settings.parent_folder, fsyncs=_QUICK_FSYNCS if quick else 300)
        try:
            sections = [section for benchmark in benchmarks for section in benchmark(settings)]
        except Void as void:
            errors.print(f"The run is void. {void}", style="bold red")
            sys.exit(1)
    report = Report(machine=machine, loop=loop, rounds=settings.rounds, quick=quick, sections=sections)
    if json_output:
        click.echo(as_json(report))
    else:
        print_report(report, Console(width=None if sys.stdout.isatty() else _FILE_WIDTH))
