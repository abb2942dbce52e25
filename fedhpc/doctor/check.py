"""What a check is: a name, why it matters, and a function that says what it found and how to fix it.

A check never says ok about something it could not see: it is then skipped, and says why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from fedhpc.app.logs import printable
from fedhpc.doctor.subject import Subject
from fedhpc.errors import ConfigError, FedhpcError, StorageError

State = Literal["ok", "warn", "fail", "skipped"]

# Exit codes from the worst: keys and rules, storage, data, settings, last the relay, which may come back on its own.
_WORST = (77, 74, 65, 64, 70, 69)
_QUICK_S, _FULL_S = 8.0, 90.0


@dataclass(frozen=True)
class Finding:
    """What one check saw. `fix` is for warn and fail; `exit_code` is 0 unless it fails."""

    state: State
    what: str
    fix: str = ""
    exit_code: int = 0


@dataclass(frozen=True)
class Check:
    """One thing to look at."""

    name: str
    group: str
    why: str
    run: Callable[[Subject], Finding]
    quick: bool = True
    """Whether it is part of the few seconds before every job."""
    of_ranks: bool = False
    """Whether it looks at the Python of the ranks, which may be in an image."""


@dataclass(frozen=True)
class Result:
    """A check and its finding."""

    check: Check
    finding: Finding


def ok(what: str) -> Finding:
    """All is well, as far as this was looked at."""
    return Finding("ok", what)


def warn(what: str, fix: str) -> Finding:
    """It may go wrong, or go slowly; no reason to stop a job."""
    return Finding("warn", what, fix)


def fail(what: str, fix: str, exit_code: int = ConfigError.exit_code) -> Finding:
    """A job would end, or give nothing."""
    return Finding("fail", what, fix, exit_code)


def skipped(reason: str) -> Finding:
    """Nothing was checked, because …"""
    return Finding("skipped", reason)


def examine(subject: Subject, checks: Sequence[Check]) -> list[Result]:
    """Every check in turn, each with a limit of time; a check that breaks is skipped and says so."""
    return [Result(check, _one(subject, check)) for check in checks]


def exit_code(results: Sequence[Result]) -> int:
    """0 if nothing fails, else the exit code of the worst failing check."""
    codes = {r.finding.exit_code for r in results if r.finding.state == "fail"}
    return next((code for code in _WORST if code in codes), max(codes, default=0))


def _one(subject: Subject, check: Check) -> Finding:
    """One check in a thread of its own: a dead file server or name server never answers."""
    if subject.quick and not check.quick:
        return skipped("it takes longer than --quick allows")
    found: list[Finding] = []
    limit = _QUICK_S if subject.quick else _FULL_S
    thread = threading.Thread(target=lambda: found.append(_guarded(subject, check)), daemon=True)
    thread.start()
    thread.join(limit)
    if found:
        return found[0]
    return warn(
        f"no answer within {limit:.0f} s", "a file system or a service of this machine hangs: ask its operators"
    )


def _guarded(subject: Subject, check: Check) -> Finding:
    if check.of_ranks and subject.ranks_in_image:
        where = "the checks before a job's start look at it there"
        by_hand = "`apptainer exec IMAGE fedhpc doctor` looks at it there"
        return skipped(f"the ranks' Python is in the image: {where if check.quick else by_hand}")
    try:
        return check.run(subject)
    except FedhpcError as error:
        return fail(printable(error.what), printable(error.hint) or "see docs/doctor.md", error.exit_code)
    except OSError as error:
        return fail(printable(str(error)), "check the file and its permissions", StorageError.exit_code)
    except Exception as error:
        return skipped(f"the check itself broke, please report it: {printable(f'{type(error).__name__}: {error}')}")
