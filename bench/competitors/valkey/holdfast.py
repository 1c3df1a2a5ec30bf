"""Holdfast on Valkey."""

from __future__ import annotations

from collections.abc import Sequence

from bench.competitors.embedded import Embedded
from bench.competitors.valkey import layout


class HoldfastValkey(Embedded):
    def url(self) -> str:
        return layout.store_url(self.place)

    def stored(self) -> Sequence[int]:
        return layout.stored(self.place)
