"""What the demo tells, line by line, on a terminal or in a pipe."""

from __future__ import annotations

import time
from typing import Final, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Timeline"]

Actor = Literal["server", "client", "kill", "check"]

_STYLES: Final[dict[Actor, str]] = {"server": "cyan", "client": "green", "kill": "bold red", "check": "magenta"}
_BAR: Final = 40


class Timeline:
    """Prints each event with the seconds since the start. Silent with ``quiet``."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(quiet=quiet, highlight=False)
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def title(self, text: str) -> None:
        self._console.print()
        self._console.print(Text(text, style="bold"), soft_wrap=True)
        self._console.print()

    def say(self, actor: Actor, text: str) -> None:
        line = Text()
        line.append(f"{self.seconds:6.2f} s  ", style="dim")
        line.append(f"{actor:<7}", style=_STYLES[actor])
        line.append(text, style="bold red" if actor == "kill" else "")
        self._console.print(line, soft_wrap=True)

    def progress(self, text: str, first: int, last: int, total: int) -> None:
        """A bar with the steps from ``first`` to ``last`` lit, those before shaded."""
        scale = _BAR / total
        before, lit = round((first - 1) * scale), round((last - first + 1) * scale)
        bar = "▒" * before + "█" * lit + "░" * (_BAR - before - lit)
        self.say("client", f"{bar}  {text}")

    def verdict(self, rows: list[tuple[str, str, bool]], *, ok: bool) -> None:
        table = Table(show_header=False, box=None, padding=(0, 2))
        for what, figure, good in rows:
            table.add_row(Text("✓" if good else "✗", style="green" if good else "bold red"), what, figure)
        self._console.print()
        self._console.print(table)
        self._console.print()
        if ok:
            self._console.print(Text("Nothing lost, nothing doubled, nothing changed.", style="bold green"))
        else:
            self._console.print(Text("The demo found a fault.", style="bold red"))
        self._console.print()
