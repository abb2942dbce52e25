"""Starts processes that have imported everything already: a kill -9 is as real, and a start costs milliseconds.

Run as a script it is the parent: one line of JSON {"body", "words", "log", "environment"} on stdin forks a child that
calls `main(words)` of relayed_site or relayed_relay, with stdout and stderr in `log`. It answers
{"pid": …}, and later {"pid", "code"} for each child that ended. Imported, it is the test's side.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import selectors
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
# What sites and relays import when they first need it.
IMPORTED_LATE = ("encodings.idna", "numpy.ma", "numpy.random", "torch")


class Child:
    """A process of the nursery."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid, self.log = pid, log
        self.code: int | None = None
        self.ended = threading.Event()

    def wait(self, timeout: float) -> int:
        """Its exit code; -9 after a SIGKILL. AssertionError, with its log, if it does not end in time."""
        assert self.ended.wait(timeout), f"process {self.pid} still runs after {timeout} s\n{self.text()}"
        assert self.code is not None
        return self.code

    def signal(self, number: int) -> None:
        if not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.signal(signal.SIGKILL)
        self.wait(30)

    def text(self) -> str:
        return self.log.read_text(errors="replace")


class Nursery:
    """The test's side. Thread-safe."""

    def __init__(self) -> None:
        root = HERE.parents[1]
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "PMI"))}
        for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
            plain.pop(name, None)
        path = os.pathsep.join((str(root), str(HERE), plain.get("PYTHONPATH", "")))
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py")],
            env=plain | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self._lock, self._answers = threading.Lock(), threading.Condition()
        self._new: list[int] = []
        self._children: dict[int, Child] = {}
        self._codes: dict[int, int] = {}
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, body: str, words: Sequence[str | Path], log: Path, environment: dict[str, str]) -> Child:
        """Run `body`.main(words) in a process of its own."""
        order = {"body": body, "words": [str(w) for w in words], "log": str(log), "environment": environment}
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(order) + "\n")
            with self._answers:
                assert self._answers.wait_for(lambda: bool(self._new), 60), "the nursery does not answer"
                child = Child(self._new.pop(), log)
                self._children[child.pid] = child
                self._settle(child.pid)
        return child

    def close(self) -> None:
        """Kill what still runs and end the parent."""
        for child in list(self._children.values()):
            child.signal(signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._answers:
                if "code" in answer:
                    self._codes[answer["pid"]] = answer["code"]
                    self._settle(answer["pid"])
                else:
                    self._new.append(answer["pid"])
                self._answers.notify_all()

    def _settle(self, pid: int) -> None:
        if pid in self._children and pid in self._codes:
            child = self._children.pop(pid)
            child.code = self._codes.pop(pid)
            child.ended.set()


def run_child(order: dict[str, Any]) -> None:
    """In the child: `main` of the body; never returns."""
    code = 70
    try:
        os.setsid()
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, file in ((0, null), (1, log), (2, log)):
            os.dup2(file, number)
        os.environ.update(order["environment"])
        random.seed()
        code = sys.modules[order["body"]].main(order["words"])
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def parent() -> None:
    for name in ("relayed_relay", "relayed_site", *IMPORTED_LATE):
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy every page
    assert threading.active_count() == 1  # a fork of several threads could inherit a held lock
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fd == wake_read:
                os.read(wake_read, 4096)
                tell_ends()
                continue
            line = sys.stdin.readline()
            if not line:
                return
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                run_child(json.loads(line))
            print(json.dumps({"pid": pid}), flush=True)


def tell_ends() -> None:
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            print(json.dumps({"pid": found[0], "code": os.waitstatus_to_exitcode(found[1])}), flush=True)


if __name__ == "__main__":
    parent()
