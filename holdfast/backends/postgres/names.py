"""Names of tables and functions in SQL."""

from __future__ import annotations

import hashlib
import re
from typing import Final, NamedTuple

__all__ = ["Names"]

_NAME: Final = re.compile(r"@(\w+)")


class Names(NamedTuple):
    """Where the tables are. Both parts have been validated by `PostgresConfig`."""

    schema: str
    prefix: str

    def sql(self, template: str) -> str:
        """``template`` with ``@sessions`` as the qualified, quoted name of that table or function, and so on."""
        return _NAME.sub(lambda match: f'"{self.schema}"."{self.prefix}{match[1]}"', template)

    @property
    def channel(self) -> str:
        """Where instances on the same tables tell each other of commits."""
        return "holdfast_" + hashlib.sha256(f"{self.schema}.{self.prefix}".encode()).hexdigest()[:32]
