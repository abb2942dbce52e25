"""The [start] section of federation.toml: what an epoch begins from. Written by `fedhpc federation`, signed by all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedhpc.errors import ConfigError

MOST_EPOCHS = 16  # that may lie between two which have trained

_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StartSettings:
    """[start]. Without it an epoch begins with a fresh model, drawn from the seed."""

    from_: Literal["previous"] | None = None
    """previous: the newest settled model of the epochs before. The sum `start` brings it to sites that are new."""
    epochs: tuple[str, ...] = ()
    """SHA-256 of the federation.toml of those epochs, newest first, in hex: one that was never run is passed over."""
    sites: tuple[str, ...] = ()
    """Identities of the sites that have that model for certain, in the order of their numbers then, in hex."""
    model: str = ""
    """SHA-256 over the tensors of a model that every site is given as a file, in hex."""

    def __post_init__(self) -> None:
        if self.model and self.from_:
            raise ConfigError("[start] has both from and model", "an epoch begins from one of the two")
        for key, values in (
            ("epochs", self.epochs),
            ("sites", self.sites),
            ("model", (self.model,) * bool(self.model)),
        ):
            if any(not _HASH.fullmatch(value) for value in values) or len(set(values)) < len(values):
                raise ConfigError(f"start.{key} holds no SHA-256, or one twice", "`fedhpc federation next` writes it")
        if len(self.epochs) > MOST_EPOCHS:
            raise ConfigError(f"start.epochs has {len(self.epochs)} entries", f"at most {MOST_EPOCHS}")
        if (self.from_ is None) != (not self.epochs and not self.sites):
            raise ConfigError(
                "[start] from, epochs and sites belong together", "`fedhpc federation next` writes all three"
            )

    def check(self, previous: str, roster: Sequence[str]) -> None:
        """Raise ConfigError unless the epoch before and at least one site of the `roster` (identities) stand in it."""
        if self.from_ is None:
            return
        if self.epochs[:1] != (previous,):
            raise ConfigError(
                "start.epochs does not begin with federation.previous", "run `fedhpc federation next` again"
            )
        if not set(self.sites) & set(roster):
            raise ConfigError(
                "no site of the roster has the model that [start] goes on from",
                "give it as a file: `fedhpc federation next --from-model`",
            )

    def giver(self, roster: Sequence[str]) -> int:
        """The number, in the `roster` of identities, of the site that puts in what is taken over.

        It is the lowest-numbered one of the old roster that is in this one.
        """
        return list(roster).index(next(site for site in self.sites if site in roster)) + 1
