"""The cost model finds the costs that sums were made of, predicts what it did not see, and knows what it assumes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT

from benchmarks.cost_model import Cluster, fit, held_out, measurements, outlooks, relay_cost
from benchmarks.report.on_paper import cost_model
from benchmarks.runs import Run

COSTS = {
    "ledger": lambda b, s, p: 1e-4 + 2e-11 * b,
    "encode": lambda b, s, p: 1e-10 * b,
    "masks": lambda b, s, p: 1.5e-10 * b * s,
    "wire": lambda b, s, p: 3e-4 + 4e-10 * b,
    "digest": lambda b, s, p: 6e-10 * b,
    "decode": lambda b, s, p: 8e-11 * b,
    "agree": lambda b, s, p: 1e-3 + 2e-4 * p,
}
SIZES = [(2, 10**6), (4, 10**6), (8, 10**6), (16, 10**6), (2, 10**7), (4, 10**7), (8, 10**7), (4, 10**8)]


def run(sites: int, params: int, noise: float = 1.0, **more: Any) -> Run:
    """On two cores: where four ranks share them, each takes twice as long."""
    stages = {name: cost(4 * params, sites - 1, sites - 1) * noise * max(1, sites / 2) for name, cost in COSTS.items()}
    record = {"work": "masked sum", "system": "fedhpc", "params": params, "sites": sites, "ranks": [1] * sites}
    record |= {"machine": {"cores": 2}, "date": "2026-11-30", "settings": {"lane_bits": 32, "degree": 0}}
    record |= {"command": f"fedhpc bench sum --sites {sites} --params {params}", "measured": {"stages_s": stages}}
    return Run("sums.jsonl", [record | more] * 5)


def test_costs_are_found_again() -> None:
    model = fit(measurements([run(*size) for size in SIZES]))
    found = {(term.stage, term.name): term.value for term in model.terms}
    assert found["masks", "bytes*streams"] == pytest.approx(1.5e-10)
    assert found["digest", "bytes"] == pytest.approx(6e-10)
    assert (found["agree", "1"], found["agree", "partners"]) == pytest.approx((1e-3, 2e-4))
    assert (found["wire", "1"], found["wire", "bytes"]) == pytest.approx((3e-4, 4e-10))
    assert all(term.error < 1e-6 * term.value for term in model.terms)


def test_sizes_that_were_held_out_are_predicted() -> None:
    tried = held_out(measurements([run(*size) for size in SIZES]))
    assert [(one.measured.run.get("sites"), one.measured.run.get("params")) for one in tried] == [
        (8, 10**7),
        (4, 10**8),
    ]
    assert [one.off_by for one in tried] == pytest.approx([0.0, 0.0], abs=1e-9)


def test_noise_shows_in_error_bars_and_in_what_is_held_out() -> None:
    noisy = [run(*size, noise=1.0 + (0.2 if at % 2 else -0.2)) for at, size in enumerate(SIZES)]
    measured = measurements(noisy)
    model = fit(measured)
    masks = next(term for term in model.terms if term.stage == "masks")
    assert 0 < abs(masks.value - 1.5e-10) < 3 * masks.error
    assert any(abs(one.off_by) > 0.1 for one in held_out(measured))


def test_a_hundred_sites_on_paper() -> None:
    model = fit(measurements([run(*size) for size in SIZES]))
    cluster = Cluster(sites=100, params=10**10, cores=64, gbit_s=100.0, relay_gbit_s=100.0)
    complete, safe, sparse, relayed = outlooks(model, cluster, 0.1, (2e-9, 1e-10))
    assert [one.streams for one in (complete, safe, sparse, relayed)] == [99, 68, 22, 99]
    masks_s = 1.5e-10 * 4e10 * 99 / 64
    rest_s = (2e-11 + 1e-10 + 6e-10 + 8e-11) * 4e10 / 64 + 1e-3 + 99 * 2e-4
    assert complete.compute_s == pytest.approx(masks_s + rest_s, rel=1e-3)
    assert complete.compute_error_s == pytest.approx(0.1 * complete.compute_s, rel=1e-3)
    assert complete.network_s == pytest.approx(2 * 0.99 * 4e10 * 8 / 100e9)
    assert relayed.network_s == pytest.approx(2 * 100 * 4e10 * 8 / 100e9)
    assert sparse.total_s < safe.total_s < complete.total_s < relayed.total_s
    assert len(outlooks(model, cluster, 0.1, None)) == 3


def test_the_relay_is_paid_by_the_byte() -> None:
    repeats = [{"work": "relayed masked sum", "sites": 4, "params": 10**7, "settings": {"lane_bits": 32}}] * 5
    runs = [Run("r", [record | {"measured": {"relay_cpu_s": 0.32 + 0.01 * at}} for at, record in enumerate(repeats)])]
    cost, error = relay_cost(runs) or (0.0, 0.0)
    assert cost == pytest.approx(0.34 / 1.6e8)
    assert 0 < error < 0.1 * cost
    assert relay_cost([]) is None


def test_other_runs_do_not_count_and_too_few_say_nothing() -> None:
    others = [run(4, 10**7, ranks=[2] * 4), run(4, 10**7, work="relayed masked sum"), run(4, 10**7, measured={})]
    others += [run(4, 10**7, settings={"overlap": True}), run(4, 10**7, settings={"nodes": 2})]
    assert measurements(others) == []
    assert cost_model([run(*size) for size in SIZES[:5]], {}) == []
    assert "On paper" in "\n".join(cost_model([run(*size) for size in SIZES], {}))


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.cost_model", "--results", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: 0 sizes of a masked sum were measured; 6 are needed\n"
