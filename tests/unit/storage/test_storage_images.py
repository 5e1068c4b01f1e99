"""Images that a scenario names: what is refused, with which words, and that looking at them changes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.clock import NS_PER_S, Deadline, wait_until
from bench.errors import ScenarioError, StorageError
from bench.plan_disks import check_disks
from bench.scenario import Scenario
from bench.storage import images

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-utils is not installed")
SIZE = 8 << 20


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    """A qcow2 image with some data, which must be as it was at the end."""
    path = tmp_path / "a.qcow2"
    images.make(path, "qcow2", SIZE)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write 0 1M", path], check=True, stdout=subprocess.DEVNULL)
    before = path.read_bytes(), path.stat().st_mtime_ns
    yield path
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def check(*disks: dict[str, Any]) -> None:
    scenario = Scenario.model_validate({"guest": {"disks": [{"format": "qcow2", **disk} for disk in disks]}})
    check_disks(scenario, "st1", ["h1", "h2"], "mine.toml")


def refusal(*disks: dict[str, Any]) -> str:
    with pytest.raises(ScenarioError) as caught:
        check(*disks)
    assert caught.value.message.startswith("mine.toml: guest.disks.")
    return caught.value.message


def test_an_image_is_checked_and_its_size_read(image: Path) -> None:
    assert images.check_existing(image, "shared", "qcow2") == SIZE
    check({"image": str(image)})
    check({"image": str(image), "size": "8MiB"})


def test_a_broken_image_is_refused(image: Path, tmp_path: Path) -> None:
    broken = tmp_path / "cut.qcow2"
    broken.write_bytes(image.read_bytes()[: 256 << 10])  # its tables point beyond the end
    message = refusal({"image": str(broken)})
    assert "the image is broken" in message
    assert "qemu-img check" in message


def test_one_image_by_two_names_is_refused(image: Path, tmp_path: Path) -> None:
    link, hard = tmp_path / "link", tmp_path / "hard"
    link.symlink_to(image)
    os.link(image, hard)
    for other in (image, link, hard):
        message = refusal({"image": str(image)}, {"image": str(other)})
        assert "guest.disks.1.image" in message
        assert "no other disk uses, as guest.disks.0.image does" in message


def test_an_image_that_another_process_has_is_refused(image: Path, tmp_path: Path) -> None:
    socket = tmp_path / "s"
    holder = subprocess.Popen(["qemu-nbd", "--persistent", f"--socket={socket}", "-f", "qcow2", image])
    try:
        wait_until(socket.exists, Deadline(10 * NS_PER_S), "another process has the image")
        message = refusal({"image": str(image)})
        assert "in use by another guest" in message
        assert "qemu-io" not in message
    finally:
        holder.terminate()
        holder.wait(10)


def test_a_size_that_is_not_the_image_s_is_refused(image: Path) -> None:
    message = refusal({"image": str(image), "size": "64MiB"})
    assert "guest.disks.0.size" in message
    assert str(SIZE) in message


def test_a_file_is_no_device(image: Path) -> None:
    with pytest.raises(StorageError, match="no block device"):
        images.check_existing(image, "pass-through", "raw")
