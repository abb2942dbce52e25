"""How a sum's time grows with the sites: a line over the mask streams that each site makes, and what lies above it.

Sites on one machine share its cores, so the wall time of N sites is that of N sites' work on few cores. What can be
compared is the work of one site: wall × cores / sites where there are more sites than cores, the wall time itself where
there are not. With a mask for every other site that work is a + b × (N - 1): a for the vector (checks, encoding, wire,
hash, decoding), b for one more partner (its stream of masks, its key and its signature).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.relative_fit import relative_fit
from benchmarks.runs import Run
from benchmarks.scaling import count

AIM = 1.2
"""A sum should take no more than this times the line."""


@dataclass(frozen=True)
class Point:
    """One number of sites."""

    run: Run
    sites: int
    streams: int  # of masks that each site makes
    work_s: float  # of one site

    @property
    def sparse(self) -> bool:
        """Whether not every two sites share a mask."""
        return self.streams < self.sites - 1


@dataclass(frozen=True)
class MaskLine:
    """Runs of one vector over growing numbers of sites, and the line through those with all masks."""

    params: int
    kernel: str
    base_s: float
    stream_s: float
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """Its size in words, with the kernel where one was compiled."""
        return f"{count(self.params)} parameters" + ("" if self.kernel == "python" else f", kernel {self.kernel}")

    def fitted(self, point: Point) -> float:
        """The line's work of a site [s] with the streams of this point."""
        return self.base_s + self.stream_s * point.streams

    def ratio(self, point: Point) -> float:
        """Measured over fitted."""
        return point.work_s / self.fitted(point)

    @property
    def complete(self) -> list[Point]:
        """With a mask for every other site."""
        return [point for point in self.points if not point.sparse]

    @property
    def worst(self) -> float:
        """The largest ratio of a complete graph."""
        return max(self.ratio(point) for point in self.complete)


def mask_lines(runs: Sequence[Run]) -> list[MaskLine]:
    """A line for each length of vector that was summed in one job over three and more numbers of sites of one rank."""
    found: dict[tuple[int, str, str], dict[tuple[int, int], Point]] = {}
    for run in sorted(runs, key=lambda run: str(run.get("date"))):
        point = _point(run)
        if point is not None:
            key = (run.get("params"), run.kernel, str(run.get("machine")))
            found.setdefault(key, {})[point.sites, point.streams] = point  # the newer one counts
    lines = []
    for (params, kernel, _), by_size in sorted(found.items()):
        points = tuple(by_size[key] for key in sorted(by_size))
        complete = [point for point in points if not point.sparse]
        if len({point.sites for point in complete}) >= 3:
            lines.append(MaskLine(params, kernel, *_fit(complete), points))
    return lines


def _point(run: Run) -> Point | None:
    settings = run.get("settings") or {}
    wall, sites, ranks = run.median("wall_s"), run.get("sites"), run.get("ranks")
    cores = (run.get("machine") or {}).get("cores")
    if run.get("work") != "masked sum" or run.get("system") != "fedhpc" or settings.get("lane_bits", 32) != 32:
        return None
    if not (wall and cores and isinstance(ranks, list) and ranks == [1] * sites and settings.get("nodes", 1) == 1):
        return None
    streams = min(settings.get("degree") or sites - 1, sites - 1)
    return Point(run, sites, streams, wall * min(cores, sites) / sites)


def _fit(points: Sequence[Point]) -> tuple[float, float]:
    """a and b of the line; neither below zero."""
    sizes = np.array([[1.0, float(point.streams)] for point in points])
    (base, slope), _ = relative_fit(sizes, np.array([point.work_s for point in points]))
    return float(base), float(slope)
