"""Every rank of one site of the relayed heart demo runs this: one federation after another, one for each split.

mpirun -n 2 … python -m mpi4py -m fedhpc.demo.heart.relayed_site DIRECTORY SITE SPLITS
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from fedhpc.app.join import join_with_files
from fedhpc.app.programs.training import Training, open_site_trainer
from fedhpc.app.run import run_joined
from fedhpc.demo.heart.relayed import MODELS, split_folder
from fedhpc.rounds.null_objects import Endless, NoCheckpoints, Silence


def run_site(directory: Path, site: str, splits: int) -> None:
    """Train all splits as `site`; its leader writes down the results."""
    hashes: list[str] = []
    seconds, sent = 0.0, 0
    for k in range(splits):
        folder = split_folder(directory, k)
        federation = folder / "coordinator" / "federation.toml"
        joined = join_with_files(federation, sites=None, site=folder / "sites" / site / "site.toml", run=folder / "run")
        with joined.session as session:
            speaks = joined.first and site == session.sites[0]
            if k == 0:
                outcome = run_joined(dataclasses.replace(joined, first=speaks)).outcome
                seconds, sent = outcome.seconds_per_round, outcome.bytes_per_round
            else:
                with open_site_trainer(session, joined.site_file) as trainer:
                    training = Training(trainer, joined.site_file)
                    outcome = training.run(session, Endless(), NoCheckpoints(), Silence())
        hashes.append(outcome.model.sha256())
        tensors = outcome.model.whole()
        if speaks:
            (directory / MODELS).mkdir(exist_ok=True)
            np.savez(directory / MODELS / f"{k}.npz", **tensors)  # type: ignore[arg-type]
    if joined.first:
        (directory / MODELS).mkdir(exist_ok=True)
        report = {"sha256": hashes, "seconds_per_round": seconds, "bytes_per_round": sent}
        (directory / MODELS / f"{site}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run_site(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
