"""An early end and layers of a site's own, in jobs of real sites, and what `fedhpc export` makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from harness import FEDHPC, Site, call, edit, mpirun, table, write_federation
from safetensors.numpy import load_file

from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.store import write_store

RANKS_SCRIPT = Path(__file__).with_name("training_ranks.py")
RANKS = {"aa": 1, "bb": 2, "cc": 1}
MLP = {"name": "mlp", "held_out": 0.25, "options": {"features": 4, "hidden": [8]}}
# A model that does not move: it is never better than the first one.
STILL = {"lr": 1e-30, "local_steps": 2, "keep": "best:loss", "patience": 2}
OWN = {"lr": 0.1, "optimizer": "adam", "local_steps": 3, "schedule": "step", "step_every": 2, "personal": ["*.bias"]}


def give_test_rows(directory: Path, site: str) -> None:
    """Eleven rows that the site has not trained on."""
    x, y = table(f"{site} test", 11)
    features = FeatureSet(tuple(Feature(f"f{i}") for i in range(4)), Label("sick"), (4,))
    write_store(
        directory / "data" / f"{site}-test.h5", site=site, feature_set=features, features=x, labels=y,
        row_ids=np.ones((11, 32), np.uint8), created="2026-01-01",
    )  # fmt: skip
    own = f"path = '../data/{site}.h5'"
    edit(directory / "sites" / f"{site}.toml", own, f"{own}\ntest = '../data/{site}-test.h5'")


@pytest.mark.mpi
def test_sites_stop_together_and_own_layers_stay(tmp_path: Path) -> None:
    sites = {name: Site(ranks=ranks, rows=24) for name, ranks in RANKS.items()}
    write_federation(tmp_path / "still", sites, rounds=7, task=MLP, train=STILL)
    write_federation(tmp_path / "own", sites, rounds=2, task=MLP | {"test": True}, train=OWN)
    for site in RANKS:
        give_test_rows(tmp_path / "own", site)
    mpirun(4, [RANKS_SCRIPT, tmp_path / "still", tmp_path / "own"], warm=True).ok()

    run = tmp_path / "still" / "run"
    for site in RANKS:
        records = [json.loads(line) for line in (run / site / "metrics.jsonl").read_text().splitlines()]
        assert [r["round"] for r in records] == [1, 2, 3, 4, 4]  # of 7
        assert [r["best_round"] for r in records] == [0] * 5
        assert all(r["own_metrics"].keys() == r["metrics"].keys() for r in records)
    best = call([*FEDHPC, "export", run, tmp_path / "best.safetensors", "--best"]).ok().out
    assert ": round 0, " in best
    call([*FEDHPC, "export", run, tmp_path / "no.safetensors", "--round", "1"]).refused(64, "no checkpoint of round 1")

    run = tmp_path / "own" / "run"
    final = [json.loads((run / site / "metrics.jsonl").read_text().splitlines()[-1]) for site in RANKS]
    assert len({json.dumps(record["test_metrics"]) for record in final}) == 1
    assert final[0]["test_metrics"].keys() == final[0]["metrics"].keys()
    assert final[0]["test_metrics"]["accuracy"] * 33 == pytest.approx(round(final[0]["test_metrics"]["accuracy"] * 33))
    whole = {}
    for site in (None, *RANKS):
        out = tmp_path / f"{site}.safetensors"
        call([*FEDHPC, "export", run, out, *([] if site is None else ["--site", site])]).ok()
        whole[site] = load_file(out)
    shared = whole[None]
    assert shared
    assert not [name for name in shared if name.endswith("bias")]
    for site in RANKS:
        assert {name for name in whole[site] if name not in shared} == {
            name.removesuffix("weight") + "bias" for name in shared if name.endswith("weight")
        }
        for name, array in shared.items():
            np.testing.assert_array_equal(whole[site][name], array)
    own = [name for name in whole["aa"] if name not in shared]
    assert any((whole["aa"][name] != whole["bb"][name]).any() for name in own)
