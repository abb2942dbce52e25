"""Checks of Python and its packages: versions that fit the ranges of fedhpc's own metadata."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Callable, Collection, Sequence

from fedhpc import __version__
from fedhpc.doctor.check import Check, Finding, fail, ok, skipped
from fedhpc.doctor.subject import Subject

GROUP = "Software"
_BLAKE3 = "blake3"  # the package, and the suite that needs it
_REQUIREMENT = re.compile(r"([\w.-]+)(?:\[[^\]]*\])?\s*\(?([^;()]*)\)?\s*(?:;\s*(.*))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")


def python(subject: Subject) -> Finding:
    """This interpreter against Requires-Python."""
    try:
        wanted = importlib.metadata.metadata("fedhpc")["Requires-Python"] or ""
    except importlib.metadata.PackageNotFoundError:
        wanted = ""
    return python_fits(".".join(map(str, sys.version_info[:3])), wanted)


def python_fits(version: str, wanted: str) -> Finding:
    """`version` against the range `wanted`."""
    if not wanted:
        return skipped("fedhpc is not installed, so its metadata names no range")
    if not fits(version, wanted):
        return fail(f"Python {version}, but fedhpc needs {wanted}", "load a newer Python (module avail python)")
    return ok(f"Python {version} at {sys.executable}, fedhpc {__version__}")


def packages(subject: Subject) -> Finding:
    """Every package that this site's work needs, against the ranges of the metadata."""
    try:
        wanted = importlib.metadata.requires("fedhpc") or []
    except importlib.metadata.PackageNotFoundError:
        return skipped("fedhpc is not installed, so its metadata names no ranges")
    trains = subject.agreement is not None and "name" in subject.agreement.task
    extras = {"train"} if trains and not subject.trains_without_torch else set()
    spared = {_BLAKE3} if subject.agreement is not None and subject.agreement.secure.suite != _BLAKE3 else set()
    return packages_fit(wanted, extras, _installed, spared)


def packages_fit(
    wanted: Sequence[str], extras: set[str], installed: Callable[[str], str | None], spared: Collection[str] = ()
) -> Finding:
    """`wanted`: lines of Requires-Dist; `extras`: those that the site needs; `installed`: name -> version.

    `spared`: packages that may be missing, since this federation does without them.
    """
    wrong: list[str] = []
    shown: list[str] = []
    needed: set[str] = set()
    for line in wanted:
        match = _REQUIREMENT.fullmatch(line.strip())
        if match is None:
            continue
        name, range_, marker = match[1], match[2].strip(), match[3] or ""
        extra = _EXTRA.search(marker)
        if name == "fedhpc" or (marker and (extra is None or extra[1] not in extras)):
            continue
        found = installed(name)
        if found is None and name in spared:
            continue
        if found is None:
            wrong.append(f"{name} is missing")
        elif not fits(found, range_):
            wrong.append(f"{name} {found} is not {range_}")
        else:
            shown.append(f"{name} {found}")
            continue
        needed |= {extra[1]} if extra else set()
    if wrong:
        install = f"pip install 'fedhpc[{','.join(sorted(needed))}]'" if needed else "pip install --upgrade fedhpc"
        hint = f"{install}, with the Python of the job"
        if f"{_BLAKE3} is missing" in wrong:
            hint += '; or all sites agree on suite = "sha256" under [secure], which needs no package'
        return fail("; ".join(wrong), hint)
    return ok(", ".join(shown))


def fits(version: str, range_: str) -> bool:
    """Whether a version lies in a range such as `>=2.0,<3`; only numbers are compared, and unknown operators pass."""
    have = _numbers(version)
    for part in filter(None, (p.strip() for p in range_.split(","))):
        match = re.fullmatch(r"(>=|<=|==|!=|>|<)\s*([\d.]+)", part)
        if match is None:
            continue
        size = max(len(have), len(_numbers(match[2])))
        one, two = ((*n, *[0] * (size - len(n))) for n in (have, _numbers(match[2])))
        compared = {">=": one >= two, "<=": one <= two, "==": one == two, "!=": one != two}
        if not (compared | {">": one > two, "<": one < two})[match[1]]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(n) for n in match[0].split(".")) if match else ()


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


CHECKS = (
    Check("python", GROUP, "an older Python does not run fedhpc", python),
    Check("packages", GROUP, "a missing package ends the job after it waited in the queue", packages, of_ranks=True),
)
