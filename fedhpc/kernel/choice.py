"""Which path runs: a compiled one of this CPU, or Python's."""

from __future__ import annotations

from dataclasses import dataclass

from fedhpc.kernel.calls import Kernel

VARIABLE = "FEDHPC_KERNEL"
PYTHON = "python"
NAMES = ("vaes", "aesni", "armv8", PYTHON)


@dataclass(frozen=True)
class Running:
    """What `running` found, to be shown."""

    name: str  # one of NAMES
    reason: str  # why it is Python, in a few words; empty where a compiled path runs
    cpu_flags: tuple[str, ...]  # those that matter here


def running() -> Running:
    """What runs in this process. Raises ConfigError for a wrong value of FEDHPC_KERNEL; never for a broken kernel."""
    return Running(PYTHON, "not built yet", ())


def kernel() -> Kernel | None:
    """The compiled path that runs in this process, or None where Python's does. Raises as `running`."""
    return None
