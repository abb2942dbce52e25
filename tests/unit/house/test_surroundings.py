"""Whoever starts the tests, their children hear signals and see no proxy, launcher or job (tests/surroundings.py)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2]
# Started as `nohup make test &` in a batch job would be, and worse.
ODD = """
import json, os, signal, subprocess, sys
numbers = json.loads(sys.argv[1])
for number in numbers:
    signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM])
os.umask(0o077)
if sys.argv[2] == "settled":
    sys.path.insert(0, sys.argv[3])
    import surroundings
    surroundings.settle()
subprocess.run([sys.executable, "-c", sys.argv[4], sys.argv[1]], check=True)
for number in [signal.SIGHUP, signal.SIGINT]:
    os.kill(os.getpid(), number)  # it was told to ignore them
"""
CHILD = """
import json, os, signal, sys
ignored = [n for n in json.loads(sys.argv[1]) if signal.getsignal(n) == signal.SIG_IGN]
foreign = ("HTTPS_PROXY", "no_proxy", "SLURM_JOB_ID", "OMPI_COMM_WORLD_SIZE", "FEDHPC_JOB_END")
names = [n for n in os.environ if n in foreign]
mask = os.umask(0)
print(json.dumps([ignored, sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), sorted(names), oct(mask)]))
"""


def child(settled: str) -> list[object]:
    numbers = [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM]
    words = [sys.executable, "-c", ODD, json.dumps(numbers), settled, str(TESTS), CHILD]
    odd = {"HTTPS_PROXY": "http://127.0.0.1:9", "no_proxy": "x", "SLURM_JOB_ID": "7", "OMPI_COMM_WORLD_SIZE": "2"}
    odd |= {"FEDHPC_JOB_END": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=os.environ | odd)
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


def test_children_are_a_terminals() -> None:
    assert child("settled") == [[], [], [], "0o22"]


def test_and_would_not_be() -> None:
    ignored, blocked, names, mask = child("as it is")
    assert (len(str(ignored)) > 2, blocked != [], mask) == (True, True, "0o77")
    assert names == ["FEDHPC_JOB_END", "HTTPS_PROXY", "OMPI_COMM_WORLD_SIZE", "SLURM_JOB_ID", "no_proxy"]
