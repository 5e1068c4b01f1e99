"""Ordinary clients against the services, whose connections move around every read: nobody notices."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from zlib import crc32

import pytest

from bench.guest.services.pattern import chargen_slice

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fakes"))

from service_server import serving  # type: ignore[import-not-found]


@pytest.fixture(scope="module", params=[False, True], ids=["still", "moving"])
def server(request):
    with serving(moves=request.param) as running:
        yield running


def tool(name: str, *arguments: str, stdin: str = "") -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"needs the program {name}")
    done = subprocess.run([path, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rror" not in done.stderr, done.stderr
    return done.stdout


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := sock.recv(1 << 16)):
        data += piece
    return data


def test_echo_and_chargen(server):
    with socket.create_connection(("127.0.0.1", server.ports["echo"]), 10) as sock:
        data = bytes(chargen_slice(3, 50_000))
        sock.sendall(data)
        assert receive(sock, len(data)) == data
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""
    with socket.create_connection(("127.0.0.1", server.ports["chargen"]), 10) as sock:
        assert receive(sock, 500_000)[:500_000] == bytes(chargen_slice(0, 500_000))
    with socket.create_connection(("127.0.0.1", server.ports["discard"]), 10) as sock:
        sock.sendall(bytes(300_000))
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1) == b""


def test_http_client(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["http"], timeout=10)
    for _turn in range(3):
        connection.request("GET", "/page/2")
        assert connection.getresponse().read() == bytes(server.machine.memory[8192:12288])
        connection.request("HEAD", "/")
        assert connection.getresponse().read() == b""
        connection.request("GET", "/stream?rate=1000000&bytes=50000")
        assert connection.getresponse().read() == bytes(chargen_slice(0, 50_000))
        body = bytes(chargen_slice(0, 200_000))
        connection.request("POST", "/upload", body=body)
        assert json.loads(connection.getresponse().read()) == {"bytes": len(body), "crc32": crc32(body)}
        connection.request("POST", "/upload", body=iter([body, b"x"]), encode_chunked=True)
        assert json.loads(connection.getresponse().read()) == {"bytes": 200_001, "crc32": crc32(body + b"x")}
    connection.request("GET", "/stream")
    assert connection.getresponse().read(100_000) == bytes(chargen_slice(0, 100_000))
    connection.close()


def test_curl(server, tmp_path):
    base = f"http://127.0.0.1:{server.ports['http']}"
    upload = tmp_path / "upload"
    upload.write_bytes(bytes(3_000_000))
    assert "It runs" in tool("curl", "-sS", base + "/")
    for extra in ([], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]):
        reply = tool("curl", "-sS", *extra, "--data-binary", f"@{upload}", base + "/upload")
        assert json.loads(reply) == {"bytes": 3_000_000, "crc32": crc32(bytes(3_000_000))}
    assert tool("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-T", str(upload), base + "/") == "405"
    assert tool("curl", "-sS", "-I", base + "/page/999999999").startswith("HTTP/1.1 404")


def test_redis_cli(server):
    port = str(server.ports["redis"])
    assert tool("redis-cli", "-p", port, "set", "cli", "a b") == "OK\n"
    assert tool("redis-cli", "-p", port, "get", "cli") == "a b\n"
    assert "cli" in tool("redis-cli", "-p", port, "--scan").split()
    assert tool("redis-cli", "-p", port, stdin='incr n\nset "a b" c\nget "a b"\ndel n\n').split() == [
        "1",
        "OK",
        "c",
        "1",
    ]


@pytest.mark.parametrize("options", [["-n", "300"], ["-n", "2000", "-P", "16", "-r", "50", "-t", "set,get,incr,mset"]])
def test_redis_benchmark(server, options):
    """All of redis-benchmark's default tests."""
    found = tool("redis-benchmark", "-p", str(server.ports["redis"]), "--csv", "-c", "20", *options).splitlines()
    assert len(found) == 21 if len(options) == 2 else 5
    server.machine.store.check()


def test_redis_library(server):
    redis = pytest.importorskip("redis")
    with redis.Redis(port=server.ports["redis"], protocol=2) as client:
        client.flushall()
        with client.pipeline(transaction=False) as pipeline:
            for number in range(500):
                pipeline.set(f"key:{number}", number)
            assert pipeline.execute() == [True] * 500
        assert client.dbsize() == 500
        assert client.zadd("z", {"a": 1.5, "b": -2}) == 2
        assert client.zpopmin("z") == [(b"b", -2.0)]
        assert client.hset("h", mapping={"f": "1", "g": "2"}) == 2
        assert client.hgetall("h") == {b"f": b"1", b"g": b"2"}
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            client.get("h")
