"""A site by itself: what it says to other sites they do not hear, it misses no round, and it sums nothing."""

from __future__ import annotations

from typing_extensions import override

from fedhpc.errors import InternalError
from fedhpc.federation.held_stream import HeldStream
from fedhpc.federation.other_sites import CaughtUp, Peers, Recovery, Summing
from fedhpc.federation.party import Checked, Opened, Party, Summed
from fedhpc.federation.stages import Stages


class OwnRanks(Peers):
    """Only the ranks of this site hear each other."""

    def __init__(self, party: Party) -> None:
        self._party = party

    @override
    def announce(self, topic: str, message: bytes) -> dict[int, bytes]:
        return {self._party.number: message}

    @override
    def agree_to_stop(self, word: str) -> str:
        return next((w for w in self._party.site.gather_bytes(word.encode()) if w), b"").decode()


class NeverAway(Recovery):
    """A site without which no round ends."""

    @override
    def common_round(self, held: list[int]) -> int | None:
        """Returns this site's own newest round."""
        return max(held) if held else None

    @override
    def catch_up(self, state: bytes, round_: int, into: HeldStream) -> CaughtUp:
        raise InternalError("a site that was never away was asked to catch up")

    @override
    def is_free(self, base: bytes) -> bool:
        return True


class NoSums(Summing):
    """Of a job that trains and exchanges nothing: it dials no relay and waits for no other site."""

    name = "none"

    def __init__(self, rails: int = 1) -> None:
        """`rails`: ranks of the site that hold a part of the model each; a job that exchanges may have others."""
        self.rails = rails

    @override
    def open(self, checked: Checked, stages: Stages) -> Summed:
        raise InternalError("a job that only trains was asked to sum")

    @override
    def settle(self, opened: Opened, state: bytes) -> None:
        raise InternalError("a job that only trains was asked to sum")
