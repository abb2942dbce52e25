"""Measures the start of a run: eight ranks of the heart federation, one round, by NumPy and by torch. Prints JSON."""

import compileall
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median

import fedhpc
from fedhpc.bench.record import kernel_here
from fedhpc.demo.heart.federation import write_heart_federation
from fedhpc.mpi.launch import launcher_command, launcher_environment

RANKS, REPEATS = 8, 5
BACKENDS = ("numpy", "ddp")


def started(folder: Path, backend: str) -> dict[str, float]:
    """One start: seconds from the first rank's process to the last rank's first step, and processor time of all."""
    write_heart_federation(folder, rounds=1)
    for site in (folder / "sites").glob("*.toml"):
        site.write_text(site.read_text().replace('backend = "auto"', f'backend = "{backend}"'))
    environment, _ = launcher_environment()
    script = Path(__file__).with_name("startup_ranks.py")
    words = [*launcher_command(RANKS), sys.executable, "-m", "mpi4py", str(script), str(folder)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    ranks = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"begun"')]
    if len(ranks) != RANKS or any(rank["torch"] == (backend == "numpy") for rank in ranks):
        raise SystemExit(f"{backend}: {done.stdout}")
    wall_s = max(rank["stepped"] for rank in ranks) - min(rank["begun"] for rank in ranks)
    return {"wall_s": wall_s, "cpu_s": sum(rank["cpu_s"] for rank in ranks)}


# As pip does when it installs: eight ranks that compile the sources at once would be measured instead.
compileall.compile_dir(Path(fedhpc.__file__).parent, quiet=1)
# Alternating, so that what else the machine does meets both.
found: dict[str, list[dict[str, float]]] = {backend: [] for backend in BACKENDS}
for _ in range(REPEATS):
    for backend, starts in found.items():
        with tempfile.TemporaryDirectory() as temporary:
            starts.append(started(Path(temporary) / "heart", backend))
result = {
    backend: {
        **{f"{key}_median": median(start[key] for start in starts) for key in ("wall_s", "cpu_s")},
        **{f"{key}_min": min(start[key] for start in starts) for key in ("wall_s", "cpu_s")},
    }
    for backend, starts in found.items()
}
versions = {"torch": version("torch")}
print(json.dumps({"backends": result, "ranks": RANKS, "repeats": REPEATS, "versions": versions} | kernel_here()))
