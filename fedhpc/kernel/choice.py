"""Which path runs: a compiled one of this CPU, or Python's.

A compiled path runs where it was built, the CPU has its instructions, and it knows all known answers. Everything else
is no error but Python's path, with a reason that can be shown.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

from fedhpc.errors import ConfigError
from fedhpc.kernel.calls import Kernel
from fedhpc.kernel.extension import Extension, load
from fedhpc.kernel.known_answers import failure

VARIABLE = "FEDHPC_KERNEL"
PYTHON = "python"
NAMES = ("vaes", "aesni", "armv8", PYTHON)


@dataclass(frozen=True)
class Running:
    """What runs in a process, to be shown."""

    name: str  # one of NAMES
    reason: str  # why it is Python, in a few words; empty where a compiled path runs
    cpu_flags: tuple[str, ...]  # those that matter here; empty where the extension was not built


def running() -> Running:
    """What runs in this process. Raises ConfigError for a wrong value of FEDHPC_KERNEL; never for a broken kernel."""
    return _choice(os.environ.get(VARIABLE, ""))[0]


def kernel() -> Kernel | None:
    """The compiled path that runs in this process, or None where Python's does. Raises as `running`."""
    return _choice(os.environ.get(VARIABLE, ""))[1]


@functools.cache
def _choice(wanted: str) -> tuple[Running, Kernel | None]:
    return choose(wanted, load())


def choose(wanted: str, extension: Extension | None) -> tuple[Running, Kernel | None]:
    """What runs with `extension`, where `wanted` is asked for: one of NAMES, or empty for the best there is.

    Raises ConfigError for another name.
    """
    if wanted and wanted not in NAMES:
        raise ConfigError(f"{VARIABLE} is '{wanted}'", f"it takes {', '.join(NAMES)}; leave it out to have one chosen")
    flags = () if extension is None else tuple(extension.FLAGS.split())
    if wanted == PYTHON:
        return Running(PYTHON, f"{VARIABLE} asks for it", flags), None
    if extension is None:
        return Running(PYTHON, "the compiled kernel was not built", flags), None
    paths = extension.PATHS.split()
    if not paths or wanted not in ("", *paths):
        return Running(PYTHON, f"this CPU cannot run {wanted or 'a compiled path'}", flags), None
    found = Kernel(extension, wanted or paths[0])
    wrong = failure(found)
    if wrong:
        return Running(PYTHON, f"{found.name} fails its known answers: {wrong}", flags), None
    return Running(found.name, "", flags), found
