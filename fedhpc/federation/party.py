"""What one sum is, who takes part in it, and the interface to whatever carries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedhpc.agreement.federation_file import Agreement
from fedhpc.errors import PeersError
from fedhpc.federation.checkpoint import CheckpointStore
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.ledger.journal import Journal
from fedhpc.mpi.collectives import Group
from fedhpc.secure.ledger import UNKNOWN, LedgerKeys
from fedhpc.secure.pairwise import Member

NO_BASE = bytes(32)  # the base of a statistic
NEXT_EPOCH = "the coordinator begins the next epoch, which goes on from the newest model: `fedhpc federation next`"
GIVEN_EPOCH = (
    "the coordinator begins the next epoch from a model in a file, which `fedhpc export` writes at a site that has "
    "one: `fedhpc federation next --from-model FILE`"
)
"""What helps a site that has no model any more, and would have to give or compare one in an epoch that goes on."""


@dataclass(frozen=True)
class Party:
    """This rank's place in the federation: fixed for the life of the job."""

    agreement: Agreement
    number: int  # its site
    site: Group
    members: list[Member]
    identity: Ed25519PrivateKey | None = field(repr=False)  # leaders of a masked federation only
    ledger_keys: LedgerKeys | None = field(repr=False)  # on every rank of a masked site
    journal: Journal | None  # leaders only
    salt_key: bytes | None = field(repr=False)  # k_salt [32], on every rank of a masked site
    memory: Path | None = None  # beside the institution's ledger: what must outlive a run directory; leaders only

    @property
    def name(self) -> str:
        """The site's name."""
        return self.agreement.names[self.number - 1]

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for its site."""
        return self.site.rank == 0

    @property
    def masked(self) -> bool:
        """Whether sums are hidden: not with mode `off`, and not where there is one site."""
        return self.agreement.secure.mode == "pairwise" and len(self.members) > 1


@dataclass(frozen=True)
class SumPlan:
    """What one sum is: agreed on by all sites through M0."""

    round_: int
    purpose: str
    base: bytes  # the state the vector starts from [32]; NO_BASE for a statistic
    state: bytes  # the state before this round [32]
    factors: dict[str, float] = field(default_factory=dict)  # w_u / W by tensor; 1 where absent
    exponents: Mapping[str, NDArray[np.int32]] = field(
        default_factory=dict
    )  # by tensor, where each element has its own
    replicated: bool = False  # every rank of the site already holds the site's vector
    everyone: bool = False  # all sites of the roster must be in the sum
    skip: bool = False  # this site does without the sum rather than wait for long (`[cohort] upload_s`)
    absent: bool = False  # with `skip`: this site has nothing to put in, and does without at once
    following: bytes = b""  # where it may be skipped: the next state, which is known beforehand [32]
    layout_key: bytes = field(default=b"", repr=False)  # of the layout's hash in M0 [32]; empty where scales are public
    checkpointed: bool = False  # its caller makes the result durable, and says so by keep_until; else the sum is kept
    category: str = ""  # the ledger's class of the sum (labels.CLASS_…, or the statistic's name); empty: its purpose
    data: bytes = UNKNOWN  # of training: what the ledger may know of the site's store


@dataclass
class Opened:
    """An opened sum, before the sites have compared results."""

    plan: SumPlan
    sum_tree: bytes
    stages: Stages
    bytes_up: int
    bytes_down: int
    members: tuple[int, ...]  # the sites in the sum
    salt: bytes = field(repr=False)  # S, the sum of the sites' salts [40], on every rank; empty for one site
    round_trips: int = 0  # that followed one another, over a relay
    round_trips_exposed: int = 0  # of those, between the end of the upload and the beginning of the download


class RoundOverError(PeersError):
    """The round ended without this site: it must catch up. Raised on every rank of the site."""

    def __init__(self, round_: int, what: str) -> None:
        super().__init__(what, "this site catches up with the others and goes on with a later round")
        self.round_ = round_


@dataclass(frozen=True)
class CaughtUp:
    """A state that another site gave and τ sites signed."""

    round_: int  # the masked sum whose result it is
    data: NDArray[np.uint8]  # its arrays' bytes, joined
    whole: bool = False  # all sites of the roster are in that sum, as τ of them signed


class MaskedSums(Protocol):
    """Carries out masked sums. Every rank of the site makes every call, unless it says that leaders do."""

    name: str
    rails: int
    """Ranks of the site that carry a part of the vector."""

    def open(self, vector: Vector, plan: SumPlan, *, digest: bool = True) -> Opened:
        """Replace `vector`, in place and on every rank, by the sum over the sites.

        `digest`: hash the sum for M6; a benchmark leaves it out to time the sum alone.
        Raises DataError for numbers that have no place in the ring, PolicyError if the ledger forbids the sum or the
        sites do not agree; nothing of the vector has left the site then. RoundOverError: see there; also where the
        sites skip it (`plan.skip`). InterruptedRun, on every rank, where this site only waits and its life is to end.
        """
        ...

    def settle(self, opened: Opened, state: bytes) -> None:
        """Compare results with the other sites (M6): they hold the same sum and move to the same `state` [32].

        PolicyError or DataError names a site whose result differs; the caller must not apply or store the result then.
        """
        ...

    def announce(self, topic: str, message: bytes) -> dict[int, bytes]:
        """Tell the other sites `message`; what they have told so far under `topic`, by site. Leaders only.

        Unsigned: for what protects from mistakes, such as the names of columns.
        """
        ...

    def common_round(self, held: list[int]) -> int | None:
        """The newest of the rounds that this site `held` from which the federation can go on. Leaders only."""
        ...

    def attend(self, store: CheckpointStore) -> None:
        """Help sites that were away, from the checkpoints in `store`, until `leave`. Leaders only."""
        ...

    def catch_up(self, state: bytes, round_: int, nbytes: int) -> CaughtUp:
        """A later state than `state` [32], the result of training sum `round_`, from another site.

        `nbytes`: of its arrays. Raises PeersError if nobody gives it.
        """
        ...

    def is_free(self, base: bytes) -> bool:
        """Whether an update that began from state `base` [32] may still be summed: it is in no earlier round."""
        ...

    def keep_until(self, sums: int, *, given: bool = True) -> None:
        """Everything up to sum `sums` is durable elsewhere: what served to repeat it may go. Leaders only.

        `given`: a site that loses its run directory is given it by others, or the caller keeps it in a safe place.
        """
        ...

    def leave(self, *, refused: bool = False) -> None:
        """Say that this site sums nothing more, so that a site that still does need not wait. Leaders only.

        `refused`: the last sum of this site ended with its own input, which others are told without more.
        """
        ...

    def hear(self, word: str) -> str:
        """What any rank that must stop together with this one says, "" if all are silent; the same on all of them.

        Those are all ranks of the job: in one job of all sites, those of the other sites too.
        """
        ...

    def of(self, party: Party) -> Self:
        """The same for another party of the same ranks."""
        ...
