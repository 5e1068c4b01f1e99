"""Scenarios: everything a run can be told, validated once and frozen.

A scenario is a TOML file. Every key has a default, so an empty file is a scenario. Text with units (``"1Gbit"``,
``"300ms"``) becomes integers here; inside the bench only the integers exist. An unknown key, a wrong type, unit or
range is a :class:`~bench.errors.ScenarioError` that names file, key, what was given and what is allowed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from bench import units
from bench.errors import ScenarioError

if sys.version_info >= (3, 11):
    import tomllib
else:  # Ubuntu 22.04
    import tomli as tomllib

MAX_SCENARIO_BYTES = 1 << 20
PAGE_BYTES = 4096


def _text(parse: Any) -> BeforeValidator:
    """A quantity is text with its unit; only a stored scenario (:func:`restore_scenario`) holds plain integers."""

    def convert(value: object, info: ValidationInfo) -> object:
        stored = bool(info.context) and isinstance(value, int) and not isinstance(value, bool)
        return value if stored or value is None else parse(value)

    return BeforeValidator(convert)


DurationNs = Annotated[int, _text(units.parse_duration_ns), Field(ge=0)]
Bytes = Annotated[int, _text(units.parse_bytes), Field(ge=0)]
BitRate = Annotated[int, _text(units.parse_bit_rate), Field(ge=0)]
Bandwidth = Annotated[int, _text(lambda value: 0 if value == "unlimited" else units.parse_bit_rate(value)), Field(ge=0)]
ByteRate = Annotated[int, _text(units.parse_byte_rate), Field(ge=0)]
Share = Annotated[float, BeforeValidator(units.parse_fraction)]
# TOML has lists; a frozen scenario holds tuples.
_FROM_LIST = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
NodeName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,7}$")]


class Spec(BaseModel):
    """Base of all specs: frozen, no unknown keys, no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class NetworkSpec(Spec):
    """Where the guest lives and moves.

    ``topology`` is a built-in name (``single``, ``linear``) or ``path.py:name`` in Mininet's ``--custom`` convention
    (the file's ``topos`` dictionary, or a Topo class of that name). Roles are given by node name; those left empty are
    taken from the topology's node option ``role`` ("hypervisor", "storage", "client"), else from the order of its
    hosts.
    """

    topology: str = "single"
    args: dict[str, str | int | float | bool] = Field(default_factory=dict)
    hypervisors: Annotated[tuple[NodeName, ...], _FROM_LIST] = ()
    storage: NodeName | None = None
    datapath: Literal["auto", "kernel", "user"] = "auto"
    subnet: str = "10.0.0.0/16"


class LinkDirectionSpec(Spec):
    """The direction from a link's second node to its first, where it differs; keys left out are as in the link."""

    bandwidth: Bandwidth | None = None
    delay: DurationNs | None = None
    jitter: DurationNs | None = None
    loss: Share | None = None
    queue: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class LinkSpec(Spec):
    """One link; both directions alike, but for what ``reverse`` says of the direction from its second node to its
    first.

    ``bandwidth`` 0 (or ``"unlimited"``) means unshaped. ``delay`` is one way. ``jitter`` is the half-width of a uniform
    deviation from the delay. ``queue`` is the length of the bottleneck queue in full-size packets.
    """

    bandwidth: Bandwidth = 10**9
    delay: DurationNs = 0
    jitter: DurationNs = 0
    loss: Share = 0.0
    queue: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    reverse: LinkDirectionSpec | None = None

    @field_validator("bandwidth")
    @classmethod
    def _bandwidth(cls, value: int) -> int:
        if value and not 8_000 <= value <= 400 * 10**9:
            raise ValueError("'unlimited', or a rate from '8kbit' to '400Gbit'")
        return value

    @field_validator("delay", "jitter")
    @classmethod
    def _delay(cls, value: int) -> int:
        if value > 60 * 10**9:
            raise ValueError("a duration up to '60s'")
        return value

    @model_validator(mode="after")
    def _jitter_within_delay(self) -> LinkSpec:
        if self.jitter > self.delay:
            raise ValueError("jitter no larger than the delay")
        return self

    def flipped(self) -> LinkSpec:
        """The same link seen from its second node."""
        if self.reverse is None:
            return self
        keys = ("bandwidth", "delay", "jitter", "loss", "queue")
        here = {key: getattr(self, key) for key in keys}
        there = {key: value for key in keys if (value := getattr(self.reverse, key)) is not None}
        if "delay" in there and "jitter" not in there:
            there["jitter"] = min(self.jitter, there["delay"])
        return self.model_copy(update={**there, "reverse": LinkDirectionSpec.model_construct(**here)})


