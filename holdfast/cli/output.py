"""What a command prints: tables for people, JSON for programs.

People get as many columns as their terminal is wide. When the output is no terminal, nothing is cut.
Text from the store is shown with control characters escaped: it must not drive the terminal.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal, NamedTuple

import click
import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from holdfast.backends.base import Head
from holdfast.model import Event, as_datetime

__all__ = [
    "Column",
    "ago",
    "event_json",
    "facts",
    "fit",
    "head_json",
    "note",
    "plain",
    "print_json",
    "span",
    "table",
    "verdicts",
]

_UNLIMITED: Final = 100_000
_LEAST_CUT: Final = 10
_GAP: Final = 2


def _print(grid: Table, width: int | None = None) -> None:
    out = Console(highlight=False, width=width if sys.stdout.isatty() else _UNLIMITED)
    if out.is_terminal:
        out.print(grid)
        return
    with out.capture() as captured:
        out.print(grid)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())


def plain(text: str) -> str:
    """``text`` with everything that is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_json(document: Any) -> None:
    """One JSON document on a line of its own."""
    click.echo(msgspec.json.encode(document).decode())


def note(message: str) -> None:
    """Something for the person at the terminal that is not part of the output."""
    click.echo(plain(message), err=True)


class Column(NamedTuple):
    """A column of a table; in a narrow terminal those with the highest ``rank`` go first (0: never)."""

    title: str
    rank: int = 0
    right: bool = False
    cut: bool = False
    """Shorten with an ellipsis rather than go beyond the terminal's width."""


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of plain text under their titles."""
    cells = [[plain(cell) for cell in row] for row in rows]
    natural = [
        max(cell_len(text) for text in (column.title, *(row[index] for row in cells)))
        for index, column in enumerate(columns)
    ]
    terminal = shutil.get_terminal_size().columns if sys.stdout.isatty() else _UNLIMITED
    widths = fit(columns, natural, terminal)
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for index, width in widths.items():
        justify: Literal["left", "right"] = "right" if columns[index].right else "left"
        grid.add_column(columns[index].title, justify=justify, width=width, no_wrap=True, overflow="ellipsis")
    for row in cells:
        grid.add_row(*(Text(row[index]) for index in widths))
    _print(grid, width=_UNLIMITED)


def fit(columns: Sequence[Column], natural: Sequence[int], terminal: int) -> dict[int, int]:
    """Which columns to show (by index) and how wide, given how wide their text is.

    What cannot be cut keeps its width even if the line then runs over: half an id is of no use.
    """
    shown = list(range(len(columns)))
    while _least_width(columns, natural, shown) > terminal:
        last = max(shown, key=lambda index: columns[index].rank)
        if columns[last].rank == 0:
            break
        shown.remove(last)
    widths = {index: _least(columns, natural, index) for index in shown}
    spare = max(0, terminal - _least_width(columns, natural, shown))
    for index in sorted(shown, key=lambda index: natural[index]):
        more = min(natural[index] - widths[index], spare)
        widths[index] += more
        spare -= more
    return widths


def _least_width(columns: Sequence[Column], natural: Sequence[int], shown: Sequence[int]) -> int:
    return sum(_least(columns, natural, index) for index in shown) + _GAP * (len(shown) - 1)


def _least(columns: Sequence[Column], natural: Sequence[int], index: int) -> int:
    return min(natural[index], _LEAST_CUT) if columns[index].cut else natural[index]


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and values side by side."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(plain(name)), Text(plain(value)))
    _print(grid)


_MARKS: Final = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}


def verdicts(rows: Iterable[tuple[Literal["ok", "warn", "fail"], str, str]]) -> None:
    """Print checks: how each came out, its name, and details."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for status, name, detail in rows:
        mark, style = _MARKS[status]
        grid.add_row(Text(mark, style=style), Text(name), Text(plain(detail)))
    _print(grid)


_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def span(us: int) -> str:
    """A length of time in one or two units: ``3d 4h``, ``12s``, ``0.3s``."""
    seconds = us / 1_000_000
    if seconds < 10:
        return f"{max(seconds, 0.0):.1f}s"
    parts: list[str] = []
    rest = round(seconds)
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(part for part in parts[:2] if not part.startswith("0"))


def ago(us: int, now_us: int) -> str:
    return f"{span(now_us - us)} ago"


def _time(us: int | None) -> str | None:
    return None if us is None else as_datetime(us).isoformat(timespec="microseconds")


def head_json(head: Head) -> dict[str, Any]:
    """A session for programs. Times are ISO 8601 in UTC."""
    return {
        "id": head.id,
        "incarnation": head.incarnation,
        "owner": head.owner,
        "status": head.status,
        "created": _time(head.created_us),
        "last_active": _time(head.active_us),
        "expires": _time(head.expires_us),
        "ttl_s": None if head.ttl_us is None else head.ttl_us / 1_000_000,
        "metadata": msgspec.Raw(head.metadata),
        "first_seq": head.first_seq,
        "last_seq": head.last_seq,
        "version": head.version,
    }


def event_json(event: Event) -> dict[str, Any]:
    """An event for programs."""
    return {
        "id": event.id,
        "seq": event.seq,
        "stream": event.stream,
        "type": event.type,
        "time": _time(event.time_us),
        "retry_ms": event.retry_ms,
        "data": msgspec.Raw(event.raw),
    }
