"""``bench doctor``: what this machine can do, what is used instead where it cannot, and what to install.

Everything is found by doing it in a throw-away sandbox (:mod:`bench.host.probes`).
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench import hardware
from bench.errors import BenchError, CommandError, MachineError
from bench.host import machine, probes
from bench.host.sandbox import call_in_sandbox, require_root
from bench.memory import tracker
from bench.units import format_bytes

COMFORTABLE_MEMORY_BYTES = 4 << 30  # the reference scenario: a guest of 1 GiB at both ends, and room to breathe
COMFORTABLE_CPUS = 2
_SETUP = "`make setup` installs it"
_PRIVILEGED = "run as root; in a container, `docker run --privileged`"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was tried.

    :param ok: it works.
    :param detail: what was seen, or why it does not work.
    :param instead: what the bench does without it; "" when it cannot do without.
    :param remedy: what the user can do about it.
    """

    name: str
    ok: bool
    detail: str
    instead: str = ""
    remedy: str = ""

    @property
    def fatal(self) -> bool:
        """True when no scenario can run."""
        return not self.ok and not self.instead


@dataclass(frozen=True, slots=True)
class _Trial:
    """A probe with what to say when it fails."""

    name: str
    probe: probes.Probe
    instead: str = ""
    remedy: str = ""


def _tracker(method: str) -> probes.Probe:
    def probe(_directory: Path) -> str:
        problem = tracker.problem_of(method)
        if problem:
            raise MachineError(problem)
        return "notices a write"

    return probe


_TRIALS = (
    _Trial("Mininet", probes.mininet, "", f"install the package mininet; {_SETUP}"),
    _Trial("mnexec", probes.mnexec, "", f"it comes with the package mininet; {_SETUP}"),
    _Trial(
        "Open vSwitch, kernel datapath",
        probes.kernel_datapath,
        "the userspace datapath",
        "load it with `modprobe openvswitch`, on a kernel that has it",
    ),
    _Trial(
        "Open vSwitch, userspace datapath",
        probes.user_datapath,
        "the kernel datapath",
        f"install the package openvswitch-switch; {_SETUP}",
    ),
    _Trial(
        "netem",
        probes.queueing("netem", "delay", "1ms"),
        "the bench's delay line in user space",
        "load it with `modprobe sch_netem`, on a kernel that has it",
    ),
    _Trial(
        "htb",
        probes.queueing("htb", "default", "1"),
        "links without a bandwidth only",
        "load it with `modprobe sch_htb`",
    ),
    _Trial(
        "tbf",
        probes.queueing("tbf", "rate", "1gbit", "burst", "128kb", "limit", "1mb"),
        "bandwidth only with queues of some 90 packets and more",
        "load it with `modprobe sch_tbf`",
    ),
    _Trial("jumbo frames", probes.jumbo_frames, "links and cards with an mtu of 1500", "use a kernel with veth"),
    _Trial(
        "huge pages for guests",
        hardware.huge_pages,
        "guest.huge_pages = false",
        "use a kernel with transparent huge pages for shared memory; write advise to "
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled if it says deny",
    ),
    _Trial(
        "limits of processors",
        hardware.limits("cpu"),
        "hypervisors and vCPUs without hosts.*.cpu and guest.vcpu_cpu",
        "mount the control group controller cpu",
    ),
    _Trial(
        "limits of memory",
        hardware.limits("memory"),
        "hypervisors without hosts.*.memory",
        "mount the control group controller memory",
    ),
    _Trial(
        "choice of processors",
        hardware.limits("cpuset"),
        "hypervisors without hosts.*.cores",
        "mount the control group controller cpuset",
    ),
    _Trial("tun/tap", probes.tap, "netem", f"load it with `modprobe tun`; {_PRIVILEGED}"),
    _Trial("bridge port state", probes.bridge_port_state, "", "load it with `modprobe bridge`"),
    _Trial("memfd", probes.shared_memory, "", "use Linux 3.17 or later"),
    _Trial("PAGEMAP_SCAN", _tracker("pagemap-scan"), "soft-dirty", "use Linux 6.7 or later"),
    _Trial("soft-dirty", _tracker("soft-dirty"), "PAGEMAP_SCAN", "use a kernel with CONFIG_MEM_SOFT_DIRTY"),
    _Trial("TCP_REPAIR", probes.tcp_repair, "", "use a kernel with CONFIG_CHECKPOINT_RESTORE"),
    _Trial("tcpdump", probes.tcpdump, "", f"install the package tcpdump; {_SETUP}"),
    _Trial("Ryu", probes.controller("ryu"), 'controller.framework = "os-ken"', _SETUP),
    _Trial("os-ken", probes.controller("os-ken"), 'controller.framework = "ryu"', _SETUP),
    _Trial("iperf3", probes.program("iperf3", "--version"), "benchmarks go without it", f"install iperf3; {_SETUP}"),
    _Trial(
        "stress-ng",
        probes.program("stress-ng", "--version"),
        "hosts without load",
        f"install the package stress-ng; {_SETUP}",
    ),
    _Trial(
        "redis-cli",
        probes.program("redis-cli", "--version"),
        "clients of other kinds",
        f"install the package redis-tools; {_SETUP}",
    ),
    _Trial(
        "sshd",
        probes.sshd,
        'migration.security = "none" or "tls"',
        f"install the package openssh-server; {_SETUP}",
    ),
)

