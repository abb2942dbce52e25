"""Checks of GPUs: as many as asked for, a driver that answers, a PyTorch that is built for them, NCCL's interfaces."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from fedhpc.app.logs import printable
from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.commands import call, find
from fedhpc.doctor.subject import Subject
from fedhpc.errors import ConfigError

GROUP = "GPUs"
_NO_GPUS = "this site asks for no GPUs"
_NVIDIA = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
_AMD = ("rocm-smi", "--showproductname", "--showdriverversion", "--json")
_INTERFACES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
_GIVEN = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_TORCH = """
import json, torch
cuda = torch.version.cuda or ""
hip = getattr(torch.version, "hip", None) or ""
nccl = ".".join(map(str, torch.cuda.nccl.version())) if (cuda or hip) and torch.distributed.is_nccl_available() else ""
seen = torch.cuda.device_count()
print(json.dumps({"torch": torch.__version__, "cuda": cuda, "hip": hip, "nccl": nccl, "seen": seen}))
"""


@dataclass(frozen=True)
class Devices:
    """What the driver's tool reports."""

    names: tuple[str, ...]
    driver: str


def devices_of_nvidia(text: str) -> Devices:
    """From nvidia-smi's `name, driver` lines."""
    rows = [line.rsplit(",", 1) for line in text.splitlines() if "," in line]
    return Devices(tuple(printable(r[0].strip()) for r in rows), printable(rows[0][1].strip()) if rows else "")


def devices_of_amd(text: str) -> Devices:
    """From rocm-smi's JSON. Raises ConfigError if it is none."""
    try:
        found = json.loads(text)
        cards = {k: v for k, v in found.items() if re.fullmatch(r"card\d+", k)}
        names = [str(v.get("Card Series") or v.get("Card series") or k) for k, v in sorted(cards.items())]
        driver = str(found.get("system", {}).get("Driver version", ""))
    except (ValueError, AttributeError):
        raise ConfigError("rocm-smi gave no JSON") from None
    return Devices(tuple(map(printable, names)), printable(driver))


def count(subject: Subject) -> Finding:
    """The node has the GPUs that were asked for, and its driver answers."""
    if not subject.wants_gpus:
        return skipped(_NO_GPUS)
    if subject.place == "login":
        return skipped("login nodes have other GPUs than compute nodes; a job's first step looks again")
    tool = next((words for words in (_NVIDIA, _AMD) if find(words[0], subject.environment)), None)
    given = any(subject.environment.get(n, "") not in ("", "NoDevFiles") for n in _GIVEN)
    if subject.place == "step" and not given:
        return skipped("this step was given no GPU")
    fix = 'ask for a GPU partition and [slurm] gpus_per_node, or set [compute] device = "cpu"'
    if tool is None and subject.container is not None:
        return skipped("this image has neither nvidia-smi nor rocm-smi; container-gpu looks at what came in")
    if tool is None:
        return fail("neither nvidia-smi nor rocm-smi is here: this node has no GPU driver", fix)
    answer = call(tool, subject.environment, 5.0 if subject.quick else 30.0)
    if answer.code != 0:
        return fail(f"{tool[0]} fails: {answer.words}", "this node's GPU driver is broken: report the node, exclude it")
    found = devices_of_nvidia(answer.out) if tool is _NVIDIA else devices_of_amd(answer.out)
    asked = subject.asked.gpus_per_node
    if len(found.names) < max(1, asked):
        return fail(f"{len(found.names)} GPUs here, {asked} asked for", fix)
    return ok(f"{len(found.names)} x {found.names[0]}, driver {found.driver}")


