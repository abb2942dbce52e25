"""A site's data on disk, schema version 1: one HDF5 file that describes itself and names no person.

| dataset    | dtype            | shape   | meaning                                                       |
|------------|------------------|---------|---------------------------------------------------------------|
| `features` | float32          | [n, F…] | chunked over rows: runs of rows, each with all its features   |
| `labels`   | int64 or float32 | [n]     |                                                               |
| `row_ids`  | uint8            | [n, 32] | HMAC-SHA256(federation key, the source's name for the row)    |

The root attributes are listed in docs/data.md.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedhpc.data import hdf5, schema
from fedhpc.data.late_file import LateFile
from fedhpc.data.schema import Feature, FeatureSet
from fedhpc.errors import DataError

SCHEMA_VERSION = 1
CHUNK_BYTES = 256 << 10  # inside 10 KiB–1 MiB: small enough to pick rows, large enough for a parallel file system
LARGEST_TEXT = 16 << 20  # bytes of one root attribute
MEMORY_BYTES = 256 << 20  # of an open store, unless another limit is set
_SCAN_BYTES = 16 << 20
_INDEX_BYTES = 48  # for each row that is picked: its number, its place, and how both are sorted
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FACTS = ("source_sha256", "licence", "creator", "created", "citation")


def write_store(
    path: Path,
    *,
    site: str,
    feature_set: FeatureSet,
    features: NDArray[np.float32] | Iterable[NDArray[np.float32]],
    labels: NDArray[Any],
    row_ids: NDArray[np.uint8],
    source_sha256: str = "",
    licence: str = "",
    creator: str = "fedhpc",
    citation: str = "",
    created: str = "",
    row_ids_from: str = "",
    compression: str | None = None,
) -> None:
    """Write a site store to `path`, atomically and durably, readable by its owner only.

    `features` [n, *row_shape] float32 is one array or an iterable of blocks of rows; `labels` [n] has the dtype of
    `feature_set.label`; `row_ids` [n, 32] uint8. `created` is an ISO date (default: today, UTC). `row_ids_from` says
    what row ids were made from, where not from the identifiers of persons. `compression` is None, "gzip" or "lzf".
    Raises DataError for lengths that differ or values that are not finite, StorageError for I/O.
    """
    n = len(labels)
    if not _SITE.fullmatch(site):
        raise DataError(f"site name {site!r} cannot be used", "letters, digits, '.', '_' and '-', at most 64")
    if labels.shape != (n,) or labels.dtype != np.dtype(feature_set.label.dtype):
        raise DataError(f"labels are {labels.dtype} {labels.shape}", f"expected {feature_set.label.dtype} [n]")
    if row_ids.shape != (n, 32) or row_ids.dtype != np.uint8:
        raise DataError(f"row_ids are {row_ids.dtype} {row_ids.shape}", f"expected uint8 [{n}, 32]")
    if labels.dtype == np.float32 and not np.isfinite(labels).all():
        raise DataError(f"{int((~np.isfinite(labels)).sum())} labels are not finite", "drop those rows")
    facts = {
        "source_sha256": source_sha256,
        "licence": licence,
        "creator": creator,
        "created": created or datetime.datetime.now(datetime.UTC).date().isoformat(),
        "citation": citation,
    }
    if row_ids_from:
        facts["row_ids_from"] = row_ids_from
    for name, array in (("labels", labels), ("row_ids", row_ids)):
        _refuse_masked(name, array)
    hdf5.remove_stale(path.parent, re.escape(path.name))
    with hdf5.new_file(path) as file:
        _write_attributes(file, site, n, feature_set, facts)
        options: dict[str, Any] = {}
        if n:  # HDF5 has no chunks for an array without rows
            rows = chunk_rows(n, feature_set.row_shape)
            options = {"chunks": (rows, *feature_set.row_shape), "shuffle": compression is not None}
            options["compression"] = compression
        target = file.create_dataset("features", (n, *feature_set.row_shape), "<f4", **options)
        done = 0
        for block in [features] if isinstance(features, np.ndarray) else features:
            if block.dtype != np.float32 or block.shape[1:] != feature_set.row_shape or done + len(block) > n:
                raise DataError(
                    f"features are {block.dtype} {block.shape} after row {done}",
                    f"expected float32 {(n - done, *feature_set.row_shape)}",
                )
            _refuse_masked("features", block)
            _refuse_not_finite(block, feature_set.features, f"site {site}")
            target[done : done + len(block)] = block
            done += len(block)
        if done != n:
            raise DataError(f"{done} rows of features for {n} labels", "both must have one entry per row")
        file.create_dataset("labels", data=labels.astype(labels.dtype.newbyteorder("<")))
        file.create_dataset("row_ids", data=row_ids)


def chunk_rows(n: int, row_shape: tuple[int, ...]) -> int:
    """Rows in a chunk: about 256 KiB of whole rows; one row where a row is larger, all where they are fewer."""
    return max(1, min(n, CHUNK_BYTES // (4 * math.prod(row_shape))))


class SiteStore:
    """A validated site store that reads rows on demand. The file is opened at the first read of each process.

    So it may be handed to workers of a data loader, forked or spawned: no open HDF5 handle crosses a fork.

    Rows at random are what HDF5 reads slowest: for a row it reads and decodes a whole chunk. So an array that fits into
    `memory_bytes` is kept, decoded, once rows are picked from it; of a larger one `features_in_turn` reads every chunk
    once for many batches.
    """

    def __init__(self, file: LateFile, site: str, n: int, feature_set: FeatureSet, facts: dict[str, str]) -> None:
        self.path = file.path
        self.site = site
        self.n = n
        self.feature_set = feature_set
        self.feature_names = feature_set.names
        self.feature_sha256 = feature_set.sha256
        self.facts = facts  # source_sha256, licence, creator, created, citation
        self.memory_bytes = MEMORY_BYTES  # for what is kept, and for what is read ahead
        self._file = file
        self._kept: dict[str, NDArray[Any]] = {}

    @classmethod
    def open(cls, path: Path, *, allow_empty: bool = False, scan: bool = True) -> SiteStore:
        """The store at `path`, everything about it checked; `scan` also reads every value and refuses NaN and Inf.

        Raises DataError that says what is wrong, also for a store without rows unless `allow_empty`; StorageError
        if the file system fails.
        """
        path = Path(path)
        file = hdf5.open_file(path)
        try:
            late = LateFile(path)
            version = hdf5.get_integer(file, "schema_version")
            if version != SCHEMA_VERSION:
                raise DataError(
                    f"{path} has schema version {version}, not {SCHEMA_VERSION}",
                    "ingest the source again with this version of fedhpc, or update fedhpc",
                )
            features = hdf5.get_dataset(file, "features", ["float32"])
            labels = hdf5.get_dataset(file, "labels", ["int64", "float32"])
            row_ids = hdf5.get_dataset(file, "row_ids", ["uint8"])
            n = hdf5.get_integer(file, "n_samples")
            feature_set = _read_feature_set(file, path, tuple(features.shape[1:]))
            lengths = {
                "n_samples": n,
                "features": features.shape[0] if features.ndim else -1,
                "labels": labels.shape[0] if labels.ndim == 1 else -1,
                "row_ids": row_ids.shape[0] if row_ids.ndim == 2 and row_ids.shape[1] == 32 else -1,
            }
            if set(lengths.values()) != {n} or n < 0:
                told = ", ".join(f"{name} {length}" for name, length in lengths.items())
                raise DataError(f"{path}: lengths differ: {told}", "make the file again")
            if labels.dtype.newbyteorder("=").name != feature_set.label.dtype:
                raise DataError(f"{path}: labels are {labels.dtype}, not {feature_set.label.dtype}", "make it again")
            if n == 0 and not allow_empty:
                raise DataError(f"{path} holds no rows", "a site needs at least one row to take part")
            facts = {name: hdf5.get_text(file, name, LARGEST_TEXT) for name in _FACTS}
            facts["row_ids_from"] = hdf5.get_text(file, "row_ids_from", 64) if "row_ids_from" in file.attrs else ""
            site = hdf5.get_text(file, "site", 64)
            if not _SITE.fullmatch(site):
                raise DataError(f"{path}: site name {site!r} cannot be used", "make the file again")
            if scan:
                _scan(path, features, labels, feature_set)
        except hdf5.DAMAGE as error:
            raise DataError(f"{path} is damaged: {' '.join(str(error).split())[:200]}", "make it again") from None
        finally:
            file.close()
        return cls(late, site, n, feature_set, facts)

    def features(self, rows: slice | NDArray[Any] = slice(None)) -> NDArray[np.float32]:
        """float32 [len(rows), *row_shape]: the rows of a slice, or of an integer array in its order."""
        return self._read("features", np.dtype(np.float32), rows)

    def features_in_turn(self, batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[np.float32]]:
        """For each of `batches`, integers [m], its features [m, *row_shape], as `features` gives them.

        Where the features are not kept, as many batches are read at once as fit into `memory_bytes`, or one.
        """
        row_bytes = 4 * math.prod(self.feature_set.row_shape) + _INDEX_BYTES
        many = 0 if self._is_kept("features") else self._free_bytes() // row_bytes
        for group in _grouped(batches, many):
            if len(group) == 1:
                yield self.features(group[0])
                continue
            read = self.features(np.concatenate(group))
            at = 0
            for rows in group:
                yield read[at : at + len(rows)].copy()  # a view would keep all of them alive
                at += len(rows)
            del read  # before the next ones are read

    def labels(self, rows: slice | NDArray[Any] = slice(None)) -> NDArray[Any]:
        """int64 or float32 [len(rows)]."""
        return self._read("labels", np.dtype(self.feature_set.label.dtype), rows)

    def row_ids(self, rows: slice | NDArray[Any] = slice(None)) -> NDArray[np.uint8]:
        """uint8 [len(rows), 32]."""
        return self._read("row_ids", np.dtype(np.uint8), rows)

    def close(self) -> None:
        """Close the file and keep nothing in memory; a later read opens it again."""
        self._kept = {}
        self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def __enter__(self) -> SiteStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _free_bytes(self) -> int:
        """What of `memory_bytes` is left beside what is kept, labels and row names included."""
        return self.memory_bytes - sum(array.nbytes for array in self._kept.values())

    def _is_kept(self, name: str) -> bool:
        """Whether all of `name` lies in memory, where it is taken now if there is room."""
        if name in self._kept:
            return True
        with self._blaming(name):
            dataset = self._file.handle()[name]
            if dataset.nbytes > self._free_bytes():
                return False
            self._kept[name] = np.asarray(dataset[:], dataset.dtype.newbyteorder("="))
        return True

    def _read(self, name: str, dtype: np.dtype[Any], rows: slice | NDArray[Any]) -> NDArray[Any]:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self.n)
            if step == 1:
                with self._blaming(name):
                    return np.asarray(self._file.handle()[name][start : max(start, stop)], dtype)
            rows = np.arange(start, stop, step)
        chosen = _checked(np.asarray(rows), self.n)
        if self._is_kept(name):
            return self._kept[name].take(chosen, axis=0)
        with self._blaming(name):
            return _pick(self._file.handle()[name], chosen, dtype)

    @contextmanager
    def _blaming(self, name: str) -> Iterator[None]:
        """What fails to be read inside is a DataError."""
        try:
            yield
        except OSError as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"cannot read {name} of {self.path}: {reason}", "is the file damaged?") from None


def _checked(rows: NDArray[Any], n: int) -> NDArray[np.int64]:
    if rows.ndim != 1 or (rows.dtype.kind not in "iu" and rows.size):
        raise TypeError(f"rows must be a slice or a vector of integers, not {rows.dtype} {rows.shape}")
    if rows.size and (rows.min() < 0 or rows.max() >= n):
        raise IndexError(f"rows {rows.min()} to {rows.max()} of a store with {n}")
    return rows.astype(np.int64, copy=False)


def _pick(dataset: h5py.Dataset, rows: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The rows in any order: each chunk that holds some is read once (h5py's own picking is a read per row)."""
    result = np.empty((len(rows), *dataset.shape[1:]), dtype)
    if not len(rows):
        return result
    order = np.argsort(rows, kind="stable")
    run = dataset.chunks[0] if dataset.chunks else 4096
    starts = np.flatnonzero(np.diff(rows[order] // run, prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        places = order[start:stop]
        first, last = rows[places[0]], rows[places[-1]]
        result[places] = dataset[first : last + 1][rows[places] - first]
    return result


def _grouped(batches: Iterable[NDArray[Any]], most: int) -> Iterator[Sequence[NDArray[Any]]]:
    """Batches in a row that have at most `most` rows together, or one batch."""
    group: list[NDArray[Any]] = []
    rows = 0
    for batch in batches:
        if group and rows + len(batch) > most:
            yield group
            group, rows = [], 0
        group.append(batch)
        rows += len(batch)
    if group:
        yield group


def _write_attributes(file: h5py.File, site: str, n: int, feature_set: FeatureSet, facts: dict[str, str]) -> None:
    label = feature_set.label
    file.attrs["schema_version"] = np.int64(SCHEMA_VERSION)
    file.attrs["n_samples"] = np.int64(n)
    attributes = {
        "site": site,
        "feature_names": json.dumps([f.name for f in feature_set.features], ensure_ascii=False),
        "units": json.dumps([f.unit for f in feature_set.features], ensure_ascii=False),
        "coding": json.dumps([f.coding for f in feature_set.features], ensure_ascii=False),
        "label": json.dumps(
            {"name": label.name, "dtype": label.dtype, "unit": label.unit, "coding": label.coding},
            ensure_ascii=False,
        ),
        "feature_sha256": feature_set.sha256,
        **facts,
    }
    for name, text in attributes.items():
        if not text.isprintable() or len(text.encode()) > LARGEST_TEXT:
            raise DataError(f"attribute '{name}' is not printable text of at most 16 MiB", "shorten or rename it")
        hdf5.put_text(file, name, text)


def _read_feature_set(file: h5py.File, path: Path, row_shape: tuple[int, ...]) -> FeatureSet:
    names, units, coding = (
        schema.texts(name, hdf5.get_text(file, name, LARGEST_TEXT)) for name in ("feature_names", "units", "coding")
    )
    if not len(names) == len(units) == len(coding):
        raise DataError(f"{path}: {len(names)} names, {len(units)} units, {len(coding)} codings", "make it again")
    columns = tuple(Feature(*column) for column in zip(names, units, coding, strict=True))
    label = schema.parse_label(hdf5.get_text(file, "label", LARGEST_TEXT))
    feature_set = FeatureSet(columns, label, row_shape)
    if hdf5.get_text(file, "feature_sha256", 64) != feature_set.sha256:
        raise DataError(
            f"{path}: feature_sha256 is not the hash of its names, units, codings and label",
            "the attributes were changed by hand; ingest the source again",
        )
    return feature_set


def _refuse_masked(name: str, array: NDArray[Any]) -> None:
    if isinstance(array, np.ma.MaskedArray):  # it would be written without its mask
        raise DataError(f"{name} are a masked array", "fill it or leave those rows out; a store has no missing values")


def _scan(path: Path, features: h5py.Dataset, labels: h5py.Dataset, feature_set: FeatureSet) -> None:
    step = max(1, _SCAN_BYTES // (4 * math.prod(feature_set.row_shape)))
    for start in range(0, features.shape[0], step):
        _refuse_not_finite(features[start : start + step], feature_set.features, str(path))
        if feature_set.label.dtype == "float32" and not np.isfinite(labels[start : start + step]).all():
            raise DataError(f"{path}: labels hold values that are not finite", "drop those rows at ingest")


def _refuse_not_finite(block: NDArray[np.float32], features: tuple[Feature, ...], where: str) -> None:
    finite = np.isfinite(block)
    if finite.all():
        return
    bad = ~finite.reshape(*block.shape[:2], -1).all(axis=2)  # [rows, features]
    counts = bad.sum(axis=0)
    told = ", ".join(f"'{features[i].name}' ({counts[i]} rows)" for i in np.flatnonzero(counts)[:8])
    raise DataError(f"{where}: NaN or infinite values in {told}", "give a missing policy in the recipe: drop or fill")