# Of each pair one has to work, or neither can stand in for the other.
_EITHER = (
    ("Open vSwitch, kernel datapath", "Open vSwitch, userspace datapath"),
    ("netem", "tun/tap"),
    ("PAGEMAP_SCAN", "soft-dirty"),
    ("Ryu", "os-ken"),
)


def doctor() -> list[Finding]:
    """Try everything; changes nothing on the machine. Takes a few seconds."""
    findings = [_python(), *_resources(), _root()]
    if not findings[-1].ok:
        return findings
    try:
        tried = call_in_sandbox(_try_all)
    except BenchError as error:
        return [*findings, Finding("namespaces", False, error.message, "", error.remedy)]
    findings.append(Finding("namespaces", True, "network, mount, pid"))
    findings += [
        Finding(trial.name, ok, detail, "" if ok else trial.instead, "" if ok else trial.remedy)
        for trial, (ok, detail) in zip(_TRIALS, tried, strict=True)
    ]
    return require_one_of_each(findings)


def usable(findings: Sequence[Finding]) -> bool:
    """True when the bench can run here, if need be with something instead."""
    return not any(finding.fatal for finding in findings)


def require_one_of_each(findings: Sequence[Finding]) -> list[Finding]:
    """Where both of a pair fail, neither is used instead of the other."""
    failed = {finding.name for finding in findings if not finding.ok}
    lost = {name for pair in _EITHER if failed.issuperset(pair) for name in pair}
    return [replace(finding, instead="") if finding.name in lost else finding for finding in findings]


def _try_all() -> list[tuple[bool, str]]:
    """Inside the sandbox: (works, what was seen) for each trial."""
    results = []
    with tempfile.TemporaryDirectory(prefix="bench-doctor-") as directory:
        for number, trial in enumerate(_TRIALS):
            own = Path(directory, str(number))  # short: it holds Unix sockets
            own.mkdir()
            results.append(_try(trial.probe, own))
    return results


def _try(probe: Callable[[Path], str], directory: Path) -> tuple[bool, str]:
    try:
        return True, probe(directory)
    except CommandError as error:
        return False, " ".join(error.message.rpartition("exit status ")[2].split())[:300]
    except BenchError as error:
        return False, " ".join(error.message.split())[:300]
    except (OSError, ImportError) as error:
        return False, str(error)[:300]


def _root() -> Finding:
    try:
        require_root()
    except MachineError as error:
        return Finding("root", False, f"this is user {os.geteuid()}; nothing more was tried", "", error.remedy)
    return Finding("root", True, "yes")


def _python() -> Finding:
    ok = sys.version_info >= (3, 10)
    detail = f"{platform.python_version()}, {sys.executable}"
    return Finding("Python", ok, detail, "", "" if ok else "use Python 3.10 or later")


def _resources() -> list[Finding]:
    available = machine.memory_bytes("MemAvailable")
    total = machine.memory_bytes()
    cpus = machine.cpu_count()
    load = os.getloadavg()[0]
    enough, idle = available >= COMFORTABLE_MEMORY_BYTES, load < cpus / 2
    return [
        Finding("kernel", True, f"{platform.release()} {platform.machine()}, {machine.distribution()}"),
        Finding("control groups", True, machine.cgroup_version()),
        Finding(
            "memory",
            enough,
            f"{format_bytes(available)} available of {format_bytes(total)}",
            "" if enough else "a smaller guest: --set guest.memory=64MiB",
            "" if enough else "free some memory",
        ),
        Finding(
            "CPUs",
            cpus >= COMFORTABLE_CPUS,
            f"{cpus} x {machine.cpu_model()}",
            "" if cpus >= COMFORTABLE_CPUS else "one CPU for everything: runs may say that they are not to be trusted",
            "" if cpus >= COMFORTABLE_CPUS else "give the machine 2 CPUs or more",
        ),
        Finding(
            "load",
            idle,
            f"{load:.2f} in the last minute",
            "" if idle else "runs may say that they are not to be trusted",
            "" if idle else "wait until other work has finished",
        ),
    ]


def render(findings: Sequence[Finding], console: Console) -> None:
    """Print a table, and what to do about what is missing."""
    table = Table(box=None, pad_edge=False, show_edge=False)
    for title in ("", "what", "seen"):
        table.add_column(title, overflow="fold")
    for finding in findings:
        mark, style = ("ok", "green") if finding.ok else ("no", "red") if finding.fatal else ("--", "yellow")
        seen = finding.detail + (f"; instead: {finding.instead}" if finding.instead else "")
        table.add_row(Text(mark, style=style), Text(finding.name), Text(seen))
    console.print(table)
    console.print()
    for finding in findings:
        if not finding.ok and finding.remedy:
            need = "needed" if finding.fatal else "optional"
            console.print(Text(f"{finding.name} ({need}): {finding.remedy}"))
    verdict = "This machine can run the bench." if usable(findings) else "This machine cannot run the bench yet."
    console.print(Text(verdict, style="bold"))
