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
from fedhpc.federation.checkpoint import Tensors
from fedhpc.rounds.global_model import GlobalModel

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
        self._model = _unwrapped(model)
        parts = [name for name, tensor in self._shared().items() if type(tensor).__name__ == "DTensor"]
        if parts:
            raise ConfigError(
                f"the model's {parts[0]} is a DTensor, of which each rank holds a part",
                "sync takes models that every rank holds whole, such as those in DDP",
            )
        self._optimizer = optimizer
        self._every = steps
        # A site is one party: its leader's weight counts, whatever share of the rows the other ranks hold.
        self._weight = session.from_leader(weight or 0)
        self._keep = keep_optimizer_state
        self._count = 0
        self._site = session.party.site
        self._session = session
        self._global = GlobalModel(
            session,
            self._tensors(),
            self._buffers(),
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
        self._global.exchange(self._tensors(), self._weight)
        self._load(self._global.tensors)
        if self._optimizer is not None and not self._keep:
            self._optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """What a script that starts again needs beside its own state: for torch.save, or as NumPy arrays by name.

        The global model after the last exchange, the strategy's state, the weights' sum, and how many sums are done.
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
        """The fingerprint of the global model after the last exchange; equal at all sites."""
        return self._global.sha256()

    def _shared(self) -> dict[str, torch.Tensor]:
        """Parameters and floating buffers, in state_dict order."""
        return {n: t for n, t in self._model.state_dict().items() if t.is_floating_point()}

    def _buffers(self) -> frozenset[str]:
        return frozenset(n for n, _ in self._model.named_buffers())

    def _tensors(self) -> Tensors:
        """The shared state as NumPy copies; the leader's values count (ranks' running statistics may differ)."""
        arrays: Tensors = {}
        for name, tensor in self._shared().items():
            host = tensor.detach().cpu()
            array = np.array((host if host.element_size() == 8 else host.float()).numpy(), order="C")
            self._site.broadcast(array)
            arrays[name] = array
        return arrays

    def _load(self, tensors: Tensors) -> None:
        import torch

        with torch.no_grad():
            for name, tensor in self._shared().items():
                tensor.copy_(torch.from_numpy(np.array(tensors[name])))


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DDP. By type: a model of the user's own may well have a layer called `module`."""
    from torch.nn.parallel import DataParallel, DistributedDataParallel

    return model.module if isinstance(model, DataParallel | DistributedDataParallel) else model
