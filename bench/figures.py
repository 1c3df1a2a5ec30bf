"""What a benchmark yields: figures with their spread, and the bars that they should clear."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

__all__ = ["Bar", "Figure", "Section", "paired", "percentile"]


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that a figure's median should keep: exactly one of the two is given."""

    at_least: float | None = None
    at_most: float | None = None

    def met_by(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is not None and value <= self.at_most

    def __str__(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One measured quantity: a value per round."""

    name: str
    unit: str
    values: list[float]
    bar: Bar | None = None

    @property
    def median(self) -> float:
        return median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the bar; None if there is none."""
        return None if self.bar is None else self.bar.met_by(self.median)


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Figures that belong in one table."""

    title: str
    figures: list[Figure]


def paired(name: str, ours: Figure, other: Figure, bar: Bar | None = None) -> Figure:
    """The ratio of two figures, taken round by round: both halves of a pair met the same machine."""
    ratios = [mine / theirs for mine, theirs in zip(ours.values, other.values, strict=True)]
    return Figure(name=name, unit="×", values=ratios, bar=bar)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; ``share`` from 0 to 1. Raises: `ValueError` if there are no values."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
