"""Every rank of the heart demo runs this: the federation over many paired splits, and its baselines.

    mpirun -n 8 … python -m mpi4py -m fedhpc.demo.heart.compare DIRECTORY SPLITS

The first split is the run that is kept in DIRECTORY/run; the result goes to DIRECTORY/run/demo.json.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from fedhpc.agreement.federation_file import Agreement, read_agreement
from fedhpc.agreement.site_file import read_site_directory
from fedhpc.app.join import Joined, join_with_files
from fedhpc.app.programs.training import Training, open_site_trainer
from fedhpc.app.run import run_joined
from fedhpc.demo.heart.baselines import Score
from fedhpc.demo.heart.scores import Costs, other_split, score_split, write_result
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.session import Session
from fedhpc.ledger.journal import MemoryJournal
from fedhpc.rounds.null_objects import Endless, NoCheckpoints, Silence


def compare(directory: Path, splits: int) -> None:
    """Train and score everything; rank 0 writes the result. Called by every rank."""
    joined = join_with_files(directory / "federation.toml", sites=directory / "sites", site=None, run=None)
    with joined.session as session:
        ran = run_joined(joined)
        own = session.agreement
        agreements = [read_agreement(other_split(own, k), "federation.toml") for k in range(splits)]
        models = [ran.outcome.model.whole()]
        for agreement in agreements[1:]:
            models.append(_train_split(joined, agreement))
        scores = _score_all(joined, directory, agreements, models)
        if joined.first:
            outcome = ran.outcome
            costs = Costs(
                session.sums.name, session.ranks, outcome.seconds_per_round, outcome.bytes_per_round, ran.model_sha256
            )
            write_result(ran.directory, own, scores, costs)


def _train_split(joined: Joined, agreement: Agreement) -> Tensors:
    """The federation's model on another split, trained by the same ranks; nothing is kept on disk."""
    party = joined.session.party
    journal = MemoryJournal() if party.leads else None
    party = dataclasses.replace(party, agreement=agreement, journal=journal)
    assert joined.again is not None, "all hospitals are in this job"
    session = joined.again(party)
    with open_site_trainer(session, joined.site_file) as trainer:
        outcome = Training(trainer, joined.site_file).run(session, Endless(), NoCheckpoints(), Silence())
    return outcome.model.whole()


def _score_all(
    joined: Joined, directory: Path, agreements: list[Agreement], models: list[Tensors]
) -> list[dict[str, Score]]:
    """Per split: the score of each hospital alone, of the pooled rows and of the federation. Ranks share the work."""
    session = joined.session
    files = read_site_directory(directory / "sites", session.agreement)
    stores = {f.site.name: f.path(Path(f.data["path"])) for f in files}
    place, places = _place_in_job(session)
    mine: dict[int, dict[str, Any]] = {}
    for k in range(place, len(agreements), places):
        found = score_split(stores, agreements[k], models[k])
        mine[k] = {name: dataclasses.asdict(s) for name, s in found.items()}
    gathered: dict[int, dict[str, Score]] = {}
    for part in _gather_over_job(session, json.dumps(mine).encode()):
        for k, found in json.loads(part).items():
            gathered[int(k)] = {name: Score(**s) for name, s in found.items()}
    return [gathered[k] for k in sorted(gathered)]


def _place_in_job(session: Session) -> tuple[int, int]:
    """A running number of this rank over all sites, and how many there are; all sites have the same ranks here."""
    return (session.party.number - 1) * session.ranks + session.rank, len(session.sites) * session.ranks


def _gather_over_job(session: Session, message: bytes) -> list[bytes]:
    """Every rank's message, at the leaders; at other ranks those of their site. The scores are of public data."""
    within = session.party.site.gather_bytes(message)
    if not session.leads:
        return within
    joined = session.peers.announce("SCORES", b"\n".join(within)).values()
    return [line for lines in joined for line in lines.split(b"\n")]


if __name__ == "__main__":
    compare(Path(sys.argv[1]), int(sys.argv[2]))
