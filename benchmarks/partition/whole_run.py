"""Runs a program so that none of its processes outlives it: ReFrame gives each measurement a session of its own.

A signal to us reaches no such session, ReFrame does not wait for those that it tells to end, and an mpirun whose
starter was killed goes on. So what is left over comes to us, and is waited for, told to end, and killed at last.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from benchmarks.peers.ending import LOOK_S, adopt, children, gone_within, kill_descendants, tell

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PROGRAM_S = 30.0  # that a program which was told to end takes at most
_LEFT_S = 5.0  # that what it leaves has to end by itself, and again once it was told


def run_whole(words: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> tuple[int, bool]:
    """The exit code, and whether a signal told this process to end: the program then got SIGTERM, once."""
    adopt()
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
            time.sleep(LOOK_S)
        _end_left()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code, bool(told)


def _end_left() -> None:
    """Wait for what the program has left, tell the uppermost to end, which end their own, and kill what is left."""
    if gone_within(_LEFT_S):
        return
    tell(children(os.getpid()), signal.SIGTERM)
    if not gone_within(_LEFT_S):
        kill_descendants()
