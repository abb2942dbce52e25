"""NVFlare's FedAvg of one float32 vector: in its simulator, deployed with mutual TLS, or with homomorphic encryption.

NVFlare copies this file into its job, so it holds both what starts the job and what runs in it: a controller in the
server's process and an executor in every client's.

NVFlare's best documented settings here: the intervals at which the server lets clients ask for a task, at which they
ask, and at which the controller looks, are POLL_S each; no model and no snapshot is written; transport is its default
(`http`; `grpc` and `tcp` took as much time and processor at 10M numbers).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather

NAME = "vector"  # of the one array in the model
STEP = np.float32(0.5)  # what every client adds: halves are exact in float32
POLL_S = 0.05  # for every interval at which NVFlare asks again; its own are 0.5 and 2 s
CKKS_TOLERANCE = 1e-4  # 40-bit scale: about 1e-7 for each of a few rounds was seen
MARK = "FEDHPC_NVFLARE_RUN"  # in the environment of all that this script starts


def say(path: str, **line: Any) -> None:
    """One line of JSON at the end of `path`; several processes write to it, and a short append is never torn."""
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def largest_error(values: np.ndarray[Any, Any], expected: float) -> float:
    """Of a whole vector, in pieces, so that the check needs little memory of its own."""
    flat, piece = values.reshape(-1), 1 << 20
    return max(float(np.abs(flat[at : at + piece] - expected).max()) for at in range(0, flat.size, piece))


class AddHalf(Executor):
    """The client. With `check` it also compares each global model that it is given with what it must be."""

    def __init__(self, said: str, check: bool = False):
        super().__init__()
        self.said, self.check = said, check

    def execute(self, task_name: str, shareable: Any, fl_ctx: Any, abort_signal: Any) -> Any:
        values = np.asarray(from_shareable(shareable).data[NAME], dtype=np.float32)
        if self.check:
            number = shareable.get_header(AppConstants.CURRENT_ROUND)
            say(self.said, checked=number - 1, size=values.size, error=largest_error(values, number * float(STEP)))
        return DXO(
            DataKind.WEIGHTS, data={NAME: values + STEP}, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: 1}
        ).to_shareable()


class PlainFedAvg(FedAvg):
    """The server: NVFlare's FedAvg, with a model of zeros, no file written, and a check of each result after its round.

    A round goes from NVFlare's own event, before any client is given its task, to the moment the new model would be
    saved.
    """

    def __init__(self, sites: int, rounds: int, length: int, said: str):
        super().__init__(num_clients=sites, num_rounds=rounds, persistor_id="", task_check_period=POLL_S)
        self.sites, self.rounds, self.length, self.said = sites, rounds, length, said
        self.began = 0.0

    def handle_event(self, event_type: str, fl_ctx: Any) -> None:
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            say(self.said, servers=[os.getpid(), os.getppid()])
        elif event_type == AppEventType.ROUND_STARTED:
            self.began = time.monotonic()
        elif event_type == EventType.END_RUN:
            say(self.said, over=True)

    def load_model(self) -> Any:
        return FLModel(params={NAME: np.zeros(self.length, dtype=np.float32)})

    def save_model(self, model: Any) -> None:
        span = [self.began, time.monotonic()]
        values = model.params[NAME]
        error = largest_error(values, (self.current_round + 1) * float(STEP))
        say(self.said, checked=self.current_round, size=values.size, error=error)
        say(self.said, round=self.current_round, span=span)


class EncryptedFedAvg(ScatterAndGather):
    """The server of the encrypted sum, which it cannot read: the clients check it when they are given it."""

    def __init__(self, sites: int, rounds: int, said: str):
        super().__init__(
            min_clients=sites,
            num_rounds=rounds,
            wait_time_after_min_received=0,
            aggregator_id="aggregator",
            persistor_id="zeros",
            shareable_generator_id="generator",
            task_check_period=POLL_S,
            persist_every_n_rounds=0,
            snapshot_every_n_rounds=0,
            memory_gc_rounds=0,
        )
        self.sites, self.rounds, self.said = sites, rounds, said
        self.began = 0.0

    def handle_event(self, event_type: str, fl_ctx: Any) -> None:
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            say(self.said, servers=[os.getpid(), os.getppid()])
        elif event_type == AppEventType.ROUND_STARTED:
            self.began = time.monotonic()
        elif event_type == AppEventType.ROUND_DONE:
            say(self.said, round=self._current_round, span=[self.began, time.monotonic()])
        elif event_type == EventType.END_RUN:
            say(self.said, over=True)


class Zeros(ModelPersistor):
    """The first model; nothing is saved."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def load_model(self, fl_ctx: Any) -> Any:
        return make_model_learnable({NAME: np.zeros(self.length, dtype=np.float32)}, {})

    def save_model(self, model: Any, fl_ctx: Any) -> None:
        pass


