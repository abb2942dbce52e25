"""Runs many federations in one job for test_training.py: one JSON line {case: final hash} from rank 0.

training_ranks.py DIRECTORY…        each with federation.toml and sites/, all for this number of ranks
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from fedhpc.app.run import run_federation

for directory in map(Path, sys.argv[1:]):
    ran = run_federation(directory / "federation.toml", sites=directory / "sites", site=None, out=None)
    model = ran.outcome.model
    tensors = model.whole()
    if ran.first:
        np.savez(directory / "final.npz", **tensors)
        digest = hashlib.sha256(b"".join(t.tobytes() for t in tensors.values())).hexdigest()
        assert digest == ran.model_sha256
        print(json.dumps([directory.name, ran.model_sha256, ran.outcome.started_at, ran.outcome.metrics]), flush=True)
