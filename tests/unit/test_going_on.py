"""Which round a sum of a program that starts again belongs to."""

from __future__ import annotations

import dataclasses

import pytest
from federation_fakes import agreement_of, party_of
from secure_fakes import key_of

from fedhpc.federation.going_on import round_of
from fedhpc.federation.party import NO_BASE, Party
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.transcript import input_hash

NAMES = {1: "patients", 2: "sum 2", 3: "after"}


@pytest.fixture
def party() -> Party:
    """A site whose earlier process began three sums."""
    party = party_of(agreement_of(4), 1)
    assert party.journal is not None
    for round_, name in NAMES.items():
        entry = LedgerEntry(round_, name, input_hash(name, NO_BASE), key_of(name), ())
        party.journal.admit(entry)
    return party


def test_it_asks_again_from_the_first_one_on(party: Party) -> None:
    done = 0
    for round_, name in NAMES.items():
        assert round_of(party, name, done, finished=2) == (round_, done)
        done = round_
    assert round_of(party, "new", done, finished=2) == (4, 3)


def test_one_that_does_not_ask_again_goes_on_after_what_is_finished(party: Party) -> None:
    """Its state is that after the last finished sum; a sum that was only begun is not finished."""
    assert round_of(party, "new", 0, finished=3) == (4, 3)
    assert round_of(party, "after", 0, finished=2) == (3, 0)


def test_within_one_job_nothing_is_finished_by_others(party: Party) -> None:
    assert round_of(party, "new", 0, finished=0) == (1, 0)  # which the ledger refuses
    plain = dataclasses.replace(party, agreement=agreement_of(4, secure={"mode": "off"}))
    assert round_of(plain, "patients", 7, finished=0) == (8, 7)
