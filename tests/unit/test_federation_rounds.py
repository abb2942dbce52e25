"""The main loop's refusals before anything is exchanged. The loop itself is tested under mpirun and by kills."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fedhpc.errors import PolicyError
from fedhpc.federation.interfaces import Checkpoint
from fedhpc.federation.rounds import _require_ledger
from fedhpc.secure.ledger import LedgerEntry, RoundLedger


def federation(rounds: int, *, masked: bool = True) -> Any:
    entries = [LedgerEntry(r, f"sum {r}", bytes([r] * 32), bytes(32), (1, 2, 3)) for r in range(1, rounds + 1)]
    journal = SimpleNamespace(ledger=RoundLedger(entries))
    return SimpleNamespace(party=SimpleNamespace(name="bern", masked=masked, journal=journal))


def checkpoint(sums: int) -> Checkpoint:
    return Checkpoint(round_=1, sums=sums, config=bytes(32), tensors={})


def test_a_ledger_that_lost_its_end_is_refused() -> None:
    with pytest.raises(PolicyError, match="site bern ends at round 4, its checkpoint is from round 5") as refused:
        _require_ledger(federation(4), checkpoint(5))
    assert refused.value.exit_code == 77
    with pytest.raises(PolicyError, match="ends at round 0"):
        _require_ledger(federation(0), checkpoint(1))


def test_a_ledger_at_or_past_the_checkpoint_goes_on() -> None:
    _require_ledger(federation(5), checkpoint(5))
    _require_ledger(federation(7), checkpoint(5))  # killed after sums, before the next checkpoint
    _require_ledger(federation(0, masked=False), checkpoint(5))  # nothing is hidden, so no ledger is kept
