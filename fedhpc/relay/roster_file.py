"""Changes the relay's roster file: a federation comes, goes, or loses a site. The running relay reads it again.

Every change is checked as the relay will read it and replaces the file in one step: the relay never meets half of one.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhpc.config import parse_toml, read_bytes
from fedhpc.errors import ConfigError
from fedhpc.files import write_whole
from fedhpc.relay.settings import REVOKED, read_roster

_HEADER = (
    "# Written by `fedhpc relay admit` and `drop`: the federations this relay serves, and the keys of their sites.\n"
)


def put_federation(path: Path, config: str, table: Mapping[str, Any]) -> bool:
    """Write the table of federation `config` [64 hex digits]; whether something changed. Raises ConfigError."""
    federations = _read(path)
    if federations.get(config) == table:
        return False
    _write(path, federations | {config: dict(table)})
    return True


def federation_sites(path: Path, config: str) -> dict[str, str]:
    """The keys of a federation's sites by number, empty if the relay does not serve it."""
    return dict(_read(path).get(config, {}).get("sites", {}))


def drop_federation(path: Path, config: str) -> None:
    """Take a federation out of the roster. Raises ConfigError if it is not there."""
    federations = _read(path)
    if config not in federations:
        known = ", ".join(federations) or "none"
        raise ConfigError(f"this relay serves no federation {config}", f"it serves {known}")
    del federations[config]
    _write(path, federations)


def drop_pin(path: Path, pin: str) -> list[str]:
    """Take a site's key out of every federation; the federations that had it. From then on it opens nothing.

    The site keeps its number there: thresholds count all who signed.
    """
    federations, found = _read(path), []
    for config, table in list(federations.items()):
        left = {site: REVOKED if known == pin else known for site, known in table["sites"].items()}
        if left != table["sites"]:
            found.append(config)
            federations[config] = table | {"sites": left}
            if set(left.values()) == {REVOKED}:
                del federations[config]
    if found:
        _write(path, federations)
    return found


def _read(path: Path) -> dict[str, dict[str, Any]]:
    read_roster(path)  # refuses everything that the relay would refuse, so tables below have the right form
    return parse_toml(read_bytes(path), str(path))


def _write(path: Path, federations: Mapping[str, Mapping[str, Any]]) -> None:
    text = _HEADER
    for config, table in federations.items():
        plain = {k: v for k, v in table.items() if not isinstance(v, Mapping)}
        text += f'\n["{config}"]\n' + "".join(f"{key} = {_value(value)}\n" for key, value in plain.items())
        if "sites" in table:
            pins = ", ".join(f'{site} = "{pin}"' for site, pin in table["sites"].items())
            text += f"sites = {{ {pins} }}\n"
        for name, inner in table.items():
            if isinstance(inner, Mapping) and name != "sites":
                text += f'["{config}".{name}]\n' + "".join(f"{key} = {_value(v)}\n" for key, v in inner.items())
    check = path.with_name(f".{path.name}.{secrets.token_hex(8)}.check")
    try:
        write_whole(check, text.encode())
        read_roster(check)
    finally:
        check.unlink(missing_ok=True)
    write_whole(path, text.encode())


def _value(value: object) -> str:
    """A setting as TOML. Raises ConfigError for what settings do not hold."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return repr(value)
    if isinstance(value, str) and value.isascii() and value.isprintable() and not set(value) & {'"', "\\"}:
        return f'"{value}"'
    raise ConfigError(f"{value!r} cannot stand in the roster file")
