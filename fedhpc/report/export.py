"""The trained model as one safetensors file, for those who use it and do not want fedhpc or HDF5.

The file holds the tensors of the newest valid checkpoint and, as text in its header, where they come from. It has no
date and its header is sorted, so that the same model exported at two sites is the same file: compare with sha256sum.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.agreement.run_folder import checkpoints
from fedhpc.app.telemetry import METRICS_FILE, read_metrics
from fedhpc.errors import ConfigError, DataError, InternalError, StorageError
from fedhpc.federation.checkpoint import Checkpoint, CheckpointStore
from fedhpc.federation.state_tensors import model_sha256
from fedhpc.files import sync_folder, write_whole
from fedhpc.report.model_card import model_card
from fedhpc.report.report import FEDERATION_FILE, Run, is_run
from fedhpc.train.exported import TASK
from fedhpc.train.start_file import LAYOUT, SHA256

CHECKPOINTS, BEST = "checkpoints", "best"


def export_model(
    run: Path,
    out: Path,
    *,
    force: bool = False,
    best: bool = False,
    round_: int | None = None,
    site: str | None = None,
    card: Path | None = None,
) -> dict[str, Any]:
    """Write the newest valid checkpoint over the sites in the run directory `run` to the safetensors file `out`.

    `best`: that of the best round by `[train] keep`; `round_`: that of this round, if it is still there; `site`: from
    this site's checkpoints, with its own tensors of `[train] personal`, which no other file has. `card`: where a model
    card is written.

    Gives {"file", "site" (whose checkpoint), "round", "model_sha256", "tensors" and "parameters" (counts), "bytes"
    (file size), "metadata" {str: str} (what is in the file's header)}. Raises ConfigError if `run` is not a
    run directory, holds no checkpoint, or `out` exists and not `force`; DataError if no checkpoint is valid, if it
    belongs to another federation.toml, or if the sites disagree on the model; StorageError if `out` cannot be written.
    """
    if not run.is_dir() or not is_run(run):
        raise ConfigError(
            f"{run} is not a run directory",
            f"looked for {FEDERATION_FILE} and */{CHECKPOINTS} in it; give the directory that `fedhpc run` wrote",
        )
    for file in (out, card):
        if file is not None and file.exists() and not force:
            raise ConfigError(f"{file} exists", "choose another name, or overwrite it with --force")
    told = _read(run)
    chosen, checkpoint = _newest(run, best=best, round_=round_, site=site)
    if told.config_sha256 not in (None, checkpoint.config.hex()):
        raise DataError(
            f"the checkpoint of {chosen} belongs to another federation than {run / FEDERATION_FILE}",
            f"it says {checkpoint.config.hex()}, the file has {told.config_sha256}",
        )
    metadata = _metadata(told, chosen, checkpoint)
    tensors = dict(checkpoint.tensors)
    if site is not None:
        personal = _personal(checkpoint)
        tensors |= personal
        metadata |= {"site": site, "personal": json.dumps(sorted(personal))} if personal else {}
    _write(out, tensors, metadata)
    done = {
        "file": str(out),
        "site": chosen,
        "round": checkpoint.round_,
        "model_sha256": metadata["model_sha256"],
        "tensors": len(tensors),
        "parameters": sum(t.size for t in tensors.values()),
        "bytes": out.stat().st_size,
        "metadata": metadata,
    }
    if card is not None:
        write_whole(card, model_card(told, done, tensors).encode(), mode=0o644)
    return done


def _read(run: Path) -> Run:
    """The run, also where a site's records are missing: a checkpoint alone is enough."""
    file = run / FEDERATION_FILE
    sites = {p.parent.name: read_metrics(p) for p in sorted(run.glob(f"*/{METRICS_FILE}"))}
    return Run(run, file.read_bytes() if file.is_file() else None, {s: r for s, r in sites.items() if r})


def _store(directory: Path) -> CheckpointStore:
    from fedhpc.train.checkpoint_files import Hdf5Checkpoints

    store: CheckpointStore = Hdf5Checkpoints(directory)
    return store


def _personal(checkpoint: Checkpoint) -> dict[str, Any]:
    """The site's own floating tensors, which lie beside the optimiser's state; counters are integers."""
    prefix = "buffer:"
    found = {n.removeprefix(prefix): a for n, a in checkpoint.private.items() if n.startswith(prefix)}
    return {name: array for name, array in found.items() if array.dtype.kind == "f"}


def _newest(run: Path, *, best: bool, round_: int | None, site: str | None) -> tuple[str, Checkpoint]:
    """The site and the checkpoint with the most finished rounds that can be read, of those that are asked for."""
    where = f"{CHECKPOINTS}/{BEST}" if best else CHECKPOINTS
    if site is not None and not (run / site / CHECKPOINTS).is_dir():
        there = sorted(p.parent.name for p in run.glob(f"*/{CHECKPOINTS}"))
        raise ConfigError(f"{run} has no checkpoints of site {site!r}", f"it has some of {', '.join(there) or 'none'}")
    place = run if site is None else run / site
    inner = "*/" if site is None else ""
    folders = [
        *place.glob(f"{inner}{where}"),
        *([] if round_ is None else place.glob(f"{inner}{CHECKPOINTS}/{BEST}")),
    ]
    stores = {(p.relative_to(run).parts[0], p): _store(p) for p in sorted(folders) if p.is_dir()}
    found = [(number, of) for of, store in stores.items() for number in store.rounds()]
    if (best and not found) or (round_ is not None and round_ not in {number for number, _ in found}):
        raise _absent(run, sorted({number for number, _ in found}), round_)
    return _load_first(run, stores, [(n, of) for n, of in found if round_ in (None, n)])


def _absent(run: Path, there: list[int], round_: int | None) -> ConfigError:
    if round_ is None:
        return ConfigError(
            f"{run} has no best round",
            'it is kept where [train] of federation.toml has keep = "best:METRIC", from the first round that was '
            "measured over all sites on",
        )
    return ConfigError(
        f"{run} has no checkpoint of round {round_}",
        f"there is one of {', '.join(map(str, there)) or 'no round'}: a site keeps its newest two, and the best one",
    )


def _load_first(
    run: Path, stores: Mapping[tuple[str, Path], CheckpointStore], found: Sequence[tuple[int, tuple[str, Path]]]
) -> tuple[str, Checkpoint]:
    """The newest of `found` that is whole."""
    damaged = ""
    for round_, site in sorted(found, key=lambda f: (-f[0], f[1])):
        try:
            return site[0], stores[site].load(round_)
        except DataError as error:  # the next one is older, but whole
            damaged = damaged or error.what
    where = f"looked in {run}/*/{CHECKPOINTS}: {len(stores)} site folders, {len(found)} checkpoints"
    if any(checkpoints(folder) for folder in run.glob(f"*/{CHECKPOINTS}")):
        raise DataError(f"no checkpoint in {run} is valid{': ' if damaged else ''}{damaged}", where)
    raise ConfigError(f"{run} has no checkpoint", where)


def _metadata(run: Run, site: str, checkpoint: Checkpoint) -> dict[str, str]:
    """Where the model comes from, as the text a safetensors header can hold."""
    model = model_sha256(checkpoint.tensors)
    models = {**run.models(checkpoint.round_), f"the checkpoint of {site}": model}
    if len(set(models.values())) > 1:
        raise DataError(
            f"the sites disagree on the model after round {checkpoint.round_}",
            "; ".join(f"{who} has {found[:16]}" for who, found in models.items()),
        )
    took_part: set[str] = set()
    for record in run.public:
        if record["round"] <= checkpoint.round_ and isinstance(record.get("sites"), list):
            took_part.update(str(site) for site in record["sites"])
    try:
        ours = version("fedhpc")
    except PackageNotFoundError:  # run from a source tree
        ours = "unknown"
    task = run.table("task")
    metadata = {
        TASK: json.dumps(task, sort_keys=True) if task else "",
        "config_sha256": checkpoint.config.hex(),
        "federation": run.setting("name") or "",
        "fedhpc_version": ours,
        LAYOUT: json.dumps(list(checkpoint.tensors)),  # the hash is over the tensors' bytes in this order
        SHA256: model,
        "round": str(checkpoint.round_),
        "sites": json.dumps(sorted(took_part)) if took_part else "",
    }
    return {key: value for key, value in metadata.items() if value}


def _write(out: Path, whole: Mapping[str, Any], metadata: dict[str, str]) -> None:
    """Write to a temporary name in the same directory, fsync, rename."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = {name: np.require(t, requirements=["C"]) for name, t in whole.items()}
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.touch()
            mode = temporary.stat().st_mode & 0o777  # the user's umask; safetensors replaces the file by a 0600 one
            save_file(tensors, temporary, metadata=metadata)
            with temporary.open("r+b") as file:
                _sort_header(file.fileno())
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(temporary, out)
            sync_folder(out.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # safetensors has its own for a full disk
        why = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"cannot write {out}: {why}", "check the directory and the quota") from None


def _sort_header(file: int) -> None:
    """Put the header's metadata in order: safetensors writes it in the random order of a hash table."""
    size = int.from_bytes(os.pread(file, 8, 0), "little")
    header = json.loads(os.pread(file, size, 8).decode("utf-8"))
    header = {"__metadata__": dict(sorted(header.pop("__metadata__", {}).items())), **header}
    data = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    if len(data) > size:
        raise InternalError("a safetensors header grew when sorted", "please report the names of your tensors")
    os.pwrite(file, data.ljust(size), 8)
