"""Write the tables of configuration.md anew from the code: ``python docs/update_configuration.py``.

A test compares them, so that the page cannot fall behind.
"""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from holdfast.backends.dynamodb.config import DynamoDBConfig
from holdfast.backends.postgres.config import PostgresConfig
from holdfast.backends.redis.config import RedisConfig
from holdfast.backends.sqlite.config import SQLiteConfig
from holdfast.config import Config
from holdfast.settings import describe_type

PAGE = Path(__file__).with_name("configuration.md")
BACKENDS: dict[str, tuple[type[msgspec.Struct], str]] = {
    "sqlite": (SQLiteConfig, ""),
    "postgres": (PostgresConfig, "dsn"),
    "redis": (RedisConfig, "host port path username password tls"),
    "dynamodb": (DynamoDBConfig, "table"),
}
"""With the fields that are other parts of the URL."""
BEGIN = "<!-- generated: {name} -->"
END = "<!-- end -->"


def main() -> None:
    PAGE.write_text(updated(PAGE.read_text()))


def updated(page: str) -> str:
    """The page with its tables made anew."""
    tables = {"engine": _engine(), **{name: _rows(struct, "", skip) for name, (struct, skip) in BACKENDS.items()}}
    for name, lines in tables.items():
        begin = BEGIN.format(name=name)
        head, _, rest = page.partition(begin)
        _, _, tail = rest.partition(END)
        page = f"{head}{begin}\n" + "\n".join(lines) + f"\n{END}{tail}"
    return page


def _engine() -> Iterator[str]:
    yield from _rows(Config, "")
    for field in msgspec.structs.fields(Config):
        section: Any = field.type
        if _is_section(section):
            yield f"\n### {field.name}\n\n{_markdown(inspect.getdoc(section) or '')}\n"
            yield from _rows(section, f"{field.name}.")


def _rows(struct: type[msgspec.Struct], prefix: str, skip: str = "") -> Iterator[str]:
    notes = _notes(struct)
    yield "| setting | value | default | |"
    yield "| --- | --- | --- | --- |"
    for field in msgspec.structs.fields(struct):
        if not _is_section(field.type) and field.name not in skip.split():
            cells = (f"`{prefix}{field.name}`", describe_type(field.type), _default(field), notes.get(field.name, ""))
            yield f"| {' | '.join(cells)} |"


def _is_section(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default
    if field.required:
        return "(required)"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if field.name.endswith("_bytes") and isinstance(value, int):
        unit, size = ("MiB", 1 << 20) if value >= 1 << 20 else ("KiB", 1 << 10)
        return f"{value} ({value // size} {unit})" if value % size == 0 else str(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _notes(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The documentation strings below the fields."""
    [body] = [node.body for node in ast.parse(inspect.getsource(struct)).body if isinstance(node, ast.ClassDef)]
    notes: dict[str, str] = {}
    for field, note in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match note:
                case ast.Expr(ast.Constant(str(text))):
                    notes[field.target.id] = _markdown(" ".join(text.split()))
                case _:
                    pass
    return notes


def _markdown(text: str) -> str:
    return text.replace("``", "`")


if __name__ == "__main__":
    main()
