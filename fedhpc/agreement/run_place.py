"""Where a run is kept unless people say otherwise: a folder beside federation.toml, one for each epoch."""

from __future__ import annotations

from pathlib import Path

from fedhpc.agreement.agreement import Agreement


def run_place(federation: Path, agreement: Agreement, given: Path | None = None) -> Path:
    """`given`, or `run` beside the file `federation`; `run-3` in epoch 3, whose rounds begin anew."""
    if given is not None:
        return given
    epoch = agreement.federation.epoch
    return federation.parent / (f"run-{epoch}" if epoch else "run")
