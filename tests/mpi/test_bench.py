"""`fedhpc bench` starts its own ranks and checks what it measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import FEDHPC, ROOT, call, mpirun

from fedhpc.data.tokens import write_tokens

TINY = {"vocabulary": 50, "tokenizer_sha256": "0" * 64, "context": 16, "width": 16, "layers": 2, "heads": 2}


@pytest.mark.mpi
def test_a_sum_over_sites_of_different_sizes() -> None:
    words = ["bench", "sum", "--ranks", "1,2", "--params", "600000", "--repeat", "1", "--json"]
    result = json.loads(call([*FEDHPC, *words], timeout=60).ok().out)
    assert result["verified"] is True
    assert (result["ranks"], result["rails"]) == ([1, 2], [1, 2])
    assert result["sum_uneven_over_even"] == pytest.approx(result["masked_s"] / result["even_masked_s"])


def backend(folder: Path, job: int, **case: Any) -> dict[str, Any]:
    """What `fedhpc bench backends` measures of a tiny model; `job`: ranks of the job."""
    store = folder / "tokens.h5"
    if not store.exists():
        texts = np.random.default_rng(1).integers(0, 50, (20, 17))
        write_tokens(store, iter(texts), vocabulary=50, tokenizer_sha256="0" * 64)
    text = json.dumps({"store": str(store), "options": TINY, "steps": 1} | case)
    done = mpirun(job, [ROOT / "fedhpc" / "bench" / "backend_ranks.py", text], timeout=100, warm=True).ok()
    found: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    return found


@pytest.mark.mpi
def test_memory_and_moves_of_a_backend(tmp_path: Path) -> None:
    serial = backend(tmp_path, 2, backend="serial", ranks=1, windows=1, alternations=0)
    found = backend(tmp_path, 3, backend="fsdp", ranks=2, windows=1, alternations=0)  # beside what the first one wrote
    assert serial["model_bytes"] == found["model_bytes"]
    block = 4 * 16 + 16 * 48 + 48 + 16 * 16 + 16 + 16 * 64 + 64 + 64 * 16 + 16
    assert found["model_bytes"] == 4 * (50 * 16 + 16 * 16 + 2 * block + 2 * 16)
    assert found["largest_tensor_over_v"] == 4 * 16 * 64 / found["model_bytes"]
    assert math.isfinite(found["loss"])
    assert len(found["model_sha256"]) == 64
    assert min(found["moves_s"], found["step_s"], found["bytes_up"]) > 0


@pytest.mark.mpi
def test_speed_of_a_backend(tmp_path: Path) -> None:
    found = backend(tmp_path, 1, backend="serial", ranks=1, windows=2, alternations=1)
    ours, plain = found["samples_per_cpu_s"], found["plain_samples_per_cpu_s"]
    assert found["speed_over_plain"] == pytest.approx(ours / plain)
