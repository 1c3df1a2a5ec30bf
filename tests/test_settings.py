"""Settings: every source, their order, errors that name the field, and no secret in any of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.backends.memory import MemoryBackend
from holdfast.backends.urls import create_backend, file_path, take_struct
from holdfast.config import Config, WriterConfig
from holdfast.errors import ConfigError
from holdfast.model import Durability
from holdfast.settings import Settings, describe_type, load, redact, setting_types


def config_of(url: str = "memory://", **sources: Any) -> Config:
    return load(url, **{"env": {}, **sources}).config


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "app.toml"
    path.write_text('[holdfast]\nurl = "memory://"\nttl_s = 10\n[holdfast.writer]\nlanes = 1\nlinger_s = 0.1\n')
    return path


# --- one source at a time ----------------------------------------------------


def test_without_any_setting_the_defaults_hold() -> None:
    assert load("memory://", env={}) == Settings("memory://", Config())


def test_the_url_carries_settings_of_the_engine_and_of_the_backend() -> None:
    settings = load("sqlite:///a.db?busy_timeout_s=2&durability=process&writer.lanes=2&exclusive=true", env={})
    assert settings.url == "sqlite:///a.db?busy_timeout_s=2&exclusive=true"
    assert settings.config == Config(durability=Durability.PROCESS, writer=WriterConfig(lanes=2))


def test_what_is_left_of_the_url_keeps_its_spelling() -> None:
    url = "sqlite:///a%20b.db?x=%C3%A4+%2B"
    assert load(f"{url}&ttl_s=5", env={}).url == url


def test_the_environment_names_sections_with_two_underscores() -> None:
    env = {"HOLDFAST_URL": "memory://", "HOLDFAST_WRITER__LANES": "3", "HOLDFAST_BACKGROUND": "false", "LANES": "9"}
    settings = load(env=env)
    assert settings == Settings("memory://", Config(background=False, writer=WriterConfig(lanes=3)))


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load("memory://", env={"HOLDFAST_TTL_S": "", "HOLDFAST_URL": ""}).config == Config()


def test_toml_has_a_table_with_sub_tables(toml: Path) -> None:
    expected = Settings("memory://", Config(ttl_s=10, writer=WriterConfig(lanes=1, linger_s=0.1)))
    assert load(toml=toml, env={}) == expected
    assert load(env={"HOLDFAST_CONFIG": str(toml)}) == expected


@pytest.mark.parametrize(
    "overrides",
    [{"writer": WriterConfig(lanes=4)}, {"writer": {"lanes": 4}}, {"writer.lanes": 4}],
    ids=["section", "mapping", "dotted"],
)
def test_code_gives_sections_or_dotted_names(overrides: dict[str, Any]) -> None:
    assert config_of(overrides=overrides) == Config(writer=WriterConfig(lanes=4))


def test_none_is_written_as_a_word() -> None:
    assert config_of("memory://?ttl_s=none").ttl_s is None
    assert config_of(env={"HOLDFAST_TTL_S": "None"}).ttl_s is None
    assert config_of(overrides={"ttl_s": None}).ttl_s is None


# --- precedence --------------------------------------------------------------


def test_code_beats_url_beats_environment_beats_toml_beats_default(toml: Path) -> None:
    env = {"HOLDFAST_TTL_S": "20", "HOLDFAST_LIFETIME_S": "20", "HOLDFAST_WRITER__MAX_BATCH_SESSIONS": "20"}
    url = "memory://?ttl_s=30&lifetime_s=30"
    config = load(url, toml=toml, env=env, overrides={"ttl_s": 40}).config
    assert (config.ttl_s, config.lifetime_s) == (40, 30)
    assert (config.writer.max_batch_sessions, config.writer.linger_s) == (20, 0.1)
    assert config.drain_timeout_s == Config().drain_timeout_s


def test_a_config_takes_the_place_of_the_defaults() -> None:
    base = Config(ttl_s=7, lifetime_s=7)
    assert config_of("memory://?ttl_s=8", config=base) == Config(ttl_s=8, lifetime_s=7)


def test_the_url_in_code_beats_the_one_in_the_environment_and_that_the_file(toml: Path) -> None:
    env = {"HOLDFAST_URL": "sqlite:///env.db"}
    assert load("sqlite:///code.db", toml=toml, env=env).url == "sqlite:///code.db"
    assert load(toml=toml, env=env).url == "sqlite:///env.db"


# --- mistakes ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameter", "field", "reason"),
    [
        ("writer.lanes=two", "writer.lanes", "must be a whole number or none (from the URL)"),
        ("writer.lanes=0", "writer.lanes", "must be above 0, not 0 (from the URL)"),
        ("writer.lanes=1.5", "writer.lanes", "must be a whole number or none (from the URL)"),
        ("ttl_s=nan", "ttl_s", "must be a number or none (from the URL)"),
        ("ttl_s=inf", "ttl_s", "must be a number or none (from the URL)"),
        ("ttl_s=-1", "ttl_s", "must be above 0, not -1.0 (from the URL)"),
        ("background=perhaps", "background", "must be true or false (from the URL)"),
        ("durability=paper", "durability", "must be one of memory, process, disk, replicated or none (from the URL)"),
        ("writer.lane=1", "writer.lane", "no such setting; did you mean 'writer.lanes'? (from the URL)"),
        ("writter.lanes=1", "writter.lanes", "no such setting; did you mean 'writer.lanes'? (from the URL)"),
        ("ttl_s", "ttl_s", "a URL parameter is written name=value"),
        ("ttl_s=", "ttl_s", "a URL parameter is written name=value"),
        ("ttl_s=1&ttl_s=2", "ttl_s", "is given twice in the URL"),
    ],
)
def test_a_wrong_parameter_is_named(parameter: str, field: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(f"memory://?{parameter}")
    assert (caught.value.field, caught.value.reason) == (field, reason)


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"writer.lanes: must be .* \(from HOLDFAST_WRITER__LANES\)"):
        config_of(env={"HOLDFAST_WRITER__LANES": "x"})
    with pytest.raises(ConfigError, match=r"writer.lane: no such .* 'writer.lanes'\? \(from HOLDFAST_WRITER__LANE\)"):
        config_of(env={"HOLDFAST_WRITER__LANE": "1"})
    with pytest.raises(ConfigError, match=r"durabilty: no such .* 'durability'\? \(from HOLDFAST_DURABILTY\)"):
        config_of(env={"HOLDFAST_DURABILTY": "disk"})


def test_variables_that_others_set_are_left_alone() -> None:
    env = {"HOLDFAST_SERVICE_HOST": "10.0.0.1", "HOLDFAST_PORT": "tcp://10.0.0.1:80", "HOLDFAST_TEST_POSTGRES_URL": "x"}
    assert config_of(env=env) == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[holdfast]\nttl_s = '10'", None),
        ("[holdfast]\nbackground = 1", "background: must be true or false (from {path})"),
        ("[holdfast]\nttl_s = -1", "ttl_s: must be above 0, not -1.0 (from {path})"),
        ("[holdfast.writer]\nlane = 1", "writer.lane: no such setting; did you mean 'writer.lanes'? (from {path})"),
        ("[holdfast]\nwriter = 1", "writer: no such setting; did you mean 'writer.lanes'? (from {path})"),
        ("[holdfast]\nurl = 1", "url: must be text (from {path})"),
        ("[other]\nx = 1", "config: {path} has no [holdfast] table"),
        ("[holdfast", "config: {path} is not TOML: "),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str | None) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text)
    if message is None:
        assert load("memory://", toml=path, env={}).config.ttl_s == 10
        return
    with pytest.raises(ConfigError) as caught:
        load("memory://", toml=path, env={})
    assert str(caught.value).startswith(message.format(path=path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config: cannot read .*nowhere\.toml: No such file"):
        load("memory://", toml=tmp_path / "nowhere.toml", env={})


def test_code_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"writer.lanes: must be a whole number or none \(from code\)"):
        config_of(overrides={"writer": {"lanes": 1.5}})
    with pytest.raises(ConfigError, match=r"lanes: no such setting; did you mean 'writer.lanes'\?"):
        config_of(overrides={"lanes": 2})
    wrong: Any = "soon"
    with pytest.raises(ConfigError, match=r"drain_timeout_s: must be a number \(from code\)"):
        config_of(config=Config(drain_timeout_s=wrong))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "no store is named"),
        ("sessions.db", "write sqlite:///sessions.db"),
        ("sqlite:sessions.db", "a store URL begins with a scheme"),
        ("sqlite:///a\nb.db", "has unprintable characters"),
        ("sqlite:///a#b.db", "write it as %23"),
        ("postgresql://user:secret@[host/db", "malformed"),
        ("postgresql://user:secret@host:port/db", "malformed"),
        ("postgresql://user:secret@host:1,other:port/db", "malformed"),
        ("postgresql://user:12?writer.x=34@host/db", "has an '@' behind the host"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(url, env={})
    assert caught.value.field == "url"
    assert reason in caught.value.reason
    assert "secret" not in str(caught.value)


# --- backends by URL ---------------------------------------------------------


def test_a_scheme_picks_its_backend() -> None:
    assert isinstance(create_backend("memory://"), MemoryBackend)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memry://", r"url: no backend for memry:// \(there are: .*memory://, .*sqlite://"),
        ("memory://?size=1", r"size: no such setting \(from the URL\)"),
        ("memory://?durabilty=disk", r"durabilty: no such setting; did you mean 'durability'\? \(from the URL\)"),
        ("memory://?lanes=1", r"lanes: no such setting; did you mean 'writer.lanes'\? \(from the URL\)"),
    ],
)
def test_a_url_without_a_backend_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_backend(url)


def test_a_missing_driver_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "backend_with_a_driver.py").write_text("import asyncpg\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "asyncpg", None)  # as if it were not installed
    schemes = {"other": "backend_with_a_driver:from_url"}
    monkeypatch.setattr("holdfast.backends.urls.backend_schemes", lambda: schemes)
    with pytest.raises(ConfigError, match=r"other:// needs a driver: pip install 'holdfast\[postgres\]'"):
        create_backend("other://host/db")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    region: str
    retries: int = 3
    secret: str | None = None


def test_a_backend_takes_its_parameters_as_a_struct() -> None:
    params = {"retries": "5", "region": "north"}
    assert take_struct(params, Options, path="p") == Options(path="p", region="north", retries=5)
    assert params == {}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"region": "n", "retries": "x"}, "retries: must be a whole number (from the URL)"),
        ({"region": "n", "retry": "1"}, "retry: no such setting; did you mean 'retries'? (from the URL)"),
        ({"region": "n", "path": "q"}, "path: no such setting (from the URL)"),
        ({}, "region: is required in the URL"),
    ],
)
def test_a_backend_parameter_that_is_wrong_is_named(params: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        take_struct(params, Options, path="p")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///a.db", "a.db"),
        ("sqlite:///folder/a.db", "folder/a.db"),
        ("sqlite:////var/a.db", "/var/a.db"),
        ("sqlite:///a%20%23b%3F.db", "a #b?.db"),
    ],
)
def test_three_slashes_are_relative_and_four_absolute(url: str, path: str) -> None:
    assert file_path(urlsplit(url)) == path


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite://a.db", "sqlite://host/a.db", "sqlite:///a%00.db"])
def test_a_url_that_names_no_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        file_path(urlsplit(url))


# --- secrets -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:pw@host/db?password=pw&pool=3", "postgresql://user:***@host/db?password=***&pool=3"),
        ("redis://:pw@host:6379/0", "redis://:***@host:6379/0"),
        ("postgresql://user:p@ss@word@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:p/w#?x@host/db", "postgresql://user:***@host/db"),
        (
            "dynamodb://table?aws_secret_access_key=a%26b&region=x",
            "dynamodb://table?aws_secret_access_key=***&region=x",
        ),
        ("sqlite:////home/me@work/a.db", "sqlite:////home/me@work/a.db"),
        ("memory://", "memory://"),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert redact(url) == shown


_password = (
    st.text(st.sampled_from("@:/?#&=%[] ") | st.characters(codec="utf-8"), min_size=6)
    .filter(lambda text: text.strip() == text)
    .map(lambda text: f"S3{text}3S")
)


@given(_password)
def test_no_password_survives_redaction(password: str) -> None:
    for url in (
        f"postgresql://user:{password}@host/db?pool=2",
        f"postgresql://user:{quote(password, safe='')}@host/db",
        f"redis://:{password}@host",
    ):
        shown = redact(url)
        assert password not in shown
        assert quote(password, safe="") not in shown
        assert "S3" not in shown


@given(_password, st.sampled_from(["?x.y=1", "", "?ttl_s=no", "?writer.lanes=0"]))
def test_no_password_is_in_an_error_or_a_repr(password: str, query: str) -> None:
    for written in (password, quote(password, safe="")):
        try:
            shown = repr(load(f"postgresql://user:{written}@host/db{query}", env={}))
        except ConfigError as exc:
            shown = f"{exc!s} {exc!r} {exc.field} {exc.__cause__!r}"
        assert "S3" not in shown


# --- fuzz --------------------------------------------------------------------

_names = st.one_of(st.sampled_from(list(setting_types())), st.text(max_size=20))


@given(st.dictionaries(_names, st.text(max_size=20), max_size=4))
def test_any_parameters_give_a_config_or_a_config_error(params: dict[str, str]) -> None:
    query = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in params.items())
    try:
        settings = load(f"memory://?{query}", env={})
    except ConfigError as exc:
        assert str(exc)
    else:
        assert load(settings.url, config=settings.config, env={}) == settings


@given(st.text(max_size=60))
def test_any_text_as_url_gives_settings_or_a_config_error(url: str) -> None:
    for text in (url, f"sqlite://{url}", f"memory://?{url}"):
        redact(text)
        try:
            create_backend(load(text, env={}).url)
        except ConfigError as exc:
            assert str(exc)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(_names | st.sampled_from(["writer", "limits"]), _values, max_size=3))
def test_any_overrides_give_a_config_or_a_config_error(overrides: dict[str, Any]) -> None:
    try:
        config = config_of(overrides=overrides)
    except ConfigError as exc:
        assert str(exc)
    else:
        assert load("memory://", config=config, env={}).config == config


@given(st.dictionaries(_names.map(lambda name: "HOLDFAST_" + name.upper().replace(".", "__")), st.text(max_size=9)))
def test_any_environment_gives_a_config_or_a_config_error(env: dict[str, str]) -> None:
    try:
        load("memory://", env=env | {"HOLDFAST_CONFIG": ""})
    except ConfigError as exc:
        assert str(exc)


def test_every_setting_has_a_type_that_can_be_described() -> None:
    for name, type_ in setting_types().items():
        assert " of " not in describe_type(type_) or name == "durability"
        assert "typing" not in describe_type(type_)
