"""Names of the objects that sites exchange through a relay or a spool directory, and the rules a name carries.

`config/round/attempt/NAME` (docs/protocol.md section 7): `config` is the SHA-256 of federation.toml, NAME is a kind
such as `M1`, followed by the number of the site that owns it (`M3v/2`), or by nothing if the relay does (`Y`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

BLOCK_BYTES = 1 << 20  # of Tree(B); transfers are recorded, resumed and verified in whole blocks

_CONFIG = re.compile(r"[0-9a-f]{64}")
_COUNT = re.compile(r"0|[1-9][0-9]{0,15}")
_NAME = re.compile(r"([A-Z][A-Za-z0-9]{0,15})(?:/([1-9][0-9]{0,2}))?(?:/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True)
class ObjectName:
    """One object's name. Raises ValueError for anything outside the strict character set."""

    config: str  # 64 lower-case hex digits
    round: int
    attempt: int
    name: str  # KIND, KIND/u or KIND/u/v

    def __post_init__(self) -> None:
        if not _CONFIG.fullmatch(self.config):
            raise ValueError("the configuration hash is not 64 lower-case hex digits")
        if not (_COUNT.fullmatch(str(self.round)) and _COUNT.fullmatch(str(self.attempt))):
            raise ValueError("round and attempt are whole numbers below 10^16")
        if not _NAME.fullmatch(self.name):
            raise ValueError("an object's name is KIND, KIND/site or KIND/site/site, such as M3v/2")

    @classmethod
    def parse(cls, path: str) -> ObjectName:
        """The name in `config/round/attempt/NAME`. Raises ValueError."""
        parts = path.split("/", 3)
        if len(path) > 160 or len(parts) != 4 or not all(_COUNT.fullmatch(p) for p in parts[1:3]):
            raise ValueError("an object is called config/round/attempt/NAME")
        return cls(parts[0], int(parts[1]), int(parts[2]), parts[3])

    @property
    def kind(self) -> str:
        """`M3v` of `M3v/2`."""
        return self.name.split("/", 1)[0]

    @property
    def sites(self) -> tuple[int, ...]:
        """The sites in the name: (3, 1) of `STATE/3/1`."""
        match = _NAME.fullmatch(self.name)
        assert match is not None
        return tuple(int(number) for number in match.groups()[1:] if number)

    @property
    def owner(self) -> int | None:
        """The site that may write it, or None: only the relay."""
        return self.sites[0] if self.sites else None

    @property
    def attempt_name(self) -> tuple[str, int, int]:
        """Configuration, round and attempt: what a listing covers."""
        return self.config, self.round, self.attempt

    def __str__(self) -> str:
        return f"{self.config}/{self.round}/{self.attempt}/{self.name}"


def block_count(length: int) -> int:
    """How many blocks an object of `length` bytes has."""
    return -(-length // BLOCK_BYTES)


def block_bytes(index: int, length: int) -> int:
    """The size of block `index` of an object of `length` bytes."""
    return min(BLOCK_BYTES, length - index * BLOCK_BYTES)
