"""What a run left, gathered for analysis: events, records of flows, what the guests say of themselves, logs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench.analysis.assemble import FlowRecords
from bench.analysis.fate import Options
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


def collect_events(directory: Path) -> Timeline:
    """The events of all processes, each marked with its guest. :raises ResultError: a file is broken."""
    events: list[Event] = []
    for path in sorted(directory.glob("*.jsonl")):
        guest = owner(path)
        events += (replace(event, guest=guest) for event in Timeline.read(path))
    return Timeline(events)


def collect_flows(reports: Iterable[FlowReport], clients: Iterable[ClientSpec]) -> list[FlowRecords]:
    """What the agents kept of each flow."""
    specs = {client.name: client for client in clients}
    return [
        FlowRecords(
            item.host,
            item.name,
            item.kind,
            item.report,
            load_records(item.records) if item.records.exists() else None,
            specs[item.name].rate,
            str(specs[item.name].guest),
            _samples(item.records),
            _options(specs[item.name]),
        )
        for item in reports
    ]


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
    for path in [*(directory / "logs").glob("*.log"), *(directory / "ovs").glob("*.log")]:
        if path.stat().st_size:
            shutil.copyfile(path, target / path.name)
