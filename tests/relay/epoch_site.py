"""`fedhpc run` of a site that freezes at a place: epoch_site.py "STEP WHEN ROUND" WORDS… (faults/relayed_site.py)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

import relayed_site

from fedhpc.cli import main

step, when, round_ = sys.argv[1].split()
relayed_site.place_fault(step, when, int(round_))
sys.argv[1:2] = []
main()
