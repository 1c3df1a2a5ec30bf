"""Holdfast on DynamoDB."""

from __future__ import annotations

from collections.abc import Sequence

from bench.competitors.dynamodb import layout
from bench.competitors.embedded import Embedded


class HoldfastDynamoDB(Embedded):
    def url(self) -> str:
        return layout.store_url(self.place)

    def stored(self) -> Sequence[int]:
        return layout.stored(self.place)
