"""From a TOML file, and ``--set`` on the command line, to a scenario; and what is wrong with it in one message."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.errors import ScenarioError
from bench.scenario.clients import ClientSpec
from bench.scenario.guests import inherit
from bench.scenario.network import LinkSpec
from bench.scenario.whole import Scenario

if sys.version_info >= (3, 11):
    import tomllib
else:  # Ubuntu 22.04
    import tomli as tomllib

MAX_SCENARIO_BYTES = 1 << 20

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
    for key in ("links", "hosts"):  # a named one inherits what [links.default] or [hosts.default] says
        table = raw.get(key)
        if isinstance(table, Mapping) and isinstance(table.get("default"), Mapping):
            default = table["default"]
            raw[key] = {name: {**default, **one} if isinstance(one, Mapping) else one for name, one in table.items()}
    guest, guests = raw.get("guest", {}), raw.get("guests")
    if isinstance(guest, Mapping) and isinstance(guests, list):
        raw["guests"] = inherit(guest, guests)
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


def with_commands(scenario: Scenario, commands: Iterable[str]) -> Scenario:
    """*scenario* with further clients of kind ``command``, each ``[HOST:]COMMAND`` in shell words without a shell.

    :raises ScenarioError: for an empty command or one whose quotes do not end.
    """
    clients = list(scenario.clients)
    for text in commands:
        host, colon, rest = text.partition(":")
        named = bool(colon) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,7}", host) is not None
        try:
            words = shlex.split(rest if named else text)
        except ValueError as error:
            raise ScenarioError("--client", "", text, f"words as a shell reads them ({error})") from None
        if not words:
            raise ScenarioError("--client", "", text, "a program and its arguments, such as 'ping -c 5 10.0.1.1'")
        clients.append(ClientSpec(kind="command", host=host if named else None, command=tuple(words)))
    return Scenario.model_validate({**scenario.__dict__, "clients": tuple(clients)}) if commands else scenario


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
