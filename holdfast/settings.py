"""Settings from code, a URL, the environment and a TOML file, as one checked `Config`.

Precedence, strongest first: code, the URL's parameters, the environment, the TOML file, defaults.
Every mistake is a `ConfigError` that names the setting and where it came from, and never a value:
a value may be a secret in the wrong place.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast
from urllib.parse import SplitResult, unquote_plus, urlsplit

import msgspec

from holdfast.config import Config
from holdfast.errors import ConfigError
from holdfast.model import Durability

__all__ = [
    "ENV_PREFIX",
    "Settings",
    "convert",
    "describe_type",
    "load",
    "parse_query",
    "redact",
    "setting_types",
    "split_url",
    "suggestion",
]

ENV_PREFIX: Final = "HOLDFAST_"

_S = TypeVar("_S", bound=msgspec.Struct)


class Settings(NamedTuple):
    """A store URL without engine settings in it, and the configuration of the engine."""

    url: str
    config: Config

    def __repr__(self) -> str:
        return f"Settings(url={redact(self.url)!r}, config={self.config!r})"


class _Setting(NamedTuple):
    value: Any
    source: str


_Layer = dict[str, _Setting]


def load(
    url: str | None = None,
    *,
    config: Config | None = None,
    toml: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Collect the settings of one store and check all of them.

    ``config`` takes the place of the defaults. ``toml`` names a file with a ``[holdfast]`` table
    (else ``HOLDFAST_CONFIG`` does). ``env`` is `os.environ` if None; pass ``{}`` for none.
    ``overrides`` are settings in code: dotted names, or sections as mappings or objects.
    The URL is ``url``, else ``HOLDFAST_URL``, else ``url`` of the TOML table.

    Raises: `ConfigError`.
    """
    env = os.environ if env is None else env
    toml = toml or env.get(f"{ENV_PREFIX}CONFIG") or None
    file_url, from_file = _read_toml(Path(toml)) if toml is not None else (None, {})
    from_env = _read_env(env)
    url = url or env.get(f"{ENV_PREFIX}URL") or file_url
    if not url:
        raise ConfigError("url", "no store is named: give a URL such as sqlite:///sessions.db, or set HOLDFAST_URL")
    url, from_url = _read_url(url)
    from_code = dict(_flatten(overrides or {}, "code"))
    base = Config() if config is None else _checked(config)
    return Settings(url, _build(base, from_file | from_env | from_url | from_code))


# --- sources -----------------------------------------------------------------


def _read_toml(path: Path) -> tuple[str | None, _Layer]:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as exc:
        raise ConfigError("config", f"cannot read {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ConfigError("config", f"{path} is not TOML: {exc}") from None
    table = document.get("holdfast")
    if not isinstance(table, dict):
        raise ConfigError("config", f"{path} has no [holdfast] table")
    settings = dict(cast("dict[str, Any]", table))
    url = settings.pop("url", None)
    if url is not None and not isinstance(url, str):
        raise ConfigError("url", f"must be text (from {path})")
    return url, dict(_flatten(settings, str(path)))


def _read_env(env: Mapping[str, str]) -> _Layer:
    """Variables with our prefix. Empty ones count as not set.

    ``WRITER__LANES`` is ``writer.lanes``. A name without ``__`` that is no setting is left alone
    unless it looks like a mistyped one: orchestrators set variables of their own with any prefix.
    """
    layer: _Layer = {}
    for variable, value in env.items():
        if not variable.startswith(ENV_PREFIX) or not value:
            continue
        name = variable.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        known = setting_types()
        if name in known:
            layer[name] = _Setting(convert(name, value, known[name], variable), variable)
        elif "." in name or difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            raise ConfigError(name, f"no such setting{suggestion(name, known)} (from {variable})")
    return layer


def _read_url(url: str) -> tuple[str, _Layer]:
    """Take the engine's settings out of the URL: every dotted parameter, and every known one."""
    parts = split_url(url)
    known = setting_types()
    layer: _Layer = {}
    kept: list[str] = []
    for piece, (name, value) in zip(_pieces(parts.query), parse_query(parts.query).items(), strict=True):
        if name in known:
            layer[name] = _Setting(convert(name, value, known[name], "the URL"), "the URL")
        elif "." in name:
            raise ConfigError(_shown(name), f"no such setting{suggestion(name, known)} (from the URL)")
        else:
            kept.append(piece)
    bare = url.partition("?")[0]
    return (f"{bare}?{'&'.join(kept)}" if kept else bare), layer


def _flatten(settings: Mapping[str, Any], source: str) -> Iterator[tuple[str, _Setting]]:
    """Nested or dotted settings as dotted ones, converted."""
    known = setting_types()
    for name, value in settings.items():
        if isinstance(value, Mapping):
            inner = cast("Mapping[str, Any]", value)
            yield from _flatten({f"{name}.{key}": item for key, item in inner.items()}, source)
        elif isinstance(value, msgspec.Struct):
            yield from _flatten({f"{name}.{key}": getattr(value, key) for key in value.__struct_fields__}, source)
        elif name in known:
            yield name, _Setting(convert(name, value, known[name], source), source)
        else:
            raise ConfigError(_shown(name), f"no such setting{suggestion(name, known)} (from {source})")


# --- checking ----------------------------------------------------------------


@lru_cache(maxsize=1)
def setting_types() -> Mapping[str, Any]:
    """Every setting's dotted name and type, in the order of `Config`."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(Config):
        type_: Any = field.type
        if isinstance(type_, type) and issubclass(type_, msgspec.Struct):
            found |= {f"{field.name}.{inner.name}": inner.type for inner in msgspec.structs.fields(type_)}
        else:
            found[field.name] = type_
    return types.MappingProxyType(found)


def convert(name: str, value: Any, type_: Any, source: str) -> Any:
    """``value`` as ``type_``; text is read as the type asks, "none" as None where that is allowed.

    Raises: `ConfigError` for ``name``.
    """
    optional = type(None) in typing.get_args(type_)
    if optional and isinstance(value, str) and value.lower() in ("none", "null"):
        return None
    wrong = ConfigError(_shown(name), f"must be {describe_type(type_)} (from {source})")
    try:
        converted = msgspec.convert(value, type_, strict=not isinstance(value, str))
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise wrong from None
    if isinstance(converted, float) and not math.isfinite(converted):
        raise wrong
    return converted


_TYPE_NAMES: Final[Mapping[Any, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    type(None): "none",
    Durability: "one of " + ", ".join(level.value for level in Durability),
}


def describe_type(type_: Any) -> str:
    """A setting's type in words."""
    if typing.get_origin(type_) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(type_)))}"
    members = typing.get_args(type_) if isinstance(type_, types.UnionType) else (type_,)
    return " or ".join(_TYPE_NAMES.get(member, getattr(member, "__name__", str(member))) for member in members)


