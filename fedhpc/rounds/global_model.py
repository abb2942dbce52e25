"""The global model: what all sites share, and the outer step over the masked mean of their updates.

Shared by the main loop and `sync`. Each rank of a site keeps its part of the model and of the outer state, and takes
the outer step on it (federation/ranges.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError
from fedhpc.federation.checkpoint import Source, Tensors, read_into
from fedhpc.federation.held_stream import HeldStream, whole_tensors
from fedhpc.federation.ranges import Held, forms_of
from fedhpc.federation.scales import refuse_beyond
from fedhpc.federation.session import Session
from fedhpc.federation.state_tensors import TOTAL_WEIGHT, Arrays, model_name, state_arrays
from fedhpc.federation.sum_result import rescaled
from fedhpc.federation.vector import Vector
from fedhpc.rounds.strategy import FedAvg, make_strategy
from fedhpc.rounds.update import MODEL, Base, Transform, largest_held, refuse_lost, update_vector
from fedhpc.rounds.weights import Weights
from fedhpc.secure import labels
from fedhpc.secure.salt import NO_BLIND, blind_after
from fedhpc.secure.transcript import state_hash

_T = TypeVar("_T")


class GlobalModel:
    """The shared tensors after some rounds, and the strategy's state. Equal at every site, to the last bit.

    `tensors`: what this rank holds of them, float32 or float64 by name, in layout order. `averaged`: names that are
    averaged and not optimised, such as running statistics: an adaptive step has no meaning for a variance.
    """

    def __init__(
        self,
        session: Session,
        tensors: Tensors,
        averaged: frozenset[str] = frozenset(),
        *,
        held: Held | None = None,
        weights_name: str = labels.PURPOSE_WEIGHTS,
        fresh: bool = True,
        checkpointed: bool = False,
        transforms: Sequence[Transform] = (),
    ) -> None:
        """`held`: what each rank holds of the model; absent: all of it.

        `weights_name`: what the sum of the sites' weights is called in the ledger; one per model. `checkpointed`: each
        state is put into a checkpoint, after which nothing is kept to repeat its round (covered). `fresh`: False if
        `restore` follows, which hashes the state that counts. `transforms`: of this site's updates.
        """
        self._session = session
        self._checkpointed = checkpointed
        self._transforms = tuple(transforms)
        self.weights = Weights(session, weights_name)
        self._settings = session.agreement.strategy
        self._strategy = make_strategy(self._settings)
        self._average = FedAvg(1.0)
        self._averaged = averaged
        self.held = Held(session.party.site, forms_of(tensors)) if held is None else held
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
        """The strategy's state, as much as this rank holds, and W, for a checkpoint."""
        total = {} if self.weights.total is None else {TOTAL_WEIGHT: np.array([self.weights.total])}
        return self.outer | total

    def _stream(self, tensors: Tensors, arrays: Arrays) -> HeldStream:
        """The state of `arrays` (state_tensors.py), whose first are `tensors`."""
        cut_as: list[str | None] = [*tensors, *(model_name(name) for name in sorted(self.outer))]
        cut_as += [None] * (len(arrays) - len(cut_as))
        return HeldStream(self.held, list(zip(cut_as, arrays, strict=True)))

    def arrays(self) -> Arrays:
        """What this rank holds of the arrays of the present state (state_tensors.py)."""
        return state_arrays(self.tensors, self.outer, self.weights.total, self.rounds, self.blind)

    def take_over(self, fill: Callable[[HeldStream], _T]) -> _T:
        """Go on from a state that this site is given: `fill` puts it into the stream, of which each rank has its part.

        Every rank calls it. What is there stays as it is until `fill` has returned; gives what it returned.
        """
        tensors = self.held.empty()
        outer = {name: np.empty_like(array) for name, array in self.outer.items()}
        arrays = state_arrays(tensors, outer, None, 0, NO_BLIND)
        given = fill(self._stream(tensors, arrays))
        site = self._session.party.site
        tail = site.broadcast_bytes(b"".join(a.tobytes() for a in arrays[-3:]) if site.rank == 0 else None)
        weight, rounds = float(np.frombuffer(tail[:8], "<f8")[0]), int.from_bytes(tail[8:16], "little")
        self.tensors, self.outer = tensors, outer
        self.weights.total, self.rounds, self.blind = weight or None, rounds, tail[16:]
        self._session.tensors_tree = self._tree(self.tensors)
        return given

    def go_on_from(self, tensors: Tensors, total_weight: float | None, salt: bytes) -> bytes:
        """Begin with the model and W of an earlier epoch, as the sum `start` gave them; the Tree of that state [32].

        `salt`: S of that sum [40]. A site that left the federation knows the model, but not what follows from S.
        """
        self.tensors, self.weights.total, self.blind = tensors, total_weight, blind_after(NO_BLIND, salt)
        return self._tree(tensors)

    def _tree(self, tensors: Tensors) -> bytes:
        arrays = state_arrays(tensors, self.outer, self.weights.total, self.rounds, self.blind)
        arrays = [np.ascontiguousarray(array) for array in arrays]
        return self._stream(tensors, arrays).tree(self._session.agreement.secure.tree)

    def restore(self, tensors: Tensors, outer: Mapping[str, NDArray[Any]], rounds: int, blind: bytes) -> None:
        """Continue from what this rank holds of a checkpoint. Raises DataError for another model or strategy."""
        shapes = {n: (t.shape, t.dtype) for n, t in tensors.items()}
        if shapes != {n: (self.held.piece_shape(n), form.dtype) for n, form in self.held.forms.items()}:
            raise DataError(
                "the checkpoint holds another model than this task builds", "did the task's options change?"
            )
        states = {n: a for n, a in outer.items() if n != TOTAL_WEIGHT}
        if states.keys() != self.outer.keys():
            raise DataError("the checkpoint holds the state of another strategy")
        self.tensors, self.outer = tensors, states
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

    def exchange(self, local: Source, samples: float, base: Base | None = None) -> bool:
        """One round: replace the global tensors by the outer step over the mean update; whether all sites were in it.

        `base`: what `local` was trained from, where that may be an older model; absent: the present one. An older
        update is discounted (cohort/staleness.py) and applied to the present model.

        `local`: the site's tensors after training, what this rank holds of them. `samples`: its rows. Raises DataError
        for NaN, infinity or a bound, PolicyError for a sum that a false scale has rounded to zero; then the global
        tensors are as they were.
        """
        session = self._session
        base = base or self.base()
        share = self.weights.share(samples, self.rounds - base.rounds)
        if self._exchanges_nothing():
            return self._take_local(local)
        # Step 1. The update in one vector; then its sum over the sites.
        vector, scales = update_vector(session, self.held, base, local, share, self._transforms)
        factors = {MODEL + name: share for name in self.tensors}
        by_range = not self.held.replicated
        plan = session.training(base.state, factors, scales, checkpointed=self._checkpointed, by_range=by_range)
        opened = session.open(vector, plan)
        refuse_lost(session, self.held, vector, scales)
        # Step 2. The outer step. The model is replaced only once the sites have compared what comes out.
        following = self._outer_step(vector, self.weights.of_all_over(opened.members))
        self.rounds += 1
        self.blind = blind_after(self.blind, opened.salt)
        session.settle(opened, self._tree(following))
        self.tensors, self.reached = following, session.round_
        return len(opened.members) == len(session.sites)

    def _take_local(self, local: Source) -> bool:
        session = self._session
        tensors = self.held.empty()
        read_into(tensors, local)
        refuse_beyond(largest_held(self.held, tensors), math.inf, session.site)
        self.tensors = tensors
        self.rounds += 1
        session.round_ += 1
        session.tensors_tree = self._tree(tensors)
        return True

    def _exchanges_nothing(self) -> bool:
        """One site alone, averaged: x − (x − local) would lose bits, and plain training must come out."""
        plain = isinstance(self._strategy, FedAvg) and self._settings.outer_lr == 1.0 and not self._transforms
        return plain and len(self._session.sites) == 1

    def _outer_step(self, vector: Vector, again: float) -> Tensors:
        """The next global tensors, from the summed `vector` times `again`; changes the strategy's state in place."""
        following: Tensors = {}
        summed = vector.held()
        for name, tensor in self.tensors.items():
            memory = summed[MODEL + name]
            update = memory.astype(tensor.dtype, copy=False)
            if again != 1.0:
                update = rescaled(update, again)
            if name in self._averaged:
                step = self._average.step(tensor, update, {})
            else:
                state = {s: self.outer[f"{s}/{name}"] for s in self._strategy.names}
                step = self._strategy.step(tensor, update, state)
            # The sum's memory is free then, unless it is kept for a script that starts again.
            if self._checkpointed and memory.dtype == tensor.dtype:
                np.copyto(memory, step)
                following[name] = memory
            else:
                following[name] = np.asarray(step)  # NumPy makes a scalar of a tensor without dimensions
        return following

    def facts(self) -> dict[str, Any]:
        """What a round's record says of the state (app/telemetry.py). Every rank calls it."""
        session = self._session
        # Where it is written only: hashing a model takes as long as reading it from memory.
        sha256 = None if self.held.replicated and not session.leads else self.sha256()
        return {"sites": session.sites, "state": session.state.hex(), "model_sha256": sha256}

    def whole(self) -> Tensors:
        """Copies of all tensors, in their shapes, on every rank: for small models only. Every rank calls it."""
        return whole_tensors(self.held, self.tensors)

    def sha256(self) -> str:
        """As `model_sha256`. It stays at the sites. Every rank calls it where each holds its own part."""
        return HeldStream(self.held, list(self.tensors.items())).sha256()
