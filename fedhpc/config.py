"""Reads TOML into frozen dataclasses, and refuses everything it does not know.

This module knows no setting by name, only which table belongs to which file. Each package owns its section as a
dataclass that validates itself in `__post_init__` (raise ConfigError there), and hands the class to `read_section`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import tomllib
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedhpc.errors import ConfigError

MAX_CONFIG_BYTES = 4 << 20

# Tables that only one kind of file has; a roster of [[site]] and [relay] stand in two.
_TELLS = {
    **dict.fromkeys(
        ("federation", "start", "cohort", "secure", "strategy", "task", "train", "container"), "a federation.toml"
    ),
    **dict.fromkeys(("data", "compute", "exchange"), "a site file"),
    "limits": "a relay.toml",
}

Section = TypeVar("Section")


def read_bytes(path: Path, largest: int = MAX_CONFIG_BYTES) -> bytes:
    """The bytes of a configuration file of at most `largest` (4 MiB). Raises ConfigError if it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(largest + 1)
    except OSError as error:
        if path.is_dir():
            inside = ", ".join(str(p) for p in sorted(path.glob("*.toml"))[:4])
            hint = f"name a file in it: {inside}" if inside else "name a file"
        else:
            hint = "" if path.is_absolute() else f"relative paths start at {Path.cwd()}"
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint) from None
    if len(data) > largest:
        raise ConfigError(f"{path} is larger than {largest} bytes", "is this the right file?")
    return data


def parse_toml(data: bytes, where: str) -> dict[str, Any]:
    """The table in `data`, TOML in UTF-8. Raises ConfigError that names `where` and the line."""
    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise ConfigError(f"{where}: nested too deeply", "the file must be TOML 1.0 in UTF-8") from None
    except ValueError as error:  # also of numbers that Python does not read, such as one with 5000 digits
        raise ConfigError(f"{where}: {error}", "the file must be TOML 1.0 in UTF-8") from None


def refuse_other_file(table: Mapping[str, Any], known: Iterable[str], where: str, wanted: str) -> None:
    """As `refuse_unknown` for the tables of a whole file; names the file's kind if it is not `wanted`."""
    told = {_TELLS[key] for key in table if key in _TELLS}
    if len(told) == 1 and wanted not in told:
        raise ConfigError(f"{where} is {told.pop()}", f"{wanted} belongs here")
    refuse_unknown(table, known, where)


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises ConfigError for the first key of `given` that is not in `known`, with the nearest valid name."""
    names = dict.fromkeys(known)
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise ConfigError(f"{where}: unknown key '{key}'", f"{hint}valid names: {', '.join(names)}")


def read_section(cls: type[Section], table: object, where: str) -> Section:
    """An instance of the frozen dataclass `cls` from a TOML table.

    Types are checked against the annotations: str, int, float (an int is taken too), bool, Path, Literal,
    tuple[T, ...], dict[str, T], unions of these. A field `from_` is the key `from`, which Python keeps for itself.
    Raises ConfigError for an unknown or missing key or a wrong type.
    """
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} must be a table", f"write it as [{where}]")
    fields, hints = _fields_of(typing.cast(Hashable, cls))
    refuse_unknown(table, fields, where)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[field.name] = _typed(table[name], hints[field.name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: '{name}' is missing", f"it has the type {_spell(hints[field.name])}")
    return cls(**values)


def subtable(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The table `name` in `table`; {} if it is absent. Raises ConfigError if it is something else."""
    value = table.get(name, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{name} must be a table", f"write it as [{name}]")
    return value


@functools.cache  # a recipe may have a table for each of 60,000 columns
def _fields_of(cls: Any) -> tuple[dict[str, dataclasses.Field[Any]], dict[str, Any]]:
    """The keys of the dataclass `cls`, and the types of its fields."""
    fields = {f.name.removesuffix("_"): f for f in dataclasses.fields(cls) if f.init}
    return fields, typing.get_type_hints(cls)


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as the annotated type `hint`, or ConfigError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _typed(value, option, where)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        for choice in args:  # 1 == True in Python, so the type is compared too
            if choice == value and type(choice) is type(value):
                return value
        near = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
        raise ConfigError(
            f"{where} = {value!r} is not one of {', '.join(repr(a) for a in args)}",
            f"did you mean '{near[0]}'?" if near else "",
        )
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_typed(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    elif origin is dict:
        if isinstance(value, Mapping):
            return {k: _typed(v, args[1], f"{where}.{k}") for k, v in value.items()}
    elif hint is Any:
        return value
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is Path:
        if isinstance(value, str) and "\0" not in value:
            return Path(value)
    elif type(value) is hint:
        return value
    raise ConfigError(f"{where} = {value!r} has the wrong type", f"it should be {_spell(hint)}")


def _spell(hint: Any) -> str:
    """A type as a user would write it."""
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in plain:
        return plain[hint]
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_spell(a) for a in args if a is not type(None))
    if origin is tuple:
        return f"a list of {_spell(args[0])}"
    return "a table"
