"""Runs the suite and judges it, since ReFrame passes a measurement whose figures are lost.

    python -m benchmarks.partition --out DIR [--tag own]               on this machine
    python -m benchmarks.partition --out DIR --allocation              over the nodes of the job that this runs in
    python -m benchmarks.partition --out DIR --config SITE.py [-- …]   with a cluster's own configuration of ReFrame

DIR/results/partition.jsonl has a line of JSON for each repeat; DIR/skipped.txt says what was left out, and why;
DIR/reframe.log is what ReFrame did. Exit 1 where a check failed, a figure is missing, or nothing was measured; 75 where
it was told to end, with what was done. Words after -- are ReFrame's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.partition.arrived import faults, read
from benchmarks.partition.whole_run import run_whole

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LINES = "lines.jsonl"


def main(words: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--tag", action="append", help="smoke, own, large, or a check's name; several: all of them")
    parser.add_argument("--repeat", type=_count, metavar="N", help="of each measurement; by default 5, of smoke 1")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--allocation", action="store_true", help="within a Slurm job")
    where.add_argument("--config", type=Path, metavar="FILE", help="a site's configuration of ReFrame")
    parser.add_argument("reframe", nargs="*", metavar="WORD", help="further words of ReFrame")
    given = parser.parse_args(words)
    out: Path = given.out.absolute()
    if (out / "reframe").exists():
        print(f"error: {out} has been used", file=sys.stderr)
        print("hint: name a new folder", file=sys.stderr)
        return 64
    (out / "results").mkdir(parents=True, exist_ok=True)
    tags = given.tag or ["smoke"]
    repeat = given.repeat or (1 if "smoke" in tags else 5)
    report = out / "reframe" / "report.json"
    command = [
        *(sys.executable, "-c", "from reframe.frontend.cli import main; main()"),
        *("--config-file", str((given.config or HERE / "places.py").absolute())),
        *([] if given.config else ["--system", "allocation" if given.allocation else "machine"]),
        *("--checkpath", str(HERE / "checks.py"), "--prefix", str(out / "reframe"), "--report-file", str(report)),
        *("--exec-policy", "serial", "--nocolor", *(word for tag in tags for word in ("--tag", f"{tag}$"))),
        *("--setvar", f"repeat={repeat}", *given.reframe, "--run"),
    ]
    skipped = out / "skipped.txt"
    skipped.touch()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(_path())}
    environment |= {"FEDHPC_SUITE_LOG": str(out / "reframe.log"), "FEDHPC_SUITE_SKIPPED": str(skipped)}
    code, told = run_whole(command, cwd=ROOT, environment=environment)
    if told:
        lines = [path.read_text() for path in sorted((out / "reframe" / "output").rglob(LINES))]
        (out / "results" / "partition.jsonl").write_text("".join(lines))
        print(f"error: told to end; {len(lines)} checks were done, and the others were not", file=sys.stderr)
        return 75
    if not report.is_file():
        print(f"error: ReFrame wrote no report; exit code {code}", file=sys.stderr)
        return code or 1
    wrong = _gather(json.loads(report.read_text()), out)
    for text in wrong:
        print(f"error: {text}", file=sys.stderr)
    judge = [sys.executable, "-m", "benchmarks.report", "--check", "--results", str(out / "results")]
    judged = subprocess.run(judge, cwd=ROOT, env=environment, check=False).returncode
    return 1 if wrong or code or judged else 0


def _count(text: str) -> int:
    """For argparse, which names what raises."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return int(text)


def _path() -> list[str]:
    before = os.environ.get("PYTHONPATH", "")
    return [str(ROOT), *([before] if before else [])]


def _gather(report: dict[str, Any], out: Path) -> list[str]:
    """Write what was measured into `out`; what is wrong, in words. What is left out the checks have written."""
    cases = [case for run in report["runs"] for case in run["testcases"]]
    wrong, lines, skipped = list[str](), list[str](), 0
    for case in cases:
        name = f"{case['display_name']} on {case['system']}:{case['partition']}"
        if case["result"] == "skip":
            skipped += 1
        elif case["result"] != "pass":
            wrong.append(f"{name}: {case['result']}: {case.get('fail_reason')}")
        else:
            path = Path(case["outputdir"]) / LINES
            wrong += [f"{name}: {text}" for text in faults(read(path))]
            lines += path.read_text().splitlines(keepends=True) if path.is_file() else []
    if not lines:
        wrong.append("nothing was measured")
    (out / "results" / "partition.jsonl").write_text("".join(lines))
    print(f"{len(cases)} checks: {len(lines)} lines, {skipped} left out, {len(wrong)} errors")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
