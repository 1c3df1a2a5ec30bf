"""The Lua scripts, and calls of them: loaded where they are missing, and routed by their keys."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Final, NamedTuple

from redis.exceptions import NoScriptError, ResponseError

from holdfast.backends.redis.link import Argument, Command, Link, Reply
from holdfast.errors import OutcomeUnknown, Unavailable

__all__ = ["COMMIT", "EVENTS", "EXPIRE", "FORGET", "FREE", "LOAD", "PUT", "STALE", "TRIM", "Script", "call", "run"]


class Script(NamedTuple):
    source: bytes
    sha: bytes


def _read(name: str) -> Script:
    return _script((files("holdfast.backends.redis") / "lua" / f"{name}.lua").read_bytes())


def _script(source: bytes) -> Script:
    return Script(source, sha1(source).hexdigest().encode())  # noqa: S324 - it's the server's name for it


COMMIT: Final = _read("commit")
FREE: Final = _script(COMMIT.source.replace(b"#!lua\n", b"#!lua flags=allow-oom\n", 1))
"""`COMMIT`, when the server is out of memory too."""
EVENTS: Final = _read("events")
EXPIRE: Final = _read("expire")
FORGET: Final = _read("forget")
LOAD: Final = _read("load")
PUT: Final = _read("put")
STALE: Final = _read("stale")
TRIM: Final = _read("trim")
_ALL: Final = (COMMIT, EVENTS, EXPIRE, FORGET, FREE, LOAD, PUT, STALE, TRIM)


def call(script: Script, keys: Sequence[bytes], *arguments: Argument) -> Command:
    """A call, to go where its first key is."""
    return Command(keys[0], (b"EVALSHA", script.sha, len(keys), *keys, *arguments))


async def run(link: Link, commands: Sequence[Command]) -> list[Reply]:
    """Send all at once; a call that met a server without its script is sent again, after it got all of them.

    Replies may be errors. Raises as `Link.send` does.
    """
    replies = await link.send(commands)
    missed = [number for number, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
    if not missed:
        return replies
    try:
        again = await _load_and_send(link, [commands[number] for number in missed])
    except Unavailable as exc:
        if len(missed) == len(commands):
            raise
        raise OutcomeUnknown(f"only a part was done: {exc}") from exc
    for number, reply in zip(missed, again, strict=True):
        replies[number] = reply
    return replies


async def _load_and_send(link: Link, commands: Sequence[Command]) -> list[Reply]:
    for reply in await link.send_everywhere([(b"SCRIPT", b"LOAD", script.source) for script in _ALL]):
        if isinstance(reply, ResponseError):
            return [reply] * len(commands)
    return await link.send(commands)
