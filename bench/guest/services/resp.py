"""The Redis serialization protocol, version 2 (RESP2): commands out of bytes, replies into bytes.

Specification: https://redis.io/docs/reference/protocol-spec/; limits and error texts are those of Redis 7's
``networking.c``, with smaller limits because a partly received command is part of the state that moves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from bench.guest.services.base import integer, pack, unpack

MAX_INLINE_BYTES = 1 << 16
MAX_ARGUMENTS = 1 << 20
MAX_BULK_BYTES = 1 << 20
MAX_COMMAND_BYTES = 4 << 20
_ARGUMENT_OVERHEAD_BYTES = 32

_INTEGER = re.compile(rb"0|-?[1-9]\d{0,18}")
_SPACES = b" \t\n\v\f\r"
_ESCAPES = {0x6E: 0x0A, 0x72: 0x0D, 0x74: 0x09, 0x62: 0x08, 0x61: 0x07}  # n r t b a

OK = b"+OK\r\n"
NIL = b"$-1\r\n"
NIL_ARRAY = b"*-1\r\n"
EMPTY = b"*0\r\n"


class ProtocolError(Exception):
    """The client broke the protocol; it gets the text and the connection closes."""


def parse_integer(text: bytes) -> int | None:
    """A 64-bit integer as Redis' ``string2ll`` takes it: no sign +, no leading zeros, no spaces; else None."""
    if not _INTEGER.fullmatch(text):
        return None
    value = int(text)
    return value if -(1 << 63) <= value < 1 << 63 else None


def split_inline(line: bytes) -> list[bytes]:
    """The words of an inline command, quoted ones as redis-cli quotes them.

    :raises ProtocolError: for quotes without an end, or followed by something else than a space.
    """
    words: list[bytes] = []
    at, end = 0, len(line)
    while True:
        while at < end and line[at] in _SPACES:
            at += 1
        if at >= end:
            return words
        word = bytearray()
        while at < end and line[at] not in _SPACES:
            if line[at] in b"\"'":
                at = _quoted(line, at, word)
                if at < end and line[at] not in _SPACES:
                    raise ProtocolError("unbalanced quotes in request")
            else:
                word.append(line[at])
                at += 1
        words.append(bytes(word))


def _quoted(line: bytes, at: int, word: bytearray) -> int:
    """Append what the quotes that begin at *at* hold to *word*; returns the position behind them."""
    quote, end = line[at], len(line)
    at += 1
    while at < end:
        byte = line[at]
        if byte == quote:
            return at + 1
        if byte == 0x5C and at + 1 < end and quote == 0x22:  # a backslash in double quotes
            digits = line[at + 2 : at + 4]
            if line[at + 1] == 0x78 and re.fullmatch(rb"[0-9a-fA-F]{2}", digits):
                word.append(int(digits, 16))
                at += 4
                continue
            word.append(_ESCAPES.get(line[at + 1], line[at + 1]))
            at += 2
        elif line[at : at + 2] == b"\\'" and quote == 0x27:
            word.append(0x27)
            at += 2
        else:
            word.append(byte)
            at += 1
    raise ProtocolError("unbalanced quotes in request")


class CommandParser:
    """Commands, inline or as arrays of bulk strings, out of a stream cut anywhere."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0  # everything before is parsed
        self._words: list[bytes] = []  # of the array that is being read
        self._missing = 0  # words of it that are still to come
        self._bulk = -1  # length of the word that is being read, -1 before it is known
        self._size = 0  # of the array so far

    def feed(self, data: bytes) -> None:
        self._data += data

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are not parsed yet."""
        return len(self._data) - self._at

    def next(self) -> list[bytes] | None:
        """The next command, never empty; None when it is not complete.

        :raises ProtocolError: with Redis' text.
        """
        while True:
            if not self._missing and not self._begin():
                break
            while self._missing and self._next_word():
                pass
            if self._missing:
                break
            words, self._words = self._words, []
            if words:
                return words
        del self._data[: self._at]
        self._at = 0
        return None

    def _line(self, mark: bytes, limit_error: str) -> bytes | None:
        reach = self._at + MAX_INLINE_BYTES + len(mark)
        end = self._data.find(mark, self._at, reach)
        if end < 0:
            if len(self._data) >= reach:
                raise ProtocolError(limit_error)
            return None
        line = bytes(self._data[self._at : end])
        self._at = end + len(mark)
        return line

    def _begin(self) -> bool:
        """The first line of a command; False when it is not complete."""
        if self._at >= len(self._data):
            return False
        if self._data[self._at] != 0x2A:
            line = self._line(b"\n", "too big inline request")
            if line is None:
                return False
            self._words = split_inline(line)
            return True
        line = self._line(b"\r\n", "too big mbulk count string")
        if line is None:
            return False
        count = parse_integer(line[1:])
        if count is None or count > MAX_ARGUMENTS:
            raise ProtocolError("invalid multibulk length")
        self._missing, self._size = max(0, count), 0
        return True

    def _next_word(self) -> bool:
        """One word of an array; False when it is not complete."""
        if self._bulk < 0:
            line = self._line(b"\r\n", "too big bulk count string")
            if line is None:
                return False
            if line[:1] != b"$":
                raise ProtocolError(f"expected '$', got '{chr(line[0]) if line else chr(13)}'")
            length = parse_integer(line[1:])
            if length is None or not 0 <= length <= MAX_BULK_BYTES:
                raise ProtocolError("invalid bulk length")
            self._size += length + _ARGUMENT_OVERHEAD_BYTES
            if self._size > MAX_COMMAND_BYTES:
                raise ProtocolError("invalid bulk length")
            self._bulk = length
        end = self._at + self._bulk
        if len(self._data) < end + 2:
            return False
        self._words.append(bytes(self._data[self._at : end]))
        self._at = end + 2
        self._bulk = -1
        self._missing -= 1
        return True

    def export(self) -> dict[str, Any]:
        return {
            "data": pack(self._data[self._at :]),
            "words": [pack(word) for word in self._words],
            "missing": self._missing,
            "bulk": self._bulk + 1,
            "size": self._size,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> CommandParser:
        parser = cls()
        parser._data = bytearray(unpack(state["data"]))
        parser._words = [unpack(word) for word in state["words"]]
        parser._missing = integer(state, "missing")
        parser._bulk = integer(state, "bulk") - 1
        parser._size = integer(state, "size")
        return parser


def error(text: str) -> bytes:
    """An error reply; *text* begins with its code, such as ERR."""
    return b"-" + text.replace("\r", " ").replace("\n", " ").encode("utf-8", "surrogateescape") + b"\r\n"


def number(value: int) -> bytes:
    """An integer reply."""
    return b":%d\r\n" % value


def bulk(value: bytes | None) -> bytes:
    """A bulk string, nil for None."""
    return NIL if value is None else b"$%d\r\n%b\r\n" % (len(value), value)


def array(items: Iterable[bytes]) -> bytes:
    """An array of replies that are encoded already."""
    parts = list(items)
    return b"*%d\r\n" % len(parts) + b"".join(parts)


def bulks(items: Iterable[bytes | None]) -> bytes:
    """An array of bulk strings."""
    return array(bulk(item) for item in items)
