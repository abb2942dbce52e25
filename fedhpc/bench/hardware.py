"""The machine that a measurement ran on: two figures of one ratio must have the same."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

FLAGS = ("aes", "vaes", "avx2", "avx512f", "pclmulqdq", "vpclmulqdq", "pmull")
"""Instructions that the kernels of fedhpc/kernel are made of."""


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory and kernel."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def cpu_flags() -> list[str]:
    """Which of FLAGS the processor has, in their order, as Linux says."""
    has = {*_said_of_processor("flags").split(), *_said_of_processor("Features").split()}
    return [flag for flag in FLAGS if flag in has]


def _processor() -> str:
    return _said_of_processor("model name") or platform.processor() or platform.machine()


def _said_of_processor(name: str) -> str:
    """The first line of that name in /proc/cpuinfo; '' where there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
