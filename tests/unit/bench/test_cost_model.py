"""The cost model finds the costs that sums were made of, predicts what it did not see, and knows what it assumes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import ROOT

from benchmarks.cost_model import TERMS, Cluster, fit, held_out, measurements, outlooks, relay_cost
from benchmarks.relative_fit import relative_fit
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
    "share": lambda b, s, p: 3e-4,
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
    assert found["hide", "bytes"] == pytest.approx(1e-10)
    assert found["hide", "bytes*streams"] == pytest.approx(1.5e-10)
    assert found["digest", "bytes"] == pytest.approx(6e-10)
    assert (found["agree", "1"], found["agree", "partners"]) == pytest.approx((1e-3, 2e-4))
    assert (found["wire", "1"], found["wire", "bytes"]) == pytest.approx((3e-4, 4e-10))
    assert all(term.error < 1e-6 * term.value for term in model.terms)


def test_one_kernel_has_one_model() -> None:
    """Costs of the kernel that hid the newest sum, which tells encoding and masks in one; the same as two stages."""
    older = [run(*size, noise=3.0) for size in SIZES]
    one_pass = []
    for size in SIZES:
        (*_, record) = run(*size, kernel="vaes", date="2026-12-01").records
        stages = dict(record["measured"]["stages_s"])
        stages |= {"encode": 0.0, "masks": stages["encode"] + stages["masks"]}
        one_pass.append(Run("sums.jsonl", [record | {"measured": {"stages_s": stages}}] * 5))
    mixed, alone = measurements([*older, *one_pass]), measurements(one_pass)
    assert [one.run for one in mixed] == [one.run for one in alone]
    assert len(alone) == len(SIZES)
    costs = {(term.stage, term.name): term.value for term in fit(mixed).terms}
    assert costs["hide", "bytes*streams"] == pytest.approx(1.5e-10)
    assert costs["hide", "bytes"] == pytest.approx(1e-10)


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
    masks = next(term for term in model.terms if term.name == "bytes*streams")
    assert 0 < abs(masks.value - 1.5e-10) < 3 * masks.error
    assert any(abs(one.off_by) > 0.1 for one in held_out(measured))


def test_a_constant_and_a_slope_that_err_together_do_not_add_up() -> None:
    noisy = [run(*size, noise=1.0 + (0.2 if at % 2 else -0.2)) for at, size in enumerate(SIZES)]
    model = fit(measurements(noisy))
    sizes = {"bytes": 4e7, "streams": 3.0, "partners": 3.0}  # within what was measured
    constant, slope = (term for term in model.terms if term.stage == "agree")
    seconds, error = model.predict(sizes, ("agree",))
    assert seconds == pytest.approx(constant.value + 3 * slope.value)
    assert 0 < error < 0.8 * 2 * math.hypot(constant.error, 3 * slope.error)
    every = [model.predict(sizes, (stage,))[1] for stage in TERMS]
    assert model.predict(sizes)[1] == pytest.approx(math.hypot(*every))


def test_the_covariance_is_that_of_least_squares() -> None:
    draw = np.random.default_rng(7)
    sizes = np.array([[1.0, x] for x in (1, 2, 4, 8, 16, 32)])
    costs, covariances = [], []
    for _ in range(2000):
        seconds = sizes @ [2.0, 0.5] * (1 + 0.02 * draw.standard_normal(len(sizes)))
        found, covariance = relative_fit(sizes, seconds)
        costs.append(found)
        covariances.append(covariance)
    assert np.mean(covariances, axis=0) == pytest.approx(np.cov(np.transpose(costs)), rel=0.15)


def test_a_hundred_sites_on_paper() -> None:
    model = fit(measurements([run(*size) for size in SIZES]))
    cluster = Cluster(sites=100, params=10**10, cores=64, gbit_s=100.0, relay_gbit_s=100.0)
    complete, safe, sparse, relayed = outlooks(model, cluster, 0.1, (2e-9, 1e-10))
    assert [one.streams for one in (complete, safe, sparse, relayed)] == [99, 68, 22, 99]
    masks_s = 1.5e-10 * 4e10 * 99 / 64
    rest_s = (2e-11 + 1e-10 + 6e-10 + 8e-11) * 4e10 / 64 + 1e-3 + 99 * 2e-4 + 3e-4
    assert complete.compute_s == pytest.approx(masks_s + rest_s, rel=1e-3)
    assert complete.compute_error_s == pytest.approx(0.1 * complete.compute_s, rel=1e-3)
    assert complete.network_s == pytest.approx(2 * 0.99 * 4e10 * 8 / 100e9)
    assert relayed.network_s == pytest.approx(2 * 100 * 4e10 * 8 / 100e9)
    assert relayed.relay_s == pytest.approx(2e-9 * 100 * 4e10 / 64)
    assert relayed.compute_s == pytest.approx(complete.compute_s + relayed.relay_s)
    assert relayed.compute_error_s == pytest.approx(math.hypot(complete.compute_error_s, 0.05 * relayed.relay_s))
    assert complete.relay_s == 0
    assert sparse.total_s < safe.total_s < complete.total_s < relayed.total_s
    assert len(outlooks(model, cluster, 0.1, None)) == 3


def test_the_relay_is_paid_by_the_byte() -> None:
    repeats = [{"work": "relayed masked sum", "sites": 4, "params": 10**7, "settings": {"lane_bits": 32}}] * 5
    runs = [Run("r", [record | {"measured": {"relay_cpu_s": 0.32 + 0.01 * at}} for at, record in enumerate(repeats)])]
    cost, error = relay_cost(runs) or (0.0, 0.0)
    assert cost == pytest.approx(0.34 / 1.6e8)
    assert 0 < error < 0.1 * cost
    assert relay_cost([]) is None
    for name, value in (("latency_ms", 20.0), ("mbit_s", 100.0), ("lost", 1)):
        settings = {"lane_bits": 32, name: value}
        other = [record | {"settings": settings, "measured": {"relay_cpu_s": 9.0}} for record in repeats]
        assert relay_cost([Run("r", other)]) is None
        assert relay_cost([*runs, Run("r", other)]) == (cost, error)


def test_other_runs_do_not_count_and_too_few_say_nothing() -> None:
    others = [run(4, 10**7, ranks=[2] * 4), run(4, 10**7, work="relayed masked sum"), run(4, 10**7, measured={})]
    others += [run(4, 10**7, settings={"overlap": True}), run(4, 10**7, settings={"nodes": 2})]
    assert measurements(others) == []
    assert cost_model([run(*size) for size in SIZES[:5]], {}) == []
    assert "On paper" in "\n".join(cost_model([run(*size) for size in SIZES], {}))


def test_the_command_fits_what_the_page_fits(tmp_path: Path) -> None:
    def write(name: str, runs: list[Run]) -> None:
        records = [record | {"run_id": str(at)} for at, one in enumerate(runs) for record in one.records]
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    write("sums.jsonl", [run(*size) for size in SIZES])
    before = printed(tmp_path)
    assert before.stdout.count("byte and mask") == 1
    for name in ("peers.jsonl", "partition.jsonl", "partition_b.jsonl"):
        write(name, [run(4, 10**7, noise=30.0, date="2026-12-01"), run(3, 10**7, noise=30.0)])
    assert (printed(tmp_path).stdout, before.returncode) == (before.stdout, 0)


def printed(folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "benchmarks.cost_model", "--results", str(folder)]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    done = printed(tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: 0 sizes of a masked sum were measured; 6 are needed\n"
