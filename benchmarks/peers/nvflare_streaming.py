"""NVFlare's exchange of a large PyTorch model: its tensors go to every client and back, and are averaged; no training.

Three ways that NVFlare documents for large models, deployed with mutual TLS: its tensor downloader, which is what every
PyTorch job uses; the same with `offload`, where the server keeps updates that arrive on disk until they are added, for
the least memory; and `streamer`, the components of its tensor-stream example. Its advice on memory is followed: few
arenas of malloc, and a collection after each round. About 2 copies of the model are needed in each client, and in the
server 3, and half of one more for each client.
NVFlare copies this file into its job, as it does nvflare_fedavg.py.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.executor import Executor
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare.fuel.utils.memory_utils import cleanup_memory

TENSOR = 1 << 21  # numbers in one tensor: 8 MiB, about the mean in GPT-2 Large, which NVFlare's own comparison takes
STEP = 0.5  # what every client adds: halves are exact in float32
POLL_S = 0.05  # for every interval at which NVFlare asks again; its own are 0.5 and 2 s
PATIENCE_S = 600.0  # for every limit of a transfer: on two cores a gigabyte takes long
MARK = "FEDHPC_NVFLARE_RUN"  # in the environment of all that this script starts


def say(path: str, **line: Any) -> None:
    """One line of JSON at the end of `path`; several processes write to it, and a short append is never torn."""
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def model_of(length: int) -> dict[str, torch.Tensor]:
    """`length` zeros in float32 tensors of TENSOR numbers, the last one shorter."""
    return {f"layer{at // TENSOR}.weight": torch.zeros(min(TENSOR, length - at)) for at in range(0, length, TENSOR)}


class AddHalf(Executor):
    """The client: it changes the model that it was given in place, as a trainer does.

    Once a result has been sent it frees what is garbage, as NVFlare's `client_memory_gc_rounds` of 1 does.
    """

    def __init__(self, layers: int):
        super().__init__()
        self.layers = layers
        self.sent = False
        fobs.register(TensorDecomposer)

    def handle_event(self, event_type: str, fl_ctx: Any) -> None:
        if event_type == EventType.AFTER_SEND_TASK_RESULT:
            self.sent = True
        elif event_type == EventType.BEFORE_PULL_TASK and self.sent:  # its context, and so the model, is gone by now
            self.sent = False
            cleanup_memory()

    def execute(self, task_name: str, shareable: Any, fl_ctx: Any, abort_signal: Any) -> Any:
        tensors = from_shareable(shareable).data
        if len(tensors) != self.layers:
            raise ValueError(f"{len(tensors)} tensors arrived of {self.layers}")
        with torch.no_grad():
            for tensor in tensors.values():
                tensor.add_(STEP)
        return DXO(DataKind.WEIGHTS, data=tensors, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: 1}).to_shareable()


class LargeFedAvg(FedAvg):
    """The server: NVFlare's FedAvg, with a model of zeros, no file written, and a check of each result after its round.

    A round goes from NVFlare's own event, before any client is given its task, to the moment the new model would be
    saved.
    """

    def __init__(self, sites: int, rounds: int, length: int, said: str, offload: bool):
        super().__init__(
            num_clients=sites,
            num_rounds=rounds,
            persistor_id="",
            task_check_period=POLL_S,
            memory_gc_rounds=1,
            enable_tensor_disk_offload=offload,
        )
        self.sites, self.rounds, self.length, self.said, self.offload = sites, rounds, length, said, offload
        self.began = 0.0
        fobs.register(TensorDecomposer)

    def handle_event(self, event_type: str, fl_ctx: Any) -> None:
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.START_RUN:
            say(self.said, servers=[os.getpid(), os.getppid()])
        elif event_type == AppEventType.ROUND_STARTED:
            self.began = time.monotonic()
        elif event_type == EventType.END_RUN:
            say(self.said, over=True)

    def load_model(self) -> Any:
        return FLModel(params=model_of(self.length))

    def save_model(self, model: Any) -> None:
        span = [self.began, time.monotonic()]
        expected = (self.current_round + 1) * STEP
        error = max(float((tensor - expected).abs().max()) for tensor in model.params.values())
        size = sum(tensor.numel() for tensor in model.params.values())
        say(self.said, checked=self.current_round, size=size, error=error)
        say(self.said, round=self.current_round, span=span)


def job_of(way: str, sites: int, rounds: int, length: int, said: str) -> Any:
    """What NVFlare's PyTorch recipe puts together, with its intervals shortened and its limits of time raised."""
    from nvflare.app_opt.tensor_stream.client import TensorClientStreamer
    from nvflare.app_opt.tensor_stream.server import TensorServerStreamer
    from nvflare.job_config.api import FedJob
    from nvflare_streaming import AddHalf, LargeFedAvg  # by the name that the job knows them by

    job = FedJob(name="streaming", min_clients=sites)
    job.to_server(LargeFedAvg(sites, rounds, length, said, offload=way == "offload"))
    job.to_clients(AddHalf(len(range(0, length, TENSOR))), tasks=["train"])
    if way == "streamer":
        server = TensorServerStreamer(
            tensor_send_timeout=PATIENCE_S, wait_send_task_data_all_clients_timeout=PATIENCE_S
        )
        job.to_server(server, id="tensor_server_streamer")
        job.to_clients(TensorClientStreamer(tensor_send_timeout=PATIENCE_S), id="tensor_client_streamer")
    patience = {"streaming_per_request_timeout": PATIENCE_S}
    job.to_server({"server": {"task_request_interval": POLL_S}} | patience)
    job.to_clients(
        {
            "default_task_fetch_interval": POLL_S,
            "get_task_timeout": PATIENCE_S,
            "submit_task_result_timeout": PATIENCE_S,
        }
        | patience
    )
    return job


