"""What a masked sum costs for each byte and each partner, fitted to the stored records, and what larger would take.

    python -m benchmarks.cost_model [--sites 100] [--params 1e10] [--cores 64] [--gbit 100] [--relay-gbit 100]

A stage's cost is its seconds on a core of its own: where ranks share cores, a rank's seconds times cores over ranks.
Each stage is a line without or with a constant (TERMS), fitted by least squares of the relative error; the error bars
are two standard errors of its residuals, with the covariance of a stage's costs, and as if stages erred independently
of one another: they are approximate. The largest sizes are left out of a first fit, which predicts them: that says what
the model is worth. Then all sizes count. What is extrapolated was never run.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.relative_fit import relative_fit
from benchmarks.runs import ENOUGH, Run, alone, read_results
from fedhpc.secure.thresholds import choose_thresholds

Sizes = Mapping[str, float]
"""`bytes` of the vector, `streams` of masks and `partners` (other sites) of a site."""

TERMS: Mapping[str, tuple[str, ...]] = {
    "ledger": ("1", "bytes"),
    "hide": ("bytes", "bytes*streams"),
    "wire": ("1", "bytes"),
    "digest": ("bytes",),
    "decode": ("bytes",),
    "agree": ("1", "partners"),
    "share": ("1",),
}
"""What the cost of each stage is made of. `ledger` is the check and the fingerprint of the vector, `hide` its encoding
and masks (one pass of a compiled kernel), `agree` are keys and signatures, `share` is the site's salt; `wire` on one
machine is shared memory, and holds what ranks wait for one another."""
_MADE_OF: Mapping[str, tuple[str, ...]] = {"hide": ("encode", "masks")}
"""Stages of a record that are one here."""
SPLIT = ("ledger", "hide", "digest", "decode")
"""Stages that the ranks of a site share out among them."""
AT_LEADER = ("agree", "share")
"""Stages that are not: at one rank of a site, or at each of them."""
UNITS = {"1": "ms", "bytes": "ns/byte", "bytes*streams": "ns/byte and mask", "partners": "ms/partner"}
_SCALE = {"1": 1e3, "bytes": 1e9, "bytes*streams": 1e9, "partners": 1e3}
_LEAST = 6  # sizes, below which nothing is fitted


@dataclass(frozen=True)
class Measured:
    """One run: its sizes, and the seconds of a core that each stage took at one rank."""

    run: Run
    sizes: Sizes
    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        """Of all stages."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Term:
    """One coefficient with its standard error."""

    stage: str
    name: str
    value: float
    error: float

    @property
    def shown(self) -> tuple[float, float, str]:
        """Value and two standard errors in its unit."""
        scale = _SCALE[self.name]
        return self.value * scale, 2 * self.error * scale, UNITS[self.name]


@dataclass(frozen=True)
class StageCost:
    """The coefficients of one stage, which depend on one another: where one is too large, another is too small."""

    stage: str
    names: tuple[str, ...]
    values: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @property
    def terms(self) -> list[Term]:
        """One by one."""
        errors = np.sqrt(np.maximum(np.diag(self.covariance), 0.0))
        found = zip(self.names, self.values, errors, strict=True)
        return [Term(self.stage, name, float(value), float(error)) for name, value, error in found]

    def seconds(self, sizes: Sizes) -> tuple[float, float]:
        """What the stage takes at these sizes, and the standard error of that."""
        size = np.array([_size(name, sizes) for name in self.names])
        return float(size @ self.values), math.sqrt(max(0.0, float(size @ self.covariance @ size)))


@dataclass(frozen=True)
class CostModel:
    """All stages."""

    stages: tuple[StageCost, ...]

    @property
    def terms(self) -> list[Term]:
        """Of all stages."""
        return [term for stage in self.stages for term in stage.terms]

    def predict(self, sizes: Sizes, stages: Sequence[str] = tuple(TERMS)) -> tuple[float, float]:
        """Seconds of a core for these stages, and two standard errors."""
        parts = [one.seconds(sizes) for one in self.stages if one.stage in stages]
        return sum(value for value, _ in parts), 2 * math.hypot(*(error for _, error in parts))


