"""The roster of a federation.toml: who the sites are, by name, keys, and what stays the same when keys change."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedhpc.config import read_section
from fedhpc.errors import ConfigError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RosterEntry:
    """One [[site]] of federation.toml; its place in the file is its number, from 1."""

    name: str
    sign: str
    """The site's public Ed25519 key, 64 hex digits."""
    samples: int = 0
    """The site's public size, for strategy.weights = "declared"."""
    tls: str = ""
    """Pin of the key that the site shows the relay: SHA-256 of its SubjectPublicKeyInfo, 64 hex digits."""
    first_sign: str = ""
    """The site's first public Ed25519 key, where it has had others since: ledgers recognise the site by it."""

    def __post_init__(self) -> None:
        check_name(self.name, "site.name")
        if self.first_sign and not _KEY.fullmatch(self.first_sign):
            raise ConfigError(f"site {self.name}: first_sign is not a public key", "64 lower-case hex digits")
        if self.tls and not _KEY.fullmatch(self.tls):
            raise ConfigError(
                f"site {self.name}: tls is not a pin", "64 lower-case hex digits; `fedhpc site init` shows it"
            )
        # Lower case only: otherwise one key could stand in the roster twice, written in two ways.
        if not _KEY.fullmatch(self.sign):
            raise ConfigError(
                f"site {self.name}: sign is not an Ed25519 public key",
                "64 lower-case hex digits; `fedhpc new` writes keys for a rehearsal",
            )
        if self.samples < 0:
            raise ConfigError(f"site {self.name}: samples = {self.samples}")

    @property
    def identity(self) -> bytes:
        """SHA-256 of the site's first public key: its identity in ledgers, whatever its current key [32]."""
        return hashlib.sha256(bytes.fromhex(self.first_sign or self.sign)).digest()


def read_roster(listed: Any, where: str) -> tuple[RosterEntry, ...]:
    """The roster in the list of [[site]]. Raises ConfigError, also where two sites share a name, a key or a pin."""
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{where} has no sites", "list each as [[site]] with name and sign")
    _refuse_draft(listed, where)
    roster = tuple(read_section(RosterEntry, entry, "site") for entry in listed)
    unique = {
        "name": [r.name for r in roster],
        "key": [r.sign for r in roster],
        "first key": [r.first_sign or r.sign for r in roster],
        "pin": [r.tls for r in roster if r.tls],
    }
    for what, value in unique.items():
        twice = sorted({v for v in value if value.count(v) > 1})
        if twice:
            raise ConfigError(f"two sites in the roster have the {what} {twice[0]}")
    return roster


def _refuse_draft(listed: list[Any], where: str) -> None:
    """A draft of `fedhpc federation new` has sites without keys."""
    missing = [ascii(e.get("name")) for e in listed if isinstance(e, Mapping) and "sign" not in e]
    if missing:
        raise ConfigError(
            f"{where} is not complete: the keys of {', '.join(missing)} are missing",
            "wait until the coordinator has admitted all sites",
        )


def check_name(name: str, where: str) -> None:
    """Refuse names that could not be a directory, a hostname part and canonical JSON at once. ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where} = {name!r}", "lower-case letters, digits, - and _, at most 63, starting with a letter or a digit"
        )
