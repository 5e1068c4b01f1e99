"""OpenSSH's server as a program; its service is never used."""

from __future__ import annotations

import os
import shutil

from bench.errors import MachineError


def find_sshd() -> str:
    """Its path. :raises MachineError: when it is not installed."""
    path = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        raise MachineError(
            'migration.security = "ssh" needs an sshd, and there is none',
            "install the package openssh-server (`make setup` does); its service need not run",
        )
    return path
