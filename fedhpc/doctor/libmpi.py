"""The MPI library that mpi4py loads here, asked in a process of its own."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from fedhpc.app.logs import printable
from fedhpc.doctor.commands import call


@dataclass(frozen=True)
class Library:
    """What mpi4py loads. `trouble` instead, if it loads nothing."""

    version: str = ""
    loaded: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def name(self) -> str:
        """The library's first words for people."""
        return printable(re.split(r"[,\n]", self.version)[0].strip())[:80]

    @property
    def major(self) -> int:
        """The first number of its version; 0 if it says none."""
        match = re.search(r"v?(\d+)\.\d+", self.version)
        return int(match[1]) if match else 0


def library_of(environment: Mapping[str, str], limit_s: float) -> Library:
    """Asked in a process of its own, without MPI_Init."""
    answer = call([sys.executable, "-P", "-m", "fedhpc.mpi.library"], environment, limit_s)
    if answer.code is None:
        return Library(trouble=f"loading MPI took more than {limit_s:.0f} s")
    try:
        found = json.loads(answer.out)
        return Library(str(found["version"]), tuple(map(str, found["loaded"])))
    except (ValueError, KeyError, TypeError):
        last = (answer.err.strip().splitlines() or [f"exit code {answer.code}"])[-1]
        return Library(trouble=printable(last)[:200])
