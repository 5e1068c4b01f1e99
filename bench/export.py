"""A run as tables for other programs: events, requests and rounds, as CSV or Parquet. Whole: nothing is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from bench.errors import ResultError
from bench.recording import Recording
from bench.records import (
    DUPLICATES_SHIFT,
    STATUS_CORRUPT,
    STATUS_PROGRESS,
    STATUS_REORDERED,
    STATUS_UNSENT,
    StructuredArray,
    empty,
)

FORMATS: Final = ("csv", "parquet")


def events_table(recording: Recording) -> pa.Table:
    """One row for each event; ``data`` is JSON."""
    events = recording.events
    return pa.table(
        {
            "t_ns": pa.array((event.t_ns for event in events), pa.int64()),
            "source": pa.array((event.source for event in events), pa.string()),
            "name": pa.array((event.name for event in events), pa.string()),
            "guest": pa.array((event.guest for event in events), pa.string()),
            "data": pa.array((json.dumps(dict(event.data)) for event in events), pa.string()),
        }
    )


def requests_table(recording: Recording) -> pa.Table:
    """One row for each request (or progress of a one-way flow) of every flow. Times are CLOCK_MONOTONIC ns; a null
    ``received_ns`` was never answered."""
    parts = [_requests(host, flow, recording.records(host, flow)) for host, flow in recording.requests]
    return pa.concat_tables(parts) if parts else _requests("", "", None)


def _requests(host: str, flow: str, records: StructuredArray | None) -> pa.Table:
    if records is None:
        records = empty()
    status, count = records["status"], len(records)
    names: Mapping[str, Any] = {
        "host": pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [host]).cast(pa.string()),
        "flow": pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [flow]).cast(pa.string()),
    }
    return pa.table(
        {
            **names,
            "seq": np.ascontiguousarray(records["seq"]),
            "sent_ns": np.ascontiguousarray(records["sent_ns"]),
            "received_ns": pa.array(records["received_ns"].copy(), mask=records["received_ns"] == 0),
            "bytes": np.ascontiguousarray(records["bytes"]),
            "corrupt": (status & STATUS_CORRUPT) != 0,
            "reordered": (status & STATUS_REORDERED) != 0,
            "progress": (status & STATUS_PROGRESS) != 0,
            "unsent": (status & STATUS_UNSENT) != 0,
            "duplicates": np.ascontiguousarray(status >> DUPLICATES_SHIFT),
        }
    )


def rounds_table(recording: Recording) -> pa.Table:
    """One row for each round of every migration."""
    result = recording.result
    rows = [
        {"migration": number, "round": at, **item.model_dump(), "guest": migration.guest or result.guest}
        for number, migration in enumerate(result.migrations or [result], 1)
        for at, item in enumerate(migration.rounds, 1)
    ]
    if rows:
        return pa.Table.from_pylist(rows)
    names = ("migration", "round", "pages", "zero_pages", "bytes_sent", "dirty_pages_after", "start_ns", "end_ns")
    others = {"paused": pa.array([], pa.bool_()), "guest": pa.array([], pa.string())}
    return pa.table({name: pa.array([], pa.int64()) for name in names} | others)


TABLES: Final[Mapping[str, Callable[[Recording], pa.Table]]] = {
    "events": events_table,
    "requests": requests_table,
    "rounds": rounds_table,
}


def export(recording: Recording, directory: Path, form: str) -> list[tuple[Path, int]]:
    """Write every table into *directory*; returns the files with their numbers of rows.

    :param form: one of :data:`FORMATS`.
    :raises ResultError: the recording is broken, or *directory* can not be written.
    """
    written = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, make in TABLES.items():
            path, table = directory / f"{name}.{form}", make(recording)
            if form == "csv":
                pyarrow.csv.write_csv(table, path)
            else:
                pyarrow.parquet.write_table(table, path, compression="zstd")
            written.append((path, table.num_rows))
    except OSError as error:
        raise ResultError(f"{directory}: {error.strerror or error}") from None
    return written
