"""HTTP/1.1 messages (RFC 9110, RFC 9112): a request's head out of bytes, a response's head into bytes. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MAX_HEAD_BYTES = 1 << 14
MAX_FIELDS = 100

REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    505: "HTTP Version Not Supported",
}

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/(\d)\.(\d)")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_DECIMAL = re.compile(rb"\d{1,19}")


class HttpError(Exception):
    """A request that is answered by an error, after which the connection closes."""

    def __init__(self, status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head.

    :param query: the part of the target behind the question mark, undecoded.
    :param minor: the minor version, 0 or 1.
    :param length: the body's length, None when it is chunked.
    """

    method: str
    path: str
    query: str
    minor: int
    keep_alive: bool
    length: int | None
    expects_continue: bool

    def export(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Request:
        """:raises TypeError: when *state* has other members."""
        return cls(**state)


def head_end(data: bytes | bytearray) -> int | None:
    """Where the head in *data* ends (behind the empty line), None when it is not complete.

    :raises HttpError: 431 when there is no end within :data:`MAX_HEAD_BYTES`.
    """
    found = _HEAD_END.search(data, 0, MAX_HEAD_BYTES)
    if found is not None:
        return found.end()
    if len(data) >= MAX_HEAD_BYTES:
        raise HttpError(431, f"a head of more than {MAX_HEAD_BYTES} bytes")
    return None


def _fields(lines: list[bytes]) -> dict[bytes, bytes]:
    """Header fields by lower-case name; repeated ones joined by a comma (RFC 9110, 5.3)."""
    fields: dict[bytes, bytes] = {}
    if len(lines) > MAX_FIELDS:
        raise HttpError(431, f"more than {MAX_FIELDS} header fields")
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or b"\0" in value or b"\r" in value:
            raise HttpError(400, "a header field that is none")
        name = name.lower()
        value = value.strip(b" \t")
        fields[name] = fields[name] + b", " + value if name in fields else value
    return fields


def _body_length(fields: Mapping[bytes, bytes], minor: int) -> int | None:
    """The length of the body, None for chunked (RFC 9112, 6.3). Both framings at once are refused: smuggling."""
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if coding is not None:
        if length is not None or not minor:
            raise HttpError(400, "Transfer-Encoding beside Content-Length or in HTTP/1.0")
        if coding.lower() != b"chunked":
            raise HttpError(501, "a transfer coding other than chunked")
        return None
    if length is None:
        return 0
    values = {value.strip() for value in length.split(b",")}
    value = values.pop()
    if values or not _DECIMAL.fullmatch(value):
        raise HttpError(400, "a Content-Length that is none")
    return int(value)


def parse_head(head: bytes) -> Request:
    """The request out of its *head*, the empty line included.

    :raises HttpError: what the client did wrong.
    """
    lines = [line.removesuffix(b"\r") for line in head.split(b"\n")]
    while lines and not lines[-1]:
        lines.pop()
    match = _REQUEST_LINE.fullmatch(lines[0]) if lines else None
    if match is None:
        raise HttpError(400, "a request line that is none")
    method, target, major, minor_digit = match.groups()
    if major != b"1":
        raise HttpError(505, "HTTP/1.1 is spoken here")
    minor = min(int(minor_digit), 1)
    fields = _fields(lines[1:])
    if minor and b"host" not in fields:
        raise HttpError(400, "an HTTP/1.1 request without Host")
    expect = fields.get(b"expect", b"").lower()
    if expect not in (b"", b"100-continue"):
        raise HttpError(417, "an expectation other than 100-continue")
    text = target.decode("ascii")
    if "://" in text and not text.startswith("/"):  # absolute form (RFC 9112, 3.2.2)
        text = "/" + text.split("://", 1)[1].partition("/")[2]
    path, _mark, query = text.partition("?")
    options = {option.strip() for option in fields.get(b"connection", b"").lower().split(b",")}
    keep_alive = b"close" not in options and (bool(minor) or b"keep-alive" in options)
    return Request(
        method.decode("ascii"), path, query, minor, keep_alive, _body_length(fields, minor), bool(expect and minor)
    )


def query_numbers(query: str, known: Mapping[str, int]) -> dict[str, int]:
    """The query's parameters as integers.

    :param known: names, each with its largest value.
    :raises HttpError: 400 for a name that is not known, a repeated one, or a value that is no such integer.
    """
    found: dict[str, int] = {}
    for part in query.split("&") if query else []:
        name, _equals, value = part.partition("=")
        if name not in known or name in found:
            raise HttpError(400, f"parameters: each of {', '.join(known)} at most once")
        if not _DECIMAL.fullmatch(value.encode()) or int(value) > known[name]:
            raise HttpError(400, f"{name}: an integer from 0 to {known[name]}")
        found[name] = int(value)
    return found


def response_head(request: Request | None, status: int, headers: tuple[tuple[str, str], ...], close: bool) -> bytes:
    """The head of a response. It has no Date: the guest has no calendar clock (RFC 9110, 6.6.1)."""
    lines = [f"HTTP/1.1 {status} {REASONS[status]}", "Server: migration-bench"]
    lines += [f"{name}: {value}" for name, value in headers]
    if close:
        lines.append("Connection: close")
    elif request is not None and not request.minor:
        lines.append("Connection: keep-alive")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
