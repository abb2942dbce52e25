"""`fed.sync(model, optimizer)`: federated training inside your own PyTorch loop.

    sync = fed.sync(model, optimizer, every=20, weight=len(dataset))
    for batch in loader:
        loss(model, batch).backward(); optimizer.step(); sync.step()

After every `every` steps the sites' models meet: the strategy of federation.toml is applied to the masked mean of the
updates, and the model goes on from the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedhpc.errors import ConfigError
from fedhpc.federation.checkpoint import Source, Tensors
from fedhpc.federation.ranges import Held
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.update import held_in

if TYPE_CHECKING:
    import torch

    from fedhpc.federation.session import Session


class Sync:
    """Counts local steps and exchanges models. Every rank of every site calls `step` equally often."""

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
        if self._count % self._every:
            return False
        self.exchange()
        return True

    def exchange(self) -> None:
        """Exchange now: the model becomes the new global model, on every rank of every site."""
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
