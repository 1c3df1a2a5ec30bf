"""DynamoDB's JSON: requests, answers, and answers that are errors.

Binary attributes are base64 there and bytes here; numbers stay text, as they are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypedDict, cast
from zlib import crc32

import msgspec

__all__ = ["ErrorAnswer", "Garbled", "decode_answer", "decode_error", "encode"]


class ErrorAnswer(Exception):
    """DynamoDB's answer is an error."""

    def __init__(self, status: int, code: str, message: str = "", **more: Any) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.status = status
        """Of HTTP."""
        self.code = code
        """The error's name; of an answer without one, the status."""
        self.message = message
        self.item: dict[str, Any] | None = more.get("item")
        """That the condition failed on."""
        self.reasons: list[dict[str, Any]] = more.get("reasons") or []
        """Why a transaction was cancelled, for each of its items: ``Code``, ``Item``."""


class Garbled(Exception):
    """An answer that is not what was sent, or is none of DynamoDB's. What was asked for may have been done."""


class _Attribute(TypedDict, total=False):
    """Of those kinds that Holdfast writes."""

    S: str
    N: str
    B: bytes


_Item = dict[str, _Attribute]


class _Keys(TypedDict, total=False):
    Keys: list[_Item]


class _Delete(TypedDict, total=False):
    Key: _Item


class _Request(TypedDict, total=False):
    DeleteRequest: _Delete


class _Answer(TypedDict, total=False):
    """Of all operations together: the fields that are read."""

    Item: _Item
    Items: list[_Item]
    LastEvaluatedKey: _Item
    Responses: dict[str, list[_Item]]
    UnprocessedKeys: dict[str, _Keys]
    UnprocessedItems: dict[str, list[_Request]]
    Table: dict[str, Any]
    TimeToLiveDescription: dict[str, Any]


class _Reason(TypedDict, total=False):
    Code: str | None
    Item: _Item | None


class _Error(msgspec.Struct):
    name: str = msgspec.field(default="", name="__type")
    message: str | None = None
    other_message: str | None = msgspec.field(default=None, name="Message")
    item: _Item | None = msgspec.field(default=None, name="Item")
    reasons: list[_Reason] | None = msgspec.field(default=None, name="CancellationReasons")


_encoder: Final = msgspec.json.Encoder()
_answers: Final = msgspec.json.Decoder(_Answer)
_errors: Final = msgspec.json.Decoder(_Error)


def encode(params: Mapping[str, Any]) -> bytes:
    """A request's body."""
    return _encoder.encode(params)


def decode_answer(body: bytes, checksum: str | None) -> dict[str, Any]:
    """An answer, by the ``x-amz-crc32`` that came with it. Raises: `Garbled`."""
    _check(body, checksum)
    try:
        return cast("dict[str, Any]", _answers.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise Garbled(f"the answer cannot be read: {exc}") from exc


def decode_error(status: int, body: bytes, checksum: str | None) -> ErrorAnswer:
    """The error to raise. One that has no name, as of a proxy, is known by its status alone. Raises: `Garbled`."""
    _check(body, checksum)
    try:
        error = _errors.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = _Error()
    # "com.amazonaws.dynamodb.v20120810#ResourceNotFoundException", or the name alone
    code = error.name.partition(":")[0].rpartition("#")[2]
    message = error.message or error.other_message or ""
    return ErrorAnswer(status, code or str(status), message, item=error.item, reasons=error.reasons)


def _check(body: bytes, checksum: str | None) -> None:
    if checksum is not None and checksum != str(crc32(body)):
        raise Garbled("the answer does not fit its checksum")
