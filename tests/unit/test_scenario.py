from __future__ import annotations

import pytest

from bench.errors import ScenarioError
from bench.guests import Guests
from bench.scenario import Scenario, load_scenario, parse_scenario, restore_scenario


def test_an_empty_file_is_a_scenario(tmp_path):
    path = tmp_path / "empty.toml"
    path.write_text("")
    scenario = load_scenario(path)
    assert scenario.guest.memory == 1 << 30
    assert [client.name for client in scenario.clients] == ["udp-echo", "tcp-request", "tcp-download", "tcp-upload"]


@pytest.mark.parametrize("name", ["reference", "smallest", "crossing", "evacuate", "disk"])
def test_the_shipped_scenarios_are_valid_and_restore_from_json(project, name):
    scenario = load_scenario(project / "scenarios" / f"{name}.toml")
    assert restore_scenario(scenario.model_dump_json(), "stored") == scenario


@pytest.mark.parametrize(
    ("setting", "key", "allowed"),
    [
        ("guest.memry=1", "guest.memry", "the keys name, memory"),
        ("guest.memory=3", "guest.memory", "'64MiB'"),
        ('guest.memory="3 parsecs"', "guest.memory", "'64MiB'"),
        ("guest.memory=5000B", "guest.memory", "multiple of 4 KiB"),
        ("links.default.delay=4", "links.default.delay", "'300ms'"),
        ("links.default.jitter=4ms", "links.default", "jitter no larger than the delay"),
        ("links.default.loss=2", "links.default.loss", "0 to 1"),
        ("clients.0.kind=foo", "clients.0.kind", "'udp-echo'"),
        ("clients.0.foo=1", "clients.0.foo", "the keys kind, host"),
        ("guest.content.zero=0.9", "guest.content", "sum to 1"),
        ("guest.mac=01:00:00:00:00:01", "guest.mac", "unicast"),
        ("announce.kinds=[1]", "announce.kinds.0", "'rarp'"),
        ("migration.compression=gzip", "migration.compression", "'zstd'"),
        ("migration.compression_level=0", "migration.compression_level", "greater than or equal to 1"),
        ("migration.compression_level=2", "migration", "only with compression"),
        ("migration={compression='lz4', compression_threads=2}", "migration", "compression_threads = 0 with lz4"),
        ("migration.delta_cache=4KiB", "migration.delta_cache", "'1MiB'"),
        ("migration.dirty_limit=1KiB/s", "migration.dirty_limit", "'1MiB/s'"),
        ("migration.announce_delay=2min", "migration.announce_delay", "'60s'"),
        ("migration={mode='postcopy', compression='zstd'}", "migration", "compression 'none' with mode 'postcopy'"),
        ("migration={mode='stop-and-copy', delta_cache='1MiB'}", "migration", "delta_cache '0' with mode"),
        ("migration={mode='postcopy', auto_converge=true}", "migration", "no auto_converge"),
        ("migration={mode='hybrid', on_no_convergence='throttle'}", "migration", "only with mode 'precopy'"),
        ("migration.mode=teleport", "migration.mode", "precopy"),
        ("nothing", "nothing", "key=value"),
        ("title.x=1", "title.x", "table"),
        ("clients.9.kind=udp-echo", "clients.9.kind", "index below 4"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(project, setting, key, allowed):
    with pytest.raises(ScenarioError) as caught:
        load_scenario(project / "scenarios" / "smallest.toml", [setting])
    assert caught.value.key == key
    assert allowed in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_named_link_inherits_the_default():
    scenario = parse_scenario(
        {"links": {"default": {"bandwidth": "100Mbit", "delay": "1ms"}, "h1-s1": {"delay": "2ms"}}}, "test"
    )
    assert scenario.link("s1", "h1").bandwidth == 100_000_000
    assert scenario.link("h1", "s1").delay == 2_000_000
    assert scenario.link("h2", "s1").delay == 1_000_000


def test_unlimited_is_a_bandwidth():
    assert parse_scenario({"links": {"default": {"bandwidth": "unlimited"}}}, "test").link("a", "b").bandwidth == 0


@pytest.mark.parametrize("content", [b"= 1", b"\xff\xfe", b"x" * (1 << 20) + b"y"])
def test_what_is_no_scenario_file_is_one_error(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match="broken"):
        load_scenario(path)


def test_a_missing_file_is_one_error(tmp_path):
    with pytest.raises(ScenarioError, match="No such file"):
        load_scenario(tmp_path / "none.toml")


def test_a_scenario_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Scenario().title = "x"  # type: ignore[misc]


def test_an_announce_delay_moves_the_whole_schedule_of_a_migration_only():
    scenario = parse_scenario({"migration": {"announce_delay": "100ms"}}, "test")
    guests = Guests.__new__(Guests)
    guests.scenario = scenario
    boot = guests.announcement("g1")["offsets_ns"]
    assert boot[0] == 0
    moved = guests.announcement("g1", scenario.migration.announce_delay)["offsets_ns"]
    assert moved == [offset + 100_000_000 for offset in boot]
