"""Slurm jobs whose ranks run in an image: `srun --mpi=pmix ch-run IMAGE -- ...`, as in containers/README.md."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import charliecloud
from clusters import Cluster, Ended

PYTHON = "/opt/fedhpc/bin/python"


def job(
    cluster: Cluster, log: Path, image: Path, *command: str | Path, tasks: int = 8, nodes: int = 2, **how: Any
) -> Ended:
    """Run `command` on `tasks` ranks over `nodes` nodes to the end; what they say is in `log`."""
    how["env"] = {"TMPDIR": cluster.env["TMPDIR"], **how.get("env", {})}  # each node's own, also in the image
    inside = charliecloud.words(image, *command, **how)
    script = f"#!/bin/bash\nexport USER=${{USER:-site}}\nexec srun --mpi=pmix {shlex.join(inside)}\n"
    size = [f"--nodes={nodes}", f"--ntasks-per-node={tasks // nodes}"]
    return cluster.wait(cluster.sbatch(script, *size, "-o", log), 300)


def trained(cluster: Cluster, folder: Path, image: Path, federation: Path, **how: Any) -> str:
    """SHA-256 of the final model of a federation in one job. The results lie in `folder`."""
    files = [federation, "--sites", federation.parent / "sites", "--out", folder / "run", "--json"]
    log = folder / "job.out"
    ended = job(cluster, log, image, PYTHON, "-m", "mpi4py", "-m", "fedhpc", "run", *files, **how)
    assert (ended.state, ended.code) == ("COMPLETED", 0), log.read_text()
    said = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return str(said[-1]["final_model_sha256"])


def libraries(cluster: Cluster, folder: Path, image: Path, **how: Any) -> list[dict[str, Any]]:
    """Which MPI libraries each of two ranks on two nodes has loaded."""
    log = folder / "libraries.out"
    ended = job(cluster, log, image, PYTHON, "-m", "fedhpc.mpi.library", tasks=2, **how)
    assert (ended.state, ended.code) == ("COMPLETED", 0), log.read_text()
    # Two ranks' JSON may stand in one line.
    decoder, text, found = json.JSONDecoder(), log.read_text(), []
    while "{" in text:
        value, end = decoder.raw_decode(text[text.index("{") :])
        found.append(value)
        text = text[text.index("{") + end :]
    return found
