"""The command line as shell sessions: every *.txt beside this file is typed in again, line for line.

    $ fedhpc data key row.key        a command, run by bash in an empty directory; `> ` continues it
    wrote row.key (mode 0600)...     what it prints, stdout and stderr together; `...` stands for anything in a line,
    ...                              and alone for any lines
    ? 64                             its exit code, if it is not 0

`background FILE.log WORDS` starts `fedhpc WORDS` until the transcript ends, and writes its output to FILE.log.
`pytest tests/cli --regenerate` rewrites what no longer matches. Before a transcript `fed/` is a federation of one
site, with data, and `fed3/` one of three sites.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
from dataclasses import dataclass, field
from pathlib import Path

import click
import pytest
from harness import FEDHPC, Site, Warm, call, matches, write_federation

HERE = Path(__file__).parent
TRANSCRIPTS = sorted(HERE.glob("*.txt"))
_VOLATILE = re.compile(r"\b[0-9a-f]{16,64}\b|\b\d+\.\d{3,}\b|\b\d{4}-\d\d-\d\d\b|/tmp/\S*")


@dataclass
class Step:
    """One command, with the lines before it that are no output."""

    comments: list[str]
    command: list[str]
    expected: list[str] = field(default_factory=list)
    code: int = 0


def read(text: str) -> tuple[list[Step], list[str]]:
    """The steps of a transcript, and what stands after the last."""
    steps: list[Step] = []
    comments: list[str] = []
    ended = True
    for line in text.splitlines():
        if line.startswith("$ "):
            steps.append(Step(comments, [line[2:]]))
            comments, ended = [], False
        elif ended:
            comments.append(line)
        elif line.startswith("> ") and not steps[-1].expected:
            steps[-1].command.append(line[2:])
        elif line.startswith("? "):
            steps[-1].code = int(line[2:])
        elif line.startswith("#"):
            comments, ended = [line], True
        else:
            steps[-1].expected.append(line)
    for step in steps:
        while step.expected and not step.expected[-1]:
            step.expected.pop()
    return steps, comments


def write(steps: list[Step], after: list[str]) -> str:
    lines: list[str] = []
    for step in steps:
        lines += step.comments
        lines += [f"$ {step.command[0]}", *(f"> {more}" for more in step.command[1:]), *step.expected]
        lines += [f"? {step.code}"] if step.code else []
        lines += [""]
    return "\n".join([*lines[:-1], *after]) + "\n"


def renew(old: list[str], lines: list[str]) -> list[str]:
    """`lines` as a new expectation: what is not the same on every machine becomes a wildcard; old ones are kept."""
    kept = [*old, *[""] * len(lines)]
    pairs = zip(kept, lines, strict=False)
    return [k if k and matches([k], [line]) else _VOLATILE.sub("...", line) for k, line in pairs]


def run(step: Step, directory: Path, fresh: bool) -> tuple[list[str], int]:
    """(printed lines, exit code). `fresh`: by processes that start from nothing."""
    words = shlex.join(FEDHPC)
    warm = words if fresh else shlex.join([*Warm.words(), "fedhpc"])
    background = f'(echo $BASHPID > "$1.pid"; exec {words} "${{@:2}}") > "$1" 2>&1 &'
    shell = f'fedhpc() {{ {warm} "$@"; }}\nbackground() {{ {background} }}\nexec 2>&1\n'
    done = call(["bash", "-c", shell + "\n".join(step.command)], cwd=directory, timeout=90, env={"COLUMNS": "100"})
    text = done.out.replace("python -m fedhpc", "fedhpc").replace(str(directory), "")
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines, done.code


def play(step: Step, directory: Path, fresh: bool = False) -> str:
    """What is wrong with a step, if anything; what it printed is then what it should print."""
    lines, code = run(step, directory, fresh)
    if code == step.code and matches(step.expected, lines):
        return ""
    told = [f"$ {step.command[0]}", *lines, f"? {code}", "--- expected", *step.expected, f"? {step.code}"]
    step.expected, step.code = renew(step.expected, lines), code
    return "\n".join(told)


def end_background(directory: Path) -> None:
    """End what `background` started: processes that run in this transcript's directory."""
    for file in directory.glob("*.pid"):
        pid = int(file.read_text())
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if Path(f"/proc/{pid}/cwd").resolve() == directory:
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_transcript(path: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    write_federation(tmp_path / "fed", {"aa": Site()}, rounds=2)
    write_federation(tmp_path / "fed3", 3, rounds=2)
    steps, after = read(path.read_text())
    assert steps, f"{path} holds no command"
    try:
        wrong = [told for step in steps if (told := play(step, tmp_path, fresh=path.stem == "usage"))]
    finally:
        end_background(tmp_path)
    if wrong and request.config.getoption("--regenerate"):
        path.write_text(write(steps, after))
        return
    assert not wrong, "\n\n".join(wrong)


def test_every_command_has_its_help_in_a_transcript() -> None:
    from fedhpc.cli import cli

    def commands(command: click.Command, words: list[str]) -> list[str]:
        found = [" ".join([*words, "--help"])]
        if isinstance(command, click.Group):
            context = click.Context(command)
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                found += commands(child, [*words, name])
        return found

    typed = {step.command[0] for path in TRANSCRIPTS for step in read(path.read_text())[0]}
    assert [c for c in commands(cli, ["fedhpc"]) if c not in typed] == []


def test_the_reader_can_fail() -> None:
    assert matches(["a ... c", "...", "z"], ["a b c", "x", "y", "z"])
    assert matches(["...", "z"], ["z"])
    assert not matches(["a ... c"], ["a b d"])
    assert not matches(["a"], ["a", "b"])
    assert not matches(["a", "..."], ["b"])
    assert not matches([], ["a"])
    text = "# why\n$ one\n> two\nout\n\nmore\n? 3\n\n# then\n$ three\n"
    steps, after = read(text)
    assert [(s.command, s.expected, s.code) for s in steps] == [
        (["one", "two"], ["out", "", "more"], 3),
        (["three"], [], 0),
    ]
    assert write(steps, after) == text