def free_ports(count: int) -> list[int]:
    """All of them held until all are known, so that they differ."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


def project(path: Path, sites: int) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=("downloader", "offload", "streamer"), default="offload")
    parser.add_argument("--params", type=lambda text: int(float(text)), required=True)
    parser.add_argument("--sites", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3, help="the first one is the cold one")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    options = parser.parse_args()
    work = options.work.resolve()
    (work / "temporary").mkdir(parents=True, exist_ok=True)
    mark, said = str(work), work / "said.jsonl"
    # NVFlare keeps what it knows of installations in the home folder: this run has one of its own. It recommends the
    # limit of arenas, of 4 for a server, against fragmented memory.
    os.environ |= {MARK: mark, "HOME": str(work), "NVFLARE_POC_WORKSPACE": str(work / "poc")}
    os.environ |= {"TMPDIR": str(work / "temporary"), "MALLOC_ARENA_MAX": "4"}
    os.chdir(work)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    job = job_of(options.way, options.sites, options.rounds, options.params, str(said))
    out = os.dup(1)
    os.dup2(2, 1)  # what NVFlare prints is no result
    try:
        from nvflare.recipe.poc_env import PocEnv

        project(work / "project.yml", options.sites)
        PocEnv(num_clients=options.sites, project_conf_path=str(work / "project.yml")).deploy(job)
        found = wait_for(said, options.rounds, mark)
    finally:
        end_all(mark)
    spans = {line["round"]: line["span"] for line in found if "round" in line}
    checks = [line for line in found if "checked" in line]
    error = max(line["error"] for line in checks)
    complete = len(checks) == options.rounds and all(line["size"] == options.params for line in checks)
    result = {
        "system": "nvflare poc",
        "version": version("nvflare"),
        "work": "tensor streaming",
        "rounds": [spans[number] for number in range(1, options.rounds)],
        "first": spans[0],
        "verified": complete and error == 0.0,
        "error": error,
        "tolerance": 0.0,
        "server_pids": next(line["servers"] for line in found if "servers" in line),
        "settings": {
            "mode": "POC, mutual TLS",
            "way": options.way,
            "tensor": TENSOR,
            "enable_tensor_disk_offload": options.way == "offload",
            "memory_gc_rounds": 1,
            "MALLOC_ARENA_MAX": 4,
            "task_request_interval_s": POLL_S,
            "default_task_fetch_interval_s": POLL_S,
            "task_check_period_s": POLL_S,
            "model saved": False,
        },
        "versions": {name: version(name) for name in ("nvflare", "torch", "safetensors")},
    }
    os.write(out, (json.dumps(result) + "\n").encode())
    if not result["verified"]:
        raise SystemExit("the result is wrong")


if __name__ == "__main__":
    main()
