"""The way to a cluster: each command to the server that has its key's slot, as the servers tell."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ClusterDownError, MovedError, ReadOnlyError

from holdfast.backends.redis.config import RedisConfig
from holdfast.backends.redis.keys import absent, companions
from holdfast.backends.redis.link import Argument, Command, Node, Reply
from holdfast.errors import HoldfastError, OutcomeUnknown, Unavailable

__all__ = ["ClusterLink"]

_Address = tuple[str, int]

_ROUNDS: Final = 5
"""After so many, a key that is always elsewhere is taken for a cluster in trouble."""
_MAP_IS_OLD: Final = (MovedError, ReadOnlyError, ClusterDownError)


class ClusterLink:
    """Commands sent at once go to all servers at the same time, so in no order between servers.

    While a slot is being moved, key by key, its sessions are `Unavailable`: a script needs all its keys in one place.
    """

    in_order = False

    def __init__(self, config: RedisConfig) -> None:
        self._config: Final = config
        self._seed: Final[_Address] = (config.host, config.port)
        self._nodes: dict[_Address, Node] = {self._seed: Node(config)}
        self._owners: list[_Address | None] = []
        self._map_is_old = True

    async def send(self, commands: Sequence[Command]) -> list[Reply]:
        replies: list[Reply] = [None] * len(commands)
        left = list(range(len(commands)))
        for number_of_round in range(_ROUNDS):
            try:
                await self._refresh()
                await self._send_round(commands, left, replies)
            except Unavailable as exc:
                if number_of_round == 0:
                    raise
                raise OutcomeUnknown(f"only a part was done: {exc}") from exc
            left = [number for number in left if isinstance(replies[number], MovedError)]
            if not left:
                break
        return replies

    async def _send_round(self, commands: Sequence[Command], numbers: list[int], replies: list[Reply]) -> None:
        """Each of the commands to where the map says. Raises as `Link.send` does."""
        parts: dict[_Address, list[int]] = {}
        for number in numbers:
            parts.setdefault(self._owner(commands[number].key), []).append(number)
        failures: list[HoldfastError] = []

        async def send(address: _Address, part: list[int]) -> None:
            try:
                found = await self._node(address).send([commands[number].arguments for number in part])
            except HoldfastError as exc:
                failures.append(exc)
                self._map_is_old = True
                return
            for number, reply in zip(part, found, strict=True):
                replies[number] = reply
                self._map_is_old |= isinstance(reply, _MAP_IS_OLD)

        async with asyncio.TaskGroup() as tasks:
            for address, part in parts.items():
                tasks.create_task(send(address, part))
        if failures:
            if len(failures) == len(parts) == 1 and isinstance(failures[0], Unavailable):
                raise failures[0]
            raise OutcomeUnknown(f"not all servers answered: {failures[0]}") from failures[0].__cause__

    async def send_everywhere(self, commands: Sequence[tuple[Argument, ...]]) -> list[Reply]:
        await self._refresh()
        replies: list[Reply] = []
        for address in sorted({owner for owner in self._owners if owner is not None}):
            replies += await self._node(address).send(commands)
        return replies

    def groups(self, keys: Sequence[bytes]) -> Iterable[list[int]]:
        slots: dict[int, list[int]] = {}
        for number, key in enumerate(keys):
            slots.setdefault(key_slot(key), []).append(number)
        return slots.values()

    def declared(self, heads: Sequence[bytes], *, writes: bool = False) -> list[bytes]:
        return [*heads, *companions(heads), *([absent(heads[0])] if writes else ())]

    def node(self) -> Node:
        return self._node(next((owner for owner in self._owners if owner is not None), self._seed))

    async def close(self) -> None:
        for node in self._nodes.values():
            await node.close()

    def _node(self, address: _Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = Node(self._config, *address)
        return node

    def _owner(self, key: bytes | None) -> _Address:
        slot = 0 if key is None else key_slot(key)
        owner = self._owners[slot]
        if owner is None:
            self._map_is_old = True
            raise Unavailable(f"the cluster is down: no server has slot {slot}")
        return owner

    async def _refresh(self) -> None:
        """Ask for the map if it is old, any server that answers. Raises: `Unavailable`."""
        if not self._map_is_old:
            return
        failure: HoldfastError = Unavailable("the cluster has no servers")
        for address in [*self._nodes]:
            try:
                (reply,) = await self._node(address).send([(b"CLUSTER", b"SLOTS")])
            except HoldfastError as exc:
                failure = exc
                continue
            if isinstance(reply, Exception):
                failure = Unavailable(f"the cluster's map cannot be read: {reply}")
                continue
            await self._take_map(reply, asked=address)
            return
        raise Unavailable(f"no server of the cluster answers: {failure}") from failure

    async def _take_map(self, ranges: Sequence[Any], asked: _Address) -> None:
        owners: list[_Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, (host, port, *_), *_ in ranges:
            address = ((host or asked[0].encode()).decode(), int(port))
            owners[first : last + 1] = [address] * (last + 1 - first)
        self._owners = owners
        self._map_is_old = False
        gone = self._nodes.keys() - set(owners) - {self._seed, asked}
        for node in [self._nodes.pop(address) for address in gone]:  # at once: others may do the same meanwhile
            await node.close()
