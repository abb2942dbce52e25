"""Which round a sum of a program that starts again belongs to."""

from __future__ import annotations

from typing import Any

from federation_fakes import Meeting
from secure_fakes import key_of

from fedhpc.federation.going_on import round_of
from fedhpc.federation.party import NO_BASE
from fedhpc.federation.session import Session
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.transcript import input_hash
from fedhpc.sums.over_relay.finished_sums import Reached

NAMES = {1: "patients", 2: "sum 2", 3: "after"}


def again(finished: int, **sections: Any) -> Session:
    """A site whose earlier process began three sums, and finished so many of them."""
    session = Meeting(4, **sections).session(1)
    assert session.party.journal is not None
    for round_, name in NAMES.items():
        entry = LedgerEntry(round_, name, input_hash(name, NO_BASE), key_of(name), ())
        session.party.journal.admit(entry)
    session.finished = Reached(finished, b"salt of the last")
    return session


def test_it_asks_again_from_the_first_one_on() -> None:
    session = again(2)
    for round_, name in NAMES.items():
        assert round_of(session, name) == round_
        assert (session.round_, session.last_salt) == (round_ - 1, b"")
        session.round_ = round_
    assert round_of(session, "new") == 4


def test_one_that_does_not_ask_again_goes_on_after_what_is_finished() -> None:
    """From the state after it, and with its S; a sum that was only begun is not finished."""
    session = again(3)
    assert round_of(session, "new") == 4
    assert (session.round_, session.last_salt) == (3, b"salt of the last")
    session = again(2)
    assert round_of(session, "after") == 3
    assert (session.round_, session.last_salt) == (0, b"")


def test_within_one_job_nothing_is_finished_by_others() -> None:
    assert round_of(again(0), "new") == 1  # which the ledger refuses
    plain = again(0, secure={"mode": "off"})
    plain.round_ = 7
    assert round_of(plain, "patients") == 8
