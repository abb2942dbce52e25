"""Masked sums of a job that trains and exchanges nothing: it dials nobody and waits for nobody."""

from __future__ import annotations

from typing import NoReturn

from typing_extensions import override

from fedhpc.errors import InternalError
from fedhpc.federation.checkpoint import CheckpointStore
from fedhpc.federation.party import CaughtUp, MaskedSums, Opened, Party, SumPlan
from fedhpc.federation.vector import Vector


class Unconnected(MaskedSums):
    """Peers of a job that trains only: it can sum nothing."""

    name = "none"
    rails = 1

    def __init__(self, party: Party) -> None:
        self._party = party

    @override
    def of(self, party: Party) -> Unconnected:
        return Unconnected(party)

    @override
    def open(self, vector: Vector, plan: SumPlan, *, digest: bool = True) -> Opened:
        """Never called."""
        _refuse()

    @override
    def settle(self, opened: Opened, state: bytes) -> None:
        """Never called."""
        _refuse()

    @override
    def announce(self, topic: str, message: bytes) -> dict[int, bytes]:
        """Tells nobody."""
        return {self._party.number: message}

    @override
    def common_round(self, held: list[int]) -> int | None:
        """Returns this site's own newest round."""
        return max(held) if held else None

    @override
    def attend(self, store: CheckpointStore) -> None:
        """Returns at once: no other site can ask."""

    @override
    def catch_up(self, state: bytes, round_: int, nbytes: int) -> CaughtUp:
        """Never called."""
        _refuse()

    @override
    def is_free(self, base: bytes) -> bool:
        """Left to the job that exchanges."""
        return True

    @override
    def keep_until(self, sums: int, *, given: bool = True) -> None:
        """Keys are kept and erased by the job that sums."""

    @override
    def hear(self, word: str) -> str:
        return next((w for w in self._party.site.gather_bytes(word.encode()) if w), b"").decode()

    @override
    def leave(self, *, refused: bool = False) -> None:
        pass


def _refuse() -> NoReturn:
    raise InternalError("a job that only trains was asked to sum")
