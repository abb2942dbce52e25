"""Masked sums of a job that trains and exchanges nothing: it dials nobody and waits for nobody."""

from __future__ import annotations

from typing import NoReturn

from fedhpc.errors import InternalError
from fedhpc.federation.checkpoint import CheckpointStore
from fedhpc.federation.party import CaughtUp, Opened, Party, SumPlan
from fedhpc.federation.vector import Vector


class Unconnected:
    """See MaskedSums. Nothing can be summed."""

    name = "none"
    rails = 1

    def __init__(self, party: Party) -> None:
        self._party = party

    def of(self, party: Party) -> Unconnected:
        """See MaskedSums.of."""
        return Unconnected(party)

    def open(self, vector: Vector, plan: SumPlan, *, digest: bool = True) -> Opened:
        """Never called."""
        _refuse()

    def settle(self, opened: Opened, state: bytes) -> None:
        """Never called."""
        _refuse()

    def announce(self, topic: str, message: bytes) -> dict[int, bytes]:
        """See MaskedSums.announce: nobody hears it."""
        return {self._party.number: message}

    def common_round(self, held: list[int]) -> int | None:
        """See MaskedSums.common_round: this site's own newest."""
        return max(held) if held else None

    def attend(self, store: CheckpointStore) -> None:
        """See MaskedSums.attend: nobody can ask."""

    def catch_up(self, state: bytes, round_: int, nbytes: int) -> CaughtUp:
        """Never called."""
        _refuse()

    def is_free(self, base: bytes) -> bool:
        """See MaskedSums.is_free: an exchange finds out."""
        return True

    def keep_until(self, sums: int, *, given: bool = True) -> None:
        """See MaskedSums.keep_until: whoever sums keeps and erases."""

    def hear(self, word: str) -> str:
        """See MaskedSums.hear."""
        return next((w for w in self._party.site.gather_bytes(word.encode()) if w), b"").decode()

    def leave(self, *, refused: bool = False) -> None:
        """See MaskedSums.leave."""


def _refuse() -> NoReturn:
    raise InternalError("a job that only trains was asked to sum")
