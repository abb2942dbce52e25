"""What a program and all processes that come of it take: memory and processor time, sampled five times a second.

A process belongs to the program if it has the program's mark in its environment, or is the child of one that belongs.
Programs start daemons, workers in sessions of their own and processes that live for a moment, so that neither a process
group nor the sum over those alive would count them all:

- this process is their subreaper while it measures, so what nobody waits for ends here, with its time;
- processor time is the larger of two sums that can only be too small: the last look at each process ever seen, and
  those alive with what they waited for, plus what ended here.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import resource
import secrets
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers.ending import adopt

MARK = "FEDHPC_MEASURED"
"""The variable whose value marks the processes of one program."""
EVERY_S = 0.2
GRACE_S = 20.0
"""From SIGTERM to SIGKILL, for a program that must end its own daemons."""
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""In which the kernel counts the processor time of others."""
_PAGE = os.sysconf("SC_PAGE_SIZE")
_OURS = -1


@dataclass(frozen=True)
class Limits:
    """When a program is ended: both are said in `Measured.ended`."""

    seconds: float
    memory_bytes: int  # by which MemAvailable may fall


@dataclass(frozen=True)
class Sample:
    """One look at all processes."""

    at: float  # time.monotonic()
    cpu_s: float  # of all processes until now, also of those that have ended
    available_bytes: int  # MemAvailable
    resident: dict[int, int]  # bytes (VmRSS) of each process; shared pages count in each of them


@dataclass
class Measured:
    """A program that has ended."""

    code: int  # exit status, negative: the signal
    seconds: float
    stdout: str
    stderr: str
    ended: str = ""  # why it was not left to its end
    left: int = 0  # processes that it left behind, which were then killed
    samples: list[Sample] = field(default_factory=list)

    def cpu_between(self, start: float, end: float) -> float:
        """Processor seconds between two times of time.monotonic(), by straight lines between samples."""
        return self._cpu_at(end) - self._cpu_at(start)

    def resident_bytes(self, pids: Iterable[int] | None = None) -> int:
        """The most that all processes held in one sample, or that those of `pids` did."""
        of = None if pids is None else set(pids)
        held = (sum(n for pid, n in s.resident.items() if of is None or pid in of) for s in self.samples)
        return max(held, default=0)

    def fall_bytes(self) -> int:
        """By how much MemAvailable fell at most; shared pages count once, and so does what others took meanwhile."""
        if not self.samples:
            return 0
        return self.samples[0].available_bytes - min(s.available_bytes for s in self.samples)

    def _cpu_at(self, at: float) -> float:
        times = [s.at for s in self.samples]
        right = bisect.bisect_left(times, at)
        if right == 0 or right == len(times):
            return self.samples[min(right, len(times) - 1)].cpu_s
        before, after = self.samples[right - 1], self.samples[right]
        return before.cpu_s + (after.cpu_s - before.cpu_s) * (at - before.at) / (after.at - before.at)


