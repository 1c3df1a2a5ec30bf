"""From a store URL to its backend: the scheme picks an entry point of the group ``holdfast.backends``.

An entry point names a factory, ``factory(url, params) -> Backend``. It takes the parameters that
are its own out of ``params``; one that is left over is a mistake of the user's. The backend's driver
is imported only then.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, TypeVar, cast
from urllib.parse import SplitResult, unquote

import msgspec

from holdfast.backends.base import Backend
from holdfast.errors import ConfigError
from holdfast.settings import convert, parse_query, setting_types, split_url, suggestion

__all__ = ["BackendFactory", "backend_schemes", "create_backend", "file_path", "take_struct"]

BackendFactory = Callable[[SplitResult, dict[str, str]], Backend]

ENTRY_POINT_GROUP: Final = "holdfast.backends"

_BUILT_IN: Final = {
    "dynamodb": "holdfast.backends.dynamodb:from_url",
    "memory": "holdfast.backends.memory:from_url",
    "postgres": "holdfast.backends.postgres:from_url",
    "postgresql": "holdfast.backends.postgres:from_url",
    "redis": "holdfast.backends.redis:from_url",
    "redis+unix": "holdfast.backends.redis:from_url",
    "rediss": "holdfast.backends.redis:from_url",
    "sqlite": "holdfast.backends.sqlite:from_url",
}
"""As in pyproject.toml: a source tree works without being installed, and nothing is looked up for these."""

_EXTRAS: Final = {
    "asyncpg": "postgres",
    "aiobotocore": "dynamodb",
    "redis": "redis",
    "trio": "trio",
}
"""Which extra of this package brings which driver."""

_S = TypeVar("_S", bound=msgspec.Struct)


def backend_schemes() -> dict[str, str]:
    """The known URL schemes, and the entry point (``module:attribute``) of each. Ours cannot be replaced."""
    from importlib import metadata  # slow to import, and only others' backends need it

    installed = {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    return installed | _BUILT_IN


def create_backend(url: str) -> Backend:
    """The backend for a store URL without engine settings (see `holdfast.settings.load`); not yet open.

    Raises: `ConfigError` for an unknown scheme, a missing driver, or a parameter that is wrong.
    """
    parts = split_url(url)
    params = parse_query(parts.query)
    backend = _factory(parts.scheme)(parts, params)
    for name in params:
        raise ConfigError(name, f"no such setting{suggestion(name, setting_types())} (from the URL)")
    return backend


def take_struct(params: dict[str, str], type_: type[_S], **given: Any) -> _S:
    """Build a backend's config struct from the URL's parameters, emptying ``params``.

    ``given`` are fields that come from elsewhere, the path for instance; they cannot be parameters.

    Raises: `ConfigError` for an unknown parameter, one that is required, or a value of the wrong type.
    """
    fields = {field.name: field for field in msgspec.structs.fields(type_) if field.name not in given}
    values = dict(given)
    for name in list(params):
        if name not in fields:
            known = [*fields, *setting_types()]
            raise ConfigError(name, f"no such setting{suggestion(name, known)} (from the URL)")
        values[name] = convert(name, params.pop(name), fields[name].type, "the URL")
    for field in fields.values():
        if field.required and field.name not in values:
            raise ConfigError(field.name, "is required in the URL")
    return type_(**values)


def file_path(url: SplitResult) -> str:
    """The file that a URL names: ``scheme:///relative`` or ``scheme:////absolute``.

    Raises: `ConfigError` if it names none, or has a host.
    """
    if url.netloc:
        raise ConfigError("url", f"{url.scheme}:// takes no host: write {url.scheme}:///file, or :////folder/file")
    path = unquote(url.path.removeprefix("/"), errors="surrogateescape")
    if not path or "\0" in path:
        raise ConfigError("url", f"names no file: write {url.scheme}:///file, or {url.scheme}:////folder/file")
    return path


def _factory(scheme: str) -> BackendFactory:
    target = _BUILT_IN.get(scheme) or backend_schemes().get(scheme)
    if target is None:
        listed = ", ".join(f"{name}://" for name in sorted(backend_schemes()))
        raise ConfigError("url", f"no backend for {scheme}:// (there are: {listed})")
    module, _, attribute = target.partition(":")
    try:
        return cast("BackendFactory", getattr(import_module(module), attribute))
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        if missing in ("", "holdfast"):
            raise
        package = f"holdfast[{_EXTRAS[missing]}]" if missing in _EXTRAS else missing
        raise ConfigError("url", f"{scheme}:// needs a driver: pip install '{package}'") from exc
