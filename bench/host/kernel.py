"""The few Linux calls that Python's standard library lacks: namespaces, mounts, death signals, process identity.

Sources: unshare(2), setns(2), mount(2), prctl(2), proc(5), netdevice(7). Every function raises :class:`OSError` with
the kernel's error number; callers turn it into a :class:`~bench.errors.BenchError` that names the remedy. Lean on
purpose: engine and guest processes may import it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
CLONE_NEWPID = 0x20000000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_START_TIME_FIELD = 21  # "starttime" is field 22 of /proc/PID/stat, counted from 1

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move the calling thread to new namespaces (``os.unshare`` exists only from Python 3.12 on)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int = 0) -> None:
    """Move the calling thread to the namespace that *fd* (an open ``/proc/PID/ns/...``) names."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, kind: str | None, flags: int) -> None:
    """mount(2) without a data argument."""
    fstype = kind.encode() if kind is not None else None
    arguments = (os.fsencode(source), os.fsencode(target), fstype, ctypes.c_ulong(flags), None)
    _check(_libc.mount(*arguments), f"mount {target}")


def set_parent_death_signal(signum: int) -> None:
    """Have the kernel send *signum* to this process when the thread that forked it ends (PR_SET_PDEATHSIG).

    A parent that is gone already sends nothing: the caller has to check for that afterwards.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signum), 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")


def set_process_name(name: str) -> None:
    """The name that ``ps`` shows for the calling thread; at most 15 bytes are kept."""
    _check(_libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0), "prctl(PR_SET_NAME)")


def set_interface_up(name: str) -> None:
    """``ip link set NAME up`` in the calling thread's network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        request = struct.pack("16sH22x", name.encode(), 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | _IFF_UP))


@contextmanager
def entered_netns(pid: int | None) -> Iterator[None]:
    """Run the body, in this thread only, in the network namespace of process *pid* (None: stay where we are).

    Sockets and /proc/sys/net entries opened meanwhile belong to that namespace; other threads are not affected.
    """
    if pid is None:
        yield
        return
    here = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(there, CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            yield
        finally:
            setns(here, CLONE_NEWNET)
    finally:
        os.close(here)


def set_sysctls(settings: Mapping[str, str | int], netns_pid: int | None = None) -> list[str]:
    """Write kernel parameters, for instance ``{"net.ipv6.conf.all.disable_ipv6": 1}``.

    :param settings: names with dots between their parts (so no interface whose name has one).
    :param netns_pid: a process in the network namespace that is meant; None for the caller's.
    :returns: the names of those that this kernel does not have or does not let us set; nothing is raised for them.
    """
    with entered_netns(netns_pid):
        return [name for name, value in settings.items() if not _set_sysctl(name, value)]


def _set_sysctl(name: str, value: str | int) -> bool:
    try:
        Path("/proc/sys", *name.split(".")).write_text(f"{value}\n", encoding="ascii")
    except OSError:
        return False
    return True


def reserve_ports(first: int, count: int, netns_pid: int | None = None) -> bool:
    """Keep the kernel from giving *count* ports from *first* to connections that ask for any: a listener that wants
    one of these later would find it in use as long as such a connection lives, and for a minute after its end
    (TIME_WAIT), SO_REUSEADDR or not, because the connection's own socket did not ask for that.

    Replaces what was reserved there before (ip-sysctl.rst, ``ip_local_reserved_ports``; of each network namespace).

    :returns: False where this kernel does not let us: then that may happen, rarely, and the listener says so.
    """
    return not set_sysctls({"net.ipv4.ip_local_reserved_ports": f"{first}-{first + count - 1}"}, netns_pid)


def switch_ipv6_off(netns_pid: int | None = None) -> None:
    """No IPv6 in a network namespace, also on interfaces that come later; nothing to do on a kernel without it.

    A new namespace starts with the kernel's defaults, whatever its parent had: this has to be done in each.
    """
    set_sysctls({f"net.ipv6.conf.{scope}.disable_ipv6": 1 for scope in ("all", "default")}, netns_pid)


_QUIET_IPV6: Final[Mapping[str, str | int]] = {
    "net.ipv6.conf.{dev}.accept_ra": 0,
    "net.ipv6.conf.{dev}.autoconf": 0,
    "net.ipv6.conf.{dev}.router_solicitations": 0,
    "net.ipv6.conf.{dev}.accept_dad": 0,
    "net.ipv6.conf.{dev}.dad_transmits": 0,
    "net.ipv6.conf.{dev}.mldv1_unsolicited_report_interval": 1,
    "net.ipv6.conf.{dev}.mldv2_unsolicited_report_interval": 1,
    "net.ipv6.conf.{dev}.addr_gen_mode": 1,
    "net.ipv6.conf.lo.disable_ipv6": 0,
    "net.ipv6.conf.{dev}.disable_ipv6": 0,
}


def switch_ipv6_on(interface: str, netns_pid: int | None = None) -> list[str]:
    """IPv6 on one interface and ``lo``, but nothing that an interface says by itself.

    No router solicitation, no detection of duplicates, no link-local address; and reports of multicast groups (RFC
    3810) leave when a group is joined, not seconds later: to whoever listens, each of them is a sign of life.

    :returns: what this kernel refuses.
    """
    return set_sysctls({name.replace("{dev}", interface): value for name, value in _QUIET_IPV6.items()}, netns_pid)


def start_ticks(pid: int) -> int | None:
    """When process *pid* started, in clock ticks since boot; None when there is no such process.

    Together with the pid it names a process for good: pids are reused, this pair is not until the next boot.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # the command name in parentheses may itself hold spaces and parentheses: count from its end
    fields = stat[stat.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        return None
    return int(fields[_START_TIME_FIELD - 2])


def boot_id() -> str:
    """A random id that this boot of the machine has (random(4)); "" where /proc does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