def suggestion(name: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` if one of the known names is close, else nothing."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    if not close:  # the section was left out
        close = [full for full in known if full.rpartition(".")[2] == name]
    return f"; did you mean {close[0]!r}?" if close else ""


def _checked(config: Config) -> Config:
    """A `Config` built in code may hold anything: its constructor checks ranges, not types."""
    values = {name: getattr(config, name) for name in config.__struct_fields__}
    return _build(Config(), dict(_flatten(values, "code")))


def _build(base: Config, layer: _Layer) -> Config:
    sections: dict[str, _Layer] = {}
    for name, setting in layer.items():
        section, _, field = name.rpartition(".")
        sections.setdefault(section, {})[field] = setting
    top = sections.pop("", {})
    for section, fields in sections.items():
        top[section] = _Setting(_replace(getattr(base, section), section, fields), "")
    return _replace(base, "", top)


def _replace(base: _S, section: str, fields: _Layer) -> _S:
    try:
        return msgspec.structs.replace(base, **{field: setting.value for field, setting in fields.items()})
    except ConfigError as exc:
        name = f"{section}.{exc.field}" if section else exc.field
        raise ConfigError(name, f"{exc.reason} (from {fields[exc.field].source})") from None


# --- URLs --------------------------------------------------------------------

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SECRET: Final = re.compile(r"pass|pwd|secret|token|key|cred|auth|sign", re.IGNORECASE)


def split_url(url: str) -> SplitResult:
    """The parts of a store URL.

    Raises: `ConfigError` if it is none.
    """
    if not _SCHEME.match(url):
        hint = "" if "://" in url or "@" in url else f"; for a SQLite file, write sqlite:///{url}"
        raise ConfigError("url", f"a store URL begins with a scheme, as sqlite:///sessions.db does{hint}")
    if not url.isprintable():
        raise ConfigError("url", "has unprintable characters; percent-encode them")
    if "#" in url:
        raise ConfigError("url", "has a '#'; write it as %23")
    try:
        parts = urlsplit(url)
        for host in parts.netloc.rpartition("@")[2].split(","):  # PostgreSQL takes several
            _ = urlsplit(f"//{host}").port  # parsed when asked for
    except ValueError:
        raise ConfigError("url", f"{redact(url)} is malformed; percent-encode special characters") from None
    if parts.netloc and "@" in parts.path + parts.query:
        # Else half of a password with a bare "/" or "?" in it would be taken for a parameter, and named in an error.
        raise ConfigError("url", "has an '@' behind the host; write it, and all that is special in a password, as %40")
    return parts


def parse_query(query: str) -> dict[str, str]:
    """The parameters by name.

    Raises: `ConfigError` for one without a name or value, or given twice.
    """
    params: dict[str, str] = {}
    for piece in _pieces(query):
        name, equals, value = piece.partition("=")
        name = unquote_plus(name)
        if not name or not equals or not value:
            raise ConfigError(_shown(name) or "url", "a URL parameter is written name=value")
        if name in params:
            raise ConfigError(_shown(name), "is given twice in the URL")
        params[name] = unquote_plus(value)
    return params


def _pieces(query: str) -> list[str]:
    return query.split("&") if query else []


def redact(url: str) -> str:
    """The URL fit for errors and logs: no password, no secret parameter. Any text will do.

    What cannot be told from a password is left out, so a malformed URL may lose more than that.
    """
    bare, question, query = url.partition("?")
    scheme, separator, rest = url.partition("://")
    if separator and not rest.startswith("/") and "@" in rest:
        # Passwords that should have been percent-encoded can hold any delimiter: cut at the last "@".
        user_info, _, place = rest.rpartition("@")
        user = user_info.partition(":")[0] if ":" in user_info else user_info
        mask = ":***" if ":" in user_info else ""
        bare, question, query = f"{scheme}://{user}{mask}@{place}".partition("?")
    if not question:
        return bare
    return bare + "?" + "&".join(_redact_piece(piece) for piece in query.split("&"))


def _redact_piece(piece: str) -> str:
    name, equals, _ = piece.partition("=")
    return f"{name}=***" if equals and _SECRET.search(unquote_plus(name)) else piece


def _shown(name: str) -> str:
    """A name from outside, fit for an error message."""
    return name if name.isprintable() and len(name) <= 60 else repr(name[:60])