def sharing(subject: Subject) -> Finding:
    """One rank per GPU."""
    asked = subject.asked
    if not asked.gpus_per_node:
        return skipped("[slurm] asks for no GPUs")
    if not subject.wants_gpus:
        return warn(
            f'[slurm] asks for {asked.gpus_per_node} GPUs a node, but [compute] device = "cpu"', 'device = "auto"'
        )
    if asked.tasks_per_node > asked.gpus_per_node:
        return warn(
            f"{asked.tasks_per_node} ranks share {asked.gpus_per_node} GPUs of a node: NCCL refuses that, "
            "gloo carries gradients through the host",
            "set [slurm] tasks_per_node to the number of GPUs",
        )
    if asked.tasks_per_node < asked.gpus_per_node:
        idle = asked.gpus_per_node - asked.tasks_per_node
        return warn(f"{idle} of {asked.gpus_per_node} GPUs of a node have no rank", "one task per GPU")
    return ok(f"{asked.tasks_per_node} ranks, {asked.gpus_per_node} GPUs a node")


def torch_build(subject: Subject) -> Finding:
    """PyTorch is built for this site's GPUs."""
    if not subject.wants_gpus:
        return skipped(_NO_GPUS)
    if subject.trains_without_torch:
        return skipped("numpy: the task trains without torch")
    answer = call([sys.executable, "-P", "-c", _TORCH], subject.environment, 80.0)
    try:
        found = json.loads(answer.out)
    except ValueError:
        return fail(f"PyTorch cannot be imported: {answer.words}", "pip install 'fedhpc[train]'")
    amd = find("rocm-smi", subject.environment) is not None and find("nvidia-smi", subject.environment) is None
    return torch_fits(found, amd=amd, here=subject.in_job, demanded=subject.compute.device == "cuda")


def torch_fits(found: dict[str, object], *, amd: bool, here: bool, demanded: bool) -> Finding:
    """`found`: what PyTorch says; `here`: this is a compute node; `demanded`: the CPU would not do."""
    wanted = "hip" if amd else "cuda"
    name = "ROCm" if amd else "CUDA"
    fix = f"install the PyTorch that is built for {name}, in the Python of the job"
    built = found.get("cuda") or found.get("hip")
    verdict = fail if demanded else warn
    if not built or (amd and not found.get(wanted)):
        return verdict(f"torch {found.get('torch')} is not built for {name}: it would train on the CPU", fix)
    if here and not found.get("seen"):
        return verdict(
            f"torch {found.get('torch')} for {name} {built} sees no GPU here", "is its CUDA newer than the driver?"
        )
    nccl = found.get("nccl") or "none"
    return ok(f"torch {found.get('torch')}, {'ROCm' if found.get('hip') else 'CUDA'} {built}, NCCL {nccl}")


def interfaces(subject: Subject) -> Finding:
    """The interfaces that NCCL and gloo are told to use exist."""
    given = {n: v for n in _INTERFACES if (v := subject.environment.get(n, ""))}
    if not given:
        return skipped(f"neither {' nor '.join(_INTERFACES)} is set: they choose")
    if not subject.in_job:
        return skipped("login nodes have other interfaces than compute nodes")
    here = [name for _, name in socket.if_nameindex()]
    for name, value in given.items():
        if not matching(value, here):
            return fail(
                f"{name}={printable(value)} names no interface of this node; it has {', '.join(here)}",
                f"export another {name} in [slurm] setup, or leave it out",
            )
    return ok(", ".join(f"{n}={printable(v)}" for n, v in given.items()))


def matching(value: str, here: Iterable[str]) -> list[str]:
    """The interfaces that NCCL's rules choose: prefixes; `=` before the list means whole names, `^` all but these."""
    exact, besides = value.lstrip("^").startswith("="), value.startswith("^")
    names = [n for n in value.lstrip("^=").split(",") if n]
    hits = [i for i in here if any(i == n if exact else i.startswith(n) for n in names)]
    return [i for i in here if i not in hits] if besides else hits


CHECKS = (
    Check("gpus", GROUP, "fewer GPUs than ranks, or a broken driver, ends or slows the job", count),
    Check(
        "gpu-ranks",
        GROUP,
        "two ranks on one GPU halve the speed, a GPU without a rank is paid for and not used",
        sharing,
    ),
    Check(
        "torch-build", GROUP, "a PyTorch for another device trains on the CPU", torch_build, quick=False, of_ranks=True
    ),
    Check("nccl-interfaces", GROUP, "NCCL hangs or fails if the interface that it is given does not exist", interfaces),
)
