"""Measures the start of a run: eight ranks of the heart federation, one round. Prints one JSON object."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from fedhpc.bench.record import kernel_here
from fedhpc.demo.heart.federation import write_heart_federation
from fedhpc.mpi.launch import launcher_command, launcher_environment

with tempfile.TemporaryDirectory() as folder:
    write_heart_federation(Path(folder) / "heart", rounds=1)
    environment, _ = launcher_environment()
    ranks = [sys.executable, "-m", "mpi4py", str(Path(__file__).with_name("startup_ranks.py"))]
    done = subprocess.run(
        [*launcher_command(8), *ranks, str(Path(folder) / "heart")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))
    print(json.dumps(found | kernel_here()))
