"""One rank's hold on a joined federation: which state it is in, and the masked sums that lead to the next one."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from fedhpc.agreement.federation_file import Agreement
from fedhpc.errors import ConfigError, DataError, InterruptedRun
from fedhpc.federation.going_on import NONE_FINISHED, round_of
from fedhpc.federation.input_check import inspect, share
from fedhpc.federation.other_sites import Peers, Recovery, Summing
from fedhpc.federation.party import Checked, Opened, Party, RoundOverError, SumKind, SumPlan
from fedhpc.federation.scales import PUBLIC, Scales
from fedhpc.federation.spent import Spent
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector, parts
from fedhpc.mpi.world import abort_on_exit
from fedhpc.secure import labels
from fedhpc.secure.ledger import UNKNOWN
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.secure.salt import layout_key
from fedhpc.secure.transcript import state_hash


class Session:
    """A party's sums and state. Every rank of every site makes the same calls in the same order."""

    def __init__(self, party: Party, sums: Summing, peers: Peers, recovery: Recovery) -> None:
        self.party = party
        self.sums, self.peers, self.recovery = sums, peers, recovery
        self.round_ = 0
        """Masked sums finished: the protocol's round number."""
        self.finished = NONE_FINISHED
        """The last sum that an earlier process of this site finished, over a relay."""
        self.tensors_tree = party.agreement.secure.tree.tree(b"")
        """Tree(tensors) of the global model, part of every state's hash."""
        self.last_salt = b""
        """S of the newest finished sum [40]: known only to the sites in it; empty before the first."""
        self.data = UNKNOWN
        """What the ledger may know of the store that is trained on [64]; unknown for a loop of the user's own."""
        self.spent = Spent()
        """Costs since `take_spent`."""
        self.warned: set[tuple[str | None, str]] = set()
        """(name, array) of sums for which a warning about rounding was given."""
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

        A site that sums while another one leaves gets a PeersError instead of waiting forever. In one job the sites
        sign what they hold; PolicyError names one that holds something else.
        """
        try:
            if not self._closed and self.party.leads:
                self.sums.leave()
                self.recovery.leave()
                self.peers.leave(refused=self._refused)
        finally:
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
        return self.agreement.names

    @property
    def rank(self) -> int:
        """This process's rank in its site."""
        return self.party.site.rank

    @property
    def ranks(self) -> int:
        """The number of ranks of this site."""
        return self.party.site.size

    @property
    def agreement(self) -> Agreement:
        """What all sites have signed."""
        return self.party.agreement

    @property
    def rounds(self) -> int:
        """The agreed number of training rounds."""
        return self.agreement.federation.rounds

    @property
    def seed(self) -> int:
        """The agreed seed of local training."""
        return self.agreement.federation.seed

    @property
    def leads(self) -> bool:
        """Whether this rank speaks for its site."""
        return self.party.leads

    def forget(self) -> None:
        """Every rank of the site has saved what it needs of the sums so far: drop what is kept to repeat them.

        Within one job of all sites they sign first what they hold; PolicyError if one holds something else.
        """
        self._refuse_closed()
        self.sign_state()
        self.party.site.barrier()
        self.covered()

    def sign_state(self) -> tuple[bytes, ...]:
        """What all sites signed of the present state, for a checkpoint of it. Every rank may call; the leader acts.

        See Summing.
        """
        return self.sums.sign_state(self.state) if self.party.leads else ()

    def covered(self, *, given: bool = True) -> None:
        """Everything up to the newest sum is durable elsewhere. Every rank may call; the leader acts. See Summing."""
        if self.party.leads:
            self.sums.covered(self.round_, given=given)

    def take_spent(self) -> Spent:
        """The costs of the sums since the last call."""
        spent, self.spent = self.spent, Spent()
        return spent

    @property
    def state(self) -> bytes:
        """The hash of the present state [32]."""
        return self._state_after(self.round_, self.tensors_tree)

    def _state_after(self, round_: int, tensors_tree: bytes) -> bytes:
        return state_hash(self.agreement.hash, round_, tensors_tree)

    @contextmanager
    def own_input(self) -> Iterator[None]:
        """Remember whether the last sum was refused for this site's own numbers, which `close` tells the others."""
        try:
            yield
            self._refused = False
        except DataError:
            self._refused = True
            raise

    def from_leader(self, number: float) -> float:
        """The `number` of this site's rank 0, on all its ranks."""
        return float(struct.unpack("<d", self.party.site.broadcast_bytes(struct.pack("<d", number)))[0])

    def layout(self, tensors: Sequence[Tensor]) -> Layout:
        """The layout of a vector of this federation."""
        return Layout(tensors, salted=len(self.sites) > 1)

    def statistic(
        self,
        purpose: str,
        factors: dict[str, float] | None = None,
        scales: Scales = PUBLIC,
        *,
        everyone: bool = False,
        skip: bool = False,
        absent: bool = False,
        category: str = "",
    ) -> SumPlan:
        """The plan of a sum that leaves the model as it is, in the next round or the one it has had before.

        `category`: the ledger's class of it; empty: its purpose. `skip`, `absent`: see SumPlan. Every rank calls.
        """
        self._refuse_closed()
        round_ = round_of(self, purpose)
        return SumPlan(
            round_,
            purpose,
            SumKind.STATISTIC,
            self.state,
            factors=factors or {},
            exponents=scales.exponents,
            everyone=everyone,
            skip=skip,
            absent=absent,
            following=self._state_after(round_, self.tensors_tree),
            layout_key=self._layout_key(round_, scales),
            category=category,
        )

    def training(
        self,
        base: bytes,
        factors: dict[str, float],
        scales: Scales,
        *,
        checkpointed: bool = False,
        by_range: bool = False,
    ) -> SumPlan:
        """The plan of a round's update, whose vector every rank of the site holds, or its part of it (`by_range`).

        `base`: the hash of the state that the update began from [32]. `checkpointed`: see SumPlan.
        """
        round_ = self.round_ + 1
        return SumPlan(
            round_,
            labels.PURPOSE_TRAIN,
            SumKind.TRAINING,
            self.state,
            base,
            factors,
            replicated=not by_range,
            by_range=by_range,
            layout_key=self._layout_key(round_, scales),
            checkpointed=checkpointed,
            category=labels.CLASS_TRAIN,
            data=self.data,
        )

    def parts(self, nbytes: int) -> list[tuple[int, int]]:
        """(start, stop) in bytes of what each rank of this site carries of a vector; ranks without a rail come last."""
        carried = parts(nbytes, self.sums.rails)
        return carried + [(nbytes, nbytes)] * (self.ranks - len(carried))

    def _layout_key(self, round_: int, scales: Scales) -> bytes:
        return layout_key(self.agreement.hash, round_, scales.salt)

    def open(self, vector: Vector, plan: SumPlan) -> Opened:
        """Replace what each rank holds of `vector`, in place, by the sum over the sites; `settle` it then.

        The one door of every sum, whatever its kind and however the sites are connected. Faults in this site's own
        numbers are found here, before any rank waits for another site. Raises DataError for numbers that have no place
        in the ring, and what `Summing.open` raises.
        """
        self._refuse_closed()
        party, stages = self.party, Stages()
        with stages.timed("share"):
            share(party, vector, plan)
            bounds = self.parts(vector.layout.nbytes)
        if len(party.members) == 1:
            return Opened(plan, bytes(32), stages, 0, 0, (party.number,), b"")
        part = bounds[party.site.rank]
        with stages.timed("ledger"):
            mark = inspect(party, vector, plan, bounds)
        summed = self.sums.open(Checked(plan, vector, part, mark), stages)
        with stages.timed("share"):
            if party.site.size > 1 and not plan.by_range:
                party.site.gather_parts(vector.whole(), bounds)
            salt = vector.salt.tobytes()
            if plan.by_range:
                salt = b"".join(party.site.gather_bytes(salt))
        return Opened(
            plan,
            summed.tree,
            stages,
            summed.bytes_up,
            summed.bytes_down,
            summed.members,
            salt,
            summed.round_trips,
            summed.round_trips_exposed,
        )

    def settle(self, opened: Opened, tensors_tree: bytes) -> None:
        """Compare results with the other sites and move to the next state, whose tensors have this Tree [32]."""
        self.sums.settle(opened, self._state_after(opened.plan.round_, tensors_tree))
        self.round_ = max(self.round_, opened.plan.round_)
        self.tensors_tree, self.last_salt = tensors_tree, opened.salt
        self.spent.add(opened)

    def add(self, vector: Vector, plan: SumPlan) -> Opened | None:
        """Open and settle a statistic.

        None, where it may be skipped, if the round ended without a sum here: the sites skipped it, or this site was
        away.
        """
        salt = self.last_salt
        try:
            opened = self.open(vector, plan)
            self.settle(opened, self.tensors_tree)
        except RoundOverError:
            if not plan.skip:
                raise
            self.round_ = max(self.round_, plan.round_)  # a statistic leaves the tensors, so the next state is known
            return None
        if plan.skip:
            self.last_salt = salt  # some sites may hold this sum and others not
        return opened

    def _refuse_closed(self) -> None:
        if self._closed:  # told on every rank: only the leader has a ledger to miss
            raise ConfigError("the federation is closed", "sum inside its `with` block, or join again")
