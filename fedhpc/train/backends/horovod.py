"""The backend `horovod`: gradients averaged by Horovod 0.28.1 over MPI, for sites whose cluster is set up for it.

Horovod's own optimiser hides the averaging in `step()`. Here it ends with the backward pass, as under the other
backends, so that clipping and FedProx see the site's gradient. Only allreduce is used: Horovod's broadcasts of objects
pickle.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from typing_extensions import override

from fedhpc.errors import ConfigError, InternalError, InterruptedRun, PeersError
from fedhpc.horovod.installed import HOW, HOW_FOR_GPUS
from fedhpc.mpi.collectives import Group
from fedhpc.mpi.lent import communicator_for_horovod
from fedhpc.mpi.together import together
from fedhpc.train.backends.replicated import Replicated
from fedhpc.train.state import read_shared, split_state, write_shared
from fedhpc.train.unused import trained

# Horovod refuses bfloat16 and integers below 32 bits, and adds float16 before it divides, past its largest number.
_AVERAGED = (torch.float32, torch.float64)
_log = logging.getLogger("fedhpc.train")


class HorovodBackend(Replicated):
    """Each rank holds the whole model; each gradient is averaged as soon as the backward pass has made it."""

    name = "horovod"
    _left_open = False  # Horovod has one state for the whole process

    def __init__(self, group: Group, device: torch.device, *, deterministic: bool) -> None:
        """Collective over the site, which has several ranks. Raises ConfigError, on every rank alike, if Horovod is not
        there or not fit."""
        self.device, self._group = device, group
        self._hvd = _load(group, device, ours=HorovodBackend._left_open)
        if self._hvd.is_initialized():
            self._hvd.shutdown()
        communicator = communicator_for_horovod(group)
        if deterministic:
            # What Horovod joins into one allreduce depends on time, and the order of additions on what is joined.
            os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")
        self._hvd.init(comm=communicator)
        HorovodBackend._left_open = True
        place, expected = (self._hvd.rank(), self._hvd.size()), (group.rank, group.size)
        if place != expected:
            raise InternalError(f"{group.label}: Horovod has rank {place[0]} of {place[1]}, not {expected}")
        self._averages: weakref.WeakKeyDictionary[torch.nn.Module, _Averages] = weakref.WeakKeyDictionary()
        self._unreached: list[str] = []

    @override
    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """`model` itself, with the leader's parameters, and with hooks that average. Collective."""
        for name, value in split_state(model)[0].items():
            arrays = read_shared({name: value})
            self._group.broadcast(arrays[name])
            write_shared({name: value}, arrays)
        self._averages[model] = _Averages(model, self._hvd, self._group, len(self._averages))
        return model

    @override
    @contextmanager
    def averaging(self, wrapped: torch.nn.Module, now: bool) -> Iterator[None]:
        """With `now`, parameters that the pass does not reach get zeros."""
        averages = self._averages[wrapped]
        if not now:
            yield
            return
        averages.begin()
        try:
            yield
        except BaseException:
            averages.drop()
            raise
        self._unreached = averages.finish()

    @override
    def unreached(self, wrapped: torch.nn.Module) -> list[str]:
        """What no pass of this rank had reached when the last average began."""
        return self._unreached

    @override
    def close(self) -> None:
        """Stop Horovod, unless an exception is on its way that may be this rank's alone: it stops at all ranks then.

        They would tell of that, and not of what happened here. A process that lives on stops it with the next backend
        or at its end.
        """
        for averages in self._averages.values():
            averages.close()
        error = sys.exception()
        if error is None or (isinstance(error, InterruptedRun) and error.agreed):
            self._hvd.shutdown()
            HorovodBackend._left_open = False


@dataclass
class _Pending:
    """An average on its way, in place or in a copy: then its result goes `into` the gradient."""

    handle: Any
    sent: torch.Tensor
    into: torch.Tensor | None


