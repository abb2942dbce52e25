"""NVFlare's FedAvg of one float32 vector: in its simulator, deployed with mutual TLS, or with homomorphic encryption.

The vector is one array: in arrays of 8 MiB a round of 40M numbers took longer. The settings are in
nvflare_federation.py. NVFlare copies this file into its job, so it holds both what starts the job
and what runs in it: a controller in the server's process and an executor in every client's.
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.apis.dxo import DataKind, from_shareable
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_common.workflows.scatter_and_gather import ScatterAndGather
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
    simulate,
    wait_for,
)
from vectors import exactness

CKKS_TOLERANCE = 1e-4  # 40-bit scale: about 1e-7 for each of a few rounds was seen


class MovesAndChecks(Moves):
    """A client of the encrypted sum, which alone sees results, each of them as the next round's model.

    It keeps them, and looks at them in the last round, which is one that does not count.
    """

    def __init__(self, length: int, sites: int, rounds: int, said: str):
        super().__init__(length, length)
        self.sites, self.rounds, self.said = sites, rounds, said
        self.kept: dict[int, dict[str, Any]] = {}

    def execute(self, task_name: str, shareable: Any, fl_ctx: Any, abort_signal: Any) -> Any:
        number = shareable.get_header(AppConstants.CURRENT_ROUND)
        data = from_shareable(shareable).data
        self.kept[number] = {name: np.asarray(values, np.float32).reshape(-1) for name, values in data.items()}
        if number == self.rounds - 1:
            for rounds, model in self.kept.items():
                say(self.said, checked=rounds - 1, error=error_of(model, self.length, self.length, rounds, self.sites))
        return super().execute(task_name, shareable, fl_ctx, abort_signal)

    def changeable(self, values: Any) -> Any:
        return np.array(values, np.float32).reshape(-1)


class PlainFedAvg(Timed, FedAvg):
    """The server: NVFlare's FedAvg, with no file written, and a check of each result after its round."""

    def __init__(self, sites: int, rounds: int, length: int, said: str):
        super().__init__(
            num_clients=sites, num_rounds=rounds, persistor_id="", task_check_period=POLL_S, memory_gc_rounds=1
        )
        self.sites, self.rounds, self.length, self.said = sites, rounds, length, said

    def load_model(self) -> Any:
        return FLModel(params=model_of(self.length, self.length))

    def save_model(self, model: Any) -> None:
        span = [self.began, time.monotonic()]
        error = error_of(model.params, self.length, self.length, self.current_round + 1, self.sites)
        say(self.said, checked=self.current_round, error=error)
        say(self.said, round=self.current_round, span=span)


class EncryptedFedAvg(Timed, ScatterAndGather):
    """The server of the encrypted sum, which it cannot read: the clients check it."""

    def __init__(self, sites: int, rounds: int, said: str):
        super().__init__(
            min_clients=sites,
            num_rounds=rounds,
            wait_time_after_min_received=0,
            aggregator_id="aggregator",
            persistor_id="first",
            shareable_generator_id="generator",
            task_check_period=POLL_S,
            persist_every_n_rounds=0,
            snapshot_every_n_rounds=0,
            memory_gc_rounds=1,
        )
        self.sites, self.rounds, self.said = sites, rounds, said

    def handle_event(self, event_type: str, fl_ctx: Any) -> None:
        super().handle_event(event_type, fl_ctx)
        if event_type == AppEventType.ROUND_DONE:
            say(self.said, round=self._current_round, span=[self.began, time.monotonic()])


class First(ModelPersistor):
    """The first model; nothing is saved."""

    def __init__(self, length: int):
        super().__init__()
        self.length = length

    def load_model(self, fl_ctx: Any) -> Any:
        return make_model_learnable(model_of(self.length, self.length), {})

    def save_model(self, model: Any, fl_ctx: Any) -> None:
        pass


def job_of(mode: str, sites: int, rounds: int, length: int, said: str) -> Any:
    """The parts that NVFlare's FedAvg recipes put together, with its intervals shortened."""
    from nvflare.job_config.api import FedJob, FilterType
    from nvflare_fedavg import EncryptedFedAvg, First, MovesAndChecks, PlainFedAvg  # by the name that the job knows

    job = FedJob(name="fedavg", min_clients=sites)
    if mode == "he":
        from nvflare.app_opt.he.intime_accumulate_model_aggregator import HEInTimeAccumulateWeightedAggregator
        from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
        from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
        from nvflare.app_opt.he.model_shareable_generator import HEModelShareableGenerator

        job.to_server(HEModelShareableGenerator(), id="generator")
        job.to_server(HEInTimeAccumulateWeightedAggregator(expected_data_kind=DataKind.WEIGHTS), id="aggregator")
        job.to_server(First(length), id="first")
        job.to_server(EncryptedFedAvg(sites, rounds, said))
        job.to_clients(HEModelDecryptor(), tasks=["train"], filter_type=FilterType.TASK_DATA)
        encryptor = HEModelEncryptor(weigh_by_local_iter=True)
        job.to_clients(encryptor, tasks=["train"], filter_type=FilterType.TASK_RESULT)
        job.to_clients(MovesAndChecks(length, sites, rounds, said), tasks=["train"])
    else:
        job.to_server(PlainFedAvg(sites, rounds, length, said))
        job.to_clients(Moves(length, length), tasks=["train"])
    shorten(job)
    return job


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mode", choices=("simulator", "poc", "he"), default="simulator")
    given = options(parser, sites=4)
    said, encrypted = given.work / "said.jsonl", given.mode == "he"
    # The clients see an encrypted result one round later, so one more round is run to check the last.
    rounds = given.rounds + encrypted
    checks = given.rounds * (given.sites if encrypted else 1)
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    job = job_of(given.mode, given.sites, rounds, given.params, str(said))

    def whole(found: list[dict[str, Any]]) -> bool:
        checked = [line for line in found if line.get("checked", -1) >= 0]
        return sum("round" in line for line in found) >= given.rounds and len(checked) >= checks

    with quiet() as result:
        if given.mode == "simulator":
            simulate(job, given.sites, given.work)
        else:
            deploy(job, given.sites, given.work, he=encrypted)
        found = wait_for(said, whole)
        mode = "simulator, a thread for each client" if given.mode == "simulator" else "POC, mutual TLS"
        packages = ("nvflare", "numpy", *(("tenseal",) if encrypted else ()))
        result(
            result_of(
                found,
                given,
                checks,
                CKKS_TOLERANCE if encrypted else exactness(given.rounds, given.sites),
                system="nvflare simulator" if given.mode == "simulator" else "nvflare poc",
                work="homomorphic encryption" if encrypted else "plain FedAvg",
                settings={"mode": mode, **SETTINGS},
                versions={name: version(name) for name in packages},
            )
        )


if __name__ == "__main__":
    main()
