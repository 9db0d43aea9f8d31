"""Settings of a run, read from YAML and `key=value`.

Knows files and types; what a setting means and may be is the config's own (`config.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

from fit_training.loop.config import RunConfig

Config = TypeVar("Config", bound=RunConfig)


def load_config(path: Path, kind: type[Config], overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, then apply `key=value` overrides.

    Args:
        path: of the file, a mapping of settings.
        kind: of the run; its fields are the settings there are.
        overrides: later ones win.

    Raises:
        ValueError: a key is unknown, a value has the wrong type or is out of range.
    """
    values = _parsed(path.read_text(encoding="utf-8"), str(path)) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r} is not of the form key=value")
        values[key.strip()] = _parsed(text, f"override {override!r}")
    return _checked(values, kind)


def _parsed(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {error}") from error


def _checked(values: dict[str, Any], kind: type[Config]) -> Config:
    types = {f.name: str(f.type) for f in fields(kind)}
    if unknown := sorted(set(values) - set(types)):
        raise ValueError(f"unknown training settings {unknown}; known: {sorted(types)}")
    for name, value in values.items():
        wanted = types[name]
        if wanted == "float" and isinstance(value, str):
            value = values[name] = _number(name, value)  # YAML 1.1 reads 1e-3 as text
        good = {
            "int": isinstance(value, int) and not isinstance(value, bool),
            "float": isinstance(value, int | float) and not isinstance(value, bool),
            "bool": isinstance(value, bool),
            "str": isinstance(value, str),
            "tuple[str, ...]": isinstance(value, list) and all(isinstance(v, str) for v in value),
        }[wanted]
        if not good:
            raise ValueError(f"{name} is {value!r}; it must be of type {wanted}")
    needed = {f.name for f in fields(kind) if f.default is MISSING}
    if missing := sorted(needed - set(values)):
        raise ValueError(f"training settings {missing} are missing")
    if "classes" in values:
        values["classes"] = tuple(values["classes"])
    return kind(**values)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}; it must be a number") from None
