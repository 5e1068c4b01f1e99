"""What a run left, gathered for analysis: events, records of flows, what the guests say of themselves, logs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.analysis.assemble import FlowRecords
from bench.analysis.fate import Options
from bench.clock import NS_PER_S
from bench.flows.notes import SUFFIX, arrived, load_notes, records_of
from bench.probe.clients import FlowReport
from bench.records import SAMPLES_SUFFIX, TCP_SAMPLE, StructuredArray, load_records
from bench.scenario import ClientSpec
from bench.timeline import Event, Timeline

# Files of guest processes and engines are named after their guest: guest.g1.h1.1, engine.source-g1.1
_OWNER: Final = re.compile(r"(?:guest\.|engine\.[a-z]+-)([A-Za-z][A-Za-z0-9_]*)\..*")


def owner(path: Path) -> str:
    """The guest that an event file is about; empty for one that is about none."""
    found = _OWNER.fullmatch(path.stem)
    return found[1] if found else ""


def collect_events(directory: Path, since_ns: int = 0) -> Timeline:
    """The events of all processes, each marked with its guest.

    :param since_ns: earlier ones belong to another run on the same testbed.
    :raises ResultError: a file is broken.
    """
    events: list[Event] = []
    for path in sorted(directory.glob("*.jsonl")):
        guest = owner(path)
        events += (replace(event, guest=guest) for event in Timeline.read(path) if event.t_ns >= since_ns)
    return Timeline(events)


Ends = Callable[[str, ClientSpec], tuple[str, str]]
"""The address of a host, and of the guest, in one of the host's flows."""


def collect_flows(
    reports: Iterable[FlowReport], clients: Iterable[ClientSpec], events: Path, ends: Ends
) -> list[FlowRecords]:
    """What was kept of each flow, by its agent or (the guest's own, and one-way datagrams) in the notes of its ends.

    :param events: the run's events, where the notes lie.
    """
    specs = {client.name: client for client in clients}
    noted = any(client.direction == "from-guest" or client.kind == "udp-stream" for client in specs.values())
    notes = load_notes(sorted(events.glob(f"*{SUFFIX}"))) if noted else None
    return [_collect(item, specs[item.name], notes, events, ends) for item in reports]


def _collect(
    item: FlowReport, spec: ClientSpec, notes: StructuredArray | None, events: Path, ends: Ends
) -> FlowRecords:
    report = item.report
    records = load_records(item.records) if item.records.exists() else None
    samples = _samples(item.records)
    if spec.direction == "from-guest" and notes is not None:
        # A guest of a testbed that stands may have had a flow of this name before.
        records = records_of(notes[notes["sent_ns"] >= int(report.get("started_ns", 0))], item.name)
        samples = _guest_samples(events, item.name, int(report.get("started_ns", 0)))
        item.records.parent.mkdir(parents=True, exist_ok=True)
        if samples is not None:
            np.save(item.records.with_name(item.name + SAMPLES_SUFFIX), samples, allow_pickle=False)
    elif spec.kind == "udp-stream" and records is not None and notes is not None:
        first_ns = int(records["sent_ns"][0]) if len(records) else 0
        records = arrived(records, records_of(notes[notes["sent_ns"] >= first_ns], item.name))
    if spec.kind == "udp-stream" and records is not None:
        report = judged(report, records)
    if records is not None and (spec.direction == "from-guest" or spec.kind == "udp-stream"):
        np.save(item.records, records, allow_pickle=False)
    return FlowRecords(
        item.host,
        item.name,
        item.kind,
        report,
        records,
        spec.rate,
        str(spec.guest),
        samples,
        _options(spec),
        spec.direction,
        spec.card,
        *ends(item.host, spec),
    )


def judged(report: Mapping[str, Any], records: StructuredArray) -> Mapping[str, Any]:
    """A one-way flow has nobody to tell it that it is dead: it is when nothing of its last second arrived."""
    if not len(records) or not report.get("alive"):
        return report
    last = records["sent_ns"] >= records["sent_ns"].max() - NS_PER_S
    dead = not records["received_ns"][last].any()
    return {**report, "alive": False, "error": "nothing arrives"} if dead else report


def _guest_samples(events: Path, name: str, since_ns: int) -> StructuredArray | None:
    """Those of all processes that the guest was in, by time."""
    paths = sorted(events.glob(f"*{SUFFIX}.{name}{SAMPLES_SUFFIX}"))
    if not paths:
        return None
    samples = np.concatenate([load_records(path, TCP_SAMPLE) for path in paths])
    samples = samples[samples["t_ns"] >= since_ns]
    ordered: StructuredArray = samples[np.argsort(samples["t_ns"], kind="stable")]
    return ordered


def _samples(records: Path) -> StructuredArray | None:
    """What the kernel said of the connection; None for a flow that had none."""
    path = records.with_name(records.name.removesuffix(".npy") + SAMPLES_SUFFIX)
    return load_records(path, TCP_SAMPLE) if path.exists() else None


def _options(client: ClientSpec) -> Options:
    return Options(user_timeout_ns=client.tcp.user_timeout, rto_min_ns=client.tcp.rto_min, timeout_ns=client.timeout)


def keep_logs(directory: Path, output: Path) -> None:
    """Whatever was logged, also by a run that failed; empty logs are left out."""
    target = output / "logs"
    target.mkdir(exist_ok=True)
    for path in [*(directory / "logs").glob("*.log"), *(directory / "ovs").rglob("*.log")]:
        if path.stat().st_size:
            shutil.copyfile(path, target / path.name)
