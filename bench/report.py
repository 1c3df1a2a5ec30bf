"""The report of one run, as tables for people and as JSON for programs."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table

from bench.figures import Figure, Section
from bench.machine import Machine

__all__ = ["Report", "as_json", "print_report"]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the suite on one machine."""

    machine: Machine
    loop: str
    rounds: int
    quick: bool
    """The sizes were too small for figures that mean anything."""
    sections: list[Section]


def as_json(report: Report) -> str:
    """The whole report, every round's value included, with the medians and verdicts worked out."""
    document = msgspec.to_builtins(report)
    document["sections"] = [
        {"title": section.title, "figures": [_figure_document(figure) for figure in section.figures]}
        for section in report.sections
    ]
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()


def _figure_document(figure: Figure) -> dict[str, object]:
    measured: dict[str, object] = msgspec.to_builtins(figure)
    return measured | {"median": figure.median, "low": figure.low, "high": figure.high, "met": figure.met}


def print_report(report: Report, console: Console) -> None:
    """Tables of medians, spreads and verdicts, below a line of facts on the machine."""
    machine = report.machine
    console.print(
        f"{machine.cpu}, {machine.cores} cores, load {machine.load:.1f}; {machine.system}; {machine.python}; "
        f"SQLite {machine.sqlite}; {machine.file_system}, "
        f"fsync p50 {machine.fsync_p50_us:,.0f} µs, p99 {machine.fsync_p99_us:,.0f} µs; "
        f"loop {report.loop}; {report.rounds} rounds",
        style="dim",
    )
    console.print(", ".join(f"{name} {version}" for name, version in machine.packages.items()), style="dim")
    if machine.file_system == "tmpfs":
        console.print("The databases are on tmpfs: no flush reaches a disk. Use --folder.", style="bold yellow")
    if report.quick:
        console.print("Quick run: the sizes are too small for figures that mean anything.", style="bold yellow")
    for section in report.sections:
        console.print(_table(section))


def _table(section: Section) -> Table:
    table = Table(title=section.title, title_justify="left", title_style="bold")
    table.add_column("")
    for heading in ("median", "min", "max"):
        table.add_column(heading, justify="right")
    for heading in ("", "bar", ""):
        table.add_column(heading)
    for figure in section.figures:
        table.add_row(
            figure.name,
            *(_number(value) for value in (figure.median, figure.low, figure.high)),
            figure.unit,
            "" if figure.bar is None else str(figure.bar),
            {None: "", True: "[green]met[/]", False: "[bold red]missed[/]"}[figure.met],
        )
    return table


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
