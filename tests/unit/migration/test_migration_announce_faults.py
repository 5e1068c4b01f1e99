"""Who announces when, and what goes wrong with it."""

from __future__ import annotations

import pytest

from bench.announcing import announcement
from bench.errors import ScenarioError
from bench.guest.announcer import Announcement
from bench.migration import announce
from bench.scenario import Scenario, parse_scenario

MS = 1_000_000
MAC = "52:54:00:00:00:01"


def scenario(**keys: object) -> Scenario:
    return parse_scenario({"announce": keys}, "test")


def told(**keys: object) -> list[tuple[int, str, str, bool]]:
    """(ms, kind, sender, lost) of everything that a migration's announcement does."""
    whole = scenario(**keys)
    made = announcement(whole.announce, whole.guest, faulty=True)
    Announcement.from_json(made)  # the guest takes it
    kinds = [frame["kind"] for frame in made["frames"]]
    return [(send["at_ns"] // MS, kinds[send["frame"]], send["sender"], send["lost"]) for send in made["sends"]]


def test_a_neighbour_advertisement_is_rfc_4861s() -> None:
    (frame,) = announce.frames(["na"], MAC, "10.0.1.1")
    data = bytes.fromhex(frame["hex"])
    own = bytes.fromhex("fe80 0000 0000 0000 5054 00ff fe00 0001")
    assert data[:14] == bytes.fromhex("333300000001") + bytes.fromhex("525400000001") + b"\x86\xdd"
    assert data[14:22] == bytes.fromhex("60000000 0020 3a ff")  # 32 bytes of ICMPv6, hop limit 255
    assert data[22:38] == own
    assert data[38:54] == bytes.fromhex("ff020000000000000000000000000001")
    assert data[54:56] == bytes([136, 0])
    assert data[58:62] == bytes.fromhex("20000000")  # override; neither router nor solicited
    assert data[62:78] == own
    assert data[78:] == bytes([2, 1]) + bytes.fromhex("525400000001")
    pseudo = data[22:54] + (32).to_bytes(4, "big") + bytes([0, 0, 0, 58]) + data[54:]
    words = sum(int.from_bytes(pseudo[at : at + 2], "big") for at in range(0, len(pseudo), 2))
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    assert words == 0xFFFF  # RFC 1071: the checksum holds


def test_the_custom_schedule_with_qemus_parameters_is_qemus() -> None:
    assert announce.Custom(50 * MS, 550 * MS, 5, 100 * MS).offsets_ns() == announce.offsets_ns("qemu")
    assert announce.Custom(100 * MS, 150 * MS, 4, 100 * MS).offsets_ns() == [0, 100 * MS, 250 * MS, 400 * MS]
    assert [at for at, *_ in told(schedule="custom", rounds=3, initial="10ms", step="5ms", kinds=["rarp"])] == [
        *(0, 10, 25)
    ]


def test_every_schedule_has_its_times() -> None:
    assert [at for at, *_ in told(schedule="esxi", kinds=["rarp"])] == [0, 200, 400, 600, 800]
    assert told(schedule="xen", kinds=["garp"], sender="guest") == [(30, "garp", "guest", False)]
    assert told(schedule="none") == []
    assert told(kinds=[]) == []


def test_the_hypervisor_sends_rarp_and_the_guest_follows() -> None:
    assert told(schedule="custom", rounds=2, sender="both", kinds=["rarp", "garp", "na"]) == [
        (0, "rarp", "hypervisor", False),
        (30, "garp", "guest", False),
        (30, "na", "guest", False),
        (50, "rarp", "hypervisor", False),
        (80, "garp", "guest", False),
        (80, "na", "guest", False),
    ]


def test_the_first_frames_are_lost() -> None:
    assert [lost for *_, lost in told(faults={"lost_first": 3})] == [True] * 3 + [False] * 7


def test_loss_by_chance_is_repeatable() -> None:
    one = told(schedule="custom", rounds=64, max="1s", faults={"lost": 0.5})
    assert one == told(schedule="custom", rounds=64, max="1s", faults={"lost": 0.5})
    assert one != told(schedule="custom", rounds=64, max="1s", faults={"lost": 0.5, "seed": 2})
    assert 30 < sum(lost for *_, lost in one) < 98
    assert all(lost for *_, lost in told(faults={"lost": 1.0}))


def test_late_frames_are_all_later() -> None:
    assert [at for at, *_ in told(kinds=["rarp"], faults={"late": "2s"})] == [2000, 2050, 2200, 2450, 2800]


def test_reordered_frames_leave_in_another_order() -> None:
    plain = told(kinds=["rarp", "garp"], sender="both", schedule="qemu")
    mixed = told(kinds=["rarp", "garp"], sender="both", schedule="qemu", faults={"reordered": True})
    assert [at for at, *_ in plain] == [at for at, *_ in mixed]
    assert sorted(kind for _at, kind, *_ in plain) == sorted(kind for _at, kind, *_ in mixed)
    assert [kind for _at, kind, *_ in mixed][:2] == ["garp", "rarp"]


def test_a_wrong_address_is_in_every_frame_of_a_migration_only() -> None:
    whole = scenario(faults={"wrong_mac": "52:54:00:ff:ff:ff"})
    right, wrong = (announcement(whole.announce, whole.guest, faulty=faulty)["frames"] for faulty in (False, True))
    assert all("525400ffffff" in frame["hex"] for frame in wrong)
    assert all("525400000001" in frame["hex"] for frame in right)


def test_a_boot_knows_no_faults() -> None:
    whole = scenario(faults={"lost": 1.0, "late": "1s", "wired_late": "3s", "before_wiring": True})
    boot = announcement(whole.announce, whole.guest)
    assert not any(send["lost"] for send in boot["sends"])
    assert (boot["sends"][0]["at_ns"], boot["wire_after_ns"], boot["before_wiring"]) == (0, 0, False)
    moved = announcement(whole.announce, whole.guest, faulty=True)
    assert (moved["wire_after_ns"], moved["before_wiring"]) == (3000 * MS, True)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"sender": "guest"}, "no kind 'rarp' with sender 'guest'"),
        ({"sender": "both", "kinds": ["garp"]}, "kinds 'rarp' and another"),
        ({"kinds": ["rarp", "rarp"]}, "each kind at most once"),
        ({"max": "10ms"}, "max of at least initial"),
        ({"kinds": ["smoke"]}, "'rarp'"),
        ({"faults": {"before_wiring": True}}, "wired_late with before_wiring"),
        ({"faults": {"late": "10min"}}, "up to '120s'"),
        ({"faults": {"wrong_mac": "no"}}, "pattern"),
        ({"faults": {"early": 1}}, "lost_first"),
    ],
)
def test_what_cannot_be_is_refused(keys: dict[str, object], said: str) -> None:
    with pytest.raises(ScenarioError, match="announce") as caught:
        scenario(**keys)
    assert said in str(caught.value)
