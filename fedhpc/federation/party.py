"""Who takes part in a sum, what the sum is, and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedhpc.agreement.federation_file import Agreement
from fedhpc.errors import PeersError
from fedhpc.federation.cores import ONE, Cores
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.ledger.journal import Journal
from fedhpc.mpi.collectives import Group
from fedhpc.secure.ledger import UNKNOWN, LedgerKeys, Mark
from fedhpc.secure.pairwise import Member
from fedhpc.secure.suite import Suite
from fedhpc.secure.transcript import input_hash

NEXT_EPOCH = "the coordinator begins the next epoch, which goes on from the newest model: `fedhpc federation next`"
GIVEN_EPOCH = (
    "the coordinator begins the next epoch from a model in a file, which `fedhpc export` writes at a site that has "
    "one: `fedhpc federation next --from-model FILE`"
)
"""What helps a site that has lost its model, and would have to give or compare one in an epoch that goes on."""


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
    cores: Cores = ONE  # of this rank

    @property
    def name(self) -> str:
        """The site's name."""
        return self.agreement.names[self.number - 1]

    def suite_of(self, plan: SumPlan) -> Suite | None:
        """What the opened sum of `plan` is hashed with; None where nobody compares it."""
        return self.agreement.secure.tree if plan.names_sum else None

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for its site."""
        return self.site.rank == 0

    @property
    def masked(self) -> bool:
        """Whether sums are hidden: not with mode `off`, and not where there is one site."""
        return self.agreement.secure.mode == "pairwise" and len(self.members) > 1


class SumKind(Enum):
    """What becomes of the model by a sum."""

    STATISTIC = "statistic"
    """It stays as it is."""
    TRAINING = "training"
    """The sum makes the next one: a round's update, or the start of an epoch."""


NO_BASE = bytes(32)
"""How the protocol writes the base of a statistic."""


@dataclass(frozen=True)
class SumPlan:
    """What one sum is: agreed on by all sites through M0."""

    round_: int
    purpose: str
    kind: SumKind
    state: bytes  # the state before this round [32]
    base: bytes = NO_BASE  # of training: the state that the vector starts from [32]
    factors: dict[str, float] = field(default_factory=dict)  # w_u / W by tensor; 1 where absent
    exponents: Mapping[str, NDArray[np.int32]] = field(
        default_factory=dict
    )  # by tensor, where each element has its own
    replicated: bool = False  # every rank of the site already holds the site's vector
    by_range: bool = False  # each holds its part of it, and gets that part of the sum
    everyone: bool = False  # all sites of the roster must be in the sum
    skip: bool = False  # this site does without the sum rather than wait for long (`[cohort] upload_s`)
    absent: bool = False  # with `skip`: this site has nothing to put in, and does without at once
    following: bytes = b""  # where it may be skipped: the next state, which is known beforehand [32]
    layout_key: bytes = field(default=b"", repr=False)  # of the layout's hash in M0 [32]; empty where scales are public
    checkpointed: bool = False  # its caller makes the result durable and says `covered` then; else the sum is kept
    category: str = ""  # the ledger's class of the sum (labels.CLASS_…, or the statistic's name); empty: its purpose
    data: bytes = UNKNOWN  # of training: what the ledger may know of the site's store

    @property
    def names_sum(self) -> bool:
        """Whether M6 names Tree(X): not where the next state that it names depends on X anyway."""
        return self.kind is SumKind.STATISTIC

    @property
    def input(self) -> bytes:
        """What the ledger knows the sum by [32]: its purpose and base."""
        return input_hash(self.purpose, self.base)


@dataclass(frozen=True)
class Checked:
    """A site's own vector as it goes into a sum: salted and checked, the same on all ranks that hold the same of it."""

    plan: SumPlan
    vector: Vector
    part: tuple[int, int]  # bytes of the vector that this rank carries
    mark: Mark  # what the ledger remembers of the vector; empty at ranks that are not their site's leader


@dataclass(frozen=True)
class Summed:
    """What carrying out a sum gives, beside the numbers in each rank's part."""

    tree: bytes  # Tree(X) of the sum [32]; empty where M6 does not name it
    bytes_up: int
    bytes_down: int
    members: tuple[int, ...]  # the sites in the sum
    round_trips: int = 0  # that followed one another, over a relay
    round_trips_exposed: int = 0  # of those, between the end of the upload and the beginning of the download


@dataclass
class Opened:
    """An opened sum, before the sites have compared results."""

    plan: SumPlan
    sum_tree: bytes  # as Summed.tree
    stages: Stages
    bytes_up: int
    bytes_down: int
    members: tuple[int, ...]  # the sites in the sum
    salt: bytes = field(repr=False)  # S, the sum of the sites' salts [40], on every rank; empty for one site
    round_trips: int = 0  # see Summed
    round_trips_exposed: int = 0


class RoundOverError(PeersError):
    """The round ended without this site: it must catch up. Raised on every rank of the site."""

    def __init__(self, round_: int, what: str) -> None:
        super().__init__(what, "this site catches up with the others and goes on with a later round")
        self.round_ = round_
