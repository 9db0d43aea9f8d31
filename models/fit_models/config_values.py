"""A frozen config dataclass out of the plain values of a `config.json`.

Knows field names; not what they mean. `ModelConfig.from_dict` is FiTv2's own reading of the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from fit_models.config import RopeConfig

Config = TypeVar("Config")


def config_of_values(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """Read what `dataclasses.asdict` wrote; keys that begin with an underscore are the file's own.

    Args:
        cls: a dataclass of plain values; a field `rope` may be a `RopeConfig`.
        values: by field name.

    Raises:
        ValueError: a key is unknown, one without default is missing, or a value means nothing.
    """
    own = {key: value for key, value in values.items() if not key.startswith("_")}
    known = {f.name for f in fields(cls)}  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(own) - known):
        raise ValueError(f"unknown model config keys {unknown}; known: {sorted(known)}")
    try:
        if isinstance(own.get("rope"), Mapping):
            own["rope"] = RopeConfig(**own["rope"])
        return cls(**own)
    except TypeError as error:
        raise ValueError(f"model config does not fit: {error}") from error
