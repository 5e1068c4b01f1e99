"""Programs for a client host: writers of the guest's store that remember what was acknowledged, and redis-benchmark.

    python redis_clients.py acknowledged ADDRESS     until SIGTERM; one line of JSON at the end
    python redis_clients.py journal ADDRESS THINK    as that, THINK seconds after each; "connected" once it is
    python redis_clients.py benchmark ADDRESS        again and again until SIGTERM; one line of JSON for each time

The standard library alone, because it runs with whatever Python the tests run with, in a namespace without a network
to anywhere else.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import time

KEYS = 500
THINK_S = 0.001
BENCHMARK = ("-t", "set,get,incr", "-n", "1000", "-c", "10", "-d", "64", "-q")


class Stop(Exception):
    """SIGTERM came."""


class Connection:
    """RESP2, one request at a time; see https://redis.io/docs/latest/develop/reference/protocol-spec/."""

    def __init__(self, address: str) -> None:
        self._sock = socket.create_connection((address, 6379), timeout=60)
        self._file = self._sock.makefile("rb")

    def ask(self, *words: str) -> str | None:
        parts = [word.encode() for word in words]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        self._sock.sendall(request)
        line = self._file.readline()
        if not line.endswith(b"\r\n") or line[:1] not in b"+:$":
            raise ConnectionError(f"no answer but {line!r}")
        if line[:1] != b"$":
            return line[1:-2].decode()
        length = int(line[1:])
        return None if length < 0 else self._file.read(length + 2)[:-2].decode()


def acknowledged(address: str) -> int:
    """Write and read back at random; at the end read everything back.

    A write whose acknowledgement did not come before the end may be there or not; any other must be the last one.
    """
    stopping = False

    def stop(_signum: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    connection = Connection(address)
    expected: dict[str, str] = {}
    wrong: list[str] = []
    acknowledged_writes = reads = 0

    def read_back(key: str) -> None:
        nonlocal reads
        value = connection.ask("GET", key)
        reads += 1
        if value != expected[key]:
            wrong.append(f"{key}: {expected[key]} was acknowledged, {value} is there")

    chance = random.Random(7)
    while not stopping:
        key = f"key:{chance.randrange(KEYS)}"
        value = f"{acknowledged_writes}:{chance.getrandbits(64):x}"
        if connection.ask("SET", key, value) == "OK":
            expected[key] = value
            acknowledged_writes += 1
        read_back(chance.choice(list(expected)))
        time.sleep(THINK_S)  # a pace, so that the machine has time for the migration
    for key in expected:
        read_back(key)
    report = {"acknowledged": acknowledged_writes, "reads": reads, "keys": len(expected), "wrong": wrong[:20]}
    print(json.dumps(report), flush=True)
    return 1 if wrong else 0


def journal(address: str, think_s: str) -> int:
    """Write 1, 2, 3, ... to one key and count what was acknowledged; goes on over whatever happens to the guest."""
    stopping = False

    def stop(_signum: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    connection = Connection(address)
    print("connected", flush=True)
    count, error = 0, ""
    while not stopping:
        try:
            answer = connection.ask("SET", "journal", str(count + 1))
        except OSError as problem:
            error = repr(problem)
            break
        if answer != "OK":
            error = f"answer {answer!r} to number {count + 1}"
            break
        count += 1
        time.sleep(float(think_s))
    print(json.dumps({"count": count, "error": error}))
    return 0


def benchmark(address: str) -> int:
    """redis-benchmark again and again; the first that fails ends it."""

    def stop(_signum: int, _frame: object) -> None:
        raise Stop

    signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            begin_ns = time.monotonic_ns()
            done = subprocess.run(
                ["redis-benchmark", "-h", address, *BENCHMARK], capture_output=True, text=True, check=False
            )
            report = {"begin_ns": begin_ns, "end_ns": time.monotonic_ns(), "status": done.returncode}
            output = [line for text in (done.stdout, done.stderr) for line in text.replace("\r", "\n").splitlines()]
            said = [line.strip() for line in output if line.strip() and "rps=" not in line]
            print(json.dumps({**report, "said": said}), flush=True)
            if done.returncode:
                return done.returncode
    except Stop:
        return 0


if __name__ == "__main__":
    sys.exit({"acknowledged": acknowledged, "journal": journal, "benchmark": benchmark}[sys.argv[1]](*sys.argv[2:]))
