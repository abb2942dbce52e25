"""The other sites of one MPI job: their leaders answer at once, and no round ends without any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from typing_extensions import override

from fedhpc.errors import DataError
from fedhpc.federation.party import GIVEN_EPOCH, Party
from fedhpc.sums.in_job.exchange import Exchange
from fedhpc.sums.unconnected import NeverAway, OwnRanks


class LastWords(Protocol):
    """What a site has still to sign when it leaves, and hears from the others then."""

    def last_word(self) -> bytes:
        """Of this site."""
        ...

    def receive_last_words(self, said: Sequence[bytes]) -> None:
        """Of all sites, in roster order. Raises PolicyError."""
        ...


class JobPeers(OwnRanks):
    """Words over the leaders' communicator."""

    def __init__(self, party: Party, exchange: Exchange, last_words: LastWords) -> None:
        super().__init__(party)
        self._exchange, self._last_words = exchange, last_words

    @override
    def announce(self, topic: str, message: bytes) -> dict[int, bytes]:
        return dict(enumerate(self._exchange.gather(message), start=1))

    @override
    def agree_to_stop(self, word: str) -> str:
        said = super().agree_to_stop(word).encode()
        party = self._party
        if party.leads:
            said = next((w for w in self._exchange.gather(said) if w), b"")
        return party.site.broadcast_bytes(said if party.leads else None).decode()

    @override
    def leave(self, *, refused: bool = False) -> None:
        said = self._exchange.leave(self._last_words.last_word(), refused=refused)
        if said is not None:
            self._last_words.receive_last_words(said)


class JobRecovery(NeverAway):
    """A job goes on from what all of its sites hold."""

    def __init__(self, party: Party, exchange: Exchange) -> None:
        self._party, self._exchange = party, exchange

    @override
    def common_round(self, held: list[int]) -> int | None:
        """The newest round in every site's store; None if the run is fresh.

        A kill may fall between two sites' first checkpoints. Round 0 is then made again: it repeats to the last bit,
        and the ledger refuses sums that do not.
        """
        mine = ",".join(map(str, held)).encode()
        all_held = [{int(r) for r in m.decode().split(",") if r} for m in self._exchange.gather(mine)]
        common = set.intersection(*all_held)
        if not common and any(rounds - {0} for rounds in all_held):
            having = [m.name for m, rounds in zip(self._party.members, all_held, strict=True) if rounds]
            raise DataError(
                f"only site {', '.join(having)} has checkpoints, and no round is held by all sites",
                f"put the missing run directories back; if they are lost, {GIVEN_EPOCH}; a new run is the next epoch "
                "too: --again",
            )
        return max(common) if common else None