class CalibrationSpec(Spec):
    """What is checked before a run, and how far a link may be off."""

    enabled: bool = True
    burst: DurationNs = 150_000_000
    rate_tolerance: Share = 0.1
    delay_tolerance: DurationNs = 1_000_000


class ControllerSpec(Spec):
    """``app``: ``learning`` (our OpenFlow 1.3 learning switch) or ``standalone`` (no controller, NORMAL learning)."""

    app: Literal["learning", "standalone"] = "learning"
    framework: Literal["ryu", "os-ken"] = "ryu"


class ContentSpec(Spec):
    """The mix of page contents that memory is filled with; the shares sum to 1."""

    zero: Share = 0.3
    text: Share = 0.4
    random: Share = 0.3

    @model_validator(mode="after")
    def _sums(self) -> ContentSpec:
        if abs(self.zero + self.text + self.random - 1) > 1e-6:
            raise ValueError("shares zero + text + random that sum to 1")
        return self


class WorkloadSpec(Spec):
    """What the vCPUs write. ``rate`` counts every page write as 4 KiB, so it is the rate of modified memory.

    ``hotset``: a ``hot_share`` of the writes goes uniformly to the first ``working_set`` bytes, the rest uniformly
    to all memory. ``write_bytes`` is how many bytes of a page one write changes.
    """

    pattern: Literal["idle", "sequential", "uniform", "hotset"] = "hotset"
    rate: ByteRate = 40 << 20
    working_set: Bytes = 64 << 20
    hot_share: Share = 0.9
    write_bytes: Annotated[int, _text(units.parse_bytes), Field(ge=16, le=PAGE_BYTES, multiple_of=8)] = 256
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1


