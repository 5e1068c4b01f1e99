"""The little of HTTP/1.1 (RFC 9112) that a client flow needs: the head of a response, bounded; an upload's answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bench.errors import ProbeError

MAX_HEAD_BYTES: Final = 16 << 10
MAX_ANSWER_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """Status code, length of the body (None when not given), and how many bytes the head took."""

    status: int
    length: int | None
    head_bytes: int


def parse_head(data: bytes | bytearray) -> ResponseHead | None:
    """The head at the start of *data*; None while it is incomplete.

    :raises ProbeError: when it is not HTTP/1.x, too long, or uses a transfer coding (which these flows do not ask for).
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise ProbeError(f"the guest's HTTP response has no end of its head within {MAX_HEAD_BYTES} bytes")
        return None
    lines = bytes(data[:end]).decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdecimal():
        raise ProbeError(f"not an HTTP response: {lines[0][:80]!r}")
    length: int | None = None
    for line in lines[1:]:
        name, _colon, value = line.partition(":")
        name, value = name.strip().lower(), value.strip()
        if name == "content-length" and value.isascii() and value.isdecimal():
            length = int(value)
        elif name == "transfer-encoding" and value.lower() != "identity":
            raise ProbeError(f"the guest's HTTP response uses the transfer coding {value[:40]!r}")
    return ResponseHead(int(words[1]), length, end + 4)


def upload_answer(data: bytes | bytearray) -> bytes | None:
    """The body of the answer to POST /upload at the start of *data*; None while it is incomplete.

    :raises ProbeError: when it is no such answer: not 200, without a length or over :data:`MAX_ANSWER_BYTES`.
    """
    head = parse_head(data)
    if head is None:
        return None
    if head.status != 200 or head.length is None or head.length > MAX_ANSWER_BYTES:
        raise ProbeError(f"POST /upload was answered {head.status}, length {head.length}")
    end = head.head_bytes + head.length
    return bytes(data[head.head_bytes : end]) if len(data) >= end else None


def unlike(body: bytes, sent: Mapping[str, int]) -> str | None:
    """What the answer to POST /upload says instead of *sent* (``bytes``, ``crc32``), cut short; None when it agrees."""
    try:
        reply = json.loads(body)
    except ValueError:
        reply = None
    if isinstance(reply, dict) and all(reply.get(name) == value for name, value in sent.items()):
        return None
    return str(reply)[:200]
