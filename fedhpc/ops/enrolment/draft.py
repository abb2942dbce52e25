"""The text of a federation.toml that is still being agreed on: its first form, its roster, its next epoch.

People write above the roster's line, with comments of their own; `fedhpc federation` writes below it. Two numbers above
are kept by the program too: epoch and previous.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.config import parse_toml, read_bytes
from fedhpc.errors import ConfigError
from fedhpc.federation.agreement import PROTOCOL_NAME, Agreement, read_agreement

MARK = "# ---- The roster. Everything below this line is written by `fedhpc federation`; a site's place is its number."

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
policy = "sync"              # every round over all sites; quorum and buffered go on without those who are late
deadline_s = 86400           # how long a site that is ready waits for a round to begin

[secure]
mode = "pairwise"            # nobody sees one site's numbers; colluders and threshold follow from the number of sites

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

{mark}
"""


@dataclass(frozen=True)
class Draft:
    """A federation.toml as it stands, complete or not."""

    source: bytes
    table: Mapping[str, Any]

    @classmethod
    def read(cls, source: bytes) -> Draft:
        """Raises ConfigError if the text is no TOML or has lost its roster's line."""
        table = parse_toml(source, "federation.toml")
        if source.decode("utf-8").count(MARK) != 1 or not isinstance(table.get("federation"), Mapping):
            raise ConfigError(
                "federation.toml has lost its [federation] section or the roster's line", f"put back: {MARK}"
            )
        return cls(source, table)

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
        """Which epoch it says it is."""
        epoch = self.table["federation"].get("epoch", 0)
        if type(epoch) is not int:
            raise ConfigError("federation.epoch is not a whole number")
        return epoch

    def with_roster(self, entries: Sequence[Mapping[str, Any]]) -> Draft:
        """The same text with another roster. Values beyond name and keys, such as `samples`, are kept."""
        head = self.source.decode("utf-8").partition(MARK)[0] + MARK + "\n"
        return Draft.read((head + "".join(_entry(entry) for entry in entries)).encode())

    def next_epoch(self) -> Draft:
        """The same text as the epoch after this one, which it names by its hash."""
        following = self.epoch + 1
        text = self.source.decode("utf-8")
        for key, value in (("epoch", str(following)), ("previous", f'"{hashlib.sha256(self.source).hexdigest()}"')):
            pattern = rf'(?m)^{key}[ \t]*=[ \t]*(?:"[0-9a-f]*"|[0-9]+)'
            text = re.sub(pattern, f"{key} = {value}", text, count=1)
        changed = Draft.read(text.encode())
        section = changed.table["federation"]
        if (section.get("epoch"), section.get("previous")) != (following, hashlib.sha256(self.source).hexdigest()):
            raise ConfigError(
                "federation.toml has lost its lines epoch and previous",
                f"put back under [federation]: epoch = {self.epoch}",
            )
        return changed


def read_complete(path: Path) -> Agreement:
    """The agreement in a federation.toml. Raises ConfigError that names the sites whose keys are still missing."""
    return read_agreement(read_bytes(path), str(path))


def new_draft(name: str, relay_pin: str, rounds: int, seed: int, sites: Sequence[str]) -> bytes:
    """The first federation.toml, whose roster names the sites without their keys."""
    text = _DRAFT.format(name=name, protocol=PROTOCOL_NAME, relay=relay_pin, rounds=rounds, seed=seed, mark=MARK)
    return Draft.read(text.encode()).with_roster([{"name": site} for site in sites]).source


def _entry(entry: Mapping[str, Any]) -> str:
    lines = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in entry.items()]
    if "sign" not in entry:
        lines.append("# invited; its keys come with `fedhpc federation admit`")
    return "\n[[site]]\n" + "\n".join(lines) + "\n"
