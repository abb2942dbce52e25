"""`fedhpc bench round`: whole training rounds of the digits example, with masks and without, in turn."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from fedhpc.bench.given_ranks import shared_folder
from fedhpc.bench.start import measure_ranks
from fedhpc.data.split import dirichlet_split
from fedhpc.data.store import SiteStore
from fedhpc.demo.digits.federation import STRATEGY, TASK, TRAIN, write_digits
from fedhpc.errors import InternalError
from fedhpc.mpi.world import is_first

_SHIPPED_STEPS = "local_steps = 20"


def measure(*, sites: int, ranks_per_site: int, epochs: int, rounds: int, repeat: int) -> dict[str, Any]:
    """The result for --json. `rounds` are measured in each repeat, after one that is not; `epochs` in each of them."""
    if _SHIPPED_STEPS not in TRAIN:
        raise InternalError("the digits example no longer trains by steps", "please report it")
    with shared_folder() as home:
        case: dict[str, Any] = {}
        if is_first():
            train = TRAIN.replace(_SHIPPED_STEPS, f"local_epochs = {epochs}")
            sections = (("strategy", STRATEGY), ("task", TASK.format(seed=0)), ("train", train))
            case = {
                "folder": str(home),
                "stores": _stores(home, sites),
                "ranks": [ranks_per_site] * sites,
                "federation": f"rounds = {rounds + 1}\n" + "".join(f"[{name}]\n{text}\n" for name, text in sections),
                "repeat": repeat,
            }
        result = measure_ranks("fedhpc.bench.round_ranks", sites * ranks_per_site, case)
    return {**result, "epochs": epochs, "rounds": rounds}


def _stores(home: Path, sites: int) -> list[str]:
    """The digits, dealt to the sites."""
    write_digits(home / "digits.h5", secrets.token_bytes(32))
    with SiteStore.open(home / "digits.h5") as whole:
        stores = dirichlet_split(whole, sites, alpha=1.0, seed=0, out=home / "data")
    return [str(path) for path in stores.values()]
