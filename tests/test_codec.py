"""JSON, strictly: equal, or refused with the place."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import math
import uuid
from collections import OrderedDict
from typing import Any, TypedDict

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.codec import decode, decode_as, encode, encode_typed
from holdfast.errors import InvalidInput, NotJSON, StateTypeError

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5), max_leaves=30
)


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down: 1 is not 1.0, nor True; -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b)
    return bool(a == b)


@given(JSON)
def test_what_goes_in_comes_out(value: Any) -> None:
    for coder in (encode, encode_typed):
        raw = coder(value, "x")
        assert same(decode(raw), value)
        assert raw.decode()


@pytest.mark.parametrize(
    "value",
    [
        "\0", {"\0": "a\0b"}, "\u2028\U0001f600\ufeff", 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 2**200, -(10**1_000),
        5e-324, 1.7976931348623157e308, -0.0, 0.1 + 0.2, "", {"": {}}, [[], {}], 1.0, True,
    ],
)  # fmt: skip
def test_awkward_values_come_out(value: Any) -> None:
    assert same(decode(encode(value, "x")), value)


def test_tuples_become_arrays() -> None:
    assert decode(encode({"a": (1, (2,)), "b": [(3,)]}, "x")) == {"a": [1, [2]], "b": [[3]]}


def test_subclasses_that_are_json_come_out_plain() -> None:
    assert type(decode(encode(OrderedDict(a=1), "x"))) is dict
    assert same(decode(encode(enum.IntEnum("Level", ["LOW"])(1), "x")), 1)


@given(st.lists(st.integers(0, 5) | TEXT, max_size=6), st.sampled_from([math.nan, {1}, b"x", "\ud800"]))
def test_a_refusal_names_the_way_to_it(way: list[int | str], bad: Any) -> None:
    value, path = bad, ""
    for step in reversed(way):
        value = [0] * step + [value] if isinstance(step, int) else {"first": 1, step: value}
    for step in way:
        path += f"[{step}]" if isinstance(step, int) else f"[{step!r:.100}]"
    with pytest.raises(NotJSON) as caught:
        encode(value, "state['k']")
    assert caught.value.path == "state['k']" + path
    assert str(caught.value).startswith(caught.value.path + ": ")


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
DEEP: list[Any] = []
for _ in range(100_000):
    DEEP = [DEEP]

REFUSED: dict[str, tuple[Any, str]] = {
    "nan": (math.nan, "nan"),
    "infinity": (math.inf, "inf"),
    "-infinity": (-math.inf, "-inf"),
    "integer key": ({1: 2}, "key 1 is a int"),
    "no key": ({None: 2}, "key None is a NoneType"),
    "boolean key": ({True: 2}, "key True is a bool"),
    "tuple key": ({(1, 2): 2}, "is a tuple"),
    "two keys in one": ({1: "a", "1": "b"}, "key 1 is a int"),
    "lone surrogate": ("ab\udc00", "surrogate at position 2"),
    "lone surrogate in a key": ({"\ud800": 1}, "surrogate at position 0"),
    "bytes": (b"x", "bytes"),
    "bytearray": (bytearray(b"x"), "bytearray"),
    "set": ({1}, "set"),
    "frozenset": (frozenset({1}), "frozenset"),
    "datetime": (dt.datetime.now(dt.timezone.utc), "datetime"),
    "date": (dt.date(2026, 1, 1), "date"),
    "timedelta": (dt.timedelta(1), "timedelta"),
    "decimal": (decimal.Decimal("1.5"), "Decimal"),
    "uuid": (uuid.UUID(int=1), "UUID"),
    "enum": (enum.Enum("Colour", ["RED"])(1), "Colour"),
    "complex": (1j, "complex"),
    "object": (object(), "object"),
    "function": (len, "builtin"),
    "class": (int, "type"),
    "generator": ((_ for _ in ()), "generator"),
    "cycle": (CYCLE, "cycle"),
    "deep nesting": (DEEP, "nested deeper"),
    "raw": (msgspec.Raw(b"{"), "Raw"),
    "unset": (msgspec.UNSET, "Unset"),
}


@pytest.mark.parametrize("coder", [encode, encode_typed])
@pytest.mark.parametrize("what", REFUSED)
def test_what_json_cannot_carry_is_refused(what: str, coder: Any) -> None:
    value, reason = REFUSED[what]
    with pytest.raises(NotJSON) as caught:
        coder({"ok": 1, "items": [0, value]}, "data")
    assert caught.value.path.startswith("data['items'][1]")
    assert reason in caught.value.reason
    assert isinstance(caught.value, InvalidInput)


@dataclasses.dataclass
class Point:
    x: int
    labels: list[str] = dataclasses.field(default_factory=list)


class Struct(msgspec.Struct):
    x: int
    labels: list[str] = []


@attrs.define
class Attrs:
    x: int
    labels: list[str] = attrs.Factory(list)


class Model(pydantic.BaseModel):
    x: int
    labels: list[str] = []


class Dict(TypedDict):
    x: int
    labels: list[str]


@pytest.mark.parametrize("type_", [Point, Struct, Attrs, Model, Dict])
def test_records_come_out_as_such(type_: Any) -> None:
    value = type_(x=1, labels=["a\0"])
    raw = encode_typed(value, "x")
    assert decode(raw) == {"x": 1, "labels": ["a\0"]}
    assert decode_as(raw, type_, "k") == value


@pytest.mark.parametrize("type_", [Point, Struct, Attrs, Model, Dict, int, list[int]])
@pytest.mark.parametrize("raw", [b'{"x": "one", "labels": []}', b'{"labels": []}', b"null", b'"text"'])
def test_what_does_not_fit_names_the_key(type_: Any, raw: bytes) -> None:
    with pytest.raises(StateTypeError) as caught:
        decode_as(raw, type_, "cart")
    assert caught.value.key == "cart"
    assert "state['cart']" in str(caught.value)


def test_a_record_with_something_else_inside_is_refused() -> None:
    with pytest.raises(NotJSON) as caught:
        encode_typed(Point(1, [math.nan]), "state['p']")  # type: ignore[list-item]
    assert caught.value.path == "state['p']['labels'][0]"
    with pytest.raises(NotJSON, match=r"state\['p'\]"):
        encode_typed(Struct(object()), "state['p']")  # type: ignore[arg-type]


def test_decoding_makes_fresh_objects() -> None:
    raw = encode({"a": [1]}, "x")
    first, second = decode(raw), decode(raw)
    first["a"].append(2)
    assert second == {"a": [1]}


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Real(float):
    pass


@pytest.mark.parametrize("value", [Text("x"), Number(3), Real(1.5), pytest.param(10**5_000, id="5,001 digits")])
def test_almost_json_is_refused_with_its_path(value: object) -> None:
    with pytest.raises(NotJSON) as caught:
        encode({"items": [0, value]}, "state['k']")
    assert caught.value.path == "state['k']['items'][1]"
