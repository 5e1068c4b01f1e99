"""What an engine may order of a guest's disks: the command ``disks`` {do, ...} of a guest process.

::

    prepare {}                 running    -> {generations: of each server now, local: [disk, ...]}
    settle  {}                 running    -> {}                  begin to flush
    settled {}                 running    -> {over, problem, pending}
    mirror  {server, place}    running    -> {}                  begin to copy the local disks there
    mirrors {}                 running    -> {disk: status}      of :meth:`bench.storage.mirror.Mirror.status`
    unmirror {}                running    -> {}                  no copies any more
    release {}                 paused     -> {generations, flushed_ns, mirrored_ns, released_ns, mirrors}
    take    {expect}           loaded     -> {generations, taken_ns}
"""

from __future__ import annotations

from typing import Any

from bench.clock import now_ns
from bench.errors import GuestError
from bench.guest.disks import GuestDisks


def disk_command(disks: GuestDisks, state: str, args: dict[str, Any]) -> dict[str, Any]:
    """Carry one out. :param state: the guest's. :raises BenchError: when it is refused or fails."""
    what = str(args.get("do"))
    needed = {"release": "paused", "take": "loaded"}.get(what, "running")
    if state != needed:
        raise GuestError(f"the guest is {state}; it must be {needed} for its disks to {what[:40]}")
    if what == "prepare":
        return {"generations": disks.current(), "local": [disk.name for disk in disks.local]}
    if what == "settle":
        disks.settle()
        return {}
    if what == "settled":
        return disks.settled()
    if what == "mirror":
        disks.mirror(str(args["server"]), args["place"])
        return {}
    if what == "mirrors":
        return disks.mirrors()
    if what == "unmirror":
        disks.end_mirrors()
        return {}
    if what == "release":
        return disks.release()
    if what == "take":
        generations = disks.take({str(server): int(number) for server, number in args["expect"].items()})
        return {"generations": generations, "taken_ns": now_ns()}
    raise GuestError(f"unknown order to the disks: {what[:40]!r}")
