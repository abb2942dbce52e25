"""Measures fedhpc beside its peers: `python -m benchmarks.peers [CASE …]`; README.md says how.

Ours and each peer run in turn, and every result is checked. A peer that fails is a record of its own, and no reason to
stop. The last line of output is a JSON object of all cases; exit 1 where a sum of ours failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.peers.alternation import Alternation, Record, store
from benchmarks.peers.cases import CASES, Case, case_of
from benchmarks.peers.environments import EnvironmentFailedError, python_of

LINES = Path(__file__).parents[1] / "results" / "peers.jsonl"


def main(words: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="a case or one of its peers")
    parser.add_argument("--quick", action="store_true", help="without the longest cases, unless they are named")
    parser.add_argument("--small", action="store_true", help="one turn of 100,000 numbers, to try it")
    parser.add_argument("--turns", type=int, metavar="N", help="in place of the case's own")
    parser.add_argument("--lines", type=Path, metavar="FILE", help=f"where records go (default: {LINES.name})")
    parser.add_argument("--list", action="store_true", help="name the cases, and how long each takes here")
    parser.add_argument("--prepare", action="store_true", help="only make the environments of the peers")
    given = parser.parse_args(words)
    found = [(name, case_of(name)) for name in given.cases]
    if unknown := [name for name, case in found if case is None]:
        names = ", ".join(case.name for case in CASES)
        print(f"error: no case is called {unknown[0]}\nhint: one of {names}", file=sys.stderr)
        return 2
    if given.turns is not None and given.turns < 1:
        print(f"error: --turns {given.turns}\nhint: 1 or more", file=sys.stderr)
        return 2
    named = [case for _, case in found if case]
    whole = [case for case in CASES if not (given.quick and case.long)]
    cases = [_sized(case, given) for case in (named or whole)]
    if given.list:
        return _list(cases)
    if given.prepare:
        return _prepare(cases)
    lines = given.lines or (None if given.small else LINES)  # what was only tried is no result
    try:
        if lines is not None:
            store(lines, [])  # before hours of measuring, not after
    except (OSError, ValueError) as error:
        why = f"{error.strerror}" if isinstance(error, OSError) else str(error)
        print(f"error: {lines}: {why}\nhint: --lines FILE names another file for the records", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    everything = list[Record]()
    for case in cases:
        everything += _measure(case, given.small, lines)
    print(json.dumps(summary(everything)))
    return 1 if any(not record["row"] and "verified" not in record for record in everything) else 0


def _measure(case: Case, small: bool, lines: Path | None) -> list[Record]:
    """All records of a case; what there is of them is in the file after every turn."""

    def keep(records: Sequence[Record]) -> None:
        if lines is not None:
            store(lines, records, whole=False)

    records = Alternation(case, small=small).run(keep)
    if lines is not None:
        store(lines, records)
    return records


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """Case -> side -> its median and whether it is verified, or why there is none; for peers ratios over ours."""
    found = dict[str, dict[str, Any]]()
    for case in dict.fromkeys(record["case"] for record in records):
        here = [record for record in records if record["case"] == case]
        ours = [record for record in here if not record["row"]]
        sides = found[case] = {"ours": _side(ours)}
        for row in dict.fromkeys(record["row"] for record in here if record["row"]):
            side = sides[row] = _side([record for record in here if record["row"] == row])
            for name in ("wall_s", "cpu_s", "peak_bytes"):
                if name in side and name in sides["ours"]:
                    side[f"{name}_over_ours"] = round(side[name] / sides["ours"][name], 3)
    return found


def _side(records: Sequence[Record]) -> dict[str, Any]:
    whole = [record for record in records if "verified" in record]
    lost = [(key, record[key]) for record in records for key in ("failed", "skipped") if key in record]
    found: dict[str, Any] = dict(lost[:1])
    if whole:
        found |= {"verified": all(record["verified"] is True for record in whole), "rounds": len(whole)}
        found |= {name: statistics.median(r[name] for r in whole) for name in ("wall_s", "cpu_s", "peak_bytes")}
    return found


def _sized(case: Case, given: argparse.Namespace) -> Case:
    if given.small:
        case = case.small()
    if given.turns is not None:
        case = dataclasses.replace(case, warm=(case.warm * given.turns)[: given.turns])
    return case


def _list(cases: Sequence[Case]) -> int:
    for case in cases:
        rounds = " + ".join(map(str, case.warm))
        print(f"{case.name}: {case.title}, {case.sites} sites, {case.params} numbers, {rounds} warm rounds", end="")
        print(f", about {_minutes(case)} min" + ("; not with --quick" if case.long else ""))
        for peer in case.peers:
            print(f"  {peer.row}: {peer.system}, {peer.work}")
    print(f"about {_minutes(*cases)} min in all, {_minutes(*(case for case in cases if not case.long))} with --quick")
    return 0


def _minutes(*cases: Case) -> str:
    return f"{max(1, sum(case.seconds() for case in cases) / 60):.0f}"


def _prepare(cases: Sequence[Case]) -> int:
    code = 0
    for name in sorted({peer.environment for case in cases for peer in case.peers}):
        try:
            print(python_of(name))
        except EnvironmentFailedError as error:
            print(f"error: {error}", file=sys.stderr)
            code = 1
    return code


def _end(number: int, _: FrameType | None) -> None:
    """What runs is ended first; a second signal does not stop that."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
