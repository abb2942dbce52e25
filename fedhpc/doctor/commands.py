"""Runs a small command of the machine, with a limit of time that also ends its children."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedhpc.app.logs import printable

_MOST_LINE = 200


@dataclass(frozen=True)
class Output:
    """What a command printed. `code` is None if it did not end in time, 127 if there is no such command."""

    code: int | None
    out: str = ""
    err: str = ""

    @property
    def words(self) -> str:
        """Its first line of error output, or what happened to it."""
        if self.code is None:
            return "it did not answer in time"
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        return printable((errors or lines or [f"exit code {self.code}"])[0])[:_MOST_LINE]


def find(name: str, environment: Mapping[str, str]) -> str | None:
    """The path of a command, as a shell finds it."""
    return shutil.which(name, path=environment.get("PATH", os.defpath))


def call(words: Sequence[str], environment: Mapping[str, str], limit_s: float, *, keep_files: bool = False) -> Output:
    """Run a command to its end. `keep_files`: it inherits open files, as the PMI of a launcher needs."""
    path = find(words[0], environment)
    if path is None:
        return Output(127, "", f"{words[0]}: not found")
    try:
        process = subprocess.Popen(
            [path, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment),
            text=True,
            errors="replace",
            start_new_session=True,
            close_fds=not keep_files,
        )
    except OSError as error:
        return Output(126, "", f"{words[0]}: {error.strerror}")
    with process:
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
            return Output(None)
    return Output(process.returncode, out, err)
