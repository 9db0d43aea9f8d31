"""`key=value` arguments → the dataclass that a command runs with."""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def from_key_values(config: type[T], arguments: Sequence[str]) -> T:
    """Build a dataclass from `key=value` arguments; values are YAML: 3, 0.5, true, [1, 2], a/path.

    Raises `ValueError` that names the key, for arguments of another form, unknown or missing keys
    and values of the wrong type.
    """
    import yaml
    from pydantic import TypeAdapter, ValidationError

    assert dataclasses.is_dataclass(config)
    known = [field.name for field in dataclasses.fields(config)]
    values: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument} is not of the form key=value")
        if key not in known:
            raise ValueError(f"{key} is no setting; the settings are: {', '.join(known)}")
        values[key] = yaml.safe_load(text)
    try:
        return TypeAdapter(config).validate_python(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = first["loc"][0] if first["loc"] else config.__name__
        raise ValueError(f"{key}: {first['msg']}") from None
