"""Pages that are typed in word for word: their bash blocks, what these print, and the files that they have saved."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness import Warm, matches, start

_MARK = "--- block "
_BLOCKS = re.compile(
    r"(?ms)^```bash\n(?P<commands>.*?)^```\n(?:\s*^```text\n(?P<printed>.*?)^```$)?"
    r"|^```(?:python|toml)\n(?P<file># (?P<name>[\w-]+\.(?:py|toml)).*?)^```$"
)


@dataclass(frozen=True)
class Block:
    """A ```bash block of a page, and the ```text block that follows it: what it prints.

    A ```python or ```toml block whose first line is `# NAME` is saved under that name where the shell stands.
    """

    line: int
    commands: str
    expected: tuple[str, ...] | None


def blocks(page: str) -> list[Block]:
    """The blocks of a page that are typed in or saved, in order."""
    found = []
    for match in _BLOCKS.finditer(page):
        commands, printed = match["commands"], match["printed"]
        if match["file"]:
            commands = f"cat > {match['name']} <<'END OF {match['name']}'\n{match['file']}END OF {match['name']}\n"
        line = page[: match.start()].count("\n") + 1
        found.append(Block(line, commands, None if printed is None else tuple(printed.splitlines())))
    return found


def script(steps: list[Block]) -> str:
    """One shell runs all of it, and ends at the first command that fails."""
    parts = [f"echo '{_MARK}{step.line}'\n{step.commands}" for step in steps]
    return "set -e\nexec 2>&1\n" + "".join(parts)


def wrong(steps: list[Block], code: int, out: str) -> str:
    """What the page promises and the shell did not do; empty if all is well."""
    printed = re.split(rf"(?m)^{_MARK}\d+\n", out)[1:]
    for step, text in zip(steps, printed, strict=False):
        lines = [line.rstrip() for line in text.splitlines()]
        if step is steps[len(printed) - 1] and code:
            return f"line {step.line}: a command failed\n{step.commands}--- printed\n{text}"
        if step.expected is not None and not matches(step.expected, lines):
            return f"line {step.line}: printed\n{text}--- the page says\n" + "\n".join(step.expected)
    return "" if len(printed) == len(steps) else f"{len(printed)} of {len(steps)} blocks ran\n{out}"


def play(page: str, directory: Path, variables: Mapping[str, str], timeout: float) -> tuple[str, list[int]]:
    """Type in a page; what was wrong, and the processes that it left behind, which are ended.

    `fedhpc` is here one that has imported everything already.
    """
    steps = blocks(page)
    commands = directory / ".bin"
    commands.mkdir()
    (commands / "fedhpc").write_text(f'#!/bin/sh\nexec {shlex.join([*Warm.words(), "fedhpc"])} "$@"\n')
    (commands / "fedhpc").chmod(0o755)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    with start(["bash", "-c", script(steps)], cwd=directory, env={"PATH": path, "COLUMNS": "80"} | variables) as job:
        try:
            done = job.finish(timeout)
        finally:
            left = in_session(job.process.pid)
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return wrong(steps, done.code, done.out), left


def in_session(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of = status.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append(int(status.parent.name))
    return found