@dataclass(frozen=True)
class Prediction:
    """A size that the fit did not see."""

    measured: Measured
    seconds: float
    error: float  # two standard errors

    @property
    def off_by(self) -> float:
        """Predicted over measured, less one."""
        return self.seconds / self.measured.total - 1


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the sites and the relay."""

    sites: int = 100
    params: int = 10_000_000_000
    cores: int = 64  # of each site, as many ranks
    gbit_s: float = 100.0  # of each site's line
    relay_gbit_s: float = 100.0
    relay_cores: int = 64

    @property
    def nbytes(self) -> float:
        """Of the vector."""
        return 4.0 * self.params


@dataclass(frozen=True)
class Outlook:
    """What a sum would take a site, with error bars."""

    name: str
    streams: int
    compute_s: float
    compute_error_s: float
    network_s: float
    relay_s: float = 0.0  # of `compute_s`, what the relay's cores take

    @property
    def total_s(self) -> float:
        """One after the other."""
        return self.compute_s + self.network_s


def measurements(runs: Sequence[Run]) -> list[Measured]:
    """Of the masked sums in one job with one rank at each site; the newest of each size.

    Only those that the kernel of the newest one hid: another has other costs.
    """
    found: dict[tuple[float, ...], Measured] = {}
    every = [one for run in sorted(runs, key=lambda run: str(run.get("date"))) if (one := _measured(run)) is not None]
    for one in every:
        if one.run.kernel == every[-1].run.kernel:
            found[tuple(one.sizes.values())] = one
    return [found[key] for key in sorted(found)]


def fit(measured: Sequence[Measured]) -> CostModel:
    """The costs that fit best."""
    found = []
    for stage, names in TERMS.items():
        found.append(_fit_stage(stage, names, [one for one in measured if one.seconds[stage] > 0]))
    return CostModel(tuple(found))


def held_out(measured: Sequence[Measured]) -> list[Prediction]:
    """The quarter of the runs with the most work, and at least one, predicted from all others."""
    ordered = sorted(measured, key=lambda one: one.total)
    count = max(1, len(ordered) // 4)
    model = fit(ordered[:-count])
    return [Prediction(one, *model.predict(one.sizes)) for one in ordered[-count:]]


def relay_cost(runs: Sequence[Run]) -> tuple[float, float] | None:
    """Seconds of the relay's processor for a byte of a site's vector, ± two standard deviations. None: not measured.

    With lines as they are here, and all sites there: what waits, or is put together again, is another work.
    """
    values: list[float] = []
    for run in runs:
        if set(run.get("settings") or {}) & {"latency_ms", "mbit_s", "lost"}:
            continue
        if run.get("work") == "relayed masked sum" and run.get("params") >= 10_000_000:
            nbytes = run.get("sites") * run.get("params") * _lane_bytes(run)
            values += [cpu_s / nbytes for cpu_s in run.values("relay_cpu_s")]
    if len(values) < ENOUGH:
        return None
    return float(np.mean(values)), 2 * float(np.std(values, ddof=1))


def outlooks(model: CostModel, cluster: Cluster, spread: float, relay: tuple[float, float] | None) -> list[Outlook]:
    """The sum on paper: all masks, sparse graphs, and over a relay. `spread`: relative error of held-out sizes."""
    others = cluster.sites - 1
    default = choose_thresholds(cluster.sites)
    safe = default.colluders + default.losses + 1
    safe += safe % 2
    ring_s = 2 * others / cluster.sites * cluster.nbytes * 8 / (cluster.gbit_s * 1e9)
    found = []
    for name, streams in (
        ("in one job, a mask for every other site", others),
        (f"in one job, degree {safe} (the least for the default thresholds)", safe),
        (f"in one job, degree 22 (colluders = 10, threshold = {cluster.sites - 11})", 22),
    ):
        found.append(_outlook(name, min(streams, others), model, cluster, spread, ring_s))
    if relay is not None:
        up_down_s = 2 * cluster.nbytes * 8 / (cluster.gbit_s * 1e9)
        at_relay_s = 2 * cluster.sites * cluster.nbytes * 8 / (cluster.relay_gbit_s * 1e9)
        line_s = max(up_down_s, at_relay_s)
        site = _outlook("over a relay, a mask for every other site", others, model, cluster, spread, line_s)
        per_core = cluster.sites * cluster.nbytes / cluster.relay_cores
        relay_s, relay_error_s = relay[0] * per_core, relay[1] * per_core
        error = math.hypot(site.compute_error_s, relay_error_s)
        found.append(replace(site, compute_s=site.compute_s + relay_s, compute_error_s=error, relay_s=relay_s))
    return found


def _outlook(name: str, streams: int, model: CostModel, cluster: Cluster, spread: float, network_s: float) -> Outlook:
    sizes = {"bytes": cluster.nbytes, "streams": float(streams), "partners": float(cluster.sites - 1)}
    split, split_error = model.predict(sizes, SPLIT)
    alone_s, alone_error = model.predict(sizes, AT_LEADER)
    seconds = split / cluster.cores + alone_s
    error = math.hypot(split_error / cluster.cores, alone_error, spread * seconds)
    return Outlook(name, streams, seconds, error, network_s)


def _measured(run: Run) -> Measured | None:
    settings, sites, ranks = run.get("settings") or {}, run.get("sites"), run.get("ranks")
    cores = (run.get("machine") or {}).get("cores")
    if run.get("work") != "masked sum" or run.get("system") != "fedhpc" or settings.get("nodes", 1) != 1 or not cores:
        return None
    if not (isinstance(ranks, list) and ranks == [1] * sites) or settings.get("overlap"):
        return None
    if settings.get("lane_bits", 32) != 32:
        return None
    stages = [(record.get("measured") or {}).get("stages_s") or {} for record in run.records]
    parts = {name: _MADE_OF.get(name, (name,)) for name in TERMS}
    if not all(part in stage for names in parts.values() for part in names for stage in stages):
        return None
    own_core = min(1.0, cores / sites)
    seconds = {
        name: own_core * float(np.median([sum(stage[part] for part in parts[name]) for stage in stages]))
        for name in TERMS
    }
    streams = min(settings.get("degree") or sites - 1, sites - 1)
    sizes = {"bytes": float(run.get("params") * 4), "streams": float(streams), "partners": float(sites - 1)}
    return Measured(run, sizes, seconds)


def _lane_bytes(run: Run) -> float:
    return float((run.get("settings") or {}).get("lane_bits", 32)) / 8


def _size(name: str, sizes: Sizes) -> float:
    return math.prod(1.0 if factor == "1" else sizes[factor] for factor in name.split("*"))


def _fit_stage(stage: str, names: tuple[str, ...], measured: Sequence[Measured]) -> StageCost:
    if not measured:
        return StageCost(stage, names, np.zeros(len(names)), np.zeros((len(names), len(names))))
    seconds = np.array([one.seconds[stage] for one in measured])
    sizes = np.array([[_size(name, one.sizes) for name in names] for one in measured])
    return StageCost(stage, names, *relative_fit(sizes, seconds))


def enough(measured: Sequence[Measured]) -> bool:
    """Whether a model can be fitted and tried."""
    return len(measured) >= _LEAST


def main() -> None:
    """Print the costs, what they predict, and the outlook."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", metavar="DIR")
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--params", type=float, default=1e10)
    parser.add_argument("--cores", type=int, default=64, help="of each site")
    parser.add_argument("--gbit", type=float, default=100.0, help="of each site's line")
    parser.add_argument("--relay-gbit", type=float, default=100.0)
    parser.add_argument("--relay-cores", type=int, default=64)
    given = parser.parse_args()
    runs = alone(read_results(given.results).runs)
    measured = measurements(runs)
    if not enough(measured):
        parser.exit(1, f"error: {len(measured)} sizes of a masked sum were measured; {_LEAST} are needed\n")
    model, tried = fit(measured), held_out(measured)
    for term in model.terms:
        value, error, unit = term.shown
        print(f"{term.stage:8} {value:10.4f} ± {error:.4f} {unit}")
    for one in tried:
        print(f"{one.measured.run.get('command')}: {one.seconds:.3f} s a core, {one.off_by:+.0%} of what was measured")
    cluster = Cluster(given.sites, int(given.params), given.cores, given.gbit, given.relay_gbit, given.relay_cores)
    for outlook in outlooks(model, cluster, max(abs(one.off_by) for one in tried), relay_cost(runs)):
        print(
            f"{outlook.name}: {outlook.compute_s:.0f} ± {outlook.compute_error_s:.0f} s of computing, "
            f"{outlook.network_s:.0f} s of network"
        )


if __name__ == "__main__":
    main()
