"""Runs a program so that none of its processes outlives it: ReFrame gives each measurement a session of its own.

A signal to us reaches no such session, ReFrame does not wait for those that it tells to end, and an mpirun whose
starter was killed goes on. So what is left over comes to us, and is waited for, told to end, and killed at last.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ADOPT = 36  # PR_SET_CHILD_SUBREAPER
_PROGRAM_S = 30.0  # that a program which was told to end takes at most
_LEFT_S = 5.0  # that what it leaves has to end by itself, and again once it was told
_LOOK_S = 0.05


def run_whole(words: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> tuple[int, bool]:
    """The exit code, and whether a signal told this process to end: the program then got SIGTERM, once."""
    ctypes.CDLL(None, use_errno=True).prctl(_ADOPT, 1, 0, 0, 0)
    started, told = list[subprocess.Popen[bytes]](), list[float]()

    def hear(number: int, frame: FrameType | None) -> None:
        told.append(time.monotonic())
        if len(told) == 1 and started:
            started[0].terminate()

    # Under nohup SIGHUP stays ignored.
    numbers = [n for n in _ENDING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        # Ctrl-C of a terminal would come to it a second time, beside what is handed on.
        started.append(
            subprocess.Popen(words, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, process_group=0)
        )
        if told:
            started[0].terminate()
        while (code := started[0].poll()) is None:
            if told and time.monotonic() > told[0] + _PROGRAM_S:
                started[0].kill()
            time.sleep(_LOOK_S)
        _end_left()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code, bool(told)


def _end_left() -> None:
    """Wait for what the program has left, tell it to end, kill it."""
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + _LEFT_S
        if number is not None:
            # TERM to the uppermost, which end their own; KILL reaches nobody else.
            for pid in _children(os.getpid()) if number == signal.SIGTERM else list(_descendants(os.getpid())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        while _reaped() and time.monotonic() < until:
            time.sleep(_LOOK_S)


def _reaped() -> bool:
    """Whether any child is left, once those that have ended are waited for."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _children(pid: int) -> list[int]:
    """By the kernel's list of each thread."""
    found = list[int]()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text().split())
    return found


def _descendants(pid: int) -> Iterator[int]:
    for child in _children(pid):
        yield from _descendants(child)
        yield child
