"""Scenarios: everything a run can be told, validated once and frozen.

A scenario is a TOML file. Every key has a default, so an empty file is a scenario. Text with units (``"1Gbit"``,
``"300ms"``) becomes integers here; inside the bench only the integers exist. An unknown key, a wrong type, unit or
range is a :class:`~bench.errors.ScenarioError` that names file, key, what was given and what is allowed.
"""

from bench.scenario.announce import AnnounceFaultsSpec, AnnounceSpec
from bench.scenario.clients import ClientSpec
from bench.scenario.disks import DiskSpec, DiskWorkloadSpec, StorageSpec
from bench.scenario.faults import FaultsSpec
from bench.scenario.guest import ContentSpec, GuestSpec, WorkloadSpec
from bench.scenario.hosts import CrossTrafficSpec, HostSpec, LoadSpec, ScriptSpec
from bench.scenario.loading import (
    apply_setting,
    load_scenario,
    parse_scenario,
    read_raw,
    restore_scenario,
    with_commands,
)
from bench.scenario.migration import MigrationSpec
from bench.scenario.moves import MoveSpec
from bench.scenario.network import CalibrationSpec, ControllerSpec, LinkDirectionSpec, LinkSpec, NetworkSpec
from bench.scenario.survival import SurvivalSpec
from bench.scenario.values import Spec
from bench.scenario.whole import RunSpec, Scenario

__all__ = [
    "AnnounceFaultsSpec",
    "AnnounceSpec",
    "CalibrationSpec",
    "ClientSpec",
    "ContentSpec",
    "ControllerSpec",
    "CrossTrafficSpec",
    "DiskSpec",
    "DiskWorkloadSpec",
    "FaultsSpec",
    "GuestSpec",
    "HostSpec",
    "LinkDirectionSpec",
    "LinkSpec",
    "LoadSpec",
    "MigrationSpec",
    "MoveSpec",
    "NetworkSpec",
    "RunSpec",
    "Scenario",
    "ScriptSpec",
    "Spec",
    "StorageSpec",
    "SurvivalSpec",
    "WorkloadSpec",
    "apply_setting",
    "load_scenario",
    "parse_scenario",
    "read_raw",
    "restore_scenario",
    "with_commands",
]
