"""The DynamoDB backend (package docstring follows)."""

from __future__ import annotations

from urllib.parse import SplitResult

from holdfast.backends.dynamodb.backend import DynamoDBBackend
from holdfast.backends.dynamodb.config import DynamoDBConfig
from holdfast.backends.urls import take_struct
from holdfast.errors import ConfigError

__all__ = ["DynamoDBBackend", "DynamoDBConfig", "from_url"]


def from_url(url: SplitResult, params: dict[str, str]) -> DynamoDBBackend:
    """``dynamodb://table?region=…``; parameters are fields of `DynamoDBConfig`."""
    if url.path not in ("", "/") or "@" in url.netloc or ":" in url.netloc:
        raise ConfigError("url", "write dynamodb://table?region=…; credentials are found as the AWS SDK finds them")
    return DynamoDBBackend(take_struct(params, DynamoDBConfig, table=url.netloc))
