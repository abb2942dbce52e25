"""An image's own test: its packages load, one MPI library is in a process, and two ranks add masked numbers.

%test runs it at the end of the build, `apptainer test IMAGE.sif` at any time, on any user's account.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

PACKAGES = ("cryptography", "fedhpc", "h11", "h5py", "numpy", "safetensors", "torch")
SUM = ("-m", "fedhpc", "bench", "sum", "--sites", "2", "--params", "1000", "--repeat", "1", "--json")


def main() -> None:
    """Raises SystemExit at the first thing that is wrong."""
    versions = {name: str(getattr(importlib.import_module(name), "__version__", "")) for name in PACKAGES}
    print("packages:", ", ".join(f"{name} {version}" for name, version in versions.items()))
    _check_torch(os.environ["FEDHPC_IMAGE"])
    print("kernel:", _kernel())
    if os.geteuid() and os.access(sys.prefix, os.W_OK):
        _fail(
            f"anybody may write to {sys.prefix}",
            "the image must be read-only, or root's",
        )
    # In a read-only image nothing is compiled later: without it each of thousands of ranks compiles PyTorch for itself.
    for module in (sys.modules["torch"], sys.modules["fedhpc"]):
        if not module.__cached__ or not Path(module.__cached__).exists():
            _fail(f"{module.__name__} is not compiled", "image.sh does that: look at the end of the build's log")
    for name in ("sbom.cdx.json", "debian-packages.tsv"):
        if not (Path(sys.prefix) / "share" / name).stat().st_size:
            _fail(f"{name} is empty", "build the image again")
    if not _has_mpi():
        print("MPI: none in this image; with MPI_DIR, and the host's MPI bound in, this test goes on")
        return
    print("MPI:", _library())
    print("masked sum of two ranks:", _masked_sum())


def _check_torch(image: str) -> None:
    import torch

    built_for = "cuda" if torch.version.cuda else "rocm" if torch.version.hip else "cpu"
    if built_for != image:
        _fail(
            f"PyTorch {torch.__version__} is built for {built_for}, the image for {image}",
            "give its index as TORCH_INDEX",
        )


def _kernel() -> str:
    """What hides vectors on this CPU: Python where the build had no compiler."""
    from fedhpc.kernel import choice

    running = choice.running()
    return f"{running.name} {running.reason}".strip()


def _has_mpi() -> bool:
    """Its own, or the host's: a build often sees the MPI_DIR of the builder's shell, but not that folder."""
    bound = os.environ.get("MPI_DIR", "")
    return os.environ["FEDHPC_IMAGE_MPI"] != "host" or (bool(bound) and Path(bound).is_dir())


def _library() -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fedhpc.mpi.library"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no answer"])[-1]
        _fail(f"mpi4py loads no MPI library: {last}", "MPI=openmpi puts one in; MPI=host wants the cluster's, bound in")
    found = json.loads(done.stdout)
    if len(found["loaded"]) != 1:
        _fail(f"a process has {len(found['loaded'])} MPI libraries: {found['loaded']}", "leave all but one out")
    return f"{found['version'].splitlines()[0]} ({found['loaded'][0]})"


def _masked_sum() -> str:
    done = subprocess.run([sys.executable, *SUM], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        _fail("two ranks could not add", "mpirun of the image must start two processes on this machine")
    result = json.loads(done.stdout.splitlines()[-1])
    if result["verified"] is not True:
        _fail(f"the masked sum is wrong: {result}", "keep the image, and report this")
    return "right"


def _fail(what: str, hint: str) -> NoReturn:
    sys.exit(f"error: {what}\nhint: {hint}")


if __name__ == "__main__":
    main()
