"""`fed.sync(model, optimizer)`: federated training inside your own PyTorch loop.

    sync = fed.sync(model, optimizer, every=20, weight=len(dataset))
    for batch in loader:
        loss(model, batch).backward(); optimizer.step(); sync.step()

After every `every` steps the sites' models meet: the strategy of federation.toml is applied to the masked mean of the
updates, and the model goes on from the result. Where sites take different numbers of steps, `for batch in
sync.epoch(loader)` has them meet at the ends of their epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.checkpoint import Source, Tensors
from fedhpc.federation.ranges import Held
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.update import held_in

if TYPE_CHECKING:
    import torch

    from fedhpc.federation.session import Session


_Batch = TypeVar("_Batch")


class Sync:
    """Counts local steps and exchanges models.

    Every rank of every site calls `step` equally often, or begins and ends equally many epochs.
    """

    def __init__(
        self,
        session: Session,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        every: int | None = None,
        weight: int | None = None,
        keep_optimizer_state: bool = True,
    ) -> None:
        """The parameters are told where users find them: `Federation.sync`."""
        steps = session.agreement.train.get("local_steps", 1) if every is None else every
        if type(steps) is not int or steps < 1:
            raise ConfigError(f"sync(every={steps!r})", "a whole number of local steps, at least 1")
        if weight is None and session.agreement.strategy.weights == "samples":
            raise ConfigError(
                "sync needs weight=, this site's number of training rows",
                'or set [strategy] weights = "uniform" in federation.toml',
            )
        from fedhpc.train.own_shards import OwnShards, is_dealt_out

        self._model = _unwrapped(model)
        self._site = session.party.site
        self._shards = OwnShards(self._model) if is_dealt_out(self._model) else None
        if self._shards is None:
            self._refuse_parts()
        self._optimizer = optimizer
        self._every = steps
        # A site is one party: its leader's weight counts, whatever share of the rows the other ranks hold.
        self._weight = session.from_leader(weight or 0)
        self._keep = keep_optimizer_state
        self._count = 0
        self._epoch = ""  # "under way", or "left" by a loop that did not come to its end
        self._session = session
        self._held = Held(self._site, {}) if self._shards is None else held_in(session, self._shards.forms())
        self._global = GlobalModel(
            session,
            self._tensors(),
            self._buffers(),
            held=None if self._shards is None else self._held,
            weights_name=f"weights of sync after round {session.round_}",
        )

    def step(self) -> bool:
        """Call after each optimiser step. True when the models were exchanged in this call."""
        self._count += 1
        if self._epoch or self._count % self._every:
            return False
        self.exchange()
        return True

    def epoch(self, batches: Iterable[_Batch], *, meet: int = 1) -> Iterator[_Batch]:
        """One pass over this site's `batches`, in which the sites' models meet `meet` times, the same at all sites.

        A site of 700 rows takes more steps than one of 300, and all meet when each has done its part: after 1/meet of
        its batches, and so on to the last. No site learns how many steps another took. With `weight=` the number of
        rows the update of each counts as much as the steps it took. `step` only counts meanwhile, and need not be
        called. A site without batches takes part too.

        Every rank of the site gives equally many batches, as torch's DistributedSampler does; `meet` above 1 needs a
        `batches` that has a length. Raises DataError on all ranks of a site that do not, ConfigError for a loop that
        was left before its end: the other sites wait for what it still had to do.
        """
        if type(meet) is not int or meet < 1:
            raise ConfigError(f"epoch(meet={meet!r})", "a whole number, at least 1, the same at all sites")
        if meet > 1 and not isinstance(batches, Sized):
            raise ConfigError("epoch(meet=…) of batches without a length", "leave out meet, or give a list or loader")
        self._refuse_left()
        self._agree_on_length(len(batches) if isinstance(batches, Sized) else 0)
        return self._meeting(batches, meet)

    def _meeting(self, batches: Iterable[_Batch], meet: int) -> Iterator[_Batch]:
        length = len(batches) if isinstance(batches, Sized) else None
        ends = [] if length is None else [-(-length * part // meet) for part in range(1, meet)]
        self._epoch = "under way"
        met = 0
        try:
            for number, batch in enumerate(batches, 1):
                yield batch
                while met < len(ends) and ends[met] <= number:
                    self._exchange()
                    met += 1
        except GeneratorExit:
            self._epoch = "left"
            raise
        for _ in range(met, meet):
            self._exchange()
        self._epoch = ""

    def _refuse_left(self) -> None:
        if self._epoch:
            raise ConfigError(
                "a loop over sync.epoch() was left before its end",
                "the other sites wait there: let it run to its end, over fewer batches if need be",
            )

    def _agree_on_length(self, mine: int) -> None:
        """All ranks of a site must meet the others at the same batches."""
        lengths = [int.from_bytes(other, "little") for other in self._site.gather_bytes(mine.to_bytes(8, "little"))]
        if len(set(lengths)) > 1:
            raise DataError(
                f"site {self._session.site}: its ranks have different numbers of batches, {lengths}",
                "give each rank as many: DistributedSampler does, and batch_size with drop_last=True",
            )

    def exchange(self) -> None:
        """Exchange now: the model becomes the new global model, on every rank of every site."""
        self._refuse_left()
        self._exchange()

    def _exchange(self) -> None:
        shards, held = self._shards, self._held
        local: Source = self._tensors() if shards is None else lambda into: shards.read(held, into)
        self._global.exchange(local, self._weight)
        self._load(self._global.tensors)
        if self._optimizer is not None and not self._keep:
            self._optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """What a script that starts again needs beside its own state: for torch.save, or as NumPy arrays by name.

        The global model after the last exchange, the strategy's state, the weights' sum, and how many sums are done.
        Where the model is dealt out over the site's ranks it is the part of each, for as many ranks again.
        """
        model = self._global
        arrays = {f"model/{n}": a for n, a in model.tensors.items()} | {
            f"outer/{n}": a for n, a in model.saved_outer().items()
        }
        import torch

        saved: dict[str, Any] = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        # Both together confirm a guess of a small model against a state's hash at the relay: saved files are private.
        for name, secret in (("blind", model.blind), ("salt", self._session.last_salt)):
            saved[name] = torch.from_numpy(np.array(list(secret), np.uint8))
        return saved | {"rounds": model.rounds, "sums": self._session.round_, "steps": self._count}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; the model gets its global values. Every rank calls it.

        Call it before any sum that came after. Raises DataError if it belongs to another model or strategy.
        """

        def arrays(group: str) -> Tensors:
            prefix = group + "/"
            return {n.removeprefix(prefix): np.asarray(a).copy() for n, a in saved.items() if n.startswith(prefix)}

        self._session.round_ = self._global.reached = int(saved["sums"])
        self._session.last_salt = np.asarray(saved["salt"]).tobytes()  # a second model may begin from this one
        self._global.restore(
            arrays("model"), arrays("outer"), int(saved["rounds"]), np.asarray(saved["blind"]).tobytes()
        )
        self._count = int(saved["steps"])
        self._load(self._global.tensors)

    @property
    def model_sha256(self) -> str:
        """The fingerprint of the global model after the last exchange; equal at all sites.

        Where the model is dealt out over the site's ranks, all of them ask for it.
        """
        return self._global.sha256()

    def _refuse_parts(self) -> None:
        for name, tensor in self._shared().items():
            if type(tensor).__name__ == "DTensor":
                raise ConfigError(
                    f"the model's {name} is a DTensor, of which each rank holds a part, and no parameter is",
                    "sync takes models that every rank holds whole, such as those in DDP, and those of fully_shard",
                )

    def _shared(self) -> dict[str, torch.Tensor]:
        """Parameters and floating buffers, in state_dict order."""
        return {n: t for n, t in self._model.state_dict().items() if t.is_floating_point()}

    def _buffers(self) -> frozenset[str]:
        return frozenset(n for n, _ in self._model.named_buffers())

    def _tensors(self) -> Tensors:
        """The shared state as NumPy copies; the leader's values count (ranks' running statistics may differ).

        Of a model that is dealt out over the ranks, what this one holds for the sums.
        """
        arrays: Tensors = {}
        if self._shards is not None:
            arrays = self._held.empty()
            self._shards.read(self._held, arrays)
            return arrays
        for name, tensor in self._shared().items():
            host = tensor.detach().cpu()
            array = np.array((host if host.element_size() == 8 else host.float()).numpy(), order="C")
            self._site.broadcast(array)
            arrays[name] = array
        return arrays

    def _load(self, tensors: Tensors) -> None:
        import torch

        if self._shards is not None:
            self._shards.write(self._held, tensors)
            return

        with torch.no_grad():
            for name, tensor in self._shared().items():
                tensor.copy_(torch.from_numpy(np.array(tensors[name])))


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DDP. By type: a model of the user's own may well have a layer called `module`."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    return model.module if isinstance(model, DataParallel | DistributedDataParallel) else model