class GuestSpec(Spec):
    """The guest that moves."""

    name: NodeName = "g1"
    memory: Bytes = 1024 << 20
    vcpus: Annotated[int, Field(ge=1, le=16)] = 1
    content: ContentSpec = ContentSpec()
    image: str | None = None
    store_memory: Bytes = 8 << 20
    address: str = "10.0.1.1"
    mac: Annotated[str, Field(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")] = "52:54:00:00:00:01"
    workload: WorkloadSpec = WorkloadSpec()

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: int) -> int:
        if value < 4 << 20 or value > 64 << 30 or value % PAGE_BYTES:
            raise ValueError("a multiple of 4 KiB from '4MiB' to '64GiB'")
        return value

    @field_validator("store_memory")
    @classmethod
    def _store(cls, value: int) -> int:
        if value < 1 << 20 or value % PAGE_BYTES:
            raise ValueError("a multiple of 4 KiB of at least '1MiB'")
        return value

    @field_validator("mac")
    @classmethod
    def _unicast(cls, value: str) -> str:
        if int(value[:2], 16) & 1:
            raise ValueError("a unicast MAC address (the lowest bit of the first byte is 0)")
        return value

    @model_validator(mode="after")
    def _fits(self) -> GuestSpec:
        if self.store_memory > self.memory // 2:
            raise ValueError("store_memory of at most half of the guest's memory")
        return self


class MigrationSpec(Spec):
    """How the guest moves. QEMU's names and defaults where it has them.

    ``downtime_limit`` ``"min"``: go on as long as another round shrinks the rest. ``precopy_rounds``: of mode
    ``hybrid``, before it goes over to post-copy, which neither compresses pages nor sends deltas.

    ``zero_pages``: send zero pages as numbers. ``compression_level``: zstd 1 to 19, lz4 1 to 12;
    ``compression_threads``: of the zstd library beside the engine's own, 0 for none. ``delta_cache``: memory for copies
    of sent pages, so that later rounds send what changed in them; 0 for none. ``auto_converge``: hold the vCPUs back
    when the guest writes faster than the link carries; ``on_no_convergence = "throttle"`` does so only when rounds or
    time are used up. ``dirty_limit``: of each vCPU, kept by holding it back; 0 for none. ``announce_delay``: how long
    after the switchover the announcement begins. A lever that could do nothing in the mode is refused.
    """

    mode: Literal["precopy", "stop-and-copy", "postcopy", "hybrid"] = "precopy"
    downtime_limit: Literal["min"] | DurationNs = 300_000_000
    precopy_rounds: Annotated[int, Field(ge=1, le=1000)] = 1
    max_rounds: Annotated[int, Field(ge=1, le=10_000)] = 30
    max_time: DurationNs = 600 * 10**9
    max_bandwidth: BitRate = 0
    on_no_convergence: Literal["force", "cancel", "post-copy", "throttle"] = "force"
    zero_pages: bool = True
    compression: Literal["none", "zstd", "lz4"] = "none"
    compression_level: Annotated[int, Field(ge=1, le=19)] = 1
    compression_threads: Annotated[int, Field(ge=0, le=16)] = 0
    delta_cache: Bytes = 0
    auto_converge: bool = False
    dirty_limit: ByteRate = 0
    announce_delay: DurationNs = 0
    verify: Literal["background", "pause", "off"] = "background"
    port: Annotated[int, Field(ge=1, le=65535)] = 49152
    source: NodeName | None = None
    destination: NodeName | None = None

    @model_validator(mode="after")
    def _verifiable(self) -> MigrationSpec:
        post_copy = self.mode in ("postcopy", "hybrid") or self.on_no_convergence == "post-copy"
        if self.verify == "pause" and post_copy:
            raise ValueError("verify 'background' or 'off' with post-copy, which sends memory after the pause")
        return self

    @field_validator("delta_cache")
    @classmethod
    def _delta_cache(cls, value: int) -> int:
        if value and not 1 << 20 <= value <= 64 << 30:
            raise ValueError("'0', or from '1MiB' to '64GiB'")
        return value

    @field_validator("dirty_limit")
    @classmethod
    def _dirty_limit(cls, value: int) -> int:
        if value and value < 1 << 20:
            raise ValueError("'0', or at least '1MiB/s'")
        return value

    @field_validator("announce_delay")
    @classmethod
    def _announce_delay(cls, value: int) -> int:
        if value > 60 * 10**9:
            raise ValueError("a duration up to '60s'")
        return value

    @model_validator(mode="after")
    def _compresses(self) -> MigrationSpec:
        if self.compression == "lz4" and (self.compression_level > 12 or self.compression_threads):
            raise ValueError("a compression_level up to 12 and compression_threads = 0 with lz4")
        if self.compression == "none" and (self.compression_level != 1 or self.compression_threads):
            raise ValueError("compression_level and compression_threads only with compression = 'zstd' or 'lz4'")
        return self

    @model_validator(mode="after")
    def _levers_work(self) -> MigrationSpec:
        if self.mode == "postcopy" and self.compression != "none":
            raise ValueError("compression 'none' with mode 'postcopy', which sends each page when it is asked for")
        if self.mode in ("postcopy", "stop-and-copy"):
            if self.delta_cache:
                raise ValueError(f"delta_cache '0' with mode '{self.mode}', which sends each page once")
            if self.auto_converge or self.dirty_limit:
                raise ValueError(
                    f"no auto_converge or dirty_limit with mode '{self.mode}', which has no rounds while the guest runs"
                )
        if self.mode != "precopy" and self.on_no_convergence == "throttle":
            raise ValueError(
                f"on_no_convergence 'throttle' only with mode 'precopy': '{self.mode}' does not wait for it"
            )
        return self


class AnnounceSpec(Spec):
    """What tells the network where the guest is now. ``qemu``: frames at 0, 50, 200, 450, 800 ms after the port is
    wired.
    """

    kinds: Annotated[tuple[Literal["rarp", "garp", "garp-reply"], ...], _FROM_LIST] = ("rarp", "garp")
    schedule: Literal["qemu", "once", "none"] = "qemu"


class ClientSpec(Spec):
    """One flow from a client host to the guest.

    Kinds: ``udp-echo`` (probe of ``size`` bytes every ``interval``), ``tcp-request`` (request/response on one
    connection, ``think`` between), ``tcp-download`` and ``tcp-upload`` (bulk with verified content; ``rate`` 0 is
    as fast as it goes), ``command`` (any program on the client host; its exit status and output are kept).
    """

    kind: Literal["udp-echo", "tcp-request", "tcp-download", "tcp-upload", "command"]
    host: NodeName | None = None
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")] | None = None
    interval: DurationNs = 1_000_000
    think: DurationNs = 1_000_000
    size: Annotated[int, _text(units.parse_bytes), Field(ge=16, le=65536)] = 64
    rate: BitRate = 0
    timeout: DurationNs = 60 * 10**9
    command: Annotated[tuple[str, ...], _FROM_LIST] = ()

    @model_validator(mode="after")
    def _complete(self) -> ClientSpec:
        if (self.kind == "command") != bool(self.command):
            raise ValueError("a command (a list of words) with kind 'command' and only there")
        if self.kind == "udp-echo" and (self.interval < 100_000 or self.size > 1400):
            raise ValueError("an interval of at least '100us' and a size up to '1400B' for udp-echo")
        return self


class RunSpec(Spec):
    """The run around the migration. ``predict``: sample the dirty rate within the warm-up, and predict from it."""

    warmup: DurationNs = 2 * 10**9
    settle: DurationNs = 2 * 10**9
    repeat: Annotated[int, Field(ge=1, le=1000)] = 1
    pause_between: DurationNs = 500_000_000
    capture: bool = False
    predict: bool = True
    max_cpu_load: Share = 0.95


DEFAULT_CLIENTS = tuple(
    ClientSpec.model_validate(client)
    for client in (
        {"kind": "udp-echo", "name": "udp-echo"},
        {"kind": "tcp-request", "name": "tcp-request"},
        {"kind": "tcp-download", "name": "tcp-download", "rate": "20Mbit"},
        {"kind": "tcp-upload", "name": "tcp-upload", "rate": "20Mbit"},
    )
)


class Scenario(Spec):
    """A whole scenario. See ``scenarios/reference.toml``."""

    title: Annotated[str, Field(max_length=200)] = ""
    network: NetworkSpec = NetworkSpec()
    links: dict[str, LinkSpec] = Field(default_factory=dict)
    calibration: CalibrationSpec = CalibrationSpec()
    controller: ControllerSpec = ControllerSpec()
    guest: GuestSpec = GuestSpec()
    migration: MigrationSpec = MigrationSpec()
    announce: AnnounceSpec = AnnounceSpec()
    clients: Annotated[tuple[ClientSpec, ...], _FROM_LIST] = DEFAULT_CLIENTS
    run: RunSpec = RunSpec()

    @field_validator("clients")
    @classmethod
    def _named(cls, value: tuple[ClientSpec, ...]) -> tuple[ClientSpec, ...]:
        """Every flow gets a name: its own, or its kind with a number where there are several."""
        named: list[ClientSpec] = []
        taken = {client.name for client in value if client.name}
        if len(taken) != sum(1 for client in value if client.name):
            raise ValueError("client names that differ from each other")
        for client in value:
            name = client.name
            number = 1
            while name is None:
                candidate = client.kind if number == 1 else f"{client.kind}-{number}"
                if candidate not in taken:
                    name = candidate
                number += 1
            taken.add(name)
            named.append(client.model_copy(update={"name": name}))
        return tuple(named)

    def link(self, first: str, second: str) -> LinkSpec:
        """The spec of the link between two nodes: ``links."a-b"`` (either order), else ``links.default``.

        Its directions are as seen from *first*, whichever way round the scenario names the link.
        """
        if f"{first}-{second}" in self.links:
            return self.links[f"{first}-{second}"]
        if f"{second}-{first}" in self.links:
            return self.links[f"{second}-{first}"].flipped()
        return self.links.get("default", LinkSpec())


_KNOWN_TEXT = {
    "extra_forbidden": "a known key",
    "missing": "this key is needed",
}


def _allowed(error: Mapping[str, Any]) -> str:
    kind = error["type"]
    if kind in _KNOWN_TEXT:
        return _KNOWN_TEXT[kind]
    text: str = error["msg"]
    return re.sub(r"^(Value error, |Input should be )", "", text)


def _known_keys(location: Iterable[str | int]) -> str:
    """The keys of the table that *location* (of an unknown key) lies in, for the error message."""
    model: Any = Scenario
    for part in list(location)[:-1]:
        if isinstance(part, int):
            continue
        if model is Scenario and part == "clients":
            model = ClientSpec
        elif model is Scenario and part == "links":
            model = LinkSpec
        elif isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            candidates = [annotation, *getattr(annotation, "__args__", ())]
            found = [item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)]
            if not found:
                return ""
            model = found[0]
    return ", ".join(model.model_fields)


