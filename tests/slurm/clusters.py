"""Two independent Slurm clusters, alpha and beta, on this machine: each has its own munge key, controller, nodes."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import places
from harness import PATIENCE
from places import Place
from slurm_conf import GRES_CONF, slurm_conf
from surroundings import YIELDING
from topology import RELAY, Router, address, dial, hosts

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "srun")
_PREFIX = "fedhpc-slurm-"  # of directories in /tmp: a socket's path has at most 107 bytes
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)


def why_not() -> str:
    """Why this machine cannot hold the clusters; '' if it can."""
    missing = [tool for tool in DAEMONS if shutil.which(tool, path=places.PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)"
    if pmix() is None:
        return "libpmix.so.2 not installed (Debian: apt-get install libpmix2)"
    return places.why_not()


def pmix() -> Path | None:
    """The directory of PMIx's library."""
    return next((found.parent for found in sorted(Path("/usr/lib").glob("*/pmix2/lib/libpmix.so.2"))), None)


@dataclass(frozen=True)
class Ended:
    """How a job ended: Slurm's word, the batch script's exit code and the signal that killed it (0: none)."""

    state: str
    code: int
    signal: int
    fields: Mapping[str, str]


class Cluster:
    """One cluster: `env` for its commands, which run at its login node. `nodes`: name -> place."""

    def __init__(self, name: str, router: Router, folder: Path, binds: Mapping[Path, Path]) -> None:
        self.name, self.folder, self._router, self._binds = name, folder, router, binds
        for part in ("state", "local", "home"):
            (folder / part).mkdir(parents=True)
        self.addresses = {f"{name[0]}{number}": address(name, str(number)) for number in (1, 2)}
        conf = slurm_conf(name, address(name, "control"), self.addresses, folder)
        (folder / "slurm.conf").write_text(conf)
        (folder / "gres.conf").write_text(GRES_CONF)
        # Each node sees a directory of its own as `local`. /tmp is all nodes', and their ranks have the same process
        # numbers and, in another session's clusters, the same names: Open MPI's session folders there would collide.
        temporary = {"TMPDIR": str(folder / "local")}
        self.env = clean_environment() | {"SLURM_CONF": str(folder / "slurm.conf")} | temporary
        self._control = Place(f"{name}-control", binds, machine=True)
        router.join(self._control, name, "control")
        self.login = Place(f"{name}-login", binds)
        router.join(self.login, name, "login")
        self.nodes: dict[str, Place] = {}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the daemons; `wait_ready` waits for them."""
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        socket = self.folder / "munge.socket"
        files = [f"--{kind}={self.folder}/munged.{kind}" for kind in ("pid-file", "log-file", "seed-file")]
        # --force: the directory above is /tmp, which anybody may write to; the key is this folder's own.
        munged = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket}", *files]
        self._daemon(self._control, munged, "munged")
        until(socket.exists, f"munged of {self.name}")
        self._daemon(self._control, ["slurmctld", "-D", "-i", "-f", self.env["SLURM_CONF"]], "slurmctld")
        for node in self.addresses:
            self._power(node)

    def wait_ready(self, seconds: float = 60) -> None:
        """Wait until the controller has heard from every node."""
        until(lambda: self._states() == ["idle"] * len(self.nodes), f"nodes of {self.name}", seconds, self.logs)

    # --- commands

    def command(self, *argv: str | Path, cwd: Path | None = None) -> list[str]:
        """`argv` at the login node; to be run with `env`. It is the caller's own process and gets its signals."""
        return self.login.inside(*argv, cwd=cwd or self.folder / "home")

    def run(self, *argv: str | Path, stdin: str = "", cwd: Path | None = None, timeout: float = 60) -> str:
        """Run a command at the login node, as its user would; what it printed. AssertionError if it fails."""
        return places.run(self.command(*argv, cwd=cwd), stdin, self.env, timeout)

    def sbatch(self, script: str, *args: str | Path) -> str:
        """Submit this text; the job's id. Exactly Slurm's defaults apply but for `args`."""
        return self.run("sbatch", "--parsable", *args, stdin=script).strip().split(";")[0]

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` knows, one entry per word; also of ended jobs."""
        words = self.run("scontrol", "show", "job", "-o", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED, ..."""
        return self.show(job)["JobState"]

    def until_state(self, job: str, *states: str, seconds: float = 60) -> dict[str, str]:
        """Wait until the job is in one of these states; what is known of it then."""
        until(lambda: self.state(job) in states, f"job {job} {states}", seconds, lambda: str(self.show(job)))
        return self.show(job)

    def wait(self, job: str, seconds: float = 60) -> Ended:
        """Wait until the job has ended and is not going to be requeued by Slurm itself."""
        fields = self.until_state(job, *ENDED, seconds=seconds)
        code, _, number = fields["ExitCode"].partition(":")
        return Ended(fields["JobState"], int(code), int(number), fields)

    def start_now(self, job: str) -> None:
        """Let a requeued job begin in two seconds: Slurm keeps one back for two minutes.

        In the second of the requeue itself slurmd refuses it ("Job credential revoked"), and it fails for good.
        """
        self.run("scontrol", "update", f"jobid={job}", "starttime=now+2")

    def cancel(self, *argv: str) -> None:
        """`scancel` with these words: a job's id, and options."""
        self.run("scancel", *argv)

    def clear(self) -> None:
        """Cancel every job, start every node that is down, and wait until the cluster is idle."""
        self.run("scancel", "--user=root")
        for node, place in self.nodes.items():
            if place.ended or self.node_state(node).startswith(("down", "drain")):
                self.up(node)
        until(lambda: not self.run("squeue", "-h"), "an empty queue", 60, lambda: self.run("squeue"))
        self.wait_ready()

    # --- nodes

    def down(self, node: str) -> None:
        """The node loses its power: all its processes are killed, its network is gone; the controller is told."""
        self.nodes[node].end()
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=power")

    def up(self, node: str) -> None:
        """The node starts again, with nothing in its memory; waits until the controller can use it."""
        if self.nodes[node].ended:
            self._power(node)
        self.run("scontrol", "update", f"nodename={node}", "state=resume")
        until(lambda: self.node_state(node) in ("idle", "mixed", "allocated"), f"node {node}", 60, self.logs)
        # The order to kill the jobs of the dead node is still on its way, and would kill what is started there now.
        until(self._nothing_to_send, "the controller's last message to the node", 60, lambda: self.run("sdiag"))

    def node_state(self, node: str) -> str:
        """idle, mixed, allocated, down, ... ('*' at the end: it does not answer)."""
        return self.run("sinfo", "-h", "-N", "-n", node, "-p", "gpu", "-o", "%T").strip()

    def logs(self) -> str:
        """The last lines of every daemon, for the message of a failed test."""
        tails = {
            log.name: log.read_text(errors="replace").splitlines()[-15:] for log in self.folder.glob("*.[el]*[rg]")
        }
        return "\n".join(f"--- {name}\n" + "\n".join(lines) for name, lines in sorted(tails.items()))

    def _power(self, node: str) -> None:
        # Nothing survives on a node's own disks: slurmd, when it comes back, removes scripts of jobs that it finds
        # there, and would also remove the one of a job that has just been started again.
        private, spool = self.folder / f"local-{node}", self.folder / f"spool-{node}"
        for own in (private, spool):
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir()
        place = self.nodes[node] = Place(node, {**self._binds, private: self.folder / "local"}, machine=True)
        self._router.join(place, self.name, node[1:])
        self._daemon(place, ["slurmd", "-D", "-N", node, "-f", self.env["SLURM_CONF"]], f"slurmd-{node}")

    def _daemon(self, place: Place, command: Sequence[str], name: str) -> None:
        with (self.folder / f"{name}.err").open("ab") as log:
            argv = place.inside(*command)
            env = self.env | {"PATH": places.PATH}
            self._daemons.append(
                subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=self.folder)
            )

    def _nothing_to_send(self) -> bool:
        said = dict(line.split(":", 1) for line in self.run("sdiag").splitlines() if line.startswith("Agent"))
        return [int(number) for number in said.values()] == [0, 0, 0]

    def _states(self) -> list[str]:
        words = ["sinfo", "-h", "-N", "-p", "gpu", "-o", "%T"]
        done = subprocess.run(self.command(*words), env=self.env, capture_output=True, text=True, timeout=60)
        return done.stdout.split()

    def end(self) -> None:
        """Kill all of it."""
        for place in (*self.nodes.values(), self.login, self._control):
            place.end()
        for daemon in self._daemons:
            daemon.wait(30)


class Clusters:
    """Both clusters, the router, the relay's place and beta's transfer node. `close` takes all of it away."""

    relay_address = RELAY

    def __init__(self) -> None:
        sweep()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
        self.folder.chmod(0o755)
        self._lock = (self.folder / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        atexit.register(self.close)
        self._binds = self._shared_files()
        self._ends: list[Callable[[], None]] = []
        try:
            self.router = Router()
            self._ends.append(self.router.place.end)
            self.relay = self._place("relay")
            self.router.join_relay(self.relay)
            self.transfer = self._place("beta-transfer")
            self.router.join(self.transfer, "beta", "transfer")
            self.alpha, self.beta = (self._cluster(name) for name in ("alpha", "beta"))
            for cluster in self:
                cluster.start()
            for cluster in self:
                cluster.wait_ready()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Cluster]:
        return iter((self.alpha, self.beta))

    def open_beta(self) -> None:
        """Beta's nodes may dial the relay until `close_beta`."""
        self.router.let(*self.beta.addresses.values())

    def close_beta(self) -> None:
        """Beta's nodes have no way out, as at the beginning."""
        self.router.forbid(*self.beta.addresses.values())

    def dial(self, place: Place, to: str, port: int) -> str:
        """'open', or the name of the error with which a connection from `place` to an address ends."""
        return dial(place, to, port)

    def close(self) -> None:
        """End every process and place, and remove the directory. May be called twice."""
        while self._ends:
            self._ends.pop()()
        if not self._lock.closed:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._lock.close()
        atexit.unregister(self.close)

    def _shared_files(self) -> dict[Path, Path]:
        """What every place sees instead of this machine's own: names without a name server, and Slurm's PMIx.

        Slurm's plugin opens libpmix.so, a name that Debian gives the library only in its -dev package.
        """
        (self.folder / "hosts").write_text(hosts())
        (self.folder / "no-dns").touch()
        library = pmix()
        assert library is not None
        shutil.copytree(library, self.folder / "pmix", symlinks=True)
        if not (self.folder / "pmix" / "libpmix.so").is_symlink():
            (self.folder / "pmix" / "libpmix.so").symlink_to("libpmix.so.2")
        own = {"hosts": Path("/etc/hosts"), "no-dns": Path("/etc/resolv.conf"), "pmix": library}
        return {self.folder / name: target for name, target in own.items()}

    def _place(self, name: str) -> Place:
        place = Place(name, self._binds)
        self._ends.append(place.end)
        return place

    def _cluster(self, name: str) -> Cluster:
        cluster = Cluster(name, self.router, self.folder / name, self._binds)
        self._ends.append(cluster.end)
        return cluster


def clean_environment() -> dict[str, str]:
    """This process's environment for a job: this Python first on PATH, this checkout, no launcher, proxy or Slurm."""
    drop = ("SLURM", "SBATCH", "OMPI_", "PMI", "MPI", "FEDHPC_")
    keep = {k: v for k, v in os.environ.items() if not k.startswith(drop) and not k.lower().endswith("_proxy")}
    path = os.pathsep.join((str(Path(sys.executable).parent), places.PATH))
    return keep | {"PATH": path, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"} | YIELDING


def until(
    condition: Callable[[], bool], what: str, seconds: float = 30, explain: Callable[[], str] = lambda: ""
) -> None:
    """Ask again and again until it is true; AssertionError after `seconds`, with what `explain` says."""
    seconds *= PATIENCE
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in {seconds} s: {what}\n{explain()}"
        time.sleep(0.05)


def sweep() -> None:
    """Remove directories of sessions that were killed: nobody holds their lock. Their processes ended with them."""
    for folder in Path("/tmp").glob(f"{_PREFIX}*"):
        try:
            with (folder / "lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
