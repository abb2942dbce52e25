"""What both NVFlare scripts have in common: the federation, the model, the report of its server, and the result.

NVFlare copies this file into its jobs beside the scripts, so some of it starts a job and some runs in one.

NVFlare's best documented settings, of both: the intervals at which the server lets clients ask for a task, at which
they ask, and at which the controller looks, are POLL_S each; no model and no snapshot is written; transport is its
default (`http`; `grpc` and `tcp` took as much time and processor at 10M numbers). Of its guide to memory: malloc has at
most 4 arenas in each process, as its start scripts have it, and the server and the clients free what is garbage after
each round. A round goes from NVFlare's own event, before any client is given its task, to the moment when its new model
would be saved; the check comes after, and before the next round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ending import descendants, none_left
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.app_common.app_event_type import AppEventType
from nvflare.fuel.utils.memory_utils import cleanup_memory
from vectors import fill, largest_error, move

POLL_S = 0.05  # for every interval at which NVFlare asks again; its own are 0.5 and 2 s
ARENAS = 4
SETTINGS = {
    "task_request_interval_s": POLL_S,
    "default_task_fetch_interval_s": POLL_S,
    "task_check_period_s": POLL_S,
    "model saved": False,
    "MALLOC_ARENA_MAX": ARENAS,
    "memory_gc_rounds": 1,
    "client_memory_gc_rounds": 1,
}


def say(path: str, **line: Any) -> None:
    """One line of JSON at the end of `path`; several processes write to it, and a short append is never torn."""
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def layers(length: int, each: int) -> dict[str, tuple[int, int]]:
    """Name -> (its first number's place in the vector, how many numbers) of each array of the model."""
    return {f"layer{at // each}": (at, min(each, length - at)) for at in range(0, length, each)}


def model_of(length: int, each: int) -> dict[str, np.ndarray[Any, Any]]:
    """The first vector in float32 arrays of `each` numbers, a multiple of vectors.STRIDE, but for the last one."""
    return {name: fill(np.empty(size, np.float32), first) for name, (first, size) in layers(length, each).items()}


def error_of(model: Mapping[str, Any], length: int, each: int, rounds: int, sites: int) -> float:
    """The largest one of a model of NumPy arrays or tensors after so many rounds; infinite if it is another model."""
    wanted = layers(length, each)
    if not wanted or model.keys() != wanted.keys():
        return math.inf
    return max(
        largest_error(np.asarray(model[name]), size, rounds, sites, first) for name, (first, size) in wanted.items()
    )


class Moves(Executor):
    """The client: it changes the model that it was given in place, as a trainer does.

    Once a result has been sent it frees what is garbage, as NVFlare's `client_memory_gc_rounds` of 1 does.
    """

    def __init__(self, length: int, each: int):
        super().__init__()
        self.length, self.each = length, each
        self.sent = False

    def handle_event(self, event_type: str, fl_ctx: Any) -> None:
        if event_type == EventType.AFTER_SEND_TASK_RESULT:
            self.sent = True
        elif event_type == EventType.BEFORE_PULL_TASK and self.sent:  # its context, and so the model, is gone by now
            self.sent = False
            cleanup_memory()

    def execute(self, task_name: str, shareable: Any, fl_ctx: Any, abort_signal: Any) -> Any:
        model = {name: self.changeable(values) for name, values in from_shareable(shareable).data.items()}
        wanted = layers(self.length, self.each)
        if model.keys() != wanted.keys():
            raise ValueError(f"{len(model)} arrays arrived of {len(wanted)}")
        client = int(fl_ctx.get_identity_name().rpartition("-")[2]) - 1
        for name, values in model.items():
            move(np.asarray(values), client, wanted[name][0])
        return DXO(DataKind.WEIGHTS, data=model, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: 1}).to_shareable()

    def changeable(self, values: Any) -> Any:
        return values if values.flags.writeable else values.copy()


class Timed:
    """Of a server's controller, with `said`: what it says of its processes, and when a round begins."""

    said: str
    began = 0.0

    def handle_event(self, event_type: str, fl_ctx: Any) -> None:
        super().handle_event(event_type, fl_ctx)  # type: ignore[misc]
        if event_type == EventType.START_RUN:
            say(self.said, servers=[os.getpid(), os.getppid()])
        elif event_type == AppEventType.ROUND_STARTED:
            self.began = time.monotonic()
        elif event_type == EventType.END_RUN:
            say(self.said, over=True)


def shorten(job: Any, **more: Any) -> None:
    """NVFlare's intervals; `more` is for the server and the clients."""
    job.to_server({"server": {"task_request_interval": POLL_S}} | more)
    job.to_clients({"default_task_fetch_interval": POLL_S} | more)


