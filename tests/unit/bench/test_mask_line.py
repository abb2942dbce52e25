"""The line over mask streams: work of one site on shared cores, and what lies above the line."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.mask_line import MaskLine, mask_lines
from benchmarks.report.targets import own_targets
from benchmarks.runs import Run

CORES = 4


def run(sites: int, work_s: float, *, degree: int = 0, **more: Any) -> Run:
    """Sites of one rank on four cores, each with so much to do."""
    wall_s = work_s * max(1.0, sites / CORES)
    record = {"work": "masked sum", "system": "fedhpc", "params": 1_000_000, "sites": sites, "ranks": [1] * sites}
    record |= {"machine": {"cores": CORES}, "date": f"2026-11-30T12:00:{sites:02d}", "wall_s": wall_s}
    return Run("sums.jsonl", [record | {"settings": {"degree": degree, "lane_bits": 32}} | more] * 5)


def line(*runs: Run) -> MaskLine:
    (found,) = mask_lines(runs)
    return found


def test_work_of_a_site_is_what_shared_cores_hide() -> None:
    found = line(*(run(n, 0.010 + 0.002 * (n - 1)) for n in (2, 4, 8, 64)))
    assert (found.base_s, found.stream_s) == pytest.approx((0.010, 0.002))
    assert [point.streams for point in found.points] == [1, 3, 7, 63]
    assert [found.ratio(point) for point in found.points] == pytest.approx([1.0] * 4)
    assert found.points[-1].run.median("wall_s") == pytest.approx(16 * 0.136)


def test_what_grows_faster_than_the_masks_lies_above_the_line() -> None:
    found = line(*(run(n, 0.010 + 0.002 * (n - 1) + 0.001 * (n - 1) ** 2) for n in (2, 4, 8, 16, 32, 64)))
    assert found.worst > 1.2
    assert "**no**" in "\n".join(own_targets([], [found]))


def test_a_sparse_graph_is_no_part_of_the_fit_and_flat() -> None:
    complete = [run(n, 0.010 + 0.002 * (n - 1)) for n in (2, 8, 32)]
    sparse = [run(n, 0.05, degree=22) for n in (32, 48, 64)]
    found = line(*complete, *sparse, run(16, 0.04, degree=22))
    assert (found.base_s, found.stream_s) == pytest.approx((0.010, 0.002), rel=0.1)
    assert [point.sites for point in found.points if point.sparse] == [32, 48, 64]
    assert [point.streams for point in found.points if point.sites == 16] == [15]  # all others, fewer than the degree
    flat = next(text for text in own_targets([], [found]) if "22 masks a site" in text)
    assert "its work at 64 sites over that at 32 | 1.00 | ≤ 1.2 | yes" in flat


def test_a_line_never_slopes_down() -> None:
    found = line(run(2, 0.03), run(4, 0.02), run(8, 0.01))
    assert found.stream_s == 0.0
    assert found.base_s > 0
    found = line(run(2, 0.001), run(4, 0.01), run(8, 0.1))
    assert found.base_s == 0.0


def test_others_are_left_out() -> None:
    three = [run(n, 0.01) for n in (2, 4, 8)]
    assert mask_lines(three[:2]) == []
    for change in (
        {"ranks": [2] * 16},
        {"work": "relayed masked sum"},
        {"system": "another"},
        {"settings": {"lane_bits": 64}},
        {"settings": {"nodes": 2}},
    ):
        assert len(line(*three, run(16, 9.0, **change)).points) == 3
    newer = run(8, 0.02, date="2026-12-01T00:00:00")
    assert line(*three, newer).points[-1].run is newer