def available_bytes() -> int:
    """MemAvailable: what can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no MemAvailable")


def measure(words: Sequence[str], environment: Mapping[str, str], folder: Path, limits: Limits) -> Measured:
    """Run a program to its end or to a limit; its output goes to `folder`. None of its processes lives on."""
    value = secrets.token_hex(8)
    begun = time.monotonic()
    out, err = folder / "stdout", folder / "stderr"
    with _subreaper(), out.open("wb") as stdout, err.open("wb") as stderr:
        watch = _Watch(value)
        watch.look()  # nothing yet: from here on time counts
        process = subprocess.Popen(
            words,
            env={**environment, MARK: value},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the program in order
        )
        why = ""
        try:
            why = _until(process, watch, limits, begun)
        finally:
            left = _end(process, watch)
    return Measured(
        code=process.returncode,
        seconds=time.monotonic() - begun,
        stdout=out.read_text(errors="replace"),
        stderr=err.read_text(errors="replace"),
        ended=why,
        left=0 if why else left,
        samples=watch.samples,
    )


def _until(process: subprocess.Popen[bytes], watch: _Watch, limits: Limits, begun: float) -> str:
    """Why the program must end before its time; empty if it has ended."""
    while True:
        now = watch.look()
        if _reap(process):
            return ""
        if (seconds := now.at - begun) > limits.seconds:
            return f"it was ended after {seconds:.0f} s, which is its limit"
        if watch.fall() > limits.memory_bytes:
            return f"it was ended when it had taken {watch.fall() / 2**30:.1f} GiB, which is its limit"
        time.sleep(EVERY_S)


def _end(process: subprocess.Popen[bytes], watch: _Watch) -> int:
    """End what is left of the program; how many processes were left when it had ended itself."""
    if not _reap(process):
        process.terminate()
        until = time.monotonic() + GRACE_S
        while not _reap(process) and time.monotonic() < until:
            time.sleep(EVERY_S)
            watch.look()
        if process.returncode is None:
            process.kill()
            process.wait()
    until = time.monotonic() + 2.0  # daemons that were told to end
    while watch.alive() and time.monotonic() < until:
        time.sleep(0.1)
        _reap(process)
        watch.look()
    left = len(watch.alive())
    while alive := watch.alive():
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        _reap(process)
        watch.look()
    return left


def _reap(process: subprocess.Popen[bytes]) -> bool:
    """Wait for everything that has ended here; whether the program itself has."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            break
        if found is None:
            break
        if found.si_pid == process.pid:
            process.poll()
        else:
            os.waitpid(found.si_pid, 0)
    return process.returncode is not None


class _Watch:
    """All processes of one program, looked at again and again."""

    def __init__(self, value: str) -> None:
        self.samples: list[Sample] = []
        self._mark = f"{MARK}={value}".encode()
        # (pid, start time in ticks): _OURS, or how often it was looked at; a second time, because one that has just
        # started may have no environment yet.
        self._looks: dict[tuple[int, int], int] = {}
        self._own: dict[tuple[int, int], float] = {}  # the last look at each that ever belonged, seconds
        self._alive: list[int] = []
        self._before = _waited_for()
        self._first = available_bytes()
        self._last = self._first

    def look(self) -> Sample:
        """Take a sample."""
        at = time.monotonic()
        resident, tree = {}, 0.0
        fresh = dict[int, bool]()  # whether each process of now belongs
        for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
            if (seen := _stat(pid)) is None:
                continue
            key = (pid, seen.started)
            looks = self._looks.get(key, 0)
            if looks in (0, 1) and (fresh.get(seen.parent) or _is_marked(pid, self._mark)):
                looks = _OURS
            self._looks[key] = looks if looks == _OURS else looks + 1
            if fresh.setdefault(pid, looks == _OURS):
                self._own[key] = seen.own_s
                tree += seen.own_s + seen.children_s
                resident[pid] = seen.resident_bytes
        self._looks = {key: looks for key, looks in self._looks.items() if key[0] in fresh}
        self._alive = list(resident)
        cpu_s = max(sum(self._own.values()), tree + _waited_for() - self._before)
        if self.samples:
            cpu_s = max(cpu_s, self.samples[-1].cpu_s)
        self._last = available_bytes()
        self.samples.append(Sample(at, cpu_s, self._last, resident))
        return self.samples[-1]

    def fall(self) -> int:
        """By how much MemAvailable has fallen."""
        return self._first - self._last

    def alive(self) -> list[int]:
        """The processes of the last sample that still are."""
        return [pid for pid in self._alive if (seen := _stat(pid)) is not None and not seen.zombie]


@dataclass(frozen=True)
class _Stat:
    parent: int
    started: int
    own_s: float
    children_s: float  # of those that it has waited for
    resident_bytes: int
    zombie: bool


def _stat(pid: int) -> _Stat | None:
    """/proc/PID/stat (proc(5)); None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    user, system, children_user, children_system = (int(word) * TICK_S for word in fields[11:15])
    return _Stat(
        parent=int(fields[1]),
        started=int(fields[19]),
        own_s=user + system,
        children_s=children_user + children_system,
        resident_bytes=int(fields[21]) * _PAGE,
        zombie=fields[0] in "ZX",
    )


def _is_marked(pid: int, mark: bytes) -> bool:
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _waited_for() -> float:
    """Processor seconds of all processes that this one has waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def _subreaper() -> Iterator[None]:
    """Orphans below this process become its children."""
    adopt()
    try:
        yield
    finally:
        adopt(False)
