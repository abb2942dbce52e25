"""Turns benchmarks/results/ into docs/benchmarks.md and its pictures, or says what is wrong with them.

    python -m benchmarks.report                         write docs/benchmarks.md and docs/images/*.{svg,png}
    python -m benchmarks.report --check [--expect WORK] exit 1 where a metric or a repeat is missing, a result is not
                                                        verified, or one ratio is of several machines

`--results DIR` reads other results, `--page FILE` writes another page. A median counts from five repeats on; what has
fewer is marked. Results without a record are shown as they are; --check names what they lack.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.complaints import MEASURED, complaints
from benchmarks.plots import draw
from benchmarks.report.page import page
from benchmarks.runs import Stored, read_results

HERE = Path(__file__).parents[1]
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "benchmarks.md"
IMAGES = "images"  # beside the page


def main(words: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--page", type=Path, default=PAGE, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="WORK",
        choices=sorted(MEASURED),
        help="must have been measured",
    )
    given = parser.parse_args(words)
    stored = read_results(given.results)
    if given.check:
        return check(stored, given.expect)
    drawn = draw(stored.runs, given.page.parent / IMAGES)
    given.page.write_text(page(stored, {name: f"{IMAGES}/{file}" for name, file in drawn.items()}))
    return 0


def check(stored: Stored, expected: Iterable[str]) -> int:
    """Print what is wrong, and what cannot be checked; 1 if something is wrong."""
    for text in stored.unrecorded:
        print(f"not checked: {text}", file=sys.stderr)
    found = complaints(stored, expected)
    for text in found:
        print(f"error: {text}", file=sys.stderr)
    print(f"{len(stored.runs)} runs checked, {len(found)} errors, {len(stored.unrecorded)} files without records")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
