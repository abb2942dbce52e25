"""One store cut into several, for experiments: the same seed gives the same cut on every machine with one NumPy.

A real federation never needs this. Both cuts give every site at least one row, and every row to one site.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.data.store import SiteStore, write_store
from fedhpc.data.written_over import refuse_written_over
from fedhpc.errors import ConfigError, DataError, StorageError

MOST_SITES = 10_000
_BLOCK_BYTES = 16 << 20

Parts = list[NDArray[np.int64]]


def iid_rows(n: int, sites: int, seed: int) -> Parts:
    """`sites` rising vectors of row numbers below `n`, drawn at random, whose lengths differ by at most one."""
    _check(n, sites)
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(part) for part in np.array_split(order, sites)]


def dirichlet_rows(labels: NDArray[Any], sites: int, alpha: float, seed: int) -> Parts:
    """`sites` rising vectors of row numbers with label skew: small `alpha` gives sites of few classes.

    For each class, its rows are shared in proportions drawn from Dirichlet(alpha, …, alpha) (Hsu, Qi and Brown 2019,
    arXiv:1909.06335). A site that got no row takes one from the site that then holds the most.
    """
    n = len(labels)
    _check(n, sites)
    if labels.dtype.kind not in "iu":
        raise DataError(f"labels are {labels.dtype}: a label skew needs classes", "use --how iid")
    if not 1e-3 <= alpha <= 1e6:
        raise ConfigError(f"alpha = {alpha} is out of range", "0.001 (each class at one site) to 1e6 (no skew)")
    random = np.random.default_rng(seed)
    owner = np.empty(n, np.int64)
    for label in np.unique(labels):
        rows = random.permutation(np.flatnonzero(labels == label))
        bounds = np.cumsum(random.dirichlet(np.full(sites, alpha)))[:-1]
        cuts = np.clip(np.round(bounds * len(rows)).astype(np.int64), 0, len(rows))
        for site, part in enumerate(np.split(rows, cuts)):
            owner[part] = site
    for site in range(sites):
        if not (owner == site).any():
            richest = int(np.bincount(owner, minlength=sites).argmax())
            owner[random.choice(np.flatnonzero(owner == richest))] = site
    return [np.flatnonzero(owner == site) for site in range(sites)]


def iid_split(store: SiteStore, sites: int, *, seed: int, out: Path) -> dict[str, Path]:
    """Cut `store` at random into `sites` stores in the directory `out`: site name -> file."""
    return _write(store, iid_rows(store.n, sites, seed), out)


def dirichlet_split(store: SiteStore, sites: int, *, alpha: float, seed: int, out: Path) -> dict[str, Path]:
    """Cut `store` with label skew into `sites` stores in the directory `out`: site name -> file."""
    return _write(store, dirichlet_rows(store.labels(), sites, alpha, seed), out)


def _check(n: int, sites: int) -> None:
    if not 1 <= sites <= MOST_SITES:
        raise ConfigError(f"{sites} sites cannot be made", f"choose 1 to {MOST_SITES}")
    if n < sites:
        raise DataError(f"{n} rows cannot be cut for {sites} sites", "every site needs at least one row")


def _write(store: SiteStore, parts: Parts, out: Path) -> dict[str, Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {out}: {error.strerror}", "choose another directory") from None
    width = len(str(len(parts)))
    names = [f"site-{number:0{width}d}" for number in range(1, len(parts) + 1)]
    paths = {name: out / f"{name}.h5" for name in names}
    for path in paths.values():
        refuse_written_over(path, store.path)
    step = max(1, _BLOCK_BYTES // (4 * int(np.prod(store.feature_set.row_shape))))
    for (name, path), rows in zip(paths.items(), parts, strict=True):
        write_store(
            path,
            site=name,
            feature_set=store.feature_set,
            features=(store.features(rows[i : i + step]) for i in range(0, len(rows), step)),
            labels=store.labels(rows),
            row_ids=store.row_ids(rows),
            **store.facts,
        )
    return paths
