"""Seconds that a job spends beside training: told to stop until it has ended, and started again until its first step.

    python benchmarks/resume.py [--params 100000000] [--optimizer adamw] [--json]

One site with a model of a single layer, trained by `fedhpc run` as a batch job would: it is stopped by SIGUSR2 in the
middle of its second round and started again. What the same Python needs for its imports is measured beside it and taken
off. Run it on the file system that the run directory would lie on (TMPDIR).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

TASK = """
import os, time
import numpy as np
import torch

def model(options):
    return torch.nn.Linear(options["side"], options["side"], bias=False)

def dataset(path, options):
    x = torch.from_numpy(np.load(path))
    return torch.utils.data.TensorDataset(x, x[:, 0].contiguous())

def loss(model, batch):
    print("step", time.time(), flush=True)
    x, y = batch
    return (model(x)[:, 0] - y).square().mean()

def sums(model, batch):
    x, y = batch
    return {"n": torch.tensor(len(y)), "loss": (model(x)[:, 0] - y).double().square().sum()}
"""
IMPORTS = "import fedhpc.app.run, fedhpc.train.open_trainer, fedhpc.cli.run"


def write_federation(folder: Path, params: int, optimizer: str) -> None:
    """One site, its key, its data and its task."""
    side = max(8, round(math.sqrt(params)))
    (folder / "task.py").write_text(TASK)
    np.save(folder / "x.npy", np.random.default_rng(0).standard_normal((64, side)).astype(np.float32))
    key = Ed25519PrivateKey.generate()
    (folder / "sites").mkdir()
    key_file = folder / "site.key"
    key_file.touch(mode=0o600)
    key_file.write_text(key.private_bytes_raw().hex())
    (folder / "sites" / "one.toml").write_text(
        '[site]\nname = "one"\nkey = "../site.key"\n[data]\npath = "../x.npy"\ntask_source = "../task.py"\n'
        f"[compute]\nthreads = {len(os.sched_getaffinity(0))}\n[life]\ncheckpoint_s = 0\n"
    )
    (folder / "federation.toml").write_text(
        '[federation]\nname = "resume"\nprotocol = "fedhpc-secagg/3"\nrounds = 2\n'
        f'[[site]]\nname = "one"\nsign = "{key.public_key().public_bytes_raw().hex()}"\n'
        f'[task]\nname = "module"\nsource_sha256 = "{hashlib.sha256(TASK.encode()).hexdigest()}"\n'
        f"options = {{ side = {side} }}\nheld_out = 0.25\n"
        f'[train]\noptimizer = "{optimizer}"\nlr = 1e-4\nbatch_size = 8\nlocal_steps = 12\n'
    )


def start(folder: Path) -> tuple[subprocess.Popen[str], float]:
    """A job, and when it was started."""
    command = [sys.executable, "-m", "fedhpc", "run", "federation.toml", "--sites", "sites"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True), time.time()


def next_step(job: subprocess.Popen[str]) -> float:
    """When the job's next step began."""
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("step "):
            return float(line.split()[1])
    raise SystemExit(f"the job ended with {job.wait()}")


def import_seconds() -> float:
    """What this Python needs for the job's imports: the faster of two, since the first may read them from disk."""

    def once() -> float:
        begun = time.time()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        return time.time() - begun

    return min(once(), once())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=int, default=100_000_000)
    parser.add_argument("--optimizer", choices=["adamw", "sgd"], default="adamw")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_federation(folder, given.params, given.optimizer)
        imports = import_seconds()
        job, begun = start(folder)
        first = next_step(job) - begun
        for _ in range(12 + 5):  # into the second round
            next_step(job)
        told = time.time()
        job.send_signal(signal.SIGUSR2)
        assert job.stdout is not None
        job.stdout.read()
        code = job.wait()
        stopped = time.time() - told
        if code != 75:
            raise SystemExit(f"the job that was told to stop ended with {code}, not 75")
        kept = sum(f.stat().st_size for f in (folder / "run").rglob("*") if f.is_file())
        job, begun = start(folder)
        again = next_step(job) - begun
        assert job.stdout is not None
        job.stdout.read()
        if job.wait() != 0:
            raise SystemExit(f"the job that went on ended with {job.returncode}")
    figures = {
        "params": given.params,
        "imports_s": round(imports, 2),
        "fresh_start_to_first_step_s": round(first, 2),
        "stop_s": round(stopped, 2),
        "resume_to_first_step_s": round(again, 2),
        "resume_beyond_imports_s": round(again - imports, 2),
        "run_directory_bytes": kept,
    }
    print(json.dumps(figures) if given.json else "\n".join(f"{name:28} {value}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
