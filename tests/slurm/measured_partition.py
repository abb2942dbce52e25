"""Stores what the suite measures over the two nodes of test cluster alpha: `make bench-test-cluster`.

Both nodes are namespaces of this machine and share its cores, so its figures show that the suite works, and no scaling.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "fakes"), str(ROOT / "tests" / "slurm")]

from clusters import Clusters, why_not  # noqa: E402
from test_slurm_bench import submitted  # noqa: E402

from fedhpc.files import write_whole  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "partition.jsonl"


def main() -> int:
    """The exit code."""
    if reason := why_not():
        print(f"error: {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="fedhpc-partition-") as folder, closing(Clusters()) as clusters:
        words = ["--suite", str(ROOT / "benchmarks" / "partition"), "--tag", "own", "--tag", "SumOverNodes"]
        code, measured, log = submitted(clusters.alpha, Path(folder), *words, seconds=900)
        print(log)
        if code == 0:
            write_whole(RESULT, (measured / "results" / "partition.jsonl").read_bytes(), mode=0o644)
    return code


if __name__ == "__main__":
    sys.exit(main())
