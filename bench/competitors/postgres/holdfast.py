"""Holdfast on PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

from bench.competitors.embedded import Embedded
from bench.competitors.postgres import layout


class HoldfastPostgres(Embedded):
    def url(self) -> str:
        return layout.store_url(self.place)

    def stored(self) -> Sequence[int]:
        return layout.stored(self.place)
