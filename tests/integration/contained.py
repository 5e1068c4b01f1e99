"""The conditions of a container, made with namespaces: ``python contained.py COMMAND...`` runs a command in them.

No systemd, /proc/sys read-only, cgroup v2 alone, no modules to load, /run and /tmp empty and its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_EMPTY = ("/run", "/lib/modules", "/usr/lib/modules", "/var/run/openvswitch", "/etc/openvswitch")


def main(command: list[str]) -> int:
    """In namespaces already: prepare the mounts, then become *command*."""
    mount("--make-rprivate", "/")
    mount("-t", "proc", "proc", "/proc")
    mount("--bind", "/proc/sys", "/proc/sys")
    mount("-o", "remount,bind,ro", "/proc/sys")
    for place in _EMPTY:
        if Path(place).is_dir():
            mount("-t", "tmpfs", "tmpfs", place)
    if Path("/sys/fs/cgroup").is_dir():
        mount("-t", "tmpfs", "tmpfs", "/sys/fs/cgroup")
        mount("-t", "cgroup2", "cgroup2", "/sys/fs/cgroup")
    os.execvp(command[0], command)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def contained(*command: str) -> list[str]:
    """The command line that runs *command* as in a container."""
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--ipc", "--uts", "--net", "--cgroup", "--kill-child"]
    return [*namespaces, sys.executable, __file__, *command]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
