"""An older build beside this one, in turn: what became faster, as ratios of one run.

    python -m benchmarks.builds OLD_PYTHON OLD_COMMIT [--turns 3] [WORK…]

OLD_PYTHON: the interpreter of an environment in which the older build is installed, and OLD_COMMIT what was built.
Every comparison is one command of `fedhpc bench` that both builds know. They run in turn, so that what else the
machine does meets both; what the newer build can do in other ways (a kernel, a relay's store) follows each turn.
benchmarks/results/builds.jsonl gets a line for each command: its --json, with `build`, `way`, `turn` and `commit`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.runs import BUILDS

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Way:
    """How a build does the work."""

    name: str
    words: tuple[str, ...] = ()  # further words of the command
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """A command, and the ways of the newer build."""

    name: str
    words: tuple[str, ...]
    ways: tuple[Way, ...] = (Way("as it is"),)


WORKS = (
    Work(
        "large",
        ("bench", "sum", "--sites", "4", "--params", "100000000", "--repeat", "3"),
        (Way("as it is"), Way("AES-NI and AVX2", environment={"FEDHPC_KERNEL": "aesni"})),
    ),
    Work("many sites", ("bench", "sum", "--sites", "16", "--params", "2000000", "--repeat", "5")),
    Work("one number", ("bench", "latency", "--sites", "4", "--repeat", "300")),
    Work(
        "relay",
        ("bench", "sum", "--exchange", "https", "--sites", "4", "--params", "10000000", "--repeat", "5"),
        (Way("disk"), Way("memory", ("--durable", "memory"))),
    ),
)


def compare(old_python: str, old_commit: str, works: Sequence[Work], turns: int) -> Iterator[list[dict[str, Any]]]:
    """Of each work a line for each command that ran; raises CalledProcessError."""
    new_commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True, check=True, cwd=RESULTS
    ).stdout.strip()
    for work in works:
        lines = []
        for turn in range(1, turns + 1):
            lines.append(_run(old_python, work, Way(""), build="old", turn=turn, commit=old_commit))
            for way in work.ways:
                lines.append(_run(sys.executable, work, way, build="new", turn=turn, commit=new_commit))
        yield lines


def _run(python: str, work: Work, way: Way, **more: Any) -> dict[str, Any]:
    words = [*work.words, *way.words]
    print(f"{more['build']}, turn {more['turn']}: fedhpc {' '.join(words)}", flush=True)
    # In an empty folder: ranks that are started in a checkout find its sources first, whichever build they are of.
    with tempfile.TemporaryDirectory(prefix="fedhpc-builds-") as empty:
        done = subprocess.run(
            [python, "-m", "fedhpc", *words, "--json"],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | way.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            cwd=empty,
        )
    return {"compared": work.name, "way": way.name, **more, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old_python", help="interpreter of the older build")
    parser.add_argument("old_commit")
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"only these: {', '.join(w.name for w in WORKS)}")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / BUILDS)
    given = parser.parse_args()
    names = given.works or [work.name for work in WORKS]
    if unknown := set(names) - {work.name for work in WORKS}:
        parser.error(f"there is no work {', '.join(sorted(unknown))}")
    chosen = [work for work in WORKS if work.name in names]
    for lines in compare(given.old_python, given.old_commit, chosen, given.turns):
        name, kept = lines[0]["compared"], list[str]()
        if given.out.exists():
            kept = [line for line in given.out.read_text().splitlines() if json.loads(line)["compared"] != name]
        given.out.write_text("".join(f"{line}\n" for line in [*kept, *map(json.dumps, lines)]))


if __name__ == "__main__":
    main()
