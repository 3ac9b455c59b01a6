"""Turns a ConfigDict into frozen settings once, and says clearly what is wrong with it.

Every settings class is a frozen dataclass beside the code that reads it. `to_config` writes their defaults into a
ConfigDict for the configs to change; `from_config` builds the dataclasses back. Nothing below this border sees a
ConfigDict.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from ml_collections import config_dict

T = TypeVar("T")


def to_config(settings: Any) -> config_dict.ConfigDict:
    """The values of a settings dataclass as a ConfigDict with the same nesting."""
    return config_dict.ConfigDict(_plain(settings))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def from_config(cls: type[T], config: Mapping[str, Any], path: str = "config") -> T:
    """Builds the settings dataclass `cls` from a (nested) mapping.

    Raises:
      ValueError: a key that no setting has (the nearest one is named), a value of the wrong type, or a value that the
        settings class refuses; the message names the key, the value and what was expected.
    """
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values = {}
    for key in config:
        if key not in names:
            nearest = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean {path}.{nearest[0]}?" if nearest else f"known keys: {', '.join(names)}"
            raise ValueError(f"{path}.{key} is not a setting; {hint}")
        values[key] = _convert(hints[key], config[key], f"{path}.{key}")
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping | config_dict.ConfigDict):
            raise ValueError(f"{where}={value!r} must be a group of settings")
        return from_config(hint, value, where)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(next(a for a in arguments if a is not types.NoneType), value, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where}={value!r} must be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, list | tuple):
            raise ValueError(f"{where}={value!r} must be a list")
        return tuple(_convert(arguments[0], item, where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)):
        raise ValueError(f"{where}={value!r} must be {hint.__name__}, not {type(value).__name__}")
    return value


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> list[str]:
    """Dotted names of the keys whose values differ between two nested mappings, with both values."""
    found = []
    for key in sorted({*one, *other}):
        here = f"{path}{key}"
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing_keys(a, b, f"{here}.")
        elif a != b:
            found.append(f"{here}: {a!r} -> {b!r}")
    return found


def setting_names(cls: type, path: str = "") -> list[str]:
    """Dotted names of every setting below the settings class `cls`, its groups included."""
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        found.append(path + field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            found += setting_names(hints[field.name], f"{path}{field.name}.")  # type: ignore[arg-type]
    return found
