"""Settings from around the program, and how the command line honours its `run()`.

Argument < file < environment < command line. The file is `penstock.toml` in the working directory
(or what PENSTOCK_CONFIG names), table [run]; the environment is PENSTOCK_<SETTING>. Under a
command line `run()` and `start()` use its settings, and each pipeline runs once.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from penstock.elements.durations import duration_ns
from penstock.elements.errors import PlanError, SettingsError

from .launcher import Summary
from .settings import JobSettings

CONFIG_FILE = "penstock.toml"
CONFIG_VARIABLE = "PENSTOCK_CONFIG"
PREFIX = "PENSTOCK_"
_UNITS_NS = {"_s": 1e9, "_ms": 1e6}
_FIELDS = {f.name: f for f in msgspec.structs.fields(JobSettings)}


@dataclass
class CommandLine:
    """What a command line says, and what ran under it: `ran` maps a pipeline's name to its run."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    ran: dict[str, Summary] = field(default_factory=dict)
    watch: Any = None
    """Called as watch(handle, settings) instead of handle.wait(); gives the Summary. None: wait."""
    refuses_rows: str = ""
    """Why head() and collect() cannot bring rows to this program; empty: they can."""


_command_line: CommandLine | None = None


def use_command_line(command_line: CommandLine | None) -> CommandLine | None:
    """Put a command line around all runs from now on; returns what was there before."""
    global _command_line
    before, _command_line = _command_line, command_line
    return before


def current_command_line() -> CommandLine | None:
    """The command line around this program, if it was started by one."""
    return _command_line


def resolve_settings(
    arguments: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> JobSettings:
    """JobSettings from `arguments` and what stands above them. None means: not said."""
    around = os.environ if environment is None else environment
    said: dict[str, Any] = {}
    layers: list[tuple[str, Mapping[str, Any]]] = [
        ("run()", arguments),
        _from_file(around),
        ("environment", _from_environment(around)),
    ]
    if _command_line is not None:
        layers.append(("command line", _command_line.settings))
    for where, values in layers:
        for name, value in values.items():
            if value is not None:
                said.update([_setting(name, value, where)])
    return JobSettings(**said)


def _from_file(environment: Mapping[str, str]) -> tuple[str, Mapping[str, Any]]:
    named = environment.get(CONFIG_VARIABLE)
    path = named or CONFIG_FILE
    if named is None and not os.path.exists(path):
        return path, {}
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read settings from {path}: {error}") from error
    table = content.get("run", {})
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: [run] must be a table of settings")
    return path, table


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    names = {PREFIX + name.upper(): name for name in _spellings()}
    return {names[name]: value for name, value in environment.items() if name in names}


def _spellings() -> dict[str, str]:
    """Each way to write a setting: its field's name, and without the unit for durations."""
    found = {name: name for name in _FIELDS}
    for name in _FIELDS:
        for unit in _UNITS_NS:
            if name.endswith(unit):
                found[name.removesuffix(unit)] = name
    return found


def _setting(name: str, value: Any, where: str) -> tuple[str, Any]:
    spelled = name.replace("-", "_")
    target = _spellings().get(spelled)
    if target is None:
        near = difflib.get_close_matches(spelled, list(_spellings()), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(f"{where}: there is no setting {name!r}{hint}")
    if target != spelled:
        unit = next(u for u in _UNITS_NS if target.endswith(u))
        try:
            value = duration_ns(value, f"{where}: {name}") / _UNITS_NS[unit]
        except PlanError as error:
            raise SettingsError(str(error)) from None
    try:
        return target, msgspec.convert(value, _FIELDS[target].type, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"{where}: {target}={value!r}: {error}") from None
