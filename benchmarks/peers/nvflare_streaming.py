"""NVFlare's exchange of a large PyTorch model: its tensors go to every client and back, and are averaged; no training.

Three ways that NVFlare documents for large models, deployed with mutual TLS: its tensor downloader, which is what every
PyTorch job uses, with everything in memory; the same with `offload`, where the server keeps updates that arrive on disk
until they are added, for the least memory; and `streamer`, the components of its tensor-stream example. About 2 copies
of the model are needed in each client, and in the server 3, and half of one more for each client.
The settings are in nvflare_federation.py. NVFlare copies this file into its job.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.decomposers import TensorDecomposer
from nvflare.fuel.utils import fobs
from nvflare_federation import (
    POLL_S,
    SETTINGS,
    Moves,
    Timed,
    deploy,
    error_of,
    model_of,
    options,
    quiet,
    result_of,
    say,
    shorten,
    wait_for,
)
from vectors import exactness

LAYER = 1 << 21  # numbers in one tensor: 8 MiB, about the mean in GPT-2 Large, which NVFlare's own comparison takes
PATIENCE_S = 600.0  # for every limit of a transfer: on two cores a gigabyte takes long


class MovesTensors(Moves):
    """The client, whose model is of tensors; NumPy's view of each is what moves."""

    def __init__(self, length: int):
        super().__init__(length, LAYER)
        fobs.register(TensorDecomposer)

    def changeable(self, values: Any) -> Any:
        return values


class LargeFedAvg(Timed, FedAvg):
    """The server: NVFlare's FedAvg, with no file written, and a check of each result after its round."""

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
        fobs.register(TensorDecomposer)

    def load_model(self) -> Any:
        return FLModel(params={name: torch.from_numpy(values) for name, values in model_of(self.length, LAYER).items()})

    def save_model(self, model: Any) -> None:
        span = [self.began, time.monotonic()]
        error = error_of(model.params, self.length, LAYER, self.current_round + 1, self.sites)
        say(self.said, checked=self.current_round, error=error)
        say(self.said, round=self.current_round, span=span)


def job_of(way: str, sites: int, rounds: int, length: int, said: str) -> Any:
    """What NVFlare's PyTorch recipe puts together, with its intervals shortened and its limits of time raised."""
    from nvflare.app_opt.tensor_stream.client import TensorClientStreamer
    from nvflare.app_opt.tensor_stream.server import TensorServerStreamer
    from nvflare.job_config.api import FedJob
    from nvflare_streaming import LargeFedAvg, MovesTensors  # by the name that the job knows them by

    job = FedJob(name="streaming", min_clients=sites)
    job.to_server(LargeFedAvg(sites, rounds, length, said, offload=way == "offload"))
    job.to_clients(MovesTensors(length), tasks=["train"])
    if way == "streamer":
        server = TensorServerStreamer(
            tensor_send_timeout=PATIENCE_S, wait_send_task_data_all_clients_timeout=PATIENCE_S
        )
        job.to_server(server, id="tensor_server_streamer")
        job.to_clients(TensorClientStreamer(tensor_send_timeout=PATIENCE_S), id="tensor_client_streamer")
    shorten(job, streaming_per_request_timeout=PATIENCE_S)
    job.to_clients({"get_task_timeout": PATIENCE_S, "submit_task_result_timeout": PATIENCE_S})
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--way", choices=("downloader", "offload", "streamer"), default="downloader")
    given = options(parser, sites=6)
    said = given.work / "said.jsonl"
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    job = job_of(given.way, given.sites, given.rounds, given.params, str(said))
    settings = {
        "mode": "POC, mutual TLS",
        "way": given.way,
        "tensor": LAYER,
        "enable_tensor_disk_offload": given.way == "offload",
        **SETTINGS,
    }
    with quiet() as result:
        deploy(job, given.sites, given.work)
        found = wait_for(said, lambda lines: sum("round" in line for line in lines) >= given.rounds)
        result(
            result_of(
                found,
                given,
                given.rounds,
                exactness(given.rounds, given.sites),
                system="nvflare poc",
                work="tensor streaming",
                settings=settings,
                versions={name: version(name) for name in ("nvflare", "torch", "safetensors")},
            )
        )


if __name__ == "__main__":
    main()
