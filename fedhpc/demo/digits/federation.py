"""The digits federation as files: `fedhpc new DIR --example digits`.

The images are the 1797 test digits of Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998, UCI, CC BY
4.0, doi:10.24432/C50P49), as scikit-learn ships them. They are dealt to the sites with label skew.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from fedhpc.data.rowkey import create_key, read_key, row_id
from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.split import dirichlet_split
from fedhpc.data.store import SiteStore, write_store
from fedhpc.enrolment.scaffold import NewSite, Plan, write_federation
from fedhpc.errors import ConfigError
from fedhpc.train.start_file import StartFile

ROUNDS = 30
SITES = 4

STRATEGY = """\
name = "diloco"              # outer Nesterov momentum over many local steps
weights = "samples"
lr = 0.7
momentum = 0.5"""

TASK = """\
name = "cnn"
held_out = 0.2
split_seed = {seed}
options = {{ classes = 10, side = 8, channels = [16, 32] }}"""

TRAIN = """\
optimizer = "adamw"
lr = 0.003
batch_size = 64
local_steps = 20"""


def write_digits_federation(
    directory: Path,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    ranks: int = 1,
    alpha: float = 1.0,
    start: StartFile | None = None,
) -> Path:
    """Data, keys, site files and federation.toml of four sites in `directory`; path of federation.toml.

    `alpha`: of the Dirichlet distribution of classes over sites; smaller is more skewed. `start`: the model that it
    begins from. Needs scikit-learn (ConfigError if it is missing).
    """
    directory.mkdir(parents=True, exist_ok=True)
    create_key(directory / "row-id.key")
    whole = directory / "data" / "digits.h5"
    whole.parent.mkdir(exist_ok=True)
    write_digits(whole, read_key(directory / "row-id.key"))
    with SiteStore.open(whole) as store:
        stores = dirichlet_split(store, SITES, alpha=alpha, seed=seed, out=directory / "data")
    whole.unlink()
    plan = Plan("digits", rounds, seed, STRATEGY, TASK.format(seed=seed), TRAIN, start=start)
    return write_federation(directory, plan, {name: NewSite(path, ranks, "cpu") for name, path in stores.items()})


def write_digits(path: Path, key: bytes) -> None:
    """All of the digits as one store at `path`, with row ids under `key`. ConfigError if scikit-learn is missing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("the digits come with scikit-learn", "pip install 'fedhpc[demo]'") from None
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, np.newaxis]  # [n, 1, 8, 8], grey 0..1
    ids = [np.frombuffer(row_id(key, str(i)), dtype=np.uint8) for i in range(len(images))]
    write_store(
        path,
        site="digits",
        feature_set=FeatureSet((Feature("grey", "", "0 to 1"),), Label("digit"), images.shape[1:]),
        features=images,
        labels=digits.target.astype(np.int64),
        row_ids=np.stack(ids),
        source_sha256=hashlib.sha256(digits.data.tobytes()).hexdigest(),
        licence="CC-BY-4.0",
        citation="Alpaydin, Kaynak (1998). Optical Recognition of Handwritten Digits. UCI. doi:10.24432/C50P49",
    )
