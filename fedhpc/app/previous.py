"""Finds what a site has of earlier epochs: the newest model in one of its run directories."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.run_folder import checkpoints
from fedhpc.app.rundir import FEDERATION_FILE
from fedhpc.config import parse_toml, read_bytes
from fedhpc.enrolment.draft import identity
from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.checkpoint import Checkpoint
from fedhpc.federation.party import GIVEN_EPOCH
from fedhpc.federation.state_tensors import TOTAL_WEIGHT
from fedhpc.rounds.start_sum import Taken
from fedhpc.train.checkpoint_files import Hdf5Checkpoints

CHECKPOINTS = "checkpoints"


def find_previous(
    agreement: Agreement, number: int, directory: Path, given: Path | None, remembered: Sequence[Path] = ()
) -> Taken | None:
    """What site `number` has of the epochs that [start] names; None for a site that is new and has nothing.

    `directory`: of this run; older runs are looked for beside it. `given`: the run directory that somebody named.
    `remembered`: this site's part of run directories, as its ledger knows them. Raises ConfigError for a named
    directory of another federation, DataError if the site should have a model and has none.
    """
    site = agreement.roster[number - 1]
    places = [*remembered, *beside(directory, agreement.start.epochs)]
    if given is not None:
        places = [given / site.name, given]
    newest: dict[str, tuple[Path, Checkpoint]] = {}
    for place in places:
        found = _newest(place)
        if found is not None:
            _, other = newest.get(found.config.hex(), (place, None))
            if other is None or other.round_ < found.round_:  # two runs of one epoch: as far as either has come
                newest[found.config.hex()] = place, found
    for config in agreement.start.epochs:
        if config in newest:
            place, checkpoint = newest[config]
            return Taken(checkpoint.tensors, _total_weight(agreement, place, checkpoint))
    if given is not None:
        raise ConfigError(
            f"{given} holds no model of an epoch before this one for site {site.name}",
            f"its federation.toml has the SHA-256 {', or '.join(agreement.start.epochs)}",
        )
    if site.identity.hex() in agreement.start.sites:
        raise DataError(
            f"site {site.name} has no model of an epoch before this one",
            "name its run directory: `fedhpc run --previous RUN`; it is the one with the federation.toml of that "
            f"epoch; if it is lost, {GIVEN_EPOCH}",
        )
    return None


def beside(directory: Path, epochs: Sequence[str]) -> list[Path]:
    """This site's folders in those run directories beside the one of this run that are of these epochs."""
    run = directory.absolute().parent
    copies = [path for path in sorted(run.parent.glob(f"*/{FEDERATION_FILE}")) if path.parent != run]
    return [p.parent / directory.name for p in copies if hashlib.sha256(read_bytes(p)).hexdigest() in epochs]


def _newest(directory: Path) -> Checkpoint | None:
    """The newest whole checkpoint in a site's part of a run directory; None if there is none."""
    folder = directory / CHECKPOINTS
    if not checkpoints(folder):
        return None
    store = Hdf5Checkpoints(folder)
    rounds = store.rounds()
    if not rounds:
        raise DataError(f"no checkpoint in {folder} is whole", "put the run directory back from a backup")
    return store.load(rounds[-1])


def _total_weight(agreement: Agreement, directory: Path, checkpoint: Checkpoint) -> float | None:
    """W, if the epoch that summed it had the same sites: over other sites the shares would not add up to 1."""
    if agreement.strategy.weights != "samples" or TOTAL_WEIGHT not in checkpoint.outer:
        return None
    path = directory.parent / FEDERATION_FILE
    source = read_bytes(path)
    if hashlib.sha256(source).digest() != checkpoint.config:
        raise DataError(f"{path} is not the file of the checkpoints beside it", "put it back from a backup")
    before = {identity(entry) for entry in parse_toml(source, str(path))["site"]}
    if before != {entry.identity.hex() for entry in agreement.roster}:
        return None
    return float(checkpoint.outer[TOTAL_WEIGHT][0])
