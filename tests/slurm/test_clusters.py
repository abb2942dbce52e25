"""The clusters themselves: two nodes each, MPI across them with both libraries, and walls that hold."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from clusters import Cluster, Clusters, sweep, until
from places import Place
from slurm_conf import CONTROLLER_PORT
from topology import RELAY, address

pytestmark = pytest.mark.slurm

RANKS = Path(__file__).with_name("ranks.py")
PORT = 7000
SERVER = (
    "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print('up', flush=True); sys.stdin.read()"
)
LIBRARIES = {
    "Open MPI v5": "",  # the PyPI package beside this Python
    "Open MPI v4": "export LD_LIBRARY_PATH=$(dirname /usr/lib/*/libmpi.so.40)\n",  # Debian's
}


@contextmanager
def listening(place: Place) -> Iterator[None]:
    """Something that can be dialled at PORT in `place`."""
    command = place.inside(sys.executable, "-ISuc", SERVER, str(PORT))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdin is not None
        assert server.stdout.readline() == "up\n"
        yield
        server.stdin.close()


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("name", ["alpha", "beta"])
def test_ranks_on_two_nodes_sum(idle: Clusters, tmp_path: Path, name: str, library: str) -> None:
    cluster = getattr(idle, name)
    out = tmp_path / "out"
    script = f"#!/bin/bash\n{LIBRARIES[library]}srun --mpi=pmix python -m mpi4py {RANKS}\n"
    ended = cluster.wait(cluster.sbatch(script, "--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "-o", out))
    assert (ended.state, ended.code) == ("COMPLETED", 0), out.read_text()
    lines = sorted(line.split(maxsplit=4) for line in out.read_text().splitlines())
    first, second = cluster.nodes
    assert [line[:4] for line in lines] == [
        [str(rank), "4", "10", first if rank < 2 else second] for rank in range(4)
    ], out.read_text()
    assert all(line[4].startswith(library) for line in lines), "the other library was loaded"


def test_a_node_s_temporary_files_are_its_own(idle: Clusters, tmp_path: Path) -> None:
    for cluster in idle:
        first, second = cluster.nodes
        job = "mkdir $TMPDIR/session && echo made\n"
        for node in (first, second):  # where it was one folder, the second could not make it
            out = tmp_path / node
            ended = cluster.wait(cluster.sbatch(f"#!/bin/bash\n{job}", "-w", node, "-o", out))
            assert (ended.state, out.read_text()) == ("COMPLETED", "made\n")


def test_the_clusters_do_not_know_each_other(idle: Clusters) -> None:
    job = idle.alpha.sbatch("#!/bin/bash\nsleep 60\n")
    idle.alpha.until_state(job, "RUNNING")
    assert idle.alpha.run("squeue", "-h", "-o", "%i").split() == [job]
    assert idle.beta.run("squeue", "-h") == ""
    ways = [(idle.alpha.login, "alpha", "open"), (idle.alpha.login, "beta", "TimeoutError")]
    for place, cluster, expected in ways:
        assert idle.dial(place, address(cluster, "control"), CONTROLLER_PORT) == expected


def test_alpha_dials_only_the_relay_and_nobody_dials_a_node(idle: Clusters) -> None:
    alpha, beta = idle.alpha, idle.beta
    places = {"relay": idle.relay, "transfer": idle.transfer, "a1": alpha.nodes["a1"], "b1": beta.nodes["b1"]}
    where = {"relay": RELAY, "transfer": address("beta", "transfer"), **alpha.addresses, **beta.addresses}
    expected = {
        "a1 to relay": "open",
        "transfer to relay": "open",
        "a2 to relay": "open",
        "b1 to relay": "TimeoutError",
        "b2 to relay": "TimeoutError",
        "a1 to b1": "TimeoutError",
        "b1 to a1": "TimeoutError",
        "b2 to b1": "open",
        "b1 to transfer": "open",
        "a1 to transfer": "TimeoutError",
        "relay to a1": "TimeoutError",
        "relay to b1": "TimeoutError",
        "transfer to a1": "TimeoutError",
    }
    places |= {"a2": alpha.nodes["a2"], "b2": beta.nodes["b2"]}
    with listening(idle.relay), listening(idle.transfer), listening(places["a1"]), listening(places["b1"]):
        ways = [way.split(" to ") for way in expected]
        with ThreadPoolExecutor(len(ways)) as pool:
            found = pool.map(lambda way: idle.dial(places[way[0]], where[way[1]], PORT), ways)
        assert dict(zip(expected, found, strict=True)) == expected
        idle.open_beta()
        try:
            assert idle.dial(places["b1"], RELAY, PORT) == "open"
        finally:
            idle.close_beta()
        assert idle.dial(places["b1"], RELAY, PORT) == "TimeoutError"


def test_a_job_sees_the_walls_of_its_node(idle: Clusters, tmp_path: Path) -> None:
    dial = f"timeout 1 bash -c 'echo > /dev/tcp/{RELAY}/{PORT}' && echo open || echo closed"
    with listening(idle.relay):
        for cluster, expected in ((idle.alpha, "open"), (idle.beta, "closed")):
            out = tmp_path / cluster.name
            cluster.wait(cluster.sbatch(f"#!/bin/bash\n{dial} 2>&1\n", "-o", out))
            assert out.read_text().splitlines()[-1] == expected


def test_a_node_that_lost_its_power_comes_back(alpha: Cluster, tmp_path: Path) -> None:
    job = alpha.sbatch("#!/bin/bash\necho start $SLURM_RESTART_COUNT; sleep 2\n", "-w", "a1", "-o", tmp_path / "out")
    alpha.until_state(job, "RUNNING")
    until(lambda: (tmp_path / "out").exists() and "start" in (tmp_path / "out").read_text(), "the job's first words")
    alpha.down("a1")
    assert alpha.nodes["a1"].processes() == []
    fields = alpha.until_state(job, "PENDING", "CANCELLED", "NODE_FAIL")
    assert (fields["JobState"], fields["Restarts"]) == ("PENDING", "1"), "requeued, as --requeue and JobRequeue=1 say"
    alpha.up("a1")
    alpha.start_now(job)
    ended = alpha.wait(job, 90)
    assert ended.state == "COMPLETED", f"{ended}\n{alpha.logs()}"
    assert "start 1" in (tmp_path / "out").read_text()


def test_nothing_is_left_when_the_session_is_killed(tmp_path: Path) -> None:
    program = "import clusters, sys; both = clusters.Clusters(); print(both.folder, flush=True); sys.stdin.read()"
    here = Path(__file__).parent
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, here.parents[1])))}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, env=env, **pipes) as killed:
        assert killed.stdout is not None
        folder = killed.stdout.readline().strip()
        assert folder, "the clusters do not start"
        assert Path(folder).is_dir()
        assert daemons(folder), "they run"
        killed.kill()
    until(lambda: not daemons(folder), "the end of all daemons")
    sweep()
    assert not Path(folder).exists()


def daemons(folder: str) -> list[str]:
    """Ids of the processes that have this directory on their command line."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if folder in (process / "cmdline").read_text(errors="replace"):
                found.append(process.name)
        except OSError:
            continue
    return found
