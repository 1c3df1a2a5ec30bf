"""The table of the driver's errors."""

from __future__ import annotations

import pytest
import redis.exceptions as driver
from redis._parsers.base import BaseParser

from holdfast.backends.redis.errors import code_of, is_of_script, translate
from holdfast.errors import Rejected, StoreError, Unavailable


def answered(reply: str) -> driver.ResponseError:
    """As the driver understands an error reply."""
    error: driver.ResponseError = BaseParser.parse_error(reply)  # type: ignore[no-untyped-call]
    return error


TABLE: list[tuple[Exception, type[StoreError], str]] = [
    (driver.ConnectionError("Connection closed by server."), Unavailable, "no connection"),
    (driver.TimeoutError("Timeout reading from h:1"), Unavailable, "in time"),
    (OSError(104, "Connection reset by peer"), Unavailable, "no connection"),
    (RuntimeError("unable to perform operation; the handler is closed"), Unavailable, "no connection"),
    (driver.BusyLoadingError("Valkey is loading the dataset in memory"), Unavailable, "loading"),
    (driver.ReadOnlyError("You can't write against a read only replica."), Unavailable, "read-only"),
    (driver.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), Unavailable, "out of memory"),
    (driver.NoScriptError("No matching script."), Unavailable, "losing its scripts"),
    (driver.MasterDownError("Link with MASTER is down"), Unavailable, "lost its primary"),
    (driver.ClusterDownError("The cluster is down"), Unavailable, "cluster is down"),
    (driver.TryAgainError("Multiple keys request during rehashing of slot"), Unavailable, "moving"),
    (driver.MovedError("1 127.0.0.1:7000"), Unavailable, "moved"),
    (driver.AskError("1 127.0.0.1:7000"), Unavailable, "moving"),
    (driver.ResponseError("BUSY Valkey is busy running a script."), Unavailable, "busy"),
    (driver.ResponseError("MISCONF Errors writing to the AOF file: No space left on device"), Unavailable, "disk"),
    (driver.ResponseError("NOREPLICAS Not enough good replicas to write."), Unavailable, "too few replicas"),
    (driver.ResponseError("UNBLOCKED force unblock from blocking operation"), Unavailable, "role"),
    (driver.ResponseError("NOBODY KNOWS what this is"), Unavailable, "failed"),
    (driver.ResponseError("FOREIGN a key of ours is of another type"), Rejected, "another program's"),
    (driver.ResponseError("WRONGTYPE Operation against a key"), Rejected, "another program's"),
    (driver.ResponseError("ERR unknown command 'EVALSHA'"), Rejected, "refuses"),
    (answered("ERR Protocol error: invalid bulk length"), Rejected, "refuses"),
    (answered("NOPERM this user may not use all commands of a commit"), Unavailable, "denied"),
    (answered("OOM command not allowed"), Unavailable, "out of memory"),
    (answered("TRYAGAIN Multiple keys request during rehashing of slot"), Unavailable, "moving"),
    (answered("MARKER the key of a marker is of another type"), Rejected, "another program's"),
    (answered("DAMAGED events of a session are missing"), Unavailable, "damaged"),
    (driver.DataError("Invalid input of type: 'object'"), Rejected, "cannot be sent"),
    (OverflowError("int too large"), Rejected, "cannot be stored"),
    (ValueError("something else"), Unavailable, "failed"),
]


@pytest.mark.parametrize(("exc", "kind", "words"), TABLE, ids=[str(exc)[:30] for exc, _, _ in TABLE])
def test_table_of_driver_errors(exc: Exception, kind: type[StoreError], words: str) -> None:
    error = translate(exc)
    assert type(error) is kind
    assert words in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    "exc",
    [
        driver.AuthenticationError("invalid username-password pair or user is disabled: app"),
        driver.AuthorizationError("app may not"),
        driver.NoPermissionError("User app has no permissions to run the 'evalsha' command"),
    ],
)
def test_names_of_users_are_not_said(exc: Exception) -> None:
    """C53."""
    error = translate(exc)
    assert type(error) is Unavailable
    assert "denied" in str(error)
    assert "app" not in str(error)


@pytest.mark.parametrize("code", ["ERR", "NOPERM", "FOREIGN", "BROKEN", "SUPERSEDED", "WRONGTYPE"])
def test_codes_as_the_driver_gives_them(code: str) -> None:
    """It takes some out of the text."""
    assert code_of(answered(f"{code} and what it means")) == code


def test_a_script_that_broke_off_is_told_from_one_that_did_not_begin() -> None:
    assert is_of_script(driver.ResponseError("WRONGTYPE Operation … script: 7b, on @user_script:12."))
    assert not is_of_script(driver.OutOfMemoryError("allow-oom flag is not set on the script, can not run it"))
