"""Whether a site trains its task with NumPy alone: decided from its files, on every rank alike, before any sum."""

from __future__ import annotations

from fedhpc.errors import ConfigError
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings


def why_torch(task: TaskSettings, train: TrainSettings, compute: ComputeSettings) -> str:
    """The first setting that needs torch, as people write it; "" if NumPy does."""
    needs = {
        f"task.name = '{task.name}'": task.name != "logistic",
        "task.weights_sha256": bool(task.weights_sha256),
        f"train.precision = '{train.precision}'": train.precision != "float32",
        "train.personal": bool(train.personal),
        f"compute.device = '{compute.device}'": compute.device == "cuda",
        f"compute.workers = {compute.workers}": compute.workers > 0,
        f"compute.threads = {compute.threads}": compute.threads > 1,
        "compute.activation_checkpointing": compute.activation_checkpointing,
    }
    return next((setting for setting, needed in needs.items() if needed), "")


def trains_with_numpy(task: TaskSettings, train: TrainSettings, compute: ComputeSettings) -> bool:
    """What [compute] backend comes to. Raises ConfigError if NumPy is asked for and cannot."""
    if compute.backend not in ("auto", "numpy"):
        return False
    why = why_torch(task, train, compute)
    if why and compute.backend == "numpy":
        raise ConfigError(
            f"compute.backend = 'numpy' trains the task logistic on one core a rank, and {why} asks for more",
            "use backend = 'auto', which takes NumPy where it can and torch elsewhere",
        )
    return not why
