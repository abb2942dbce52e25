"""Parameters that the rows of a step do not reach: refused by name, or left as they are; alike on any number of ranks.

One rank sees it by a gradient that is None. DDP waits until every parameter has one: a rank whose rows leave some out
would hold up the others for good, and torch's own search for them knows only what forward() returned, not what the loss
made of it. So such a rank gives zeros, which is their gradient; averages stay those over the site's whole batch.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import partial

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from fedhpc.errors import ConfigError
from fedhpc.mpi.collectives import Group

_NAMED = 5  # names in one message


def trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """Parameters that an optimiser trains, by name; a shared one once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def without_gradient(parameters: dict[str, torch.nn.Parameter]) -> list[str]:
    """Names of those that no backward pass has reached since gradients were set to None; not of frozen ones."""
    return [name for name, p in parameters.items() if p.requires_grad and p.grad is None]


def refusal(where: str, names: Collection[str], of: int, way_out: str) -> ConfigError:
    """`where`: the site and its step; `of`: how many parameters there are; `way_out`: where "allow" is written."""
    listed = ", ".join(list(names)[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    none = "; the loss does not depend on the model" if len(names) == of else ""
    return ConfigError(
        f"{where} leaves parameters without a gradient: {listed}{none}",
        f"what forward() or the loss never uses: remove it, or requires_grad_(False) in model(); what only some rows "
        f"use: {way_out}",
    )


class Reach:
    """Which parameters of a model, behind DDP or not, this rank's backward passes reach."""

    def __init__(self, wrapped: torch.nn.Module) -> None:
        self.parameters = trained(wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped)
        self._pass: set[str] = set()  # in this pass
        self._step: set[str] = set()  # since gradients were averaged
        self._zeros = False
        sparse = (torch.nn.Embedding, torch.nn.EmbeddingBag)  # DDP wants sparse gradients of them
        self._sparse = {id(m.weight) for m in wrapped.modules() if isinstance(m, sparse) and m.sparse}
        self._hooks = [
            p.register_post_accumulate_grad_hook(partial(self._mark, name))  # type: ignore[no-untyped-call]
            for name, p in self.parameters.items()
        ]

    def begin(self) -> None:
        """Before a forward and backward pass."""
        self._pass.clear()

    def any(self) -> bool:
        """Whether the pass has given a gradient to any parameter; one for inputs alone (a gradient penalty) has not."""
        return bool(self._pass)

    def complete(self, wrapped: DistributedDataParallel) -> list[str]:
        """After a pass that averages: zeros for what it left out, so that DDP goes on.

        Names of parameters that no pass since the last average has reached.
        """
        missing = [p for name, p in self.parameters.items() if name not in self._pass]
        if missing:
            if not self._pass:  # the loss may not even have called the model
                wrapped.reducer.prepare_for_backward([])
            asleep = [p for p in missing if not p.requires_grad]  # frozen since DDP was made
            self._zeros = True
            try:
                for p in asleep:
                    p.requires_grad_(True)
                torch.autograd.backward(missing, [self._zeros_of(p) for p in missing])
            finally:
                self._zeros = False
                for p in asleep:
                    p.requires_grad_(False)
                    p.grad = None
        return self.end_step()

    def end_step(self) -> list[str]:
        """Forget the passes of a step. Names of parameters that none of them has reached."""
        unreached = [name for name, p in self.parameters.items() if p.requires_grad and name not in self._step]
        self._pass.clear()
        self._step.clear()
        return unreached

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _zeros_of(self, p: torch.nn.Parameter) -> torch.Tensor:
        if id(p) not in self._sparse:
            return torch.zeros_like(p)
        nowhere = torch.zeros((1, 0), dtype=torch.int64, device=p.device)
        return torch.sparse_coo_tensor(nowhere, p.new_zeros((0, *p.shape[1:])), p.shape, check_invariants=True)

    def _mark(self, name: str, _: torch.Tensor) -> None:
        if not self._zeros:
            self._pass.add(name)
            self._step.add(name)


class UnusedParameters:
    """What the steps of a site leave out: `settle` before each optimiser step, `look` now and then."""

    def __init__(self, model: torch.nn.Module, group: Group, site: str, *, allowed: bool) -> None:
        self._parameters = trained(model)
        self._group, self._site, self._allowed = group, site, allowed
        self._left: dict[int, Collection[str]] = {}  # by this rank, by step since the last look

    def settle(self, unreached: Collection[str], step: int) -> None:
        """`unreached`: by the rows of this rank in `step`. Where it is allowed, collective over the site.

        A parameter that no rank's rows reach has no gradient, as on one rank: the optimiser leaves it as it is.
        """
        if not self._allowed:
            if unreached:
                self._left[step] = unreached
        elif self._group.size > 1:
            for name in self._by_all(unreached):
                self._parameters[name].grad = None

    def look(self, round_: int) -> None:
        """Collective. Raises ConfigError, on every rank, if the rows of a step since the last look left one out."""
        if self._allowed:
            return
        left, self._left = self._left, {}
        steps = [set(json.loads(said)) for said in self._group.gather_bytes(json.dumps(list(left)).encode())]
        for step in sorted(set.intersection(*steps)):
            names = self._by_all(left[step])
            if names:
                raise refusal(
                    f"site {self._site}: step {step + 1} (round {round_})", names, len(self._parameters),
                    '[train] unused_parameters = "allow"',
                )  # fmt: skip

    def _by_all(self, unreached: Collection[str]) -> list[str]:
        """Names that no rank reached."""
        counts = np.array([name in unreached for name in self._parameters], dtype=np.int64)
        self._group.sum(counts)
        return [name for name, count in zip(self._parameters, counts, strict=True) if count == self._group.size]