class _Averages:
    """The averages of one model's gradients: each begins in the backward pass, and all end with `finish`."""

    def __init__(self, model: torch.nn.Module, hvd: Any, group: Group, number: int) -> None:
        """`number`: tells this model from others of the process, alike on every rank."""
        self._hvd, self._group, self._number = hvd, group, number
        self._parameters = trained(model)
        self._pending: dict[str, _Pending] = {}
        self._on = self._said = False
        self._hooks = [
            p.register_post_accumulate_grad_hook(partial(self._reached, name))  # type: ignore[no-untyped-call]
            for name, p in self._parameters.items()
        ]

    def begin(self) -> None:
        """The next backward pass averages."""
        self._on = True

    def drop(self) -> None:
        """The pass has failed; what is on its way belongs to nobody."""
        self._on = False
        self._pending.clear()

    def finish(self) -> list[str]:
        """Wait for all averages, those of zeros for what this rank has not reached; their names. Collective.

        Every rank averages all parameters, also those that are frozen by now: it cannot know what others reached.
        """
        self._on = False
        unreached = [name for name, p in self._parameters.items() if p.requires_grad and p.grad is None]
        for name, parameter in self._parameters.items():
            if name not in self._pending:
                self._submit(name, parameter)
        for name, pending in self._pending.items():
            self._settle(name, pending)
        self._pending.clear()
        return unreached

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def _reached(self, name: str, parameter: torch.nn.Parameter) -> None:
        if not self._on:
            return
        if name in self._pending:
            raise ConfigError(
                f"{self._group.label}: one backward pass reaches {name} twice, and it is averaged at the first time",
                "checkpoint(…, use_reentrant=False); a loss that calls backward() itself needs backend = 'ddp'",
            )
        self._submit(name, parameter)

    def _submit(self, name: str, parameter: torch.nn.Parameter) -> None:
        if not parameter.requires_grad:
            gradient = torch.zeros_like(parameter)
        elif parameter.grad is None:
            gradient = parameter.grad = torch.zeros_like(parameter)
        else:
            if parameter.grad.layout != torch.strided:  # Horovod gathers sparse ones whole from all ranks
                parameter.grad = parameter.grad.to_dense()
            gradient = parameter.grad.detach()
        sent = gradient
        if sent.dtype not in _AVERAGED:
            self._say(name, sent.dtype)
            sent = sent.float()
        sent = sent.contiguous()
        handle = self._hvd.allreduce_async_(sent, name=f"{self._number}.{name}", op=self._hvd.Average)
        self._pending[name] = _Pending(handle, sent, None if sent is gradient else gradient)

    def _settle(self, name: str, pending: _Pending) -> None:
        try:
            self._hvd.synchronize(pending.handle)
        except self._hvd.HorovodInternalError as error:
            raise PeersError(
                f"{self._group.label}: Horovod cannot average the gradient of {name}: {error}",
                "another rank of the site has ended, or has another model: its own message says more",
            ) from error
        if pending.into is not None:
            pending.into.copy_(pending.sent)

    def _say(self, name: str, dtype: torch.dtype) -> None:
        if not self._said and self._group.rank == 0:
            _log.warning(
                "%s: gradients of %s and the like are %s: Horovod averages them in float32",
                self._group.label, name, str(dtype).removeprefix("torch."),
            )  # fmt: skip
        self._said = True


def _load(group: Group, device: torch.device, *, ours: bool) -> Any:
    """The module horovod.torch. Collective. Raises ConfigError, on every rank, where one rank has none that is fit.

    `ours`: that it is initialised is this backend's own doing.
    """

    def fit() -> Any:
        try:
            hvd = importlib.import_module("horovod.torch")
        except (ImportError, OSError, RuntimeError) as error:
            missing = importlib.util.find_spec("horovod") is None
            what = "is not installed" if missing else f"cannot be imported: {' '.join(str(error).split())}"
            raise ConfigError(f"Horovod {what}", HOW) from None
        what, hint = _unfit(hvd, device, ours=ours)
        if what:
            raise ConfigError(f"Horovod {what}", hint)
        return hvd

    return together(group, fit, name_rank=True)


def _unfit(hvd: Any, device: torch.device, *, ours: bool) -> tuple[str, str]:
    """(what, hint) if a site cannot train with it; else empty."""
    if not hasattr(hvd, "init"):  # it imports without its library, and only prints so
        return "has no part for PyTorch", HOW
    if not hvd.mpi_built():
        return "is built without MPI", HOW
    if device.type == "cuda" and not (hvd.cuda_built() or hvd.rocm_built()):
        return "is built for the CPU, and the site trains on GPUs", HOW_FOR_GPUS
    if hvd.is_initialized() and not ours:
        return "is already initialised in this process", "leave hvd.init() to fedhpc, or use backend = 'serial'"
    return "", ""