def parse_scenario(raw: Mapping[str, Any], where: str) -> Scenario:
    """Validate a decoded scenario.

    :param where: the file name or option for error messages.
    :raises ScenarioError: for the first problem found.
    """
    raw = dict(raw)
    links = raw.get("links")
    if isinstance(links, Mapping) and isinstance(links.get("default"), Mapping):
        default = links["default"]  # a named link inherits what [links.default] says
        raw["links"] = {
            name: {**default, **link} if isinstance(link, Mapping) else link for name, link in links.items()
        }
    try:
        return Scenario.model_validate(raw)
    except ValidationError as problem:
        errors = problem.errors()
        error = next((item for item in errors if item["type"] == "extra_forbidden"), errors[0])
        location = [part for part in error["loc"] if not (isinstance(part, str) and "[" in part)]
        key = ".".join(str(part) for part in location)
        allowed = _allowed(error)
        if error["type"] == "extra_forbidden":
            allowed = f"the keys {_known_keys(location)}"
        raise ScenarioError(where, key, error["input"], allowed) from None


def restore_scenario(text: str, where: str) -> Scenario:
    """A scenario from the JSON of :meth:`Scenario.model_dump_json`. :raises ScenarioError: when it is not one."""
    try:
        return Scenario.model_validate_json(text, context={"stored": True})
    except ValidationError as problem:
        raise ScenarioError(where, "", str(problem.errors()[0]["msg"]), "a scenario that the bench stored") from None


