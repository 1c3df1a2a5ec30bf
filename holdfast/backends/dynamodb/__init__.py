"""The DynamoDB backend: one table, any number of instances, nothing to run beside it.

It is imported by `holdfast.open("dynamodb://…")`, not by `import holdfast`.

The items of a session have its id as partition key ``pk``; by sort key ``sk`` they are:

``H``
    The head. Attributes: ``i`` the incarnation, ``r`` a revision that each write raises, ``d`` the packed
    rest (`items.Record`): times, status, metadata, numbers; small state; the *tail*, which are the newest
    events; and the *marks*, which are the last flushes of the lanes that wrote to it lately, with their
    outcomes. Every write is conditional on (``i``, ``r``). Most writes are one PutItem of it.
``E#<incarnation>#<last seq>``
    Consecutive events, packed. Only committed ones, ever: they come in the transaction that commits
    them, or are copied from the tail before that is emptied. So what lies behind a cursor is one range of
    keys, an item that is there twice does no harm, and trimming deletes whole items and filters the rest.
``S#<incarnation>#<generation>#<hash of key>``
    One key's value that is too large for the head, written in a transaction with it. ``cleared`` begins
    a new generation; what is of an older one is not there.

What is of another incarnation or generation than the head says is *debris*: invisible, and removed by
the write that made it, if it is not much, or by `Backend.trim` and `Backend.expire`. A deleted or
expired session's head stays for an hour as a *tombstone*, which remembers the flushes that got it there.

A head may be in a *journal*, attribute ``g``: an id and a position. Then it lacks what the journal's entries
of the session at later positions say. A journal belongs to one backend object, and has up to 64 sessions.
Its items have `` journal <id>`` as ``pk``, and as ``sk`` one of 32 slots, which are used in turn: the position
``p`` (1, 2, 3, …) takes the slot of position p - 32, by its condition. They are

entries (``d``): one flush's writes of many sessions, each for one revision of its head (`journal.Slot`);
    put by the owner alone, in order;
ends (``x``): put by any other instance where the owner is about to put: nothing ever follows them. Whoever wants to
    write a session of another's journal ends it first; after that its head with the entries is all there is.

The owner writes a head itself at every 16th position or so, and always before the entries of a session are 24
positions old. `journal` has the items, `journals` the owner's side, `rings` the others', `heads` puts both together.

Indexes, all with keys only and on attributes of heads that ordinary writes do not change:

``live`` (``l``, ``i``)
    Live sessions in eight partitions, by incarnation: lists, counts.
``owned`` (``o``, ``i``)
    The same of one owner.
``due`` (``e``, ``u``)
    When to look at a head: ``D`` whether a session has expired (touches leave it as it is; the janitor
    files anew what is still alive), ``T`` whether a tombstone can go, ``G`` one with debris beside it; and ``X``
    a journal's entries, when they are a day old.

``ttl`` is the attribute for native TTL. It is set on what can go by itself without leaving anything behind.
"""

from __future__ import annotations

from urllib.parse import SplitResult

from holdfast.backends.dynamodb.backend import DynamoDBBackend
from holdfast.backends.dynamodb.config import DynamoDBConfig
from holdfast.backends.urls import take_struct
from holdfast.errors import ConfigError

__all__ = ["DynamoDBBackend", "DynamoDBConfig", "from_url"]


def from_url(url: SplitResult, params: dict[str, str]) -> DynamoDBBackend:
    """``dynamodb://table?region=…``; parameters are fields of `DynamoDBConfig`."""
    if url.path not in ("", "/") or "@" in url.netloc or ":" in url.netloc:
        raise ConfigError("url", "write dynamodb://table?region=…; credentials are found as the AWS SDK finds them")
    return DynamoDBBackend(take_struct(params, DynamoDBConfig, table=url.netloc))
