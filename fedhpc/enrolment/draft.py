"""The text of a federation.toml that is still being agreed on: its first form, its roster, its next epoch.

People write above the roster's line, with their own comments; `fedhpc federation` writes below it: [start] and the
roster. Above it the program keeps epoch, previous and seed, and changes only what its command is for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.agreement.federation_file import PROTOCOL_NAME, Agreement
from fedhpc.agreement.roster import RosterEntry
from fedhpc.config import parse_toml
from fedhpc.enrolment.federation_text import MARK, drop_value, set_value, toml
from fedhpc.errors import ConfigError

_DRAFT = """\
# What all sites of {name} agree on. Its SHA-256 is in every mask and every site signs it: not one byte may differ.
# Change what you like until sites approve it. Afterwards run `fedhpc federation next` first: it begins the next epoch.

[federation]
name = "{name}"
protocol = "{protocol}"   # what the sites speak; a build speaks one
rounds = {rounds}
seed = {seed}                     # of the first model and the order of the data
epoch = 0                    # counts agreed changes; kept by `fedhpc federation`, like the next line
previous = ""

[relay]
tls = "{relay}"   # its key; the relay is not believed, only recognised

[cohort]
policy = "sync"              # every round over all sites; quorum and buffered go on without late sites
deadline_s = 86400           # how long a site that is ready waits for a round to begin

[secure]
mode = "pairwise"            # nobody sees one site's numbers; the thresholds follow from the number of sites
suite = "blake3"             # what long hashes are made of; "sha256" where a site may use approved algorithms only

[strategy]
name = "fedavg"
weights = "samples"          # by training rows, which stay private

[task]                       # the model: docs/tasks.md
name = "logistic"
standardise = true           # with the federation's own mean and variance, masked sums themselves
held_out = 0.2
options = {{ features = 13 }}

[train]                      # what each site does in one round
optimizer = "sgd"
lr = 0.5
batch_size = 0               # all rows of the site
local_steps = 2

# [container]                # images that sites may run in, by the SHA-256 of the file; without it, any and none
# cpu = "sha256:…"           # docs/configuration.md

{mark}
"""


_BELOW = {"site", "start"}


@dataclass(frozen=True)
class Draft:
    """A federation.toml as it stands, complete or not."""

    source: bytes
    table: Mapping[str, Any]
    given: bytes = b""
    """As the file was before `adopt` gave it lines that it lacked; empty: as `source`."""

    @classmethod
    def read(cls, source: bytes) -> Draft:
        """Raises ConfigError if the text is not TOML or has lost its roster's line."""
        table = parse_toml(source, "federation.toml")
        if source.decode("utf-8").count(MARK) != 1 or not isinstance(table.get("federation"), Mapping):
            raise ConfigError(
                "federation.toml has lost its [federation] section or the roster's line", f"put back: {MARK}"
            )
        return cls(source, table)

    @classmethod
    def adopt(cls, source: bytes) -> Draft:
        """The text of a federation without a coordinator, whose roster may stand at its end without the line."""
        table, text = parse_toml(source, "federation.toml"), source.decode("utf-8")
        head, found, roster = text.partition("\n[[site]]")
        if MARK not in text and found and set(parse_toml(f"{found}{roster}".encode(), "federation.toml")) <= _BELOW:
            text = f"{head}\n{MARK}\n{found}{roster}"
        section = table.get("federation", {})
        for key, value in (("previous", ""), ("epoch", 0)):
            if isinstance(section, Mapping) and key not in section:
                text = set_value(text, "federation", key, value)
        return cls(text.encode(), cls.read(text.encode()).table, source)

    @property
    def roster(self) -> dict[str, dict[str, Any]]:
        """The entries by name, in order."""
        listed = self.table.get("site", [])
        if not isinstance(listed, list) or not all(
            isinstance(e, dict) and isinstance(e.get("name"), str) for e in listed
        ):
            raise ConfigError(
                "the roster of federation.toml cannot be read", "it is a list of [[site]] with name, sign, tls"
            )
        return {entry["name"]: entry for entry in listed}

    @property
    def epoch(self) -> int:
        """The epoch that it says it is."""
        epoch = self.table["federation"].get("epoch", 0)
        if type(epoch) is not int:
            raise ConfigError("federation.epoch is not a whole number")
        return epoch

    @property
    def identities(self) -> dict[str, str]:
        """Name -> identity of the sites whose keys are there, in order."""
        return {name: identity(entry) for name, entry in self.roster.items() if "sign" in entry}

    @property
    def file(self) -> bytes:
        """The bytes of the file that was read."""
        return self.given or self.source

    @property
    def hash(self) -> str:
        """SHA-256 of the file, hex."""
        return hashlib.sha256(self.file).hexdigest()

    def with_roster(
        self, entries: Sequence[Mapping[str, Any]], start: Mapping[str, str | list[str]] | None = None
    ) -> Draft:
        """The same text with another roster, and with `start` as [start]; None leaves that as it is.

        Values of a site beyond name and keys, such as `samples`, are kept.
        """
        table = self.table.get("start", {}) if start is None else start
        below = [_start(table)] if table else []
        below += [_entry(entry) for entry in entries]
        return Draft.read((self.source.decode("utf-8").partition(MARK)[0] + MARK + "\n" + "".join(below)).encode())

    def with_value(self, section: str, key: str, value: str | int | list[str], comment: str = "") -> Draft:
        """The same text with another value of one key."""
        return Draft.read(set_value(self.source.decode("utf-8"), section, key, value, comment).encode())

    def without_value(self, section: str, key: str) -> Draft:
        """The same text without the line of a key."""
        return Draft.read(drop_value(self.source.decode("utf-8"), section, key).encode())

    def next_epoch(self) -> Draft:
        """The same text as the epoch after this one, which it names by its hash."""
        section = self.table["federation"]
        if not {"epoch", "previous"} <= set(section):
            raise ConfigError(
                "federation.toml has lost its lines epoch and previous",
                f"put back under [federation]: epoch = {self.epoch}",
            )
        following = self.with_value("federation", "epoch", self.epoch + 1)
        return following.with_value("federation", "previous", self.hash)


def read_complete(path: Path) -> Agreement:
    """The agreement in a federation.toml. Raises ConfigError that names the sites whose keys are still missing."""
    return Agreement.open(path)


def new_draft(name: str, relay_pin: str, rounds: int, seed: int, sites: Sequence[str]) -> bytes:
    """The first federation.toml, whose roster names the sites without their keys."""
    text = _DRAFT.format(name=name, protocol=PROTOCOL_NAME, relay=relay_pin, rounds=rounds, seed=seed, mark=MARK)
    return Draft.read(text.encode()).with_roster([{"name": site} for site in sites]).source


def identity(entry: Mapping[str, Any]) -> str:
    """The identity of a roster's entry with keys. Raises ConfigError for invalid keys."""
    site = RosterEntry(str(entry["name"]), str(entry["sign"]), first_sign=str(entry.get("first_sign", "")))
    return site.identity.hex()


def _start(table: Mapping[str, str | list[str]]) -> str:
    return "\n[start]                      # what this epoch begins from\n" + "".join(
        f"{key} = {toml(value)}\n" for key, value in table.items()
    )


def _entry(entry: Mapping[str, Any]) -> str:
    lines = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in entry.items()]
    if "sign" not in entry:
        lines.append("# invited; its keys come with `fedhpc federation admit`")
    return "\n[[site]]\n" + "\n".join(lines) + "\n"