def apply_setting(raw: dict[str, Any], setting: str) -> None:
    """Apply one ``--set a.b.c=value`` to a decoded scenario in place; the value is TOML, or plain text.

    A list is reached by its index: ``clients.0.rate=10Mbit``.

    :raises ScenarioError: when the setting has no '=' or a key on its way is not a table.
    """
    key, equals, text = setting.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ScenarioError("--set", key, setting, "key=value, such as guest.memory=256MiB")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    place: Any = raw
    parts = re.findall(r'"([^"]+)"|([^.]+)', key)
    names = [quoted or plain for quoted, plain in parts]
    for position, name in enumerate(names):
        last = position == len(names) - 1
        if isinstance(place, list):
            if not name.isdecimal() or int(name) >= len(place):
                raise ScenarioError("--set", key, name, f"an index below {len(place)}")
            if last:
                place[int(name)] = value
            else:
                place = place[int(name)]
        elif isinstance(place, dict):
            if last:
                place[name] = value
            else:
                place = place.setdefault(name, {})
        else:
            raise ScenarioError("--set", key, name, "a key inside a table")


def read_raw(path: Path, settings: Iterable[str] = ()) -> tuple[dict[str, Any], str]:
    """Read a scenario file and apply ``--set`` settings to it: what it says, and how to name it in messages.

    :raises ScenarioError: unreadable, too large, or not TOML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SCENARIO_BYTES + 1)
    except OSError as error:
        raise ScenarioError(str(path), "", error.strerror or str(error), "a readable scenario file") from None
    if len(data) > MAX_SCENARIO_BYTES:
        raise ScenarioError(str(path), "", f"more than {MAX_SCENARIO_BYTES} bytes", "a file up to 1 MiB")
    try:
        raw = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(str(path), "", str(error), "TOML (https://toml.io)") from None
    settings = list(settings)
    for setting in settings:
        apply_setting(raw, setting)
    where = str(path) if not settings else f"{path} with --set {' '.join(settings)}"
    return raw, where


def load_scenario(path: Path, settings: Iterable[str] = ()) -> Scenario:
    """One scenario from a file. :raises ScenarioError: as :func:`read_raw`, or invalid."""
    return parse_scenario(*read_raw(path, settings))
