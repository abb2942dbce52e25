"""docs/quickstart-relay.md does what it says: every block is typed in, word for word, and nothing is left running."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import ROOT, Warm, alive, matches, start, until

PAGE = ROOT / "docs" / "quickstart-relay.md"
PORTS = ("PORT", "ADMIN")
_MARK = "--- block "


@dataclass(frozen=True)
class Block:
    """A ```bash block of a page, and the ```text block that follows it: what it prints."""

    line: int
    commands: str
    expected: tuple[str, ...] | None


def blocks(page: str) -> list[Block]:
    found = re.finditer(r"(?ms)^```bash\n(.*?)^```\n(?:\s*^```text\n(.*?)^```$)?", page)
    return [
        Block(page[: m.start()].count("\n") + 1, m[1], None if m[2] is None else tuple(m[2].splitlines()))
        for m in found
    ]


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


def in_session(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of = status.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append(int(status.parent.name))
    return found


def play(page: str, directory: Path, ports: dict[str, str], timeout: float) -> tuple[str, list[int]]:
    """Type in a page; what was wrong, and the processes that it left behind, which are ended.

    `fedhpc` is here one that has imported everything already.
    """
    steps = blocks(page)
    commands = directory / ".bin"
    commands.mkdir()
    (commands / "fedhpc").write_text(f'#!/bin/sh\nexec {shlex.join([*Warm.words(), "fedhpc"])} "$@"\n')
    (commands / "fedhpc").chmod(0o755)
    path = os.pathsep.join([str(commands), str(Path(sys.executable).parent), os.environ["PATH"]])
    with start(["bash", "-c", script(steps)], cwd=directory, env={"PATH": path, "COLUMNS": "80"} | ports) as job:
        try:
            done = job.finish(timeout)
        finally:
            left = in_session(job.process.pid)
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    return wrong(steps, done.code, done.out), left


@pytest.mark.timeout(600)
def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = {name: str(s.getsockname()[1]) for name, s in zip(PORTS, (one, other), strict=True)}
    found, left = play(PAGE.read_text(), tmp_path, ports, timeout=540)
    assert not found, found
    assert left == [], "the page leaves processes running"
    for port in ports.values():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("```bash\necho a\n```\n\n```text\nb\n```\n", "line 1: printed\na\n"),
        ("# x\n\n```bash\ntrue\nfalse\necho a\n```\n", "line 3: a command failed"),
        ("```bash\ntrue\n```\n\n```bash\nexit 0\n```\n\n```bash\ntrue\n```\n", "2 of 3 blocks ran"),
    ],
)
def test_the_reader_can_fail(page: str, told: str, tmp_path: Path) -> None:
    assert play(page, tmp_path, {}, timeout=60)[0].startswith(told)


def test_what_is_left_running_is_found_and_ended(tmp_path: Path) -> None:
    found, (pid,) = play("```bash\nsleep 600 &\n```\n\n```bash\necho a\n```\n\n```text\n...\n```\n", tmp_path, {}, 60)
    assert not found
    until(lambda: not alive(pid), 10, "the process that was left")
