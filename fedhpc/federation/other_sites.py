"""What a session needs of the other sites: sums, words, and help after an absence. Interfaces of sums/.

Methods that return None are for those who have something to do there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fedhpc.federation.checkpoint import CheckpointStore
from fedhpc.federation.held_stream import HeldStream
from fedhpc.federation.party import Checked, Opened, Summed
from fedhpc.federation.stages import Stages


class Summing(Protocol):
    """Carries out masked sums, and keeps of them what a restart needs, no longer than it needs it.

    Every rank of the site makes every call, unless it says that leaders do.
    """

    name: str
    rails: int
    """Ranks of the site that carry a part of the vector."""

    def open(self, checked: Checked, stages: Stages) -> Summed:
        """Replace this rank's part of the vector, in place, by the sum over the sites; add what it took to `stages`.

        Raises PolicyError if the ledger forbids the sum or the sites do not agree; nothing of the vector has left the
        site then. RoundOverError: see there; also where the sites skip it (`plan.skip`). InterruptedRun, on every
        rank, where this site only waits and its life is to end.
        """
        ...

    def settle(self, opened: Opened, state: bytes) -> None:
        """Compare results with the other sites (M6): they hold the same sum and move to the same `state` [32].

        From then on no key of the round is kept that a restart can do without. PolicyError or DataError names a site
        whose result differs; the caller must not apply or store the result then.
        """
        ...

    def sign_state(self, state: bytes) -> tuple[bytes, ...]:
        """Before `state` [32] is made durable: M6 over it of every site, in roster order. Leaders only.

        Empty where no sum led to it, or where the sites have signed it elsewhere. PolicyError names a site whose result
        differs; the caller must not store the state then.
        """
        return ()

    def covered(self, sums: int, *, given: bool = True) -> None:
        """Everything up to sum `sums` is durable elsewhere: erase what served to repeat it. Leaders only.

        `given`: a site that loses its run directory is given it by others, or the caller keeps it in a safe place.
        """
        return None

    def leave(self) -> None:
        """This site sums nothing more in this job: erase keys that open nothing. Leaders only."""
        return None


class Peers(Protocol):
    """Words between the sites, and between the ranks of this one."""

    def announce(self, topic: str, message: bytes) -> dict[int, bytes]:
        """Tell the other sites `message`; what they have told so far under `topic`, by site. Leaders only.

        Unsigned: for what protects from mistakes, such as the names of columns.
        """
        ...

    def agree_to_stop(self, word: str) -> str:
        """The `word` of any rank that must stop together with this one; "" if all of them are silent.

        Those are all ranks of the job: in one job of all sites, those of the other sites too. All get the same answer.
        """
        ...

    def leave(self, *, refused: bool = False) -> None:
        """Tell the other sites that this one sums nothing more, so that none waits for it. Leaders only.

        `refused`: the last sum of this site ended with its own input, which others are told without more.
        """
        return None


class Recovery(Protocol):
    """Where a site goes on from, and how it helps sites that were away, or is helped."""

    def common_round(self, held: list[int]) -> int | None:
        """The newest of the rounds that this site `held` from which the federation can go on. Leaders only."""
        ...

    def serve_catch_up(self, store: CheckpointStore) -> None:
        """Help sites that were away, from the checkpoints in `store`, until `leave`. Leaders only."""
        return None

    def catch_up(self, state: bytes, round_: int, into: HeldStream) -> CaughtUp:
        """Take a later state than `state` [32], the result of training sum `round_`, from another site.

        `into`: memory for its arrays, of which each rank has its part. Raises PeersError if no site gives it.
        """
        ...

    def is_free(self, base: bytes) -> bool:
        """Whether an update that began from state `base` [32] may still be summed: it is in no earlier round."""
        ...

    def leave(self) -> None:
        """Stop helping. Leaders only."""
        return None


@dataclass(frozen=True)
class CaughtUp:
    """Of a state that another site gave and τ sites signed."""

    round_: int  # the masked sum whose result it is
    whole: bool = False  # all sites of the roster are in that sum, as τ of them signed
