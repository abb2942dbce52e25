"""What was found, as text and as JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence

from fedhpc.doctor.check import Result, State, exit_code
from fedhpc.doctor.subject import PLACES, Subject

VERSION = 1
_WORDS = {"ok": "ok", "warn": "warning", "fail": "FAILED", "skipped": "not checked"}
_STATES: tuple[State, ...] = ("ok", "skipped", "warn", "fail")


def as_text(subject: Subject, results: Sequence[Result], width: int = 100) -> str:
    """Lines for people: groups in order, then what needs attention, worst last, then how many of each.

    With --quick only what needs attention is shown.
    """
    lines: list[str] = []
    if not subject.quick:
        lines += _groups(results, width)
    for state in ("warn", "fail"):
        for result in results:
            if result.finding.state == state:
                lines += _trouble(result, width)
    lines.append(_count(subject, results))
    return "\n".join(lines)


def as_json(subject: Subject, results: Sequence[Result]) -> str:
    """One line: version, place, exit_code, counts by state, and every check with its finding."""
    states = [r.finding.state for r in results]
    return json.dumps(
        {
            "version": VERSION,
            "place": subject.place,
            "site": None if subject.site is None else subject.site.site.name,
            "quick": subject.quick,
            "exit_code": exit_code(results),
            "counts": {state: states.count(state) for state in _STATES},
            "checks": [
                {
                    "name": r.check.name,
                    "group": r.check.group,
                    "state": r.finding.state,
                    "what": r.finding.what,
                    "why": r.check.why,
                    "fix": r.finding.fix,
                    "exit_code": r.finding.exit_code,
                }
                for r in results
            ],
        }
    )


def _groups(results: Sequence[Result], width: int) -> Iterator[str]:
    group = ""
    for result in results:
        if result.check.group != group:
            group = result.check.group
            yield group
        state = _WORDS[result.finding.state]
        yield from _wrapped(f"  {result.check.name:<17} {state:<11} ", result.finding.what, width)
    yield ""


def _trouble(result: Result, width: int) -> Iterator[str]:
    finding = result.finding
    yield from _wrapped(f"{_WORDS[finding.state]}: {result.check.name}: ", finding.what, width, 2)
    yield from _wrapped("  why: ", result.check.why, width, 7)
    yield from _wrapped("  fix: ", finding.fix, width, 7)
    yield ""


def _wrapped(head: str, text: str, width: int, indent: int | None = None) -> list[str]:
    margin = " " * (len(head) if indent is None else indent)
    return textwrap.wrap(
        head + text, max(width, 40), subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )


def _count(subject: Subject, results: Sequence[Result]) -> str:
    states = [r.finding.state for r in results]
    good, warned, bad, left = (states.count(s) for s in ("ok", "warn", "fail", "skipped"))
    warnings = f"{warned} warning{'' if warned == 1 else 's'}"
    return f"{good} ok, {warnings}, {bad} failed, {left} not checked, on {PLACES[subject.place]}"
