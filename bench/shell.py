"""``bench shell``: the testbed is up, and Mininet's own command line has the bench's commands besides.

::

    migrate GUEST HOST [KEY=VALUE ...]    move a guest; keys as `bench run --set`, those of [migration] without a prefix
    cancel                                typed while a migration goes on: give it up
    announce [GUEST] [KIND ...]           send the guest's announcement once more
    watch [on|off]                        show every event as it happens, or the switches' last relearning
    link A B up|down, link A-B KEY=VALUE ...   Mininet's own, or another bandwidth, delay, jitter, loss, queue
    guests                                where they are

Each migration leaves a result directory of its own, as `bench run` does.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.clock import NS_PER_S, Deadline
from bench.errors import BenchError, ScenarioError
from bench.guest.port import card_interface
from bench.host.commands import python_environment, run
from bench.host.sandbox import interrupt_answered
from bench.link.impairment import from_spec
from bench.migration.announce import frames
from bench.moving.schedule import Order
from bench.output import OutputDirectory
from bench.plan import Plan
from bench.plan_network import link_spec
from bench.report.terminal import render
from bench.report.wave import print_wave
from bench.result import RunResult
from bench.runner import Runner
from bench.scenario import Scenario, apply_setting, parse_scenario
from bench.surroundings import Surroundings
from bench.testbed import Testbed
from bench.timeline import Event
from bench.watch import Watch

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # Mininet 2.3 imports distutils
    from mininet.cli import CLI
    from mininet.log import setLogLevel

COMMAND_NS: Final = 10 * NS_PER_S
_MIGRATION_KEYS: Final = ("mode", "downtime_limit", "max_bandwidth", "compression", "auto_converge", "verify")
_KINDS: Final = ("rarp", "garp", "garp-reply", "na")


class Stopped(KeyboardInterrupt):
    """``cancel`` was typed."""


class ShellWatch(Watch):
    """Watchers that also hear what is typed while a migration goes on.

    :ivar typed: lines to read, or None at their end.
    """

    def poll(self, timeout_ns: int = 0) -> None:
        super().poll(timeout_ns)
        if sys.stdin.isatty() and select.select([sys.stdin], [], [], 0)[0] and "cancel" in sys.stdin.readline():
            raise Stopped("cancel")


class Shell:
    """What the commands do. One testbed, any number of migrations.

    :param raw: the decoded scenario, for what is set per migration; *where* names it in messages.
    :param record_cgroup: notes in the ledger a control group that is about to be made.
    """

    def __init__(
        self,
        testbed: Testbed,
        raw: Mapping[str, Any],
        where: str,
        console: Console,
        record_cgroup: Callable[[Path], Path] | None = None,
    ) -> None:
        self.testbed = testbed
        self.console = console
        self.last: RunResult | None = None
        self.showing = False
        self._raw = dict(raw)
        self._where = where
        self._record_cgroup = record_cgroup

    # what there is

    @property
    def guests(self) -> list[str]:
        return sorted(self.testbed.guests.places())

    @property
    def hypervisors(self) -> list[str]:
        return list(self.testbed.plan.hypervisors)

    # commands

    def migrate(self, words: Sequence[str]) -> None:
        """:raises BenchError: bad words; what becomes of a migration is a result."""
        if len(words) < 2 or words[0] not in self.guests or words[1] not in self.hypervisors:
            allowed = f"GUEST of {', '.join(self.guests)} and HOST of {', '.join(self.hypervisors)}"
            raise ScenarioError("migrate", "", " ".join(words), f"{allowed}, then KEY=VALUE")
        guest, destination = words[:2]
        scenario = self._scenario(words[2:])
        places = self.testbed.guests.places()
        if places[guest] == destination:
            raise ScenarioError("migrate", guest, destination, f"another host: {guest} is there already")
        plan = replace(self.testbed.plan, homes=places, orders=(Order(guest, destination),))
        self._use(scenario, plan)
        output = OutputDirectory.choose(None, Path(self._where))
        watch = ShellWatch(scenario, plan, self.testbed.directory, output.path, self._progress)
        runner = Runner(
            scenario,
            plan,
            self.testbed.directory,
            output.path,
            self._progress,
            record_cgroup=self._record_cgroup,
            testbed=self.testbed,
            watch=watch,
        )
        try:
            self.last = runner.run()
            render(self.last, self.console)
        finally:
            output.hand_to_user()
            self.console.print(f"result: {output.path}", soft_wrap=True, highlight=False)

    def _scenario(self, settings: Iterable[str]) -> Scenario:
        raw = _copied(self._raw)
        for setting in settings:
            key = setting.partition("=")[0]
            apply_setting(raw, setting if "." in key else f"migration.{setting}")
        return parse_scenario(raw, self._where)

    def _use(self, scenario: Scenario, plan: Plan) -> None:
        for part in (self.testbed, self.testbed.guests):
            part.scenario = scenario
            part.plan = plan

    def _progress(self, event: Event) -> None:
        if self.showing or event.name == "step":
            told = event.data.get("text") or " ".join(f"{key}={value}" for key, value in event.data.items())
            self.console.print(f"{event.source} {event.name}: {told}"[:200], highlight=False, markup=False)

    def announce(self, words: Sequence[str]) -> None:
        """The guest's frames once, from its card. :raises BenchError: bad words."""
        names = [word for word in words if word in self.guests] or self.guests[:1]
        kinds = [word for word in words if word in _KINDS] or list(self.testbed.scenario.announce.kinds)
        wrong = [word for word in words if word not in self.guests and word not in _KINDS]
        if wrong:
            raise ScenarioError(
                "announce", "", wrong[0], f"a guest of {', '.join(self.guests)}, or {', '.join(_KINDS)}"
            )
        for name in names:
            running = self.testbed.guests[name]
            pid = _peer_pid(running.control.channel.sock)
            for number, card in enumerate(running.spec.all_cards):
                address, address6 = (text.partition("/")[0] for text in (card.address, card.address6 or ""))
                for frame in frames(kinds, str(card.mac), address, address6=address6):
                    interface = card_interface(number)
                    argv = [sys.executable, "-m", "bench.host.frame_sender", interface, frame["hex"], "1", "0"]
                    run(argv, deadline=Deadline(COMMAND_NS), netns_pid=pid, env=python_environment())
                    self.console.print(f"{name} at {running.host}: {frame['kind']}", highlight=False)

    def watch(self, words: Sequence[str]) -> None:
        """Events on or off; without a word the last relearning."""
        if words[:1] in (["on"], ["off"]):
            self.showing = words[0] == "on"
        elif words:
            raise ScenarioError("watch", "", words[0], "on or off")
        elif self.last is None:
            self.console.print("nothing has moved yet")
        else:
            print_wave(self.last.relearn, self.last.resume_ns, self.console)

    def reshape(self, name: str, settings: Sequence[str]) -> None:
        """Another bandwidth, delay, ... of a link that was built for it. :raises BenchError: it cannot be."""
        factory = self.testbed.links_factory
        link = factory.links.get(name)
        if link is None:
            raise ScenarioError("link", "", name, f"a link of {', '.join(sorted(factory.links)[:20])}")
        first, second = (end.node for end in link.ends)
        raw = _copied(self._raw)
        links = raw.setdefault("links", {})
        links[name] = dict(links.get(name) or links.get("default") or {})
        for setting in settings:
            apply_setting(raw, f'links."{name}".{setting}')
        spec = link_spec(parse_scenario(raw, self._where), self.testbed.plan.hypervisors, first, second)
        factory.apply(link, *from_spec(spec))
        self._raw = raw
        self.console.print(f"{name}: {link.applied}", highlight=False, soft_wrap=True)

    def places(self) -> None:
        for name, host in sorted(self.testbed.guests.places().items()):
            self.console.print(f"{name} is at {host}", highlight=False)


