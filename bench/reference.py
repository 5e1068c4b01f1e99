"""The reference pages docs/scenario.md and docs/result.md, made from the models so that they cannot drift.

``python -m bench.reference docs`` writes them; a test compares them with what this module makes.
"""

from __future__ import annotations

import inspect
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from bench.result import RunResult
from bench.scenario import DiskSpec, DiskWorkloadSpec, Scenario, StorageSpec, WorkloadSpec
from bench.units import format_bit_rate, format_bytes, format_duration

_HEAD = "<!-- made by `python -m bench.reference docs`; do not edit -->\n\n"
_DURATIONS = frozenset(
    (
        *("delay", "jitter", "burst", "delay_tolerance", "downtime_limit", "max_time", "interval", "think"),
        *("timeout", "warmup", "settle", "pause_between", "announce_delay", "start"),
        *("guest_delay", "initial", "max", "step", "late", "wired_late", "chatter"),
        *("hold", "idle_timeout", "hard_timeout"),
        *("user_timeout", "rto_min", "guest_rto_min"),
    )
)
_RATES = frozenset(("bandwidth", "max_bandwidth", "rate", "nic"))
_SIZES = frozenset(("memory", "working_set", "store_memory", "delta_cache", "log_size", "block"))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


def _type_text(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_text(arguments[0])
    if origin is typing.Literal:
        return ", ".join(f"`{argument!r}`" for argument in arguments).replace("'", '"')
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(part) for part in arguments if part is not type(None)) + (
            " or nothing" if type(None) in arguments else ""
        )
    if origin in (tuple, list):
        return f"list of {_type_text(arguments[0])}"
    if origin is dict:
        return f"table of {_type_text(arguments[1])}"
    names = {str: "text", int: "number", float: "share", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    return f"table `{annotation.__name__}`" if inspect.isclass(annotation) else str(annotation)


def _kind(name: str, field: FieldInfo) -> str:
    """What a value is, in the scenario's own words where it is a quantity."""
    if name == "guest_memory":
        return "table of size"
    for names, kind in ((_DURATIONS, "duration"), (_RATES, "rate"), (_SIZES, "size")):
        if name in names:
            return kind
    return _type_text(field.annotation)


def _default_text(model: type[BaseModel], name: str, field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if field.is_required():
        return "needed"
    if isinstance(value, BaseModel) or (isinstance(value, tuple) and value and isinstance(value[0], BaseModel)):
        return "see below"
    if value is None:
        return "none"
    if isinstance(value, bool) or not isinstance(value, int):
        shown = json.dumps(list(value) if isinstance(value, tuple) else value)
        return f"`{shown}`" if value not in ("", (), {}) else "empty"
    if name in _DURATIONS:
        return f"`{format_duration(value).replace(' ', '')}`"
    if name in _RATES:
        if name == "rate" and value and model in (WorkloadSpec, DiskWorkloadSpec, StorageSpec):
            return f"`{format_bytes(value).replace(' ', '')}/s`"
        return "unlimited" if value == 0 else f"`{format_bit_rate(value).removesuffix('/s').replace(' ', '')}`"
    if name in _SIZES or (name == "size" and model is DiskSpec):
        return f"`{format_bytes(value).replace(' ', '')}`"
    return f"`{value}`"


def _walk(model: type[BaseModel], path: str, seen: list[tuple[str, type[BaseModel]]]) -> None:
    if any(known is model for _path, known in seen):
        return
    seen.append((path, model))
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            _walk(inner, f"{path}.{name}" if path else name, seen)


def _section(title: str, model: type[BaseModel], *, defaults: bool) -> str:
    own = model.__doc__ or ""
    lines = [f"## {title}\n", inspect.cleandoc(own), ""]
    lines += ["| key | value | default |", "|---|---|---|"] if defaults else ["| member | value |", "|---|---|"]
    for name, field in model.model_fields.items():
        whole = _kind(name, field) if defaults else _type_text(field.annotation).replace("share", "number")
        cells = [f"`{field.alias or name}`", whole]
        if defaults:
            cells.append(_default_text(model, name, field))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def scenario_reference() -> str:
    """docs/scenario.md."""
    seen: list[tuple[str, type[BaseModel]]] = []
    _walk(Scenario, "", seen)
    text = (
        _HEAD
        + "# Scenario reference\n\nQuantities are texts with units: `300ms`, `64MiB`, `40MiB/s`, `1Gbit`, `0.5%`.\n\n"
    )
    names = {"links": '[links.default] and [links."a-b"]', "clients": "[[clients]]", "moves": "[[moves]]"}
    sections = [
        _section(names.get(path, f"[{path}]" if path else "Top level"), model, defaults=True) for path, model in seen
    ]
    return text + "\n".join(sections)


def result_reference() -> str:
    """docs/result.md."""
    seen: list[tuple[str, type[BaseModel]]] = []
    _walk(RunResult, "", seen)
    intro = inspect.cleandoc(sys.modules[RunResult.__module__].__doc__ or "").replace(":class:", "")
    text = _HEAD + "# Result reference\n\n" + intro + "\n\n"
    return text + "\n".join(_section(path or "result.json", model, defaults=False) for path, model in seen)


def pages() -> dict[str, str]:
    """File name -> text."""
    return {"scenario.md": scenario_reference(), "result.md": result_reference()}


def main(arguments: list[str]) -> int:
    """Write the pages into the directory that is named."""
    (directory,) = arguments
    for name, text in pages().items():
        Path(directory, name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
