"""Glob patterns as Redis' KEYS and SCAN take them, in time proportional to pattern x key whatever the pattern."""

from __future__ import annotations

_STAR = None
_ANY = frozenset(range(256))
Token = frozenset[int] | None


def parse_glob(pattern: bytes) -> list[Token]:
    """``*``, ``?``, ``[abc]``, ``[^a-z]``, and ``\\x`` for x itself, as sets of byte values; None stands for ``*``."""
    tokens: list[Token] = []
    at = 0
    while at < len(pattern):
        byte = pattern[at]
        at += 1
        if byte == 0x2A:
            if not tokens or tokens[-1] is not _STAR:
                tokens.append(_STAR)
        elif byte == 0x3F:
            tokens.append(_ANY)
        elif byte == 0x5B:
            members, at = _class(pattern, at)
            tokens.append(members)
        else:
            if byte == 0x5C and at < len(pattern):
                byte = pattern[at]
                at += 1
            tokens.append(frozenset((byte,)))
    return tokens


def _class(pattern: bytes, at: int) -> tuple[frozenset[int], int]:
    """The set between brackets, and the position behind them; a missing bracket is taken as being at the end."""
    negated = pattern[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    while at < len(pattern) and pattern[at] != 0x5D:
        if pattern[at] == 0x5C and at + 1 < len(pattern):
            members.add(pattern[at + 1])
            at += 2
        elif at + 2 < len(pattern) and pattern[at + 1] == 0x2D:
            first, last = sorted((pattern[at], pattern[at + 2]))
            members.update(range(first, last + 1))
            at += 3
        else:
            members.add(pattern[at])
            at += 1
    return (_ANY - members if negated else frozenset(members)), at + 1


def matches(tokens: list[Token], text: bytes) -> bool:
    """Does *text* match as a whole? Only the last ``*`` seen has ever to be tried again."""
    token, at = 0, 0
    star, star_at = -1, 0
    while at < len(text):
        current = tokens[token] if token < len(tokens) else frozenset[int]()
        if current is _STAR:
            star, star_at = token, at
            token += 1
        elif text[at] in current:
            token += 1
            at += 1
        elif star >= 0:
            star_at += 1
            token, at = star + 1, star_at
        else:
            return False
    return all(item is _STAR for item in tokens[token:])
