"""Cursors, incarnations, session ids, times."""

from __future__ import annotations

import uuid
from datetime import datetime, timezone
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from holdfast.backends.base import NewEvent
from holdfast.errors import InvalidCursor
from holdfast.model import Cursor, Durability, as_datetime, new_incarnation, new_session_id

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
CURSORS = st.builds(Cursor, st.integers(0, 2**63 - 1), st.integers(0, 2**62), TEXT)


@given(CURSORS)
def test_a_cursor_comes_back(cursor: Cursor) -> None:
    text = str(cursor)
    assert Cursor.parse(text) == cursor
    assert all("!" <= char <= "~" for char in text)


@given(CURSORS, CURSORS)
def test_two_places_have_two_cursors(a: Cursor, b: Cursor) -> None:
    assert (str(a) == str(b)) == (a == b)


@given(CURSORS, st.data())
def test_a_changed_cursor_is_another_one_or_none(cursor: Cursor, data: st.DataObject) -> None:
    """One character replaced, put in or taken out: never the same place by another name."""
    text = str(cursor)
    place = data.draw(st.integers(0, len(text)))
    changed = text[:place] + data.draw(st.text(max_size=1)) + text[place + data.draw(st.integers(0, 1)) :]
    assume(changed != text and not changed.lstrip().startswith("-"))
    try:
        found = Cursor.parse(changed)
    except InvalidCursor as exc:
        assert exc.reason == "malformed"
        assert exc.cursor == changed
    else:
        assert found != cursor
        assert str(found) == changed


@given(st.text())
def test_any_text_is_a_cursor_in_its_one_form_or_refused(text: str) -> None:
    assume(not text.lstrip().startswith("-"))
    try:
        cursor = Cursor.parse(text)
    except InvalidCursor as exc:
        assert exc.reason == "malformed"
    else:
        assert str(cursor) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "1", "1.2", "a.b.c", "1.2.a b", "1.2.%", "1.2.%ff", "1.2.%2f", "1.2.ü", "1.2.a.b.%2e",
        "01.2.", "1.02.", "+1.2.", "1.+2.", "1_0.2.", "1.1_0.", " 1.2.", "1.2. ", "1. 2.", "A.2.",
        "1.٢.", "1.2.%00%", "1.2.\n", "1" * 5_000 + ".2.", "1." + "2" * 5_000 + ".",
    ],
)  # fmt: skip
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(InvalidCursor) as caught:
        Cursor.parse(text)
    assert caught.value.reason == "malformed"
    assert len(str(caught.value)) < 1_500


@pytest.mark.parametrize("value", [None, 1, ("1", "2", "")])
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(InvalidCursor):
        Cursor.parse(value)


@given(st.integers(1, 2**63 - 1), st.integers(1, 2**62), TEXT)
def test_an_events_id_is_its_cursor(incarnation: int, seq: int, stream: str) -> None:
    event = NewEvent(stream, "t", b"1", None, 0)
    assert Cursor.parse(event.numbered("s", incarnation, seq).id) == (incarnation, seq, stream)
    assert event.numbered("s", incarnation, 0).id == ""


def test_a_cursor_names_its_stream_readably() -> None:
    assert str(Cursor(35, 7, "a/b c")) == "z.7." + quote("a/b c", safe="") == "z.7.a%2Fb%20c"
    assert str(Cursor(0, 0, "")) == "0.0."


NOW_US = 1_767_225_600_000_000


@given(st.lists(st.integers(NOW_US - 10**7, NOW_US + 10**7), min_size=2, max_size=50))
def test_incarnations_strictly_increase(times: list[int]) -> None:
    """Whatever the clock does."""
    made = [new_incarnation(at) for at in times]
    assert made == sorted(set(made))


def test_incarnations_of_one_microsecond_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.model._last_incarnation", 0)
    monkeypatch.setattr("holdfast.model.randbits", lambda bits: (1 << bits) - 1)
    first = new_incarnation(NOW_US)
    assert first == NOW_US << 12 | 0xFFF
    assert [new_incarnation(NOW_US) for _ in range(3)] == [first + 1, first + 2, first + 3]
    assert new_incarnation(NOW_US + 10) == NOW_US + 10 << 12 | 0xFFF


def test_incarnations_fit_a_signed_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.model._last_incarnation", 0)
    year_2040 = round(datetime(2040, 1, 1, tzinfo=timezone.utc).timestamp() * 1e6)
    assert NOW_US << 12 < new_incarnation(year_2040) < 2**63


def test_incarnations_differ_between_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """By twelve random bits: the same microsecond gives many numbers."""
    made = set[int]()
    for _ in range(100):
        monkeypatch.setattr("holdfast.model._last_incarnation", 0)
        made.add(new_incarnation(NOW_US))
    assert len(made) > 50
    assert {incarnation >> 12 for incarnation in made} == {NOW_US}


INCARNATIONS = st.integers(0, 2**63 - 1)


@given(INCARNATIONS)
def test_session_ids_are_uuids_of_version_7(incarnation: int) -> None:
    text = new_session_id(incarnation)
    id = uuid.UUID(text)
    assert str(id) == text
    assert id.version == 7
    assert id.variant == uuid.RFC_4122
    assert id.int >> 80 == (incarnation >> 12) // 1000


@given(INCARNATIONS, INCARNATIONS)
def test_session_ids_sort_as_incarnations(a: int, b: int) -> None:
    if a != b:
        assert (new_session_id(a) < new_session_id(b)) == (a < b)


@given(st.integers(0, 2**51 - 2), st.integers(0, 2**12 - 1), st.integers(0, 2**12 - 1))
def test_session_ids_of_neighbouring_microseconds_sort_too(now_us: int, tail: int, next_tail: int) -> None:
    assert new_session_id(now_us << 12 | tail) < new_session_id(now_us + 1 << 12 | next_tail)


@given(st.integers(0, 2**63 - 2))
def test_session_ids_of_neighbouring_incarnations_sort_too(incarnation: int) -> None:
    for _ in range(10):
        assert new_session_id(incarnation) < new_session_id(incarnation + 1)


def test_session_ids_are_not_guessable_from_their_incarnation() -> None:
    assert len({new_session_id(7) for _ in range(100)}) == 100


def test_durability_is_ordered() -> None:
    levels = [Durability.MEMORY, Durability.PROCESS, Durability.DISK, Durability.REPLICATED]
    assert sorted(levels, key=lambda level: level.rank) == levels == list(Durability)
    for place, level in enumerate(levels):
        assert [level.covers(other) for other in levels] == [other <= place for other in range(4)]


@given(st.integers(0, 253_402_300_799_999_999))
def test_times_are_exact(us: int) -> None:
    at = as_datetime(us)
    assert at.tzinfo is timezone.utc
    assert (at - datetime(1970, 1, 1, tzinfo=timezone.utc)) // (datetime.resolution) == us


@pytest.mark.parametrize(
    "text", ["-1.2.", "1.-2.", "1.2.\ud800", b"1.2.", None, "1" * 14 + ".1.", "1." + "1" * 20 + "."]
)
def test_what_looks_almost_like_an_event_id_is_refused(text: Any) -> None:
    """A client sends it: it must neither loop nor raise anything else."""
    with pytest.raises(InvalidCursor):
        Cursor.parse(text)