def job_of(mode: str, sites: int, rounds: int, length: int, said: str) -> Any:
    """The parts that NVFlare's FedAvg recipes put together, with its intervals shortened."""
    from nvflare.job_config.api import FedJob, FilterType
    from nvflare_fedavg import AddHalf, EncryptedFedAvg, PlainFedAvg, Zeros  # by the name that the job knows them by

    job = FedJob(name="fedavg", min_clients=sites)
    if mode == "he":
        from nvflare.app_opt.he.intime_accumulate_model_aggregator import HEInTimeAccumulateWeightedAggregator
        from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
        from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
        from nvflare.app_opt.he.model_shareable_generator import HEModelShareableGenerator

        job.to_server(HEModelShareableGenerator(), id="generator")
        job.to_server(HEInTimeAccumulateWeightedAggregator(expected_data_kind=DataKind.WEIGHTS), id="aggregator")
        job.to_server(Zeros(length), id="zeros")
        job.to_server(EncryptedFedAvg(sites, rounds, said))
        job.to_clients(HEModelDecryptor(), tasks=["train"], filter_type=FilterType.TASK_DATA)
        encryptor = HEModelEncryptor(weigh_by_local_iter=True)
        job.to_clients(encryptor, tasks=["train"], filter_type=FilterType.TASK_RESULT)
    else:
        job.to_server(PlainFedAvg(sites, rounds, length, said))
    job.to_clients(AddHalf(said, check=mode == "he"), tasks=["train"])
    job.to_server({"server": {"task_request_interval": POLL_S}})
    job.to_clients({"default_task_fetch_interval": POLL_S})
    return job


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
    path.write_text(
        json.dumps(
            {
                "api_version": 3,
                "name": "peers",
                "participants": [server | server_ports, *clients, *people],
                "builders": builders,
            }
        )
    )


def marked(mark: str) -> Iterator[int]:
    """The processes that carry `mark` in their environment, other than this one."""
    wanted = f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0"):
                    yield int(entry.name)


def end_all(mark: str) -> None:
    """NVFlare's services are daemons, and their scripts restart them: until none is left."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while left := list(marked(mark)):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        time.sleep(0.1)


def lines(said: Path) -> list[dict[str, Any]]:
    """What the job has written so far."""
    text = said.read_text() if said.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def wait_for(said: Path, rounds: int, mark: str) -> list[dict[str, Any]]:
    """Until the server has said its last round, or nothing of the federation is left."""
    while True:
        found = lines(said)
        if sum("round" in line for line in found) >= rounds:
            return found
        if any("over" in line for line in found):
            raise SystemExit("the job ended before its last round; NVFlare's logs are in the work folder")
        if not any(marked(mark)):
            raise SystemExit("NVFlare's processes are gone; its logs are in the work folder")
        time.sleep(0.1)


def start_simulator(job: Any, sites: int, work: Path) -> None:
    """NVFlare's own command, so that this process can wait for the last round and not for NVFlare's ending."""
    job.export_job(str(work / "job"))
    command = [Path(sys.executable).with_name("nvflare"), "simulator", work / "job" / job.name]
    command += ["-w", work / "simulator", "-n", str(sites), "-t", str(sites)]
    with (work / "simulator.log").open("w") as log:
        subprocess.Popen(command, stdout=log, stderr=log)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("simulator", "poc", "he"), default="simulator")
    parser.add_argument("--params", type=lambda text: int(float(text)), required=True)
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3, help="the first one is the cold one")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    options = parser.parse_args()
    work = options.work.resolve()
    (work / "temporary").mkdir(parents=True, exist_ok=True)
    mark, said = str(work), work / "said.jsonl"
    # NVFlare keeps what it knows of installations in the home folder: this run has one of its own.
    os.environ |= {MARK: mark, "HOME": str(work), "NVFLARE_POC_WORKSPACE": str(work / "poc")}
    os.environ["TMPDIR"] = str(work / "temporary")
    os.chdir(work)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    encrypted = options.mode == "he"
    # The clients see an encrypted result one round later, so one more round is run to check the last.
    rounds = options.rounds + encrypted
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    job = job_of(options.mode, options.sites, rounds, options.params, str(said))
    out = os.dup(1)
    os.dup2(2, 1)  # what NVFlare prints is no result
    try:
        if options.mode == "simulator":
            start_simulator(job, options.sites, work)
        else:
            from nvflare.recipe.poc_env import PocEnv

            project(work / "project.yml", options.sites, encrypted)
            environment = PocEnv(num_clients=options.sites, project_conf_path=str(work / "project.yml"))
            environment.deploy(job)
        found = wait_for(said, rounds, mark)
    finally:
        end_all(mark)
    spans = {line["round"]: line["span"] for line in found if "round" in line}
    checks = [line for line in found if "checked" in line and 0 <= line["checked"] < options.rounds]
    error = max(line["error"] for line in checks)
    tolerance = CKKS_TOLERANCE if encrypted else 0.0
    complete = all(line["size"] == options.params for line in checks)
    everyone = len(checks) == options.rounds * (options.sites if encrypted else 1)
    result = {
        "system": "nvflare simulator" if options.mode == "simulator" else "nvflare poc",
        "version": version("nvflare"),
        "work": "homomorphic encryption" if encrypted else "plain FedAvg",
        "rounds": [spans[number] for number in range(1, options.rounds)],
        "first": spans[0],
        "verified": complete and everyone and error <= tolerance,
        "error": error,
        "tolerance": tolerance,
        "server_pids": next(line["servers"] for line in found if "servers" in line),
        "settings": {
            "mode": "simulator, a thread for each client" if options.mode == "simulator" else "POC, mutual TLS",
            "task_request_interval_s": POLL_S,
            "default_task_fetch_interval_s": POLL_S,
            "task_check_period_s": POLL_S,
            "model saved": False,
        },
        "versions": {name: version(name) for name in ("nvflare", "numpy", *(("tenseal",) if encrypted else ()))},
    }
    os.write(out, (json.dumps(result) + "\n").encode())
    if not result["verified"]:
        raise SystemExit("the result is wrong")


if __name__ == "__main__":
    main()
