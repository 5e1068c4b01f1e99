from __future__ import annotations

import json

import pytest

from bench.host import machine


def test_environment_is_json_and_says_where_it_is() -> None:
    found = machine.environment()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu_count"] >= 1
    assert found["memory_bytes"] > 1 << 20
    assert found["versions"]["python"]
    assert set(found["versions"]) == {"bench", "python", "mininet", "openvswitch", "ryu", "os-ken"}


@pytest.mark.parametrize(
    ("mounts", "version"),
    [
        ("", "none"),
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0", "v2"),
        ("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\nshort", "v1"),
        ("c /a cgroup rw 0 0\nc /b cgroup2 rw 0 0", "v1+v2"),
    ],
)
def test_cgroup_version(monkeypatch: pytest.MonkeyPatch, mounts: str, version: str) -> None:
    monkeypatch.setattr(machine, "read_text", lambda _path: mounts)
    assert machine.cgroup_version() == version


def test_files_that_are_not_there_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_text", lambda _path: "")
    assert machine.memory_bytes() == 0
    assert machine.distribution() == "unknown"
    assert machine.cpu_model()


def test_unreadable_file_is_empty() -> None:
    assert machine.read_text("/proc/no-such-file") == ""
