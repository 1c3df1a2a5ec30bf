"""The kit itself: no part may hide another's test, and every line of CONFORMANCE in its reach is covered."""

from __future__ import annotations

import re

from holdfast.testing.contract import BackendContract, StoreContract


def _tests(cls: type) -> list[str]:
    return [name for name in vars(cls) if name.startswith("test_")]


def test_no_test_is_hidden_by_another_of_its_name() -> None:
    parts = {part for contract in (BackendContract, StoreContract) for part in contract.__mro__}
    names = [name for part in parts for name in _tests(part)]
    assert sorted(names) == sorted(set(names))


def test_every_line_is_covered() -> None:
    """45 is for tests/crash, 52 for each backend's own tests: a schema is no part of the protocol."""
    texts = [
        getattr(part, name).__doc__ or ""
        for contract in (BackendContract, StoreContract)
        for part in contract.__mro__
        for name in _tests(part)
    ]
    covered = {int(number) for text in texts for number in re.findall(r"\bC(\d+)\b", text)}
    assert {*range(1, 43), 43, 44, 46, 47, 48, 49, 50, 51, 53, 54} - covered == set()
