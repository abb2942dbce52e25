"""The meter of benchmarks/peers: daemons, short-lived children, and programs that must be ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT

# In a process of its own: it becomes a subreaper, and waits for all children.
METER = """
import json, os, sys
from pathlib import Path
from benchmarks.peers.meter import Limits, measure
seconds, memory = json.loads(sys.argv[2])
found = measure([sys.executable, "-c", sys.argv[1]], dict(os.environ), Path(sys.argv[3]), Limits(seconds, memory))
print(json.dumps({
    "code": found.code, "out": found.stdout, "ended": found.ended, "left": found.left, "held": found.resident_bytes(),
    "cpu": found.samples[-1].cpu_s, "pids": sorted({pid for s in found.samples for pid in s.resident}),
    "rising": all(a.cpu_s <= b.cpu_s and a.at < b.at for a, b in zip(found.samples, found.samples[1:])),
    "half": found.cpu_between(found.samples[0].at, found.samples[-1].at),
}))
"""
BURN = """
import time
def burn(seconds):
    begun = time.process_time()
    while time.process_time() - begun < seconds:
        pass
"""


def measured(tmp_path: Path, program: str, seconds: float = 60, memory: int = 1 << 40) -> dict[str, Any]:
    words = [sys.executable, "-c", METER, program, json.dumps([seconds, memory]), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["rising"]
    assert found["half"] == pytest.approx(found["cpu"], abs=0.1)
    return found


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_processor_time_of_daemons_and_of_children_that_have_ended(tmp_path: Path) -> None:
    # A child that ends, a grandchild that nobody waits for in a session of its own, and the program itself.
    program = BURN + (
        "import os, sys\n"
        "def said():\n    print(time.process_time(), flush=True)\n"
        "if not os.fork():\n    burn(0.3)\n    said()\n    os._exit(0)\n"
        "os.wait()\n"
        "pipe = os.pipe()\n"
        "if not os.fork():\n"
        "    os.setsid()\n"
        "    if not os.fork():\n        burn(0.4)\n        said()\n        os.write(pipe[1], b'x')\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "burn(0.5)\n"
        "os.read(pipe[0], 1)\n"
        "time.sleep(1)\n"
        "said()\n"
    )
    found = measured(tmp_path, program)
    assert found["code"] == 0
    assert len(found["pids"]) >= 2
    said = [float(line) for line in found["out"].split()]
    assert len(said) == 3
    # What they count themselves, the starts of Python included, but for their ends; and nothing twice.
    assert sum(said) - 0.1 <= found["cpu"] < 1.8 * sum(said)


def test_memory_is_the_sum_over_processes(tmp_path: Path) -> None:
    program = (
        "import os, time\n"
        "children = 2\n"
        "holds, ends = os.pipe(), os.pipe()\n"
        "for _ in range(children):\n"
        "    if not os.fork():\n"
        "        held = b'x' * (100 << 20)\n        os.write(holds[1], b'x')\n        os.read(ends[0], 1)\n"
        "        os._exit(0)\n"
        "for _ in range(children):\n    os.read(holds[0], 1)\n"
        "time.sleep(3)\n"
        "os.write(ends[1], b'xx')\n"
        "for _ in range(children):\n    os.wait()\n"
    )
    assert 200 << 20 <= measured(tmp_path, program)["held"] < 400 << 20  # each of them once


def test_a_limit_of_time_ends_all_and_is_said(tmp_path: Path) -> None:
    program = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], env={})\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    for seconds in (1, 5, 25):  # until there is time for Python to start
        found = measured(tmp_path, program, seconds=seconds)
        if found["out"]:
            break
    assert "s, which is its limit" in found["ended"]
    assert found["code"] == 3
    assert gone(int(found["out"]))  # without the mark, but a child


def test_a_limit_of_memory(tmp_path: Path) -> None:
    program = "import time\nheld = []\nwhile True:\n    held.append(b'x' * (50 << 20))\n    time.sleep(0.2)\n"
    found = measured(tmp_path, program, memory=400 << 20)
    assert "GiB, which is its limit" in found["ended"]


def test_what_a_program_leaves_behind_is_ended_and_counted(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "words = [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "print(subprocess.Popen(words, start_new_session=True).pid)\n"
        "time.sleep(2)\n"
    )
    found = measured(tmp_path, program)
    assert (found["code"], found["left"]) == (0, 1)
    assert gone(int(found["out"]))
    assert os.getpid() not in found["pids"]
