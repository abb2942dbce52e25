"""What peers' scripts have in common beside the peers: no process is left behind, and our own echo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import ROOT

PEERS = ROOT / "benchmarks" / "peers"
# A daemon in a session of its own, of a parent that ends at once, which does not mind SIGTERM.
DAEMON = """
import os, signal, sys, time
from ending import none_left
with none_left():
    if not os.fork():
        os.setsid()
        if not os.fork():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print(os.getpid(), flush=True)
            time.sleep(600)
        os._exit(0)
    sys.stdin.read()
"""


@pytest.mark.parametrize("told", [False, True])
def test_a_stubborn_daemon_ends_with_its_script(told: bool) -> None:
    words = [sys.executable, "-c", DAEMON]
    with subprocess.Popen(words, cwd=PEERS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdin is not None
        assert script.stdout is not None
        daemon = int(script.stdout.readline())
        os.kill(daemon, 0)
        if told:
            time.sleep(0.2)  # the first child has ended
            script.send_signal(signal.SIGTERM)
        script.stdin.close()
        assert script.wait(60) == (128 + signal.SIGTERM if told else 0)
    assert not Path(f"/proc/{daemon}").exists()


@pytest.mark.parametrize("flags", [[], ["--node"]])
def test_the_echo_of_ours(tmp_path: Path, flags: list[str]) -> None:
    words = [sys.executable, str(PEERS / "relay_echo.py"), "--params", "300000", "--rounds", "3", *flags]
    done = subprocess.run(
        [*words, "--work", str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["verified"] is True
    assert said["error"] <= said["tolerance"]
    assert [start < end for start, end in [said["first"], *said["rounds"]]] == [True] * 3
    assert said["settings"]["bytes_each_way"] == 1_200_000
    assert not Path(f"/proc/{said['server_pids'][0]}").exists()
