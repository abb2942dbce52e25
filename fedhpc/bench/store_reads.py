"""`fedhpc bench data`: what it takes a site to open its HDF5 store, to read it in order, and to read it in batches.

The file is in the kernel's cache where memory suffices: this is what HDF5 and NumPy take, and not the disk.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.bench.memory import clear_peak, peak_bytes
from fedhpc.bench.sum_ranks import versions
from fedhpc.data import hdf5
from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.store import SiteStore, write_store

_SEED = 1
_READ_BYTES = 16 << 20  # at once, in order
_COMPARED = 8  # batches, or a few more


@dataclass(frozen=True)
class Case:
    """What is measured."""

    store: str | None  # a site's own; absent: one is written
    rows: int
    columns: int
    batch: int
    memory_mib: int  # of the store's rows: what [compute] data_memory_mib says
    repeat: int


def measure(case: Case) -> None:
    """Run the case and print one JSON object."""
    with tempfile.TemporaryDirectory(prefix="fedhpc-bench-") as folder:
        path = Path(folder) / "store.h5" if case.store is None else Path(case.store)
        if case.store is None:
            _write(path, case)
        repeats = [_repeat(path, case.batch, case.memory_mib << 20) for _ in range(case.repeat)]
        with SiteStore.open(path, scan=False) as store:
            n, numbers = store.n, math.prod(store.feature_set.row_shape)
    names = ("open_s", "in_order_s", "batches_s", "in_order_cpu_s", "batches_cpu_s")
    middle = {name: statistics.median(r[name] for r in repeats) for name in names}
    nbytes = 4 * n * numbers
    result = {
        **middle,
        "in_order_rows_per_s": n / middle["in_order_s"],
        "in_order_bytes_per_s": nbytes / middle["in_order_s"],
        "batches_rows_per_s": n / middle["batches_s"],
        "batches_bytes_per_s": nbytes / middle["batches_s"],
        "rows": n,
        "row_bytes": 4 * numbers,
        "batch": case.batch,
        "memory_mib": case.memory_mib,
        "params": n * numbers,
        "sites": 1,
        "ranks": [1],
        "repeats": repeats,
        "versions": versions() | {"h5py": version("h5py")},
    }
    print(json.dumps(result))


def _write(path: Path, case: Case) -> None:
    columns = tuple(Feature(f"c{i}") for i in range(case.columns))
    write_store(
        path,
        site="bench",
        feature_set=FeatureSet(columns, Label("class"), (case.columns,)),
        features=_drawn(case.rows, case.columns),
        labels=np.arange(case.rows, dtype=np.int64) % 2,
        row_ids=np.zeros((case.rows, 32), np.uint8),
    )


def _drawn(rows: int, columns: int) -> Iterator[NDArray[np.float32]]:
    """Some at a time."""
    generator, step = np.random.Generator(np.random.SFC64(_SEED)), max(1, _READ_BYTES // (4 * columns))
    for start in range(0, rows, step):
        yield generator.random((min(step, rows - start), columns), dtype=np.float32)


def _repeat(path: Path, batch: int, memory_bytes: int) -> dict[str, Any]:
    """Open with all its checks, all rows in order, and all rows once in batches of rows drawn at random."""
    clear_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    store = SiteStore.open(path)
    open_s = time.perf_counter() - wall
    store.memory_bytes = memory_bytes
    with store:
        n, row_bytes = store.n, 4 * math.prod(store.feature_set.row_shape)
        step = max(1, _READ_BYTES // row_bytes)
        order = np.random.default_rng(_SEED).permutation(n)
        cuts = [order[i : i + batch] for i in range(0, n, batch)]
        runs = [slice(i, i + step) for i in range(0, n, step)]
        in_order_s, in_order_cpu_s, read = _read(map(store.features, runs), map(store.labels, runs))
        batches_s, batches_cpu_s, picked = _read(store.features_in_turn(cuts), map(store.labels, cuts))
        wall, cpu, peak = time.perf_counter() - wall, time.process_time() - cpu, peak_bytes()
        right = read == picked == n and _as_h5py_reads(store, path, cuts)
    return {
        "wall_s": wall,
        "cpu_s": cpu,
        "peak_bytes": peak,
        "verified": right,
        "open_s": open_s,
        "in_order_s": in_order_s,
        "in_order_cpu_s": in_order_cpu_s,
        "batches_s": batches_s,
        "batches_cpu_s": batches_cpu_s,
    }


def _read(features: Iterable[NDArray[Any]], labels: Iterable[NDArray[Any]]) -> tuple[float, float, int]:
    """(seconds, processor seconds, rows) of reading features and labels."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = sum(min(len(x), len(y)) for x, y in zip(features, labels, strict=True))
    return time.perf_counter() - wall, time.process_time() - cpu, rows


def _as_h5py_reads(store: SiteStore, path: Path, cuts: Sequence[NDArray[np.int64]]) -> bool:
    """Whether some of the batches are what h5py reads, row by row."""
    with hdf5.open_file(path) as file:
        for rows in cuts[:: max(1, len(cuts) // _COMPARED)]:
            features = np.stack([file["features"][row] for row in rows])
            labels = np.stack([file["labels"][row] for row in rows])
            if not (np.array_equal(store.features(rows), features) and np.array_equal(store.labels(rows), labels)):
                return False
    return True


if __name__ == "__main__":
    measure(Case(**json.loads(sys.argv[1])))