def free_ports(count: int) -> list[int]:
    """All of them held until all are known, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


def project(path: Path, sites: int, he: bool) -> None:
    """The description of a federation on this machine that `PocEnv` provisions; JSON is YAML too."""
    learn, admin = free_ports(2)
    # Its name is also where it listens: by any other name NVFlare would listen on all addresses.
    server = {"name": "localhost", "type": "server", "org": "org", "default_host": "localhost"}
    people = [{"name": "admin@nvidia.com", "type": "admin", "org": "org", "role": "project_admin"}]
    clients = [{"name": f"site-{n}", "type": "client", "org": "org"} for n in range(1, sites + 1)]
    builder = "nvflare.lighter.impl"
    builders: list[dict[str, Any]] = [
        {"path": f"{builder}.workspace.WorkspaceBuilder", "args": {"template_file": ["master_template.yml"]}},
        {"path": f"{builder}.static_file.StaticFileBuilder", "args": {"config_folder": "config"}},
        {"path": f"{builder}.cert.CertBuilder"},
        *([{"path": f"{builder}.he.HEBuilder", "args": {}}] if he else []),
        {"path": f"{builder}.signature.SignatureBuilder"},
    ]
    server_ports = {"fed_learn_port": learn, "admin_port": admin}
    participants = [server | server_ports, *clients, *people]
    whole = {"api_version": 3, "name": "peers", "participants": participants, "builders": builders}
    path.write_text(json.dumps(whole))


def options(parser: argparse.ArgumentParser, sites: int) -> argparse.Namespace:
    """What both scripts are given; the work folder is made, and is the one of this process."""
    parser.add_argument("--params", type=lambda text: int(float(text)), required=True)
    parser.add_argument("--sites", type=int, default=sites)
    parser.add_argument("--rounds", type=int, default=3, help="the first one is the cold one")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    given = parser.parse_args()
    given.work = work = given.work.resolve()
    (work / "temporary").mkdir(parents=True, exist_ok=True)
    # NVFlare keeps what it knows of installations in the home folder: this run has one of its own.
    os.environ |= {"HOME": str(work), "NVFLARE_POC_WORKSPACE": str(work / "poc"), "TMPDIR": str(work / "temporary")}
    os.environ["MALLOC_ARENA_MAX"] = str(ARENAS)
    os.chdir(work)
    return given


def simulate(job: Any, sites: int, work: Path) -> None:
    """NVFlare's own command, so that this process can wait for the last round and not for NVFlare's ending."""
    job.export_job(str(work / "job"))
    command = [Path(sys.executable).with_name("nvflare"), "simulator", work / "job" / job.name]
    command += ["-w", work / "simulator", "-n", str(sites), "-t", str(sites)]
    with (work / "simulator.log").open("w") as log:
        subprocess.Popen(command, stdout=log, stderr=log)


def deploy(job: Any, sites: int, work: Path, he: bool = False) -> None:
    """NVFlare's POC: a server and clients in processes of their own, with mutual TLS."""
    from nvflare.recipe.poc_env import PocEnv

    project(work / "project.yml", sites, he)
    PocEnv(num_clients=sites, project_conf_path=str(work / "project.yml")).deploy(job)


def told(said: Path) -> list[dict[str, Any]]:
    """What the job has written so far."""
    text = said.read_text() if said.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def wait_for(said: Path, whole: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
    """Until the job has written all, or nothing of the federation is left."""
    ended = 0.0
    while True:
        found = told(said)
        if whole(found):
            return found
        if any("over" in line for line in found):
            ended = ended or time.monotonic()
            if time.monotonic() - ended > 10:  # clients may have something to say yet
                raise SystemExit("the job ended before its last round; NVFlare's logs are in the work folder")
        if not descendants(os.getpid()):
            raise SystemExit("NVFlare's processes are gone; its logs are in the work folder")
        time.sleep(0.1)


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[dict[str, Any]], None]]:
    """What NVFlare prints is no result, and of its daemons, which restart each other, none is left.

    Gives what prints a result, and says by the exit code whether it is verified.
    """
    out = os.dup(1)
    os.dup2(2, 1)

    def result(said: dict[str, Any]) -> None:
        os.write(out, (json.dumps(said) + "\n").encode())
        if not said["verified"]:
            raise SystemExit("the result is wrong")

    with none_left(patience_s=0):
        yield result


def result_of(
    found: list[dict[str, Any]], given: argparse.Namespace, checks: int, tolerance: float, **more: Any
) -> dict[str, Any]:
    """From what the job wrote; `checks`: how many of the counted rounds there must be, over all that check."""
    spans = {line["round"]: line["span"] for line in found if "round" in line}
    errors = [line["error"] for line in found if "error" in line and 0 <= line["checked"] < given.rounds]
    error = max(errors, default=math.inf)
    return {
        "version": version("nvflare"),
        "rounds": [spans[number] for number in range(1, given.rounds)],
        "first": spans[0],
        "verified": len(errors) == checks and error <= tolerance,
        "error": error,
        "tolerance": tolerance,
        "server_pids": next(line["servers"] for line in found if "servers" in line),
        **more,
    }
