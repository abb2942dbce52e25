"""Runs federations as training_ranks.py does, one JSON line from every rank: [case, rank's site, imported torch].

numpy_ranks.py DIRECTORY…           each with federation.toml and sites/, all for this number of ranks
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from fedhpc.app.run import run_federation

for directory in map(Path, sys.argv[1:]):
    ran = run_federation(directory / "federation.toml", sites=directory / "sites", site=None, out=None)
    tensors = ran.outcome.model.whole()
    if ran.first:
        np.savez(directory / "final.npz", **tensors)
        (directory / "metrics.json").write_text(json.dumps(ran.outcome.metrics))
    sys.stdout.write(json.dumps([directory.name, "torch" in sys.modules]) + "\n")