class BenchCLI(CLI):  # type: ignore[misc]
    """Mininet's command line with :class:`Shell`'s commands."""

    prompt = "bench> "

    def __init__(self, shell: Shell, **options: Any) -> None:
        self.shell = shell
        super().__init__(shell.testbed.net, **options)

    def preloop(self) -> None:
        """After Ctrl-C at the prompt, or one that a command did not catch, too."""
        super().preloop()
        interrupt_answered()

    def postcmd(self, stop: bool, line: str) -> bool:
        """Ctrl-C gives up what goes on, not the command line."""
        interrupt_answered()
        return bool(super().postcmd(stop, line))

    def _safely(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BenchError as error:
            self.shell.console.print(f"bench: {error}", style="red", highlight=False, markup=False)

    def do_migrate(self, line: str) -> None:
        """migrate GUEST HOST [KEY=VALUE ...]: move a guest; `cancel` and Enter, or Ctrl-C, gives it up."""
        self._safely(lambda: self.shell.migrate(line.split()))

    def do_cancel(self, _line: str) -> None:
        """cancel: while a migration goes on."""
        self.shell.console.print("no migration goes on: type this while one does")

    def do_announce(self, line: str) -> None:
        """announce [GUEST] [rarp|garp|garp-reply|na ...]: announce a guest once more."""
        self._safely(lambda: self.shell.announce(line.split()))

    def do_watch(self, line: str) -> None:
        """watch [on|off]: show every event of a migration, or (without a word) the last relearning."""
        self._safely(lambda: self.shell.watch(line.split()))

    def do_guests(self, _line: str) -> None:
        """guests: where they are."""
        self._safely(self.shell.places)

    def do_link(self, line: str) -> None:
        """link A B up|down: Mininet's. link A-B KEY=VALUE ...: bandwidth, delay, jitter, loss, queue."""
        words = line.split()
        if any("=" in word for word in words):
            self._safely(lambda: self.shell.reshape(words[0], words[1:]))
        else:
            super().do_link(line)

    # tab completion

    def complete_migrate(self, text: str, line: str, _begin: int, _end: int) -> list[str]:
        position = len(line.split()) - (0 if line.endswith(" ") else 1)
        choices: Sequence[str] = [f"{key}=" for key in _MIGRATION_KEYS]
        if position <= 2:
            choices = self.shell.guests if position == 1 else self.shell.hypervisors
        return [choice for choice in choices if choice.startswith(text)]

    def complete_announce(self, text: str, _line: str, _begin: int, _end: int) -> list[str]:
        return [choice for choice in (*self.shell.guests, *_KINDS) if choice.startswith(text)]

    def complete_watch(self, text: str, _line: str, _begin: int, _end: int) -> list[str]:
        return [choice for choice in ("on", "off") if choice.startswith(text)]

    def complete_link(self, text: str, _line: str, _begin: int, _end: int) -> list[str]:
        names = [*self.shell.testbed.links_factory.links, *self.mn]
        return [choice for choice in (*names, "up", "down", "delay=", "loss=", "bandwidth=") if choice.startswith(text)]


def _copied(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Tables and lists copied, values kept."""

    def copy(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: copy(item) for key, item in value.items()}
        return [copy(item) for item in value] if isinstance(value, list) else value

    return {key: copy(value) for key, value in raw.items()}


def _peer_pid(sock: socket.socket) -> int:
    """The process at the other end of a Unix socket (unix(7), SO_PEERCRED)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("=iII", raw)[0])


def run_shell(
    scenario: Scenario,
    plan: Plan,
    directory: Path,
    raw: Mapping[str, Any],
    where: str,
    record_cgroup: Callable[[Path], Path] | None = None,
) -> int:
    """Raise the testbed, hand it to the command line, take it down. Inside the sandbox; returns the exit code."""
    console = Console()
    testbed = Testbed(scenario, plan, directory, lambda text: console.print(text, highlight=False))
    with contextlib.closing(testbed):
        testbed.raise_network()
        Surroundings(scenario, plan, directory, record_cgroup).prepare(testbed)
        testbed.boot_guests()
        setLogLevel("output")  # what Mininet's own commands say, which a run keeps quiet
        console.print("`help` lists the commands, `help migrate` says how one is used, `exit` takes everything down")
        BenchCLI(Shell(testbed, raw, where, console, record_cgroup))
    return 0
