"""What peers' scripts have in common beside the peers: no process is left behind, and our own echo."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import ROOT

from benchmarks.peers import mpi_allreduce
from benchmarks.peers.vectors import PIECE, STRIDE, exactness, fill, first_vector, largest_error, move

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


def averaged(params: int, rounds: int, sites: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What clients that all begin with the average of the round before come to."""
    average = first_vector(params)
    for _ in range(rounds):
        clients = [average.copy() for _ in range(sites)]
        for number, vector in enumerate(clients):
            move(vector, number)
        assert len({vector[:STRIDE].tobytes() for vector in clients}) == sites  # no two send the same
        average = (sum(clients[1:], clients[0]) / np.float32(sites)).astype(np.float32)
    return average


@pytest.mark.parametrize(("params", "sites"), [(1, 1), (STRIDE + 1, 4), (PIECE + 5, 4), (3000, 6)])
def test_the_average_is_what_it_must_be(params: int, sites: int) -> None:
    vector = averaged(params, 3, sites)
    assert largest_error(vector, params, 3, sites) <= exactness(3, sites)
    assert largest_error(vector, params, 2, sites) > 0.1
    for place in {0, params // 2, params - 1}:
        spoiled = vector.copy()
        spoiled[place] += np.float32(0.25)
        assert largest_error(spoiled, params, 3, sites) == pytest.approx(0.25, abs=1e-4)


def test_parts_of_a_vector_move_as_the_whole_does() -> None:
    whole, first = first_vector(5 * STRIDE), 2 * STRIDE
    part = fill(np.empty(3 * STRIDE, np.float32), first)
    move(whole, 1)
    move(part, 1, first)
    assert np.array_equal(part, whole[first:])
    assert largest_error(part, part.size, 0, 4, first) == 0.25  # client 1 alone has moved it


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7, PIECE + 3])
def test_what_is_no_number_is_wrong(value: float, place: int) -> None:
    vector = first_vector(PIECE + 5)
    vector[place] = value
    assert largest_error(vector, vector.size, 0, 4) == math.inf
    summed = np.zeros(mpi_allreduce.TILE + 5, np.float32)
    mpi_allreduce.fill(np, summed, 0)
    assert mpi_allreduce.worst(np, summed, 1, 0) == 0
    summed[place] = value
    assert mpi_allreduce.worst(np, summed, 1, 0) == math.inf


@pytest.mark.parametrize(
    "vector", [np.zeros(0, np.float32), first_vector(9), first_vector(10).astype(np.float64), first_vector(10)[None]]
)
def test_another_vector_is_wrong(vector: np.ndarray[Any, Any]) -> None:
    assert largest_error(vector, 10, 0, 4) == math.inf
    assert largest_error(np.zeros(0, np.float32), 0, 0, 4) == math.inf
    assert mpi_allreduce.worst(np, np.zeros(0, np.float32), 4, 0) == math.inf


def test_numbers_of_tensors_that_are_none_are_wrong() -> None:
    torch = pytest.importorskip("torch")
    with_path = str(PEERS)
    sys.path.insert(0, with_path)
    try:
        appfl, gloo = import_module("appfl_mpi"), import_module("torch_allreduce")
    finally:
        sys.path.remove(with_path)
    tensor = torch.full(((1 << 20) + 3,), 0.5)
    assert appfl.worst(tensor, 0.5, tensor.numel()) == 0
    assert appfl.worst(tensor, 0.5, 5) == appfl.worst(tensor[:0], 0.5, 0) == math.inf
    gloo.fill(torch, tensor, 0)
    assert gloo.worst(torch, tensor, 1, 0) == 0
    assert gloo.worst(torch, tensor[:0], 1, 0) == math.inf
    tensor[-1] = math.nan
    assert gloo.worst(torch, tensor, 1, 0) == appfl.worst(tensor, 0.5, tensor.numel()) == math.inf
