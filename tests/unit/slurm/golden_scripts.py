"""The golden batch scripts: one stands whole in tests/golden/slurm, and of every other one what differs.

What runs in a container differs from the same shape outside, and other runtimes from the first one.

A profile's differences are those of its chained job from the generic profile's. The same hunks, where they fit, make
its other jobs of the generic ones; what remains is kept beside them. Every shape but the first differs from the first.

A hunk is `@@`, the lines before the change (` `), those that go (`-`) and those that come (`+`). It belongs to the
first place after the hunk before it where its old lines stand, so a change elsewhere leaves it as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher

from harness import ROOT
from slurm_fakes import PROFILES

from fedhpc.slurm.scripts import KINDS

FOLDER = ROOT / "tests" / "golden" / "slurm"
WHOLE = "generic-chained-all"
FIRST_SHAPE = "rehearsal"

CASES = [
    f"{profile}-{stage}"
    for profile in PROFILES
    for stage in ("chained-all", "inline-all", "detached-train", "detached-exchange")
]
SHAPES = [FIRST_SHAPE, *(kind for kind in KINDS if kind not in ("site", FIRST_SHAPE))]
CONTAINED = [*(f"contained-{kind}" for kind in KINDS), "contained-bind", "contained-charliecloud", "contained-folder"]
DIFFERING = [name for name in [*CASES, *SHAPES, *CONTAINED] if name != WHOLE]


def read() -> dict[str, str]:
    """All golden scripts, put together again: name -> text."""
    changes = dict(
        part.split("\n", 1) for path in sorted(FOLDER.glob("*.diff")) for part in path.read_text().split("=== ")[1:]
    )
    assert changes.keys() <= set(DIFFERING), f"left over: {changes.keys() - set(DIFFERING)}"
    scripts = {WHOLE: (FOLDER / f"{WHOLE}.sbatch").read_text()}
    for name in DIFFERING:
        scripts[name] = apply(_start(name, scripts, changes), changes.get(name, ""))
    return scripts


def write(scripts: Mapping[str, str]) -> None:
    """Make these the golden scripts."""
    changes: dict[str, str] = {}
    files: dict[str, str] = {f"{WHOLE}.sbatch": scripts[WHOLE]}
    for name in DIFFERING:
        changes[name] = difference(_start(name, scripts, changes), scripts[name])
        if changes[name]:
            file = f"{_file(name)}.diff"
            files[file] = f"{files.get(file, '')}=== {name}\n{changes[name]}"
    for path in FOLDER.glob("*"):
        path.unlink()
    for file, text in files.items():
        (FOLDER / file).write_text(text)


def _start(name: str, scripts: Mapping[str, str], changes: Mapping[str, str]) -> str:
    """What the differences of a script are applied to; `scripts` and `changes` of those before it in DIFFERING."""
    if name in CONTAINED:
        kind = name.removeprefix("contained-")
        return scripts[kind if kind in SHAPES else FIRST_SHAPE if kind == "site" else "contained-site"]
    if name in SHAPES:
        return scripts["generic-inline-all" if name == FIRST_SHAPE else FIRST_SHAPE]
    profile, stage = _profile_and_stage(name)
    if profile == "generic" or stage == "chained-all":
        return scripts[WHOLE]
    return apply(scripts[f"generic-{stage}"], changes[f"{profile}-chained-all"], where_it_fits=True)


def _file(name: str) -> str:
    if name in CONTAINED:
        return "contained"
    return name if name in SHAPES else _profile_and_stage(name)[0]


def _profile_and_stage(name: str) -> tuple[str, str]:
    profile, life, stage = name.rsplit("-", 2)
    return profile, f"{life}-{stage}"


def difference(old: str, new: str) -> str:
    """The hunks that make `new` of `old`; each line ends with a newline."""
    before, after = old.splitlines(), new.splitlines()
    change: list[str] = []
    taken = 0  # lines of `before` that belong to earlier hunks
    for tag, i, j, m, n in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        begin = max(i - 1, taken)
        while _find(before, before[begin:j], taken) != begin:
            begin -= 1
        change += ["@@", *(f" {line}" for line in before[begin:i])]
        change += [*(f"-{line}" for line in before[i:j]), *(f"+{line}" for line in after[m:n])]
        taken = j
    return "".join(f"{line}\n" for line in change)


def apply(old: str, change: str, *, where_it_fits: bool = False) -> str:
    """The new text. ValueError if the old lines of a hunk do not follow, unless only hunks that fit are wanted."""
    before = old.splitlines()
    made: list[str] = []
    taken = 0
    for hunk in re.split(r"(?m)^@@\n", change)[1:]:
        lines = hunk.splitlines()
        wanted = [line[1:] for line in lines if line[0] in " -"]
        place = _find(before, wanted, taken)
        if place is None:
            if not where_it_fits:
                raise ValueError(f"these lines do not follow: {wanted}")
            continue
        made += [*before[taken:place], *(line[1:] for line in lines if line[0] in " +")]
        taken = place + len(wanted)
    return "".join(f"{line}\n" for line in [*made, *before[taken:]])


def _find(lines: list[str], wanted: list[str], start: int) -> int | None:
    places = range(start, len(lines) - len(wanted) + 1)
    return next((place for place in places if lines[place : place + len(wanted)] == wanted), None)
