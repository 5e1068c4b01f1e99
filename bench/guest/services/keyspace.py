"""The data behind the Redis protocol: strings, lists, sets, hashes and sorted sets, wholly in the guest's store.

One entry of the store for each key, and further ones for the parts of what is no string::

    "k" key                    -> "s" value | "l" first node, last node, length | "S"/"h"/"z" id, count
    "n" id number              -> a list's node: elements, each 4 bytes of length and its bytes, about 512 bytes of them
    "m" id member              -> position (8 bytes), then a hash's value or a sorted set's score (double)
    "p" id position            -> member

Members of a set or hash lie at positions 0 to count - 1, in no order; a sorted set's form a binary heap by (score,
member), so that its smallest is at position 0. Numbers are 8 bytes, big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from bench.guest.store import Store, StoreFull

_KEYS, _NEXT_ID, _CLIENTS = 0, 1, 2  # owner words of the store
_NODE_BYTES = 512
_LIST = struct.Struct(">QqqQ")  # id, first node, last node, length
_MEMBERS = struct.Struct(">QQ")  # id, count
_POSITION = struct.Struct(">Q")
_NODE_KEY = struct.Struct(">cQq")
_SCORE = struct.Struct(">d")
_LENGTH = struct.Struct(">I")

STRING, LIST, SET, HASH, ZSET = b"s", b"l", b"S", b"h", b"z"
TYPE_NAMES = {STRING: "string", LIST: "list", SET: "set", HASH: "hash", ZSET: "zset"}


class WrongType(Exception):
    """The key holds another type of value."""


def _elements(node: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(node):
        (length,) = _LENGTH.unpack_from(node, at)
        found.append(node[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def _node(elements: list[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(element)) + element for element in elements)


@dataclass(slots=True)
class ListValue:
    """A list: nodes ``first`` to ``last``, all but an empty list's one holding at least one element."""

    store: Store
    key: bytes
    ident: int
    first: int = 0
    last: int = 0
    length: int = 0

    def _save(self) -> None:
        self.store.set(self.key, LIST + _LIST.pack(self.ident, self.first, self.last, self.length))

    def _node_key(self, number: int) -> bytes:
        return _NODE_KEY.pack(b"n", self.ident, number)

    def push(self, element: bytes, left: bool) -> None:
        """:raises StoreFull: nothing was pushed then."""
        number = self.first if left else self.last
        node = self.store.get(self._node_key(number)) or b""
        if node and len(node) + 4 + len(element) > _NODE_BYTES:
            number += -1 if left else 1
            node = b""
        packed = _LENGTH.pack(len(element)) + element
        self.store.set(self._node_key(number), packed + node if left else node + packed)
        if left:
            self.first = number
        else:
            self.last = number
        self.length += 1
        self._save()

    def pop(self, left: bool) -> bytes | None:
        if not self.length:
            return None
        number = self.first if left else self.last
        elements = _elements(self.store.get(self._node_key(number)) or b"")
        element = elements.pop(0 if left else -1)
        if elements:
            self.store.set(self._node_key(number), _node(elements))
        else:
            self.store.delete(self._node_key(number))
            if self.first != self.last:
                self.first += left
                self.last -= not left
        self.length -= 1
        self._save()
        return element

    def range(self, start: int, stop: int) -> list[bytes]:
        """Elements *start* to *stop*, both included, negative ones counted from the end (LRANGE)."""
        start = max(0, start + self.length if start < 0 else start)
        stop = min(self.length - 1, stop + self.length if stop < 0 else stop)
        found: list[bytes] = []
        at = 0
        for number in range(self.first, self.last + 1):
            if at > stop:
                break
            elements = _elements(self.store.get(self._node_key(number)) or b"")
            found += elements[max(0, start - at) : max(0, stop + 1 - at)]
            at += len(elements)
        return found

    def remove_parts(self) -> None:
        for number in range(self.first, self.last + 1):
            self.store.delete(self._node_key(number))


