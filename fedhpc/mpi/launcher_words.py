"""What a launcher says on stderr: its ranks' words, without the blocks that only repeat that a rank has failed."""

from __future__ import annotations

import re
import threading

_LINE = re.compile(r"(-|=){60,}")
_SPOKEN = ("error: ", "Traceback (most recent call last)")
# First lines of what launchers add to a failure that a rank has reported itself.
_ADDED = re.compile(
    r"MPI_ABORT was invoked on rank|\S+ has exited due to process rank|=   BAD TERMINATION OF ONE OF YOUR"
    r"|\S+ detected that one or more processes exited with non-zero|Primary job  terminated normally, but"
)
_ADDED_LINE = re.compile(r"\[warn\] Epoll |application called MPI_Abort\(|\[\S+\] \d+ more process(?:es)? ha")
_MOST_LINES = 24  # of such a block
_CODE = re.compile(r"(?:\s*Exit code:|\s*Errorcode:|=\s+EXIT CODE:)\s+(\d{1,3})\s*")


def reported_code(line: str) -> int:
    """The exit code that this line of a launcher says a rank has ended with; 0 where it says none."""
    found = _CODE.fullmatch(line.replace("\0", "").rstrip("\n"))
    return int(found[1]) if found else 0


class Voices:
    """Which of several groups of ranks, started together, reports errors: the first one only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: object = None

    @property
    def heard(self) -> bool:
        """Whether one has reported an error."""
        return self._first is not None

    def may_tell(self, who: object) -> bool:
        """Whether `who`, with an error to report, is the first."""
        with self._lock:
            if self._first is None:
                self._first = who
            return self._first is who


class Words:
    """Lines of a launcher's stderr, without those that only repeat that a rank has failed."""

    def __init__(self, voices: Voices) -> None:
        self._voices, self._block, self._muted = voices, list[str](), False
        self.code = 0
        """What the launcher said a rank has ended with; 0 if it said nothing."""

    def hear(self, line: str) -> str:
        """The part of it, and of lines held back before, to show now."""
        line = line.replace("\0", "")  # Open MPI 5's mpirun ends its messages with one
        if not line:
            return ""
        self.code = self.code or reported_code(line)
        bar = _LINE.fullmatch(line.strip()) is not None
        if self._block:
            self._block.append(line)
            if len(self._block) == 2 and _ADDED.match(line) is None and not bar:
                return self._end()
            if not bar and len(self._block) < _MOST_LINES:
                return ""
            held, self._block = self._block, []
            return "" if bar and _ADDED.match(held[1]) else self._show(held)
        if bar:
            self._block = [line]
            return ""
        return "" if _ADDED_LINE.match(line) else self._show([line])

    def end(self) -> str:
        """What is left at the end."""
        return self._end()

    def _end(self) -> str:
        held, self._block = self._block, []
        return self._show(held)

    def _show(self, lines: list[str]) -> str:
        shown = ""
        for line in lines:
            if line.startswith(_SPOKEN) and not self._voices.may_tell(self):
                self._muted = True  # it follows from another group's error
            shown += "" if self._muted else line
        return shown
