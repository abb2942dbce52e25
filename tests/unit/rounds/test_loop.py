"""What the main loop tells of its rounds, and its refusals before anything is exchanged.

The loop itself is tested in test_lives_of_a_loop.py, under mpirun and by kills.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from federation_fakes import Meeting
from loop_fakes import Store, Trainer
from secure_fakes import Sites, begin_sum, key_of, proposal_of
from typing_extensions import override

from fedhpc.errors import PolicyError
from fedhpc.federation.checkpoint import Checkpoint
from fedhpc.federation.session import Session
from fedhpc.federation.stages import Stages
from fedhpc.rounds.beginning import Beginning, _refuse_unsigned, _require_ledger
from fedhpc.rounds.loop import Run
from fedhpc.rounds.null_objects import Endless, NoOutbox
from fedhpc.rounds.progress import Progress
from fedhpc.secure.ledger import LedgerEntry, RoundLedger
from fedhpc.sums.unconnected import NeverAway


def ledger(rounds: int, *more: int) -> RoundLedger:
    numbers = [*range(1, rounds + 1), *more]
    return RoundLedger([LedgerEntry(r, f"sum {r}", bytes([r] * 32), bytes(32), (1, 2, 3)) for r in numbers])


def federation(rounds: int, *more: int, masked: bool = True) -> Any:
    journal = SimpleNamespace(ledger=ledger(rounds, *more))
    return SimpleNamespace(party=SimpleNamespace(name="bern", masked=masked, journal=journal))


def checkpoint(sums: int, summed: int | None = None) -> Checkpoint:
    """After `sums` masked sums; in the first `summed` of them this site was."""
    head = ledger(sums if summed is None else summed).head
    return Checkpoint(round_=1, sums=sums, config=bytes(32), tensors={}, ledger=head)


def test_a_ledger_that_lost_its_end_is_refused() -> None:
    with pytest.raises(PolicyError, match="site bern ends at round 4, its checkpoint is from round 5") as refused:
        _require_ledger(federation(4), checkpoint(5))
    assert refused.value.exit_code == 77
    with pytest.raises(PolicyError, match="ends at round 0"):
        _require_ledger(federation(0), checkpoint(1))
    with pytest.raises(PolicyError, match="lines between them are lost"):
        _require_ledger(federation(4, 6), checkpoint(5))


def test_a_ledger_at_or_past_the_checkpoint_goes_on() -> None:
    _require_ledger(federation(5), checkpoint(5))
    _require_ledger(federation(7), checkpoint(5))  # killed after sums, before the next checkpoint
    _require_ledger(federation(0, masked=False), checkpoint(5))  # nothing is hidden, so no ledger is kept


def test_a_site_that_caught_up_and_was_stopped_before_its_next_sum_goes_on() -> None:
    """Sums 4 to 9 were the others': this site took their result, and nothing of them stands in its ledger."""
    _require_ledger(federation(3), checkpoint(9, summed=3))
    with pytest.raises(PolicyError, match="ends at round 2, its checkpoint is from round 9"):
        _require_ledger(federation(2), checkpoint(9, summed=3))
    _require_ledger(federation(0), checkpoint(9, summed=0))


def signed_checkpoint(state: bytes, signers: int = 3, **changes: Any) -> tuple[Any, Checkpoint]:
    """(a session in `state`, its checkpoint) of a federation in one job, after one sum that all signed."""
    sites = Sites(3)
    ratchets = sites.ratchets()
    begin_sum(ratchets, proposal_of(3).to_bytes())
    for ratchet in ratchets:
        ratchet.settled(key_of("state"), key_of("sum"))
    party = SimpleNamespace(name="site-1", masked=True, members=sites.roster)
    kept = Checkpoint(1, 1, bytes(32), {}, exchange="mpi", signed=tuple(r.sign_result() for r in ratchets[:signers]))
    return SimpleNamespace(party=party, state=state), dataclasses.replace(kept, **changes)


