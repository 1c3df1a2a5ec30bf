"""JSON, strictly: what goes in comes out equal, or is refused with the place that is wrong.

The fast path encodes, decodes and compares, all in C. That also catches what encoders bend
silently (NaN to null, integer keys to strings, sets to lists), and it costs less than one walk in
Python. Only a value that fails it is walked, to name the place.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, Final, TypeVar, cast

import msgspec

from holdfast.errors import NotJSON, StateTypeError

__all__ = ["decode", "decode_as", "encode", "encode_typed"]

T = TypeVar("T")

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder()
decode = _decoder.decode

_MAX_DEPTH: Final = 200
_MAX_INT_BITS: Final = 14_283
"""Below 4,300 digits, past which Python refuses to write an integer."""


def encode(value: Any, path: str) -> bytes:
    """``value`` as JSON text in UTF-8. Tuples become arrays.

    Raises: `NotJSON`, naming the place below ``path``: NaN, infinities, keys that are not strings,
    lone surrogates, cycles, nesting too deep, and objects that JSON does not have.
    """
    try:
        raw = _encoder.encode(value)
        if _decoder.decode(raw) == value:
            return raw
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
        pass
    _check(value, path, 0)
    return _encoder.encode(value)


def _check(value: Any, path: str, depth: int) -> None:
    """Raise `NotJSON` for the first thing in ``value`` that JSON cannot carry exactly."""
    if depth > _MAX_DEPTH:
        raise NotJSON(path, f"nested deeper than {_MAX_DEPTH} levels (or a cycle)")
    kind = value.__class__
    if value is None or kind is bool:
        return
    if kind is int:
        if value.bit_length() > _MAX_INT_BITS:
            raise NotJSON(path, "the number has more than 4,300 digits")
    elif kind is str:
        _check_text(value, path)
    elif kind is float:
        if not math.isfinite(value):
            raise NotJSON(path, f"{value} is not a JSON number")
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth + 1)
    elif kind is dict:
        _check_items(value, path, depth)
    elif isinstance(value, enum.Enum) and value == value.value:
        _check(value.value, path, depth)
    else:
        raise NotJSON(path, f"a {type(value).__qualname__} is not JSON")


def _check_items(items: dict[Any, Any], path: str, depth: int) -> None:
    for key, item in items.items():
        if not isinstance(key, str):
            raise NotJSON(path, f"key {key!r:.100} is a {type(key).__name__}, not a string")
        _check_text(key, f"{path} (a key)")
        _check(item, f"{path}[{key!r:.100}]", depth + 1)


def _check_text(text: str, path: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise NotJSON(path, f"lone surrogate at position {exc.start}") from None


def encode_typed(value: Any, path: str) -> bytes:
    """As `encode`, and also dataclasses, msgspec structs, attrs classes and pydantic models."""
    if type(value) in _PLAIN_TYPES:
        return encode(value, path)
    dump = getattr(value, "model_dump", None)
    if dump is not None and not isinstance(value, type):
        return encode(dump(mode="json"), path)
    if _is_structured(value):
        try:
            value = msgspec.to_builtins(value)
        except (TypeError, ValueError, RecursionError) as exc:
            raise NotJSON(path, str(exc)) from None
    return encode(value, path)


_PLAIN_TYPES: Final = frozenset({dict, list, tuple, str, int, float, bool, type(None)})


def _is_structured(value: Any) -> bool:
    """Whether ``value`` is an instance of a record type that msgspec can turn into a dict."""
    return isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value) or hasattr(value, "__attrs_attrs__")


@lru_cache(maxsize=512)
def _typed_decoder(type_: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(cast("Any", type_))


def decode_as(raw: bytes, type_: type[T], key: str) -> T:
    """JSON text as an instance of ``type_``.

    Raises: `StateTypeError`, naming ``key``, if it does not fit.
    """
    name = getattr(type_, "__name__", str(type_))
    validate = getattr(type_, "model_validate_json", None)
    try:
        if validate is not None:
            return cast("T", validate(raw))
        return cast("T", _typed_decoder(cast("Hashable", type_)).decode(raw))
    except (ValueError, TypeError, msgspec.MsgspecError) as exc:
        raise StateTypeError(key, name, str(exc)) from None