@dataclass(slots=True)
class Members:
    """The members of a set, hash or sorted set, each with a payload."""

    store: Store
    key: bytes
    kind: bytes
    ident: int
    count: int = 0

    def _save(self) -> None:
        self.store.set(self.key, self.kind + _MEMBERS.pack(self.ident, self.count))

    def _member_key(self, member: bytes) -> bytes:
        return b"m" + _POSITION.pack(self.ident) + member

    def _position_key(self, position: int) -> bytes:
        return b"p" + _MEMBERS.pack(self.ident, position)

    def get(self, member: bytes) -> bytes | None:
        """The member's payload, None when it is no member."""
        entry = self.store.get(self._member_key(member))
        return None if entry is None else entry[8:]

    def at(self, position: int) -> bytes:
        member = self.store.get(self._position_key(position))
        assert member is not None, "positions below the count are taken"
        return member

    def all(self) -> list[bytes]:
        return [self.at(position) for position in range(self.count)]

    def add(self, member: bytes, payload: bytes = b"") -> bool:
        """True when it is new. :raises StoreFull: nothing was changed then."""
        entry = self.store.get(self._member_key(member))
        if entry is not None:
            if entry[8:] != payload:
                self.store.set(self._member_key(member), entry[:8] + payload)
                self._settle(_POSITION.unpack_from(entry)[0], member)
            return False
        self.store.set(self._member_key(member), _POSITION.pack(self.count) + payload)
        try:
            self.store.set(self._position_key(self.count), member)
        except StoreFull:
            self.store.delete(self._member_key(member))
            raise
        self.count += 1
        self._save()
        self._settle(self.count - 1, member)
        return True

    def remove(self, member: bytes) -> bool:
        entry = self.store.get(self._member_key(member))
        if entry is None:
            return False
        (position,) = _POSITION.unpack_from(entry)
        self.count -= 1
        moved = self.at(self.count)
        self.store.delete(self._member_key(member))
        self.store.delete(self._position_key(self.count))
        if position != self.count:  # the last one takes the place that is free now
            self.store.delete(self._position_key(position))
            self._place(position, moved)
            self._save()
            self._settle(position, moved)
        else:
            self._save()
        return True

    def remove_parts(self) -> None:
        for position in range(self.count):
            self.store.delete(self._member_key(self.at(position)))
            self.store.delete(self._position_key(position))

    # the order of a sorted set

    def score(self, member: bytes) -> float:
        """The score of a sorted set's member."""
        payload = self.get(member)
        assert payload is not None, "it is a member"
        score: float = _SCORE.unpack(payload)[0]
        return score

    def ordered(self) -> list[tuple[float, bytes]]:
        return sorted((self.score(member), member) for member in self.all())

    def _place(self, position: int, member: bytes) -> None:
        payload = self.get(member)
        assert payload is not None, "it is a member"
        self.store.set(self._position_key(position), member)
        self.store.set(self._member_key(member), _POSITION.pack(position) + payload)

    def _settle(self, position: int, member: bytes) -> None:
        """Restore the heap's order after *member* came to *position*; nothing to do but in a sorted set.

        Members change places only after all places concerned were emptied: what is put back then is what was taken out,
        so a full store has room for it.
        """
        if self.kind != ZSET:
            return
        rank = (self.score(member), member)
        path = [position]
        moved: list[bytes] = []
        while path[-1]:
            parent = self.at((path[-1] - 1) // 2)
            if (self.score(parent), parent) <= rank:
                break
            moved.append(parent)
            path.append((path[-1] - 1) // 2)
        if len(path) == 1:
            while True:
                children = [child for child in (2 * path[-1] + 1, 2 * path[-1] + 2) if child < self.count]
                ranked = [(self.score(self.at(child)), self.at(child), child) for child in children]
                if not ranked or min(ranked)[:2] >= rank:
                    break
                _score, least, child = min(ranked)
                moved.append(least)
                path.append(child)
        if not moved:
            return
        for place in path:
            self.store.delete(self._position_key(place))
        placed = zip(path, [*moved, member], strict=True)
        for place, other in sorted(placed, key=lambda item: -len(item[1])):  # the largest first, so that all find room
            self._place(place, other)


class Keyspace:
    """The keys of database 0. Holds nothing itself: made anew for each connection, after each move."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __len__(self) -> int:
        return self.store.owner_word(_KEYS)

    def _count(self, change: int) -> None:
        self.store.set_owner_word(_KEYS, self.store.owner_word(_KEYS) + change)

    def _new_id(self) -> int:
        ident = self.store.owner_word(_NEXT_ID) + 1
        self.store.set_owner_word(_NEXT_ID, ident)
        return ident

    def kind(self, key: bytes) -> bytes | None:
        """One of the keys of :data:`TYPE_NAMES`, None when there is no such key."""
        raw = self.store.get(b"k" + key)
        return None if raw is None else raw[:1]

    def get(self, key: bytes) -> bytes | None:
        """A string. :raises WrongType: when it is none."""
        raw = self.store.get(b"k" + key)
        if raw is None:
            return None
        if raw[:1] != STRING:
            raise WrongType
        return raw[1:]

    def get_if_string(self, key: bytes) -> bytes | None:
        """A string; None for other types too (MGET)."""
        raw = self.store.get(b"k" + key)
        return raw[1:] if raw is not None and raw[:1] == STRING else None

    def set(self, key: bytes, value: bytes) -> None:
        """Make *key* a string, whatever it was.

        :raises StoreFull: nothing was changed then, but for a value of another type, which is gone.
        """
        kind = self.kind(key)
        if kind not in (None, STRING):
            self.delete(key)
            kind = None
        self.store.set(b"k" + key, STRING + value)
        if kind is None:
            self._count(1)

    def delete(self, key: bytes) -> bool:
        raw = self.store.get(b"k" + key)
        if raw is None:
            return False
        if raw[:1] == LIST:
            ListValue(self.store, b"k" + key, *_LIST.unpack_from(raw, 1)).remove_parts()
        elif raw[:1] != STRING:
            Members(self.store, b"k" + key, raw[:1], *_MEMBERS.unpack_from(raw, 1)).remove_parts()
        self.store.delete(b"k" + key)
        self._count(-1)
        return True

    def get_list(self, key: bytes, create: bool = False) -> ListValue | None:
        """:raises WrongType: when it is no list. :raises StoreFull: when it cannot be created."""
        raw = self.store.get(b"k" + key)
        if raw is None:
            if not create:
                return None
            value = ListValue(self.store, b"k" + key, self._new_id())
            self.store.set(value.key, LIST + _LIST.pack(value.ident, 0, 0, 0))
            self._count(1)
            return value
        if raw[:1] != LIST:
            raise WrongType
        return ListValue(self.store, b"k" + key, *_LIST.unpack_from(raw, 1))

    def get_members(self, key: bytes, kind: bytes, create: bool = False) -> Members | None:
        """A set, hash or sorted set. :raises WrongType, StoreFull: as :meth:`get_list`."""
        raw = self.store.get(b"k" + key)
        if raw is None:
            if not create:
                return None
            value = Members(self.store, b"k" + key, kind, self._new_id())
            self.store.set(value.key, kind + _MEMBERS.pack(value.ident, 0))
            self._count(1)
            return value
        if raw[:1] != kind:
            raise WrongType
        return Members(self.store, b"k" + key, kind, *_MEMBERS.unpack_from(raw, 1))

    def prune(self, key: bytes, value: ListValue | Members | None) -> None:
        """Remove a collection that holds nothing, as Redis does."""
        if value is not None and not (value.length if isinstance(value, ListValue) else value.count):
            self.delete(key)

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """As :meth:`bench.guest.store.Store.scan`, keys only."""
        cursor, raw = self.store.scan(cursor, count)
        return cursor, [key[1:] for key in raw if key[:1] == b"k"]

    def __iter__(self) -> Iterator[bytes]:
        """All keys, in no order; nothing must be changed meanwhile."""
        return (key[1:] for key in self.store if key[:1] == b"k")

    def clear(self) -> None:
        clients = self.store.owner_word(_CLIENTS)
        self.store.clear()
        self.store.set_owner_word(_CLIENTS, clients)

    def new_client(self) -> int:
        """A number that no other connection had."""
        ident = self.store.owner_word(_CLIENTS) + 1
        self.store.set_owner_word(_CLIENTS, ident)
        return ident
