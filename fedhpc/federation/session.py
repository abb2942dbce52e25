"""One rank's hold on a joined federation: which state it is in, and the masked sums that lead to the next one."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import numpy as np

from fedhpc.errors import ConfigError, DataError, InterruptedRun
from fedhpc.federation.finished_sums import NONE_FINISHED
from fedhpc.federation.going_on import round_of
from fedhpc.federation.party import NO_BASE, MaskedSums, Opened, Party, RoundOverError, SumPlan
from fedhpc.federation.scales import PUBLIC, Scales
from fedhpc.federation.sum_result import Spent, Sums
from fedhpc.federation.vector import Vector
from fedhpc.federation.weighted_sum import weighted_sum
from fedhpc.mpi.world import abort_on_exit
from fedhpc.secure import labels
from fedhpc.secure.ledger import UNKNOWN
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.secure.salt import layout_key
from fedhpc.secure.transcript import state_hash, tree

_WEIGHT_BOUND = 2.0**40


class Session:
    """A party's sums and state. Every rank of every site makes the same calls in the same order."""

    def __init__(self, party: Party, sums: MaskedSums) -> None:
        self.party = party
        self.sums = sums
        self.round_ = 0
        """Masked sums finished: the protocol's round number."""
        self.finished = NONE_FINISHED
        """The last sum that an earlier process of this site finished, over a relay."""
        self.tensors_tree = tree(b"")
        """Tree(tensors) of the global model, part of every state's hash."""
        self.last_salt = b""
        """S of the newest finished sum [40]: known to the sites in it and to nobody else; empty before the first."""
        self.data = UNKNOWN
        """What the ledger may know of the store that is trained on [64]; unknown for a loop of the user's own."""
        self.spent = Spent()
        """Costs since `take_spent`."""
        self.warned: set[tuple[str | None, str]] = set()
        """(name, array) of sums whose rounding people were told of."""
        self._closed = False
        self._refused = False  # the last sum, for what this site was to put into it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = error is None or (isinstance(error, SystemExit) and error.code in (None, 0))
        if ended or (isinstance(error, InterruptedRun) and error.agreed):
            self.close()
        elif isinstance(error, SystemExit):
            abort_on_exit(error)
        else:
            self._release()  # this site cannot wait for the others now; the abort hook ends the job

    def close(self) -> None:
        """Leave the federation: the leaders meet once more, and no sum is possible afterwards. Safe to call twice.

        A site that sums while another one leaves gets a PeersError instead of waiting for ever.
        """
        if not self._closed and self.party.leads:
            self.sums.leave(refused=self._refused)
        self._release()

    def _release(self) -> None:
        self._closed = True
        if self.party.journal is not None:
            self.party.journal.close()

    @property
    def site(self) -> str:
        """This site's name."""
        return self.party.name

    @property
    def sites(self) -> list[str]:
        """All sites, in roster order."""
        return self.party.agreement.names

    @property
    def rank(self) -> int:
        """This process's rank in its site."""
        return self.party.site.rank

    @property
    def ranks(self) -> int:
        """The number of ranks of this site."""
        return self.party.site.size

    def forget(self) -> None:
        """Drop what is kept to repeat the sums so far. Call it after your script has saved what it needs of them.

        Over a relay a script that is killed gets all finished sums again until then, from the site's disk; afterwards
        it must start from what it saved. Every rank of every site calls it after the same sum; over mpi it is nothing.
        """
        self._refuse_closed()
        self.party.site.barrier()  # every rank has saved
        if self.party.leads:
            self.sums.keep_until(self.round_)

    def take_spent(self) -> Spent:
        """The costs of the sums since the last call."""
        spent, self.spent = self.spent, Spent()
        return spent

    @property
    def state(self) -> bytes:
        """The hash of the present state [32]."""
        return self._state_after(self.round_, self.tensors_tree)

    def _state_after(self, round_: int, tensors_tree: bytes) -> bytes:
        return state_hash(self.party.agreement.hash, round_, tensors_tree)

    def weight_share(self, weight: float, name: str | None = None) -> float:
        """w_u / W for this site's private `weight`, 0 to 2^40; W is a masked sum.

        Whole numbers are exact, fractions are rounded to a public grid (2^-20 for 3 sites, 2^-15 for
        100), here as in W, so that shares add up to 1.
        """
        weight = self.from_leader(weight)  # all ranks of the site must scale their parts alike
        total = self._sum_of_weights(weight, name)
        if total["weight"] <= 0:
            raise DataError("the weights of all sites add up to 0", "at least one site must have rows")
        grid = total.quantum["weight"]
        return (round(weight / grid) * grid if grid else weight) / float(total["weight"])

    def total_weight(self, weight: float, name: str | None = None) -> float:
        """W, the sum of every site's private `weight`."""
        return float(self._sum_of_weights(weight, name)["weight"])

    @contextmanager
    def own_input(self) -> Iterator[None]:
        """Remembers whether the last sum ended with this site's own numbers: others must not wait in vain for why."""
        try:
            yield
            self._refused = False
        except DataError:
            self._refused = True
            raise

    def _sum_of_weights(self, weight: float, name: str | None) -> Sums:
        if not (math.isfinite(weight) and 0 <= weight <= _WEIGHT_BOUND):
            raise DataError(f"site {self.site} has the weight {weight}", "weights are finite and at least 0")
        weights = {"weight": np.float64(weight)}
        # W over two sets that differ in one site would be that site's size, so it is always the sum over all.
        name = name or f"weights {self.round_ + 1}"
        category = labels.CLASS_WEIGHTS
        found = weighted_sum(self, weights, 1.0, bound=_WEIGHT_BOUND, name=name, everyone=True, category=category)
        assert found is not None
        return found

    def from_leader(self, number: float) -> float:
        """The `number` of this site's rank 0, on all its ranks."""
        return float(struct.unpack("<d", self.party.site.broadcast_bytes(struct.pack("<d", number)))[0])

    def layout(self, tensors: Sequence[Tensor]) -> Layout:
        """The layout of a vector of this federation."""
        return Layout(tensors, salted=len(self.sites) > 1)

    def add(
        self,
        vector: Vector,
        purpose: str,
        factors: dict[str, float] | None = None,
        scales: Scales = PUBLIC,
        *,
        everyone: bool = False,
        skip: bool = False,
        absent: bool = False,
        category: str = "",
    ) -> Opened | None:
        """Replace a statistic's `vector` by its sum and finish the round. The model stays as it is.

        `category`: the ledger's class of it; empty: its purpose. `absent`: see SumPlan.
        None, with `skip`, if the round ended without a sum here: the sites skipped it, or this site was away.
        """
        self._refuse_closed()
        round_ = round_of(self, purpose)
        following = self._state_after(round_, self.tensors_tree)
        how = {"everyone": everyone, "skip": skip, "absent": absent, "following": following, "category": category}
        plan = self._plan(round_, purpose, NO_BASE, factors or {}, scales, exponents=scales.exponents, **how)
        salt = self.last_salt
        try:
            opened = self.sums.open(vector, plan)
            self.finish(opened, self.tensors_tree)
        except RoundOverError:
            if not skip:
                raise
            self.round_ = max(self.round_, plan.round_)  # a statistic leaves the tensors, so the next state is known
            return None
        if skip:
            self.last_salt = salt  # some sites may hold this sum and others not
        return opened

    def begin_training_sum(
        self, vector: Vector, factors: dict[str, float], base: bytes, scales: Scales, *, checkpointed: bool = False
    ) -> Opened:
        """Replace an update's `vector`, equal on all ranks of the site, by its sum; `finish` it with the new model.

        `base`: the hash of the state that the update began from [32]. `checkpointed`: see SumPlan.
        """
        self._refuse_closed()
        how = {"replicated": True, "checkpointed": checkpointed, "category": labels.CLASS_TRAIN, "data": self.data}
        plan = self._plan(self.round_ + 1, labels.PURPOSE_TRAIN, base, factors, scales, **how)
        return self.sums.open(vector, plan)

    def _plan(
        self, round_: int, purpose: str, base: bytes, factors: dict[str, float], scales: Scales, **how: Any
    ) -> SumPlan:
        key = layout_key(self.party.agreement.hash, round_, scales.salt)
        return SumPlan(round_, purpose, base, self.state, factors, layout_key=key, **how)

    def finish(self, opened: Opened, tensors_tree: bytes) -> None:
        """Compare results with the other sites and move to the next state, whose tensors have this Tree [32]."""
        self.sums.settle(opened, self._state_after(opened.plan.round_, tensors_tree))
        self.round_ = max(self.round_, opened.plan.round_)
        self.tensors_tree, self.last_salt = tensors_tree, opened.salt
        self.spent.add(opened)

    def _refuse_closed(self) -> None:
        if self._closed:  # told on every rank: only the leader has a ledger to miss
            raise ConfigError("the federation is closed", "sum inside its `with` block, or join again")
