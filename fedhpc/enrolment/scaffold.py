"""Writes the files of a federation: one federation.toml, one site file and one key per site."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedhpc.agreement.federation_file import PROTOCOL_NAME
from fedhpc.enrolment.federation_text import MARK
from fedhpc.errors import ConfigError, StorageError
from fedhpc.files import write_whole
from fedhpc.secure.keys import identity_public, new_identity
from fedhpc.train.start_file import StartFile

_FEDERATION = """\
# What all sites agree on. Its SHA-256 is in every mask, so one different byte keeps a site out.
# Nothing in here depends on one site's machine; that is in the site files.

[federation]
name = "{name}"
protocol = "{protocol}"
rounds = {rounds}
seed = {seed}

[secure]
mode = "{mode}"            # pairwise: no site sees another's numbers; off: for benchmarks
suite = "blake3"             # what long hashes are made of; "sha256" needs no package

[strategy]
{strategy}

[task]
{task}

[train]                      # what each site does in one round
{train}

# The roster. A site's place is its number; `sign` is the public half of its key.
{start}{roster}"""

_START = """\
{mark}

[start]                      # what all sites begin from: the model in {file}
model = "{sha256}"

"""
_START_FILE = "model.safetensors"

_ROSTER_ENTRY = """\
[[site]]
name = "{name}"
sign = "{sign}"
"""

_SITE = """\
# Site {name}: private, never part of what the sites agree on. Paths are relative to this file.

[site]
name = "{name}"
ranks = {ranks}
key = "{key}"

[data]
path = "{data}"
{start}
[compute]
backend = {backend:<19}# auto: serial for one rank, ddp for more
device = "{device}"
threads = 1                  # per rank; another number changes the last bits of local training

[ledger]
path = "../ledger/{name}"    # of this rehearsal alone; a hospital has one for all its federations, by default

[exchange]
kind = "mpi"
rails = "auto"               # every rank carries a part of the vector
"""


@dataclass(frozen=True)
class Plan:
    """The agreed part of a new federation; the sections are TOML lines."""

    name: str
    rounds: int
    seed: int
    strategy: str
    task: str
    train: str
    mode: str = "pairwise"
    start: StartFile | None = None
    """The model that it begins from; else a fresh one, drawn from the seed."""


@dataclass(frozen=True)
class NewSite:
    """One site of a new federation."""

    data: Path
    ranks: int = 1
    device: str = "auto"
    backend: str = "auto"


def write_federation(directory: Path, plan: Plan, sites: Mapping[str, NewSite]) -> Path:
    """Write federation.toml, sites/NAME.toml and keys/NAME.key into `directory`; gives the path of federation.toml.

    Keys are fresh, mode 0600. Raises ConfigError if there is a federation already, StorageError if writing fails.
    """
    federation = directory / "federation.toml"
    if federation.exists():
        raise ConfigError(f"{federation} exists", "choose another directory; nothing was changed")
    try:
        for folder in ("sites", "keys"):
            (directory / folder).mkdir(parents=True, exist_ok=True)
        roster = []
        start, given = "", ""
        if plan.start is not None:
            write_whole(directory / _START_FILE, plan.start.path.read_bytes())
            start = _START.format(mark=MARK, file=_START_FILE, sha256=plan.start.sha256)
            given = f'start_model = "../{_START_FILE}"\n'
        for name, site in sites.items():
            key = directory / "keys" / f"{name}.key"
            private = new_identity()
            write_key(key, private)
            roster.append(_ROSTER_ENTRY.format(name=name, sign=identity_public(private).hex()))
            data = os.path.relpath(site.data, directory / "sites")
            (directory / "sites" / f"{name}.toml").write_text(
                _SITE.format(
                    name=name,
                    ranks=site.ranks,
                    key=f"../keys/{name}.key",
                    data=data,
                    start=given,
                    backend=f'"{site.backend}"',
                    device=site.device,
                )
            )
        agreed = vars(plan) | {"protocol": PROTOCOL_NAME, "roster": "\n".join(roster), "start": start}
        text = _FEDERATION.format(**agreed)
        federation.write_text(text)
    except OSError as error:
        raise StorageError(f"cannot write {directory}: {error.strerror}") from None
    return federation


def write_key(path: Path, private: bytes) -> None:
    """A private key as 64 hex digits in a new file, mode 0600. Raises OSError; never overwrites."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, private.hex().encode() + b"\n")
    finally:
        os.close(file)
