"""A lease says until when a server process answers for what it has under way in a session.

It stands in the session itself, in the record of each request that runs and each question that waits for
its answer, and its process prolongs it there. So it is nobody else's business: it is no session to list,
an idle process keeps none, and it goes where its session goes. Clocks of the instances must agree to
well within the lease.
"""

from __future__ import annotations

import secrets
from typing import Any, Final

from holdfast.clock import Clock

__all__ = ["Lease"]

_LEASE: Final = "lease"
_UNTIL: Final = "until_us"


class Lease:
    """The lease of this process.

    What a killed process had under way counts as lost once its lease has run out. With a ``name`` that is
    the same at each start, and no other live process's, it counts as lost at once where the next process
    of that name looks at it.
    """

    def __init__(self, clock: Clock, *, name: str | None = None, lease_s: float = 15.0) -> None:
        self._clock = clock
        self._lease_s = lease_s
        self._name = name or secrets.token_hex(8)
        self._token = f"{self._name}@{secrets.token_hex(8)}"

    def fields(self) -> dict[str, Any]:
        """For a record: it is this process's, from now on for as long as the lease is."""
        return {_LEASE: self._token, _UNTIL: self._clock.now_us() + round(self._lease_s * 1_000_000)}

    def owns(self, record: dict[str, Any]) -> bool:
        """Whether the record is this process's."""
        return bool(record[_LEASE] == self._token)

    def alive_elsewhere(self, record: dict[str, Any]) -> bool:
        """Whether the record is another process's, which may be taken to live."""
        name: str = record[_LEASE].rpartition("@")[0]
        return name != self._name and record[_UNTIL] > self._clock.now_us()

    async def pause(self) -> None:
        """Wait a third of the lease: between two looks at one, and between two prolongations."""
        await self._clock.sleep(self._lease_s / 3)
