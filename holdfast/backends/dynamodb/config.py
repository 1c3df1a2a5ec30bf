"""Settings of the DynamoDB backend."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from holdfast.errors import ConfigError

__all__ = ["DynamoDBConfig"]

_TABLE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{3,255}")
_REGION: Final = re.compile(r"[a-z0-9-]{1,40}")


class DynamoDBConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which table, and how to reach it. A `ConfigError` names the wrong field.

    Credentials are found as the AWS SDK finds them: environment, profile, role. They cannot be set here.
    """

    table: str
    region: str | None = None
    """None: as the SDK finds it."""
    endpoint: str | None = None
    """URL of an endpoint other than the region's: a VPC endpoint, an emulator."""
    profile: str | None = None
    """Of the SDK's shared configuration files."""
    create: bool = False
    """Create the table at open if it is not there: on demand, with its indexes and native TTL."""
    verify: bool = True
    """Check the table's keys and indexes at open: one DescribeTable. False: open sends nothing (cold starts)."""
    max_concurrency: int = 64
    """Requests in flight at once, which is also the size of the connection pool."""
    connect_timeout_s: float = 2.0
    request_timeout_s: float = 5.0
    """How long one request may take before it is given up, and tried again."""
    create_timeout_s: float = 120.0
    """How long to wait for a new table to become active."""
    journal_from: int = 8
    """A flush of so many sessions goes into journals that they share, if it can; 0: none ever does."""

    def __post_init__(self) -> None:
        if not _TABLE_NAME.fullmatch(self.table):
            raise ConfigError("table", "a table's name has 3 to 255 letters, digits, '_', '-' and '.'")
        if self.region is not None and not _REGION.fullmatch(self.region):
            raise ConfigError("region", "is no name of a region")
        if self.endpoint is not None and not re.match(r"https?://[^/]", self.endpoint):
            raise ConfigError("endpoint", "must be an http:// or https:// URL")
        for name in ("max_concurrency", "connect_timeout_s", "request_timeout_s", "create_timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(name, f"must be above 0, not {getattr(self, name)}")
        if self.journal_from < 0:
            raise ConfigError("journal_from", f"must not be below 0, not {self.journal_from}")