def test_a_checkpoint_of_one_job_is_resumed_with_the_signatures_of_all_sites_over_its_state() -> None:
    _refuse_unsigned(*signed_checkpoint(key_of("state")))
    for session, kept in [
        signed_checkpoint(key_of("altered")),
        signed_checkpoint(key_of("state"), 2),
        signed_checkpoint(key_of("state"), 0),
    ]:
        with pytest.raises(PolicyError, match="the checkpoint of site site-1 of round 1 is not proven") as refused:
            _refuse_unsigned(session, kept)
        assert refused.value.exit_code == 77


def test_what_was_summed_over_a_relay_or_not_at_all_needs_no_signatures_in_its_checkpoint() -> None:
    _refuse_unsigned(*signed_checkpoint(key_of("state"), 0, exchange="https"))
    _refuse_unsigned(*signed_checkpoint(key_of("state"), 0, sums=0))
    session, kept = signed_checkpoint(key_of("state"), 0)
    session.party.masked = False
    _refuse_unsigned(session, kept)


class Told:
    """A Reporter that remembers."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def round_done(self, record: Mapping[str, Any]) -> None:
        self.records.append(dict(record))

    def note(self, text: str) -> None:
        """Nothing to remember."""


def resumed(held: int, of: Sequence[int], *, lost: int = 0) -> tuple[Progress, Store]:
    """A site of a job that has checkpoints `of` these rounds, where all have that of round `held`."""
    session, trainer, store = Meeting(3).session(1), Trainer(1), Store()
    assert session.party.journal is not None

    class Common(NeverAway):
        @override
        def common_round(self, held_here: list[int]) -> int | None:
            assert held_here == list(of)
            return held

    session.recovery = Common()
    head = ledger(lost).head if lost else session.party.journal.ledger.head
    for round_ in of:
        kept = Checkpoint(round_=round_, sums=2 * round_, config=session.agreement.hash, tensors=trainer.tensors())
        private = trainer.private()
        store.save(dataclasses.replace(kept, ledger=head, blind=bytes([round_] * 32), private=private))
    beginning = Beginning(session, trainer, store, Told(), NoOutbox(), Endless(), ())
    return beginning.begin(lambda: None, lambda: None)[0], store


def test_a_run_goes_on_from_the_round_that_all_have_and_forgets_later_ones() -> None:
    progress, store = resumed(1, [1, 2])
    assert (progress.model.rounds, progress.model.reached, progress.model.blind) == (1, 2, bytes([1] * 32))
    assert store.rounds() == [1]


def test_a_run_does_not_go_on_with_a_ledger_that_lost_its_end() -> None:
    with pytest.raises(PolicyError, match="lines between them are lost"):
        resumed(1, [1], lost=2)


def test_the_record_of_a_round_has_its_facts_in_this_order() -> None:
    """metrics.jsonl is written in the order of the record."""
    told = {u: Told() for u in (1, 2, 3)}

    def work(session: Session) -> str:
        number = session.party.number
        return Run(session, Trainer(number), Store(), told[number]).run().model.sha256()

    (sha256,) = set(Meeting(3, rounds=2, secure={"mode": "off"}).run(work).values())
    for number, reporter in told.items():
        first, second, final = reporter.records
        for record, round_ in ((first, 1), (second, 2)):
            assert list(record) == [
                *("round", "rounds", "metrics", "train_loss", "samples", "own_metrics"),
                *("seconds", "bytes_up", "bytes_down"),
                *("sites", "state", "model_sha256"),
            ]  # fmt: skip
            assert (record["round"], record["rounds"]) == (round_, 2)
            assert (record["train_loss"], record["samples"]) == (0.5, 7 + number)
            assert record["own_metrics"].keys() == record["metrics"].keys() == {"total"}
            assert list(record["seconds"]) == [
                *("train", "evaluate", "exchange", "checkpoint", "total"),
                *vars(Stages()),
            ]
        assert list(final) == ["round", "rounds", "final", "metrics", "own_metrics", "sites", "state", "model_sha256"]
        assert (final["final"], final["model_sha256"], second["model_sha256"]) == (True, sha256, sha256)
        assert final["sites"] == ["s1", "s2", "s3"]
