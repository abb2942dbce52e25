"""The global model: what all sites share, and the outer step over the masked mean of their updates.

Shared by the main loop and `sync`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.scales import refuse_beyond
from fedhpc.federation.session import Session
from fedhpc.federation.state_tensors import (
    TOTAL_WEIGHT,
    Arrays,
    fill_arrays,
    model_sha256,
    state_arrays,
    tensors_tree,
)
from fedhpc.federation.sum_result import rescaled
from fedhpc.federation.vector import Vector
from fedhpc.rounds.strategy import FedAvg, make_strategy
from fedhpc.rounds.update import MODEL, Base, Transform, refuse_lost, update_vector
from fedhpc.rounds.weights import Weights
from fedhpc.secure import labels
from fedhpc.secure.salt import NO_BLIND, blind_after
from fedhpc.secure.transcript import state_hash


class GlobalModel:
    """The shared tensors after some rounds, and the strategy's state. Equal at every site, to the last bit.

    `tensors`: float32 or float64 by name, in layout order. `averaged`: names that are averaged and not optimised, such
    as running statistics: an adaptive step has no meaning for a variance.
    """

    def __init__(
        self,
        session: Session,
        tensors: Tensors,
        averaged: frozenset[str] = frozenset(),
        *,
        weights_name: str = labels.PURPOSE_WEIGHTS,
        fresh: bool = True,
        checkpointed: bool = False,
        transforms: Sequence[Transform] = (),
    ) -> None:
        """`weights_name`: what the sum of the sites' weights is called in the ledger; one per model.

        `checkpointed`: each state is put into a checkpoint, after which nothing is kept to repeat its round (covered).
        `fresh`: False if `restore` follows, which hashes the state that counts. `transforms`: of this site's updates.
        """
        self._session = session
        self._checkpointed = checkpointed
        self._transforms = tuple(transforms)
        self.weights = Weights(session, weights_name)
        self._settings = session.agreement.strategy
        self._strategy = make_strategy(self._settings)
        self._average = FedAvg(1.0)
        self._averaged = averaged
        self.tensors = tensors
        self.outer: Tensors = {
            f"{state}/{name}": np.zeros_like(tensor)
            for name, tensor in tensors.items()
            if name not in averaged
            for state in self._strategy.names
        }
        self.rounds = 0
        """Training rounds done."""
        self.reached = 0
        """The masked sum whose result the present state is; 0 before the first training round."""
        # What was summed before may be in the first model, and its hash must not tell that.
        self.blind = blind_after(NO_BLIND, session.last_salt)
        """Part of the state, so that nobody outside can try out which model a state's hash is of [32]."""
        if fresh:
            session.tensors_tree = self._tree(self.tensors)

    def saved_outer(self) -> Tensors:
        """The strategy's state and W, for a checkpoint."""
        total = {} if self.weights.total is None else {TOTAL_WEIGHT: np.array([self.weights.total])}
        return self.outer | total

    def arrays(self) -> Arrays:
        """The arrays of the present state (state_tensors.py)."""
        return state_arrays(self.tensors, self.outer, self.weights.total, self.rounds, self.blind)

    def take_over(self, data: NDArray[np.uint8]) -> None:
        """Go on from a state that this site was given: the joined bytes of its arrays."""
        self.tensors = {name: tensor.copy() for name, tensor in self.tensors.items()}  # others may look at the old ones
        arrays = self.arrays()
        fill_arrays(arrays, data)
        weight, rounds, blind = float(arrays[-3][0]), int(arrays[-2][0]), arrays[-1].tobytes()
        self.weights.total, self.rounds, self.blind = weight or None, rounds, blind
        self._session.tensors_tree = self._tree(self.tensors)

    def go_on_from(self, tensors: Tensors, total_weight: float | None, salt: bytes) -> bytes:
        """Begin with the model and W of an earlier epoch, as the sum `start` gave them; the Tree of that state [32].

        `salt`: S of that sum [40]. A site that left the federation knows the model, but not what follows from S.
        """
        self.tensors, self.weights.total, self.blind = tensors, total_weight, blind_after(NO_BLIND, salt)
        return self._tree(tensors)

    def _tree(self, tensors: Tensors) -> bytes:
        arrays = state_arrays(tensors, self.outer, self.weights.total, self.rounds, self.blind)
        return tensors_tree(self._session.party.site, arrays)

    def restore(self, tensors: Tensors, outer: Mapping[str, NDArray[Any]], rounds: int, blind: bytes) -> None:
        """Continue from a checkpoint. Raises DataError if it belongs to another model or strategy."""
        shapes = {n: (t.shape, t.dtype) for n, t in self.tensors.items()}
        if shapes != {n: (t.shape, t.dtype) for n, t in tensors.items()}:
            raise DataError(
                "the checkpoint holds another model than this task builds", "did the task's options change?"
            )
        states = {n: a for n, a in outer.items() if n != TOTAL_WEIGHT}
        if states.keys() != self.outer.keys():
            raise DataError("the checkpoint holds the state of another strategy")
        self.tensors = tensors
        self.outer = states
        self.weights.total = float(outer[TOTAL_WEIGHT][0]) if TOTAL_WEIGHT in outer else None
        self.rounds, self.blind = rounds, blind
        self._session.tensors_tree = self._tree(tensors)

    @property
    def state(self) -> bytes:
        """The hash of the state after the last training round [32]."""
        return state_hash(self._session.agreement.hash, self.reached, self._session.tensors_tree)

    def base(self) -> Base:
        """What local training starts from now."""
        return Base(self.tensors, self._session.state, self.rounds)

    def exchange(self, local: Tensors, samples: float, base: Base | None = None) -> bool:
        """One round: replace the global tensors by the outer step over the mean update; whether all sites were in it.

        `base`: what `local` was trained from, where that may be an older model; absent: the present one. An older
        update is discounted (cohort/staleness.py) and applied to the present model.

        `local`: the site's tensors after training, equal on all its ranks. `samples`: its rows. Raises DataError for
        NaN, infinity or a bound, PolicyError for a sum that a false scale has rounded to zero; then the global tensors
        are as they were.
        """
        session = self._session
        base = base or self.base()
        share = self.weights.share(samples, self.rounds - base.rounds)
        if self._exchanges_nothing():
            refuse_beyond(local, math.inf, session.site)
            self.tensors = local
            self.rounds += 1
            session.round_ += 1
            session.tensors_tree = self._tree(local)
            return True
        # Step 1. The update in one vector; then its sum over the sites.
        vector, scales = update_vector(session, base, local, share, self._transforms)
        factors = {MODEL + name: share for name in self.tensors}
        plan = session.training(base.state, factors, scales, checkpointed=self._checkpointed)
        opened = session.open(vector, plan)
        refuse_lost(session.party, vector, scales)
        # Step 2. The outer step. The model is replaced only once the sites have compared what comes out.
        following = self._outer_step(vector, self.weights.of_all_over(opened.members))
        self.rounds += 1
        self.blind = blind_after(self.blind, opened.salt)
        session.settle(opened, self._tree(following))
        self.tensors, self.reached = following, session.round_
        return len(opened.members) == len(session.sites)

    def _exchanges_nothing(self) -> bool:
        """One site alone, averaged: x − (x − local) would lose bits, and plain training must come out."""
        plain = isinstance(self._strategy, FedAvg) and self._settings.outer_lr == 1.0 and not self._transforms
        return plain and len(self._session.sites) == 1

    def _outer_step(self, vector: Vector, again: float) -> Tensors:
        """The next global tensors, from the summed `vector` times `again`; changes the strategy's state in place."""
        following: Tensors = {}
        for name, tensor in self.tensors.items():
            update = vector.view(MODEL + name).astype(tensor.dtype, copy=False)
            if again != 1.0:
                update = rescaled(update, again)
            if name in self._averaged:
                step = self._average.step(tensor, update, {})
            else:
                state = {s: self.outer[f"{s}/{name}"] for s in self._strategy.names}
                step = self._strategy.step(tensor, update, state)
            following[name] = np.asarray(step)  # NumPy makes a scalar of a tensor without dimensions
        return following

    def facts(self) -> dict[str, Any]:
        """What a round's record says of the state (app/telemetry.py)."""
        session = self._session
        # Where it is written only: hashing a model takes as long as reading it from memory.
        sha256 = self.sha256() if session.leads else None
        return {"sites": session.sites, "state": session.state.hex(), "model_sha256": sha256}

    def sha256(self) -> str:
        """As `model_sha256`. It stays at the sites."""
        return model_sha256(self.tensors)
