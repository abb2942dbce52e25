"""The check of the backend: this PyTorch has what the site's ranks train together with."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.commands import call
from fedhpc.doctor.subject import Subject

GROUP = "Software"
_IMPORT_S = 80.0
_NEEDS_NOTHING = {
    "serial": "one rank, nothing to average",
    "mpi": "gradients are averaged by MPI, which mpi-world looks at",
    "horovod": "the check `horovod` looks at it",
}
_TORCH = """
import json, torch
import torch.distributed as dist
there = dist.is_available()
from fedhpc.train.backends.fsdp import has_fsdp
seen = torch.cuda.device_count()
print(json.dumps({
    "torch": torch.__version__, "gloo": there and dist.is_gloo_available(), "nccl": there and dist.is_nccl_available(),
    "fsdp": has_fsdp(), "seen": seen, "bf16": bool(seen) and torch.cuda.is_bf16_supported(),
}))
"""


def backend(subject: Subject) -> Finding:
    """What [compute] backend needs of torch.distributed, and [train] precision of the GPU."""
    if subject.trains_without_torch:
        if subject.submits and subject.asked.gpus_per_node:
            idle = "numpy: the task trains without torch, on CPUs, and the job's GPUs stay idle"
            return warn(idle, "gpus_per_node = 0 in [slurm], or device = 'cuda' in [compute]")
        return skipped("numpy: the task trains without torch")
    name = subject.compute.backend
    if name == "auto":
        name = "ddp" if subject.submits and subject.tasks > 1 else "serial"
    agreed = {} if subject.agreement is None else subject.agreement.train
    low = subject.wants_gpus and agreed.get("precision") == "bf16"
    if name in _NEEDS_NOTHING and not low:
        return skipped(f"{name}: {_NEEDS_NOTHING[name]}")
    answer = call([sys.executable, "-P", "-c", _TORCH], subject.environment, _IMPORT_S)
    try:
        found = json.loads(answer.out)
    except ValueError:
        return fail(f"PyTorch cannot be imported: {answer.words}", "pip install 'fedhpc[train]'")
    return backend_fits(name, found, gpus=subject.wants_gpus, low=low)


def backend_fits(name: str, found: Mapping[str, object], *, gpus: bool, low: bool) -> Finding:
    """`found`: what PyTorch says; `gpus`: the site trains on them; `low`: in bfloat16."""
    torch = f"torch {found.get('torch')}"
    if name in ("ddp", "fsdp") and not found.get("gloo"):
        return fail(
            f"{torch} is built without gloo, which {name} needs", "install the PyTorch wheel, or backend = 'mpi'"
        )
    if name == "fsdp" and not found.get("fsdp"):
        hint = "it is there from torch 2.13 on; backend = 'ddp' works with older ones"
        return fail(f"{torch} has no FSDP2 that fsdp can use", hint)
    if low and found.get("seen") and not found.get("bf16"):
        return warn(
            f"{torch}: these GPUs have no bfloat16, which [train] precision asks for: it is emulated, slowly",
            "train on newer GPUs at this site",
        )
    if name in ("ddp", "fsdp") and gpus and not found.get("nccl"):
        return warn(
            f"{torch} is built without NCCL: {name} carries tensors through the host with gloo",
            "install the PyTorch that is built for these GPUs",
        )
    parts = (
        [torch, name, "NCCL" if gpus and found.get("nccl") else "gloo"] if name in ("ddp", "fsdp") else [torch, name]
    )
    return ok(", ".join([*parts, "bfloat16"] if low and found.get("bf16") else parts))


CHECKS = (
    Check(
        "backend",
        GROUP,
        "a backend that this PyTorch lacks ends the job at its start",
        backend,
        quick=False,
        of_ranks=True,
    ),
)
