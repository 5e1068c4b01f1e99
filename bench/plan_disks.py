"""The disks' part of a plan: where each one lies, and whether what is named is there and free.

Looks at images and devices, and changes nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.errors import ScenarioError, StorageError
from bench.plan_guests import key_of
from bench.scenario import DiskSpec, GuestSpec, Scenario
from bench.storage import images


def disk_name(number: int) -> str:
    """``vda``, ``vdb``, ..."""
    return f"vd{chr(ord('a') + number)}"


def check_disks(scenario: Scenario, storage: str | None, hypervisors: Sequence[str], where: str) -> None:
    """:raises ScenarioError: no storage host, or a disk that cannot be used; MachineError: a package is missing."""
    guests = [guest for guest in scenario.guests if guest.disks]
    if not guests:
        return
    images.require_tools()
    for guest in guests:
        if storage is None and any(disk.kind != "local" for disk in guest.disks):
            raise ScenarioError(
                where,
                "network.storage",
                None,
                f"a storage host for the disks of {guest.name}: a topology with a host of the role 'storage' (such as "
                "'single'), network.storage = \"...\", or disks of kind 'local'",
            )
    if storage in hypervisors:
        raise ScenarioError(where, "network.storage", storage, "a host that is no hypervisor")
    sizes = _check_images(scenario, guests, where)
    made = sum(_made_bytes(disk, sizes) for guest in guests for disk in guest.disks)
    free = shutil.disk_usage("/run").free
    if made > free - images.SPARE_BYTES:
        key = key_of(scenario, guests[0], "disks")
        raise ScenarioError(where, key, f"{made >> 20} MiB of disks to be made", f"at most the {free >> 20} MiB free")


def _made_bytes(disk: DiskSpec, sizes: Mapping[str, int]) -> int:
    """What a run makes for a disk: itself unless it is there, and of a local one the copy at its destination."""
    if disk.image is not None:
        return sizes[disk.image] if disk.kind == "local" else 0
    return 2 * disk.size if disk.kind == "local" else disk.size


def _check_images(scenario: Scenario, guests: Sequence[GuestSpec], where: str) -> dict[str, int]:
    """:returns: image -> its size in bytes. :raises ScenarioError: one cannot be used."""
    sizes: dict[str, int] = {}
    seen: dict[tuple[int, int], str] = {}
    for guest in guests:
        for number, disk in enumerate(guest.disks):
            if disk.image is None:
                continue
            key = key_of(scenario, guest, f"disks.{number}.image")
            path = Path(disk.image).resolve()
            try:
                size_bytes = sizes[disk.image] = images.check_existing(path, disk.kind, disk.format)
            except StorageError as error:
                remedy = error.remedy or "an image that is there, of the disk's format, and free"
                raise ScenarioError(where, key, disk.image, f"{remedy} ({error.message})") from None
            other = seen.setdefault(images.identity(path), key)
            if other != key:
                raise ScenarioError(where, key, disk.image, f"an image that no other disk uses, as {other} does")
            if "size" in disk.model_fields_set and disk.size != size_bytes:
                its = f"{size_bytes} bytes, the image's own, or none beside an image"
                raise ScenarioError(where, key_of(scenario, guest, f"disks.{number}.size"), disk.size, its)
            least = guest.log_size if guest.durable and number == 0 else 0
            if size_bytes <= least:
                raise ScenarioError(where, key, f"{size_bytes} bytes", f"more than the log's {least} bytes")
    return sizes
