"""One model hash and one round number: what run, metrics.jsonl, status, report and export say of the heart example."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from harness import FEDHPC, call, mpirun
from safetensors import safe_open
from safetensors.numpy import load_file

from fedhpc.federation.state_tensors import model_sha256

SITES = ("cleveland", "hungary", "switzerland", "va")


@pytest.mark.mpi
def test_all_places_say_the_same_of_the_heart_example(tmp_path: Path) -> None:
    call([*FEDHPC, "new", "heart", "--ranks", "1", "--rounds", "2"], cwd=tmp_path).ok()
    fed = tmp_path / "heart"
    words = ["-m", "fedhpc", "run", "federation.toml", "--sites", "sites/", "--json"]
    told = mpirun(len(SITES), words, timeout=200, cwd=fed, warm=True).ok().out
    result = json.loads(told.splitlines()[-1])
    known = result["model_sha256"]
    assert re.fullmatch("[0-9a-f]{64}", known)
    assert result["round"] == 2
    assert "final model: round 2, accuracy" in told
    assert f"sha256 {known}\n" in told

    for site in SITES:  # one record a round, and the one of the finished model
        records = [json.loads(line) for line in (fed / "run" / site / "metrics.jsonl").open()]
        assert [(r["round"], r.get("final", False)) for r in records] == [(1, False), (2, False), (2, True)]
        assert [r["model_sha256"] == known for r in records] == [False, True, True]
        assert known != records[-1]["state"]

    status = json.loads(call([*FEDHPC, "status", "run", "--json"], cwd=fed).ok().out)
    assert (status["round"], status["rounds"], status["model_sha256"]) == (2, 2, known)
    assert (status["agree"], status["finished"], status["federation"]) == (True, True, "heart")
    assert [s["site"] for s in status["sites"]] == list(SITES)
    for site in status["sites"]:
        assert (site["round"], site["model_sha256"], site["finished"]) == (2, known, True)
        assert site["pending_sums"] == []
    one = json.loads(call([*FEDHPC, "status", "run", "--site", "sites/va.toml", "--json"], cwd=fed).ok().out)
    assert one["sites"] == [status["sites"][-1]]

    call([*FEDHPC, "report", "run"], cwd=fed).ok()
    page = (fed / "run" / "report" / "report.html").read_text()
    assert f"model_sha256 after round 2</th><td><code>{known}</code>" in page
    assert "2 of 2: complete" in page

    exported = call([*FEDHPC, "export", "run", "model.safetensors"], cwd=fed).ok().out
    assert ": round 2, " in exported
    assert f"model_sha256 {known}\n" in exported
    with safe_open(fed / "model.safetensors", "numpy") as opened:
        header = opened.metadata()
    assert (header["model_sha256"], header["round"]) == (known, "2")
    assert "state" not in header
    tensors = load_file(fed / "model.safetensors")
    assert model_sha256({name: tensors[name] for name in json.loads(header["layout"])}) == known
