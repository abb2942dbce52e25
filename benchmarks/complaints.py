"""What is wrong with results: a metric that was lost, a result that nobody verified, repeats that are missing.

ReFrame passes a benchmark whose metric is not found, and one whose program fails, so a suite asks here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from benchmarks.runs import Run, Stored, alone
from benchmarks.scaling import SIZES, series
from fedhpc.bench.record import KEYS, METRICS
from fedhpc.kernel.choice import NAMES

MEASURED = {
    "masked sum": ("plain_s", "unmasked_s", "masked_s", "unmasked_cpu_s", "stages_s"),
    "relayed masked sum": ("unmasked_s", "unmasked_cpu_s", "relay_cpu_s"),
    "sum of one number": (),
    "training round": ("unmasked_s", "unmasked_cpu_s", "secure_share", "stages_s"),
    "masks and encoding": ("encode_s", "masks_s"),
    "reading a store": ("open_s", "in_order_s", "in_order_cpu_s", "batches_s", "batches_cpu_s"),
    "training": ("plain_cpu_s", "speed_over_plain"),
}
"""What fedhpc measures of each work beside METRICS. The work "training, ddp" is a "training"."""
SINCE_KERNELS = {
    "masked sum": ("plain_chunked_s", "cpu_plain_s", "cpu_plain_chunked_s", "cpu_masked_s", "cpu_real_round_s"),
    "masks and encoding": ("inspect_s",),
}
"""What records have besides since they name the kernel that ran; older ones lack both."""
BESIDE_PEERS = frozenset({"echo"})
"""Works of fedhpc that only benchmarks/peers measures; the works of other systems are theirs to name."""
_LOST = ("failed", "skipped")
"""What a record of benchmarks/peers has in place of figures, and why."""
_NO_FIGURES = (*METRICS, "repeat")


def complaints(stored: Stored, expected: Iterable[str] = ()) -> list[str]:
    """One line for each; `expected`: works of which there must be a run."""
    found = list(stored.broken)
    for name, whole in stored.objects.items():
        if whole["result"].get("verified", True) is not True:  # of an older form too
            found.append(f"{name}.json: the result is not verified")
    if not stored.runs and not stored.unrecorded:
        found.append("there is no result")
    works = {kind(run) for run in stored.runs}
    found += [f"there is no record of the work '{work}'" for work in expected if work not in works]
    for run in stored.runs:
        found += [f"{run.source}: {run.get('work')}: {text}" for text in _of_run(run)]
    for size in SIZES:
        for one in series(alone(stored.runs), size):  # partitions and peers are in no ratio of these
            if len(one.machines) > 1:
                found.append(
                    f"{one.name}: one ratio over {size} of {len(one.machines)} machines: {'; '.join(one.machines)}"
                )
    return found


def kind(run: Run) -> str:
    """The work of a run, without what it was done with."""
    return str(run.get("work")).partition(",")[0]


def _of_run(run: Run) -> Iterator[str]:
    if run.get("system") == "fedhpc" and kind(run) not in MEASURED and kind(run) not in BESIDE_PEERS:
        yield "there is no such work"
    for record in run.records:
        yield from (f"repeat {record.get('repeat')}: {text}" for text in _of_record(record, kind(run)))
    if not any(_is_lost(record) for record in run.records):
        yield from _missing(run)
    whole = [record for record in run.records if not _is_lost(record)]  # what failed may not know its version
    for name in ("machine", "version", "command", "kernel", "suite", "store", "old_commit"):
        if len({str(record.get(name)) for record in whole}) > 1:
            yield f"its repeats have different values of {name}"


def _of_record(record: Mapping[str, Any], work: str) -> Iterator[str]:
    lost = _is_lost(record)
    needed = [name for name in KEYS if not (lost and name in _NO_FIGURES)]
    yield from (f"{name} is missing" for name in needed if record.get(name) in (None, "", [], {}))
    if lost:
        if record.get("system") == "fedhpc":  # a peer's failure is its own, and the page shows it
            yield from (f"{name}: {record[name]}" for name in _LOST if name in record)
        return
    for name in METRICS:
        if name != "verified" and record.get(name) is not None and not _is_figure(record[name]):
            yield f"{name} is {record[name]!r}"
    if record.get("verified") not in (None, True):
        yield "the result is not verified"
    if record.get("system") == "fedhpc":
        measured = record.get("measured") or {}
        needed = [*MEASURED.get(work, ()), *(SINCE_KERNELS.get(work, ()) if "kernel" in record else ())]
        yield from (f"{name} is missing" for name in needed if not _is_there(measured.get(name)))
        yield from _of_kernel(record)


def _of_kernel(record: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with how a record names its kernel; an older one names none."""
    if "kernel" in record and record["kernel"] not in NAMES:
        yield f"there is no kernel {record['kernel']!r}"
    if ("kernel" in record) != ("cpu_flags" in record):
        yield "kernel and cpu_flags belong together"


def _missing(run: Run) -> Iterator[str]:
    """Repeats that were asked for and are not there, or are there twice."""
    asked, numbers = run.get("repeats"), [record.get("repeat") for record in run.records]
    if not isinstance(asked, int):
        yield "repeats is missing: nobody knows how many were asked for"
    elif sorted(map(str, numbers)) != sorted(map(str, range(1, asked + 1))):
        yield f"{asked} repeats were asked for, and there are {', '.join(map(str, numbers))}"


def _is_lost(record: Mapping[str, Any]) -> bool:
    """Whether it says in words why it has no figures."""
    return any(isinstance(record.get(name), str) and record[name] for name in _LOST)


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _is_there(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(_is_there(one) for one in value.values())
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
