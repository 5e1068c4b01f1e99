"""Topologies: Mininet Topo classes, each in a file that also works with ``mn --custom FILE --topo NAME``.

A scenario names one of :data:`BUILTIN`, or any Mininet topology by ``path.py:name``. Node options tell the bench what
a host is for: ``role="hypervisor" | "storage" | "client"``.

Mininet is imported when a topology is loaded, not before: the rest of the bench can name topologies without it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from topologies.errors import TopologyError

if TYPE_CHECKING:
    from mininet.topo import Topo

__all__ = ["BUILTIN", "TopologyError", "load"]

BUILTIN: Mapping[str, str] = {
    "single": "topologies.single",
    "linear": "topologies.linear",
    "tree": "topologies.tree",
    "ring": "topologies.ring",
    "dumbbell": "topologies.dumbbell",
    "leaf-spine": "topologies.leafspine",
    "fat-tree": "topologies.fattree",
    "wan": "topologies.wan",
    "hyperv": "topologies.hyperv",
    "routed": "topologies.routed",
    "bond": "topologies.bond",
}


_FLAGS = {"true": True, "True": True, "false": False, "False": False}


def load(spec: str, args: Mapping[str, Any] | None = None) -> Topo:
    """Build a topology.

    :param spec: a built-in name, or ``path.py:name``: the entry *name* of the file's ``topos`` dictionary (Mininet's
        convention for ``--custom``), else the Topo subclass of that name. ``path.py`` alone will do when the file has
        only one. Arguments may follow as in ``mn --topo``: ``single,clients=2`` or ``path.py:name,3,key=value``.
    :param args: keyword arguments for it.
    :raises TopologyError: no such file or name, or whatever its code raises.
    """
    where, name, positional, keywords = _split(spec)
    both = keywords.keys() & (args or {}).keys()
    if both:
        raise TopologyError(f"{spec}: the argument {min(both)} is given twice")
    if where is None:
        if name not in BUILTIN:
            known = ", ".join(BUILTIN)
            raise TopologyError(
                f"{spec}: no topology of this name; allowed: {known}, or a Mininet file as path.py:name"
            )
        make = importlib.import_module(BUILTIN[name]).topos[name]
    else:
        make = _from_file(where, name)
    return _build(spec, make, positional, {**keywords, **(args or {})})


def _split(spec: str) -> tuple[Path | None, str, list[Any], dict[str, Any]]:
    """``path.py:name,1,key=2`` to its parts; numbers become numbers, as Mininet's splitArgs does."""
    from mininet.util import splitArgs  # noqa: PLC0415  only where a topology is really loaded

    end = spec.find(".py")
    while end >= 0 and spec[end + 3 : end + 4] not in ("", ":", ","):
        end = spec.find(".py", end + 1)
    where, rest = (Path(spec[: end + 3]), spec[end + 3 :].removeprefix(":")) if end > 0 else (None, spec)
    name, positional, keywords = splitArgs(rest)
    return where, name, positional, keywords


def _from_file(where: Path, name: str) -> Callable[..., Topo]:
    from mininet.topo import Topo  # noqa: PLC0415  only where a topology is really loaded

    module = _import_file(where)
    topos = getattr(module, "topos", {})
    found = dict(topos) if isinstance(topos, Mapping) else {}
    for key, value in vars(module).items():
        own = inspect.isclass(value) and issubclass(value, Topo) and value.__module__ == module.__name__
        if own and (value not in found.values() or key == name):
            found.setdefault(key, value)
    if not name and len(found) == 1:
        return next(iter(found.values()))  # type: ignore[no-any-return]
    if name not in found:
        has = (
            f"it has {', '.join(sorted(map(str, found)))}"
            if found
            else "it has no topos dictionary and no Topo subclass"
        )
        wanted = f"no topology {name}" if name else "say which topology, as path.py:name"
        raise TopologyError(f"{where}: {wanted}; {has}")
    return found[name]  # type: ignore[no-any-return]


def _import_file(where: Path) -> ModuleType:
    if not where.is_file():
        raise TopologyError(f"{where}: no such file")
    name = f"_topology_{where.stem}_{abs(hash(where.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, where)
    if spec is None or spec.loader is None:
        raise TopologyError(f"{where}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file look themselves up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise TopologyError(f"{where}: {_said(error)}") from error
    return module


def _build(spec: str, make: Callable[..., Topo], positional: list[Any], keywords: Mapping[str, Any]) -> Topo:
    from mininet.topo import Topo  # noqa: PLC0415  only where a topology is really loaded

    keywords = {key: _FLAGS.get(value, value) if isinstance(value, str) else value for key, value in keywords.items()}
    try:
        topo = make(*positional, **keywords)
    except (Exception, SystemExit) as error:
        raise TopologyError(f"{spec}: {_said(error)}") from error
    if not isinstance(topo, Topo):
        raise TopologyError(f"{spec}: makes a {type(topo).__name__}, not a Mininet Topo")
    return topo


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, ValueError) and str(error) else f"{type(error).__name__}: {error}"
