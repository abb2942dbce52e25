"""The heart federation as files: what `fedhpc new` writes and `fedhpc demo heart` trains."""

from __future__ import annotations

from pathlib import Path

from fedhpc.data.rowkey import create_key, read_key
from fedhpc.demo.heart.hospitals import HOSPITALS, write_site_stores
from fedhpc.enrolment.scaffold import NewSite, Plan, write_federation
from fedhpc.train.start_file import StartFile

ROUNDS = 20
RANKS_PER_SITE = 2

STRATEGY = """\
name = "fedavg"
weights = "samples\""""

TASK = """\
name = "logistic"
standardise = true           # with the federation's own mean and variance, masked sums themselves
held_out = 0.2
split_seed = {split_seed}               # another number is another split; `seed` above changes only last bits here
options = {{ features = 13 }}"""

TRAIN = """\
optimizer = "sgd"
lr = 0.5
weight_decay = 0.0017        # as scikit-learn's C = 1 over all training rows
batch_size = 0               # all rows of the site
local_steps = 2"""


def write_heart_federation(
    directory: Path,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    ranks: int = RANKS_PER_SITE,
    start: StartFile | None = None,
) -> Path:
    """Data, keys, site files and federation.toml of the four hospitals in `directory`; path of federation.toml.

    `start`: the model that it begins from.
    """
    # Row identifiers are hashed with the federation's own key, so that nobody outside can look one up.
    directory.mkdir(parents=True, exist_ok=True)
    create_key(directory / "row-id.key")
    stores = write_site_stores(directory / "data", read_key(directory / "row-id.key"))
    plan = Plan(
        name="heart",
        rounds=rounds,
        seed=seed,
        strategy=STRATEGY,
        task=TASK.format(split_seed=seed),
        train=TRAIN,
        start=start,
    )
    return write_federation(directory, plan, {name: NewSite(stores[name], ranks, "cpu") for name in HOSPITALS})
