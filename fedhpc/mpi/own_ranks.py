"""Ranks that a command starts on this machine itself, such as those of the demo.

The launcher has its own process group. A signal that ends this command is passed on to it, once, and the command waits
for it: a killed launcher would leave its shared memory and its ranks behind.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import IO

from fedhpc.errors import FedhpcError
from fedhpc.mpi.launcher_words import Voices, Words

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK_S = 0.05
_LAST_WORDS_S = 5.0  # a rank that is left over may keep the launcher's stderr open


class RanksFailedError(FedhpcError):
    """The ranks ended with an error, which they have printed, or not: then this one says so."""

    def __init__(self, code: int, *, told: bool) -> None:
        how = f"were ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        super().__init__(f"the ranks {how}", "they did not say why: were they killed, perhaps for lack of memory?")
        self.exit_code = 128 - code if code < 0 else code
        self.told = told

    def lines(self) -> str:
        """Empty, if the ranks have said it."""
        return "" if self.told else super().lines()


def run_ranks(
    commands: Sequence[Sequence[str]], environment: Mapping[str, str], *, keep_output: bool = False
) -> list[str]:
    """Run launchers with their ranks, all at the same time, to their end; with `keep_output` what each printed.

    One that fails ends the others, which would wait for it. Raises RanksFailedError; KeyboardInterrupt or SystemExit
    for a signal that this command got and its ranks have ended by.
    """
    voices, running = Voices(), list[_Running]()
    failed = 0
    with _handing_on(running) as heard:
        for words in commands:
            running.append(_Running(words, environment, voices, keep_output))
        if heard:  # before all of them ran
            _signal(running, heard[0])
        while any(one.ended() is None for one in running):
            time.sleep(_LOOK_S)
            if not failed and (failed := _first_failure(running)) and not heard:
                _signal(running, signal.SIGTERM)
        failed = failed or _first_failure(running)
        outputs = [one.output() for one in running]
    if heard:
        if heard[0] == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + heard[0])
    if failed:
        raise RanksFailedError(failed, told=voices.heard)
    return outputs


class _Running:
    """One launcher with its ranks."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], voices: Voices, keep_output: bool) -> None:
        self._process = subprocess.Popen(
            words,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if keep_output else None,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        )
        self._words, self._output = Words(voices), ""
        self._threads = [threading.Thread(target=self._pass_on, args=(self._process.stderr,), daemon=True)]
        if keep_output:
            self._threads.append(threading.Thread(target=self._keep, args=(self._process.stdout,), daemon=True))
        for thread in self._threads:
            thread.start()

    def _pass_on(self, stream: IO[str]) -> None:
        for line in stream:
            _write(self._words.hear(line))
        _write(self._words.end())

    def _keep(self, stream: IO[str]) -> None:
        self._output = stream.read()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def ended(self) -> int | None:
        """The launcher's exit code; None while it runs.

        Open MPI's launcher sometimes crashes while it ends the other ranks, after it has said how the first one ended:
        then it is the code that it said.
        """
        code = self._process.poll()
        if code is not None and code < 0:
            self._threads[0].join(_LAST_WORDS_S)
            return self._words.code or code
        return code

    def output(self) -> str:
        for thread in self._threads:
            thread.join()
        return self._output


def _write(text: str) -> None:
    if text:
        sys.stderr.write(text)
        sys.stderr.flush()


def _signal(running: Sequence[_Running], number: int) -> None:
    for one in running:
        one.signal(number)


def _first_failure(running: Sequence[_Running]) -> int:
    return next((code for one in running if (code := one.ended())), 0)


@contextlib.contextmanager
def _handing_on(running: Sequence[_Running]) -> Iterator[list[int]]:
    """Pass on the signals that would end this command; yields a list of those that came. Main thread only.

    With handlers of its own here, the launcher begins with the signals' plain effects, also where a shell has this
    command ignore them since it runs in the background. Under nohup SIGHUP stays ignored.
    """
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        _signal(running, number)

    numbers = [n for n in _ENDING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
