"""When keys and kept sums of a site end: at the settled round, at its checkpoint, or with a clean leave."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from secure_fakes import key_of

from fedhpc.federation.party import Opened, SumKind, SumPlan
from fedhpc.federation.stages import Stages
from fedhpc.federation.vector import Vector
from fedhpc.ledger.journal import MemoryJournal
from fedhpc.secure.attempt_file import fresh_secrets
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.sums.over_relay.attempt_store import AttemptFiles
from fedhpc.sums.over_relay.finished_sums import FinishedSums
from fedhpc.sums.over_relay.retention import Retention

SALT = bytes(range(40))
PROOF = (b"{}",)


class Site:
    """The folders of one site, and what is in them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.journal = folder, MemoryJournal()
        self.files = AttemptFiles(folder / "attempts", self.journal)
        self.retention = Retention(self.files, FinishedSums(folder / "sums"))

    def masks(self, round_: int) -> None:
        """An attempt of the round, whose vector the ledger takes before it is masked."""
        self.begins(round_)
        self.journal.admit(LedgerEntry(round_, "x", key_of("input", round_), key_of("mark", round_), (1, 2, 3)))

    def begins(self, round_: int) -> None:
        attempt = fresh_secrets(key_of("config"), 1, b"m0", secrets.token_bytes)
        self.files.disk(round_).save(attempt.export_private())

    def settles(self, plan: SumPlan) -> None:
        vector = Vector(Layout([Tensor("x", "int64", (3,))]))
        opened = Opened(plan, key_of("tree"), Stages(), 0, 0, (1, 2, 3), SALT)
        self.retention.keep(opened, vector, key_of("mark"), PROOF)
        self.retention.settled(plan, SALT)

    def held(self, kind: str) -> list[str]:
        return sorted(p.name for p in (self.folder / kind).iterdir())


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def plan(round_: int, kind: SumKind = SumKind.STATISTIC, *, checkpointed: bool = False, skip: bool = False) -> SumPlan:
    return SumPlan(round_, "x", kind, key_of("state"), key_of("base"), checkpointed=checkpointed, skip=skip)


@pytest.mark.parametrize("kind", SumKind)
def test_without_a_checkpoint_keys_end_with_the_round_and_its_sum_is_kept(site: Site, kind: SumKind) -> None:
    """`fed.sum`, `fed.mean` and `fed.sync` leave no key behind, and a script that is killed asks again."""
    for round_ in (1, 2):
        site.masks(round_)
        site.settles(plan(round_, kind))
        assert site.held("attempts") == []
    proofs = ["round-1.proof", "round-2.proof"] if kind is SumKind.TRAINING else []
    assert site.held("sums") == sorted([*proofs, "round-1.sum", "round-2.sum"])
    site.retention.leave()
    assert site.held("attempts") == []


def test_with_a_checkpoint_keys_last_until_it_is_written(site: Site) -> None:
    """Without them a site that is killed before could not settle the round again."""
    site.masks(3)
    site.settles(plan(3, SumKind.TRAINING, checkpointed=True))
    assert site.held("attempts") == ["round-3.attempt", "round-3.key"]
    assert site.held("sums") == ["round-3.proof"]
    site.masks(4)
    site.settles(plan(4))  # nor by a statistic in between
    assert "round-3.key" in site.held("attempts")
    site.retention.covered(4, given=True)
    assert site.held("attempts") == []
    assert site.held("sums") == ["round-3.proof", "until"]
    site.masks(5)
    site.settles(plan(5))
    assert site.held("attempts") == []


def test_a_sum_that_may_be_skipped_says_nothing_of_the_salt(site: Site) -> None:
    """Some sites may hold it and others not, so they may not begin a model from it."""
    site.settles(plan(1))
    site.retention.settled(plan(2, skip=True), b"of the skipped sum")
    site.retention.covered(2, given=True)
    assert FinishedSums(site.folder / "sums").first().salt == SALT


def test_a_clean_leave_keeps_the_keys_of_a_vector_that_has_left(site: Site) -> None:
    site.masks(7)
    site.begins(8)
    site.retention.leave()
    assert site.held("attempts") == ["round-7.attempt", "round-7.key"]
