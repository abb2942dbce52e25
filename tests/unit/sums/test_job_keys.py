"""One key agreement for the sums of a job: when it is made anew, what is signed when, and that no refused sum leaks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from job_fakes import SITES, Carrier, Job, told, vector

from fedhpc.errors import ConfigError, DataError, FedhpcError, PolicyError
from fedhpc.federation.scales import PUBLIC
from fedhpc.federation.session import Session
from fedhpc.secure import ratchet
from fedhpc.secure.signed_state import refuse_unsigned
from fedhpc.secure.suite import SHA256
from fedhpc.sums.in_job.masked_sum import MpiSums

FIRST = ["ledger", "message", "message", "message", "lanes", "message"]
"""Keys, signatures, the word that all is checked; masked lanes; results."""
NEXT = ["ledger", "message", "message", "lanes", "message"]
"""MACs and the word that all is checked; masked lanes; results."""


def add(session: Session, number: int, name: str = "") -> None:
    """One statistic, which must come out right."""
    mine = vector(session, number)
    session.add(mine, session.statistic(name or f"sum {session.round_ + 1}"))
    assert mine.view("x").tolist() == [6] * 4


def refused_once(session: Session, number: int, name: str = "") -> str:
    """What a sum is refused with."""
    with pytest.raises(FedhpcError) as caught:
        add(session, number, name)
    return caught.value.what


def keys_of(session: Session) -> MpiSums:
    assert isinstance(session.sums, MpiSums)
    assert session.sums._keys is not None
    return session.sums


def end_keys(session: Session) -> None:
    """As if the site's process had started again."""
    found = keys_of(session)._keys
    assert found is not None
    found.end()


def in_another_process(session: Session) -> None:
    """As if the site's process were a fork of the one that made the keys."""
    found = keys_of(session)._keys
    assert found is not None
    found._process -= 1


def all_did(job: Job, work: Callable[[Session, int], None], expected: list[str]) -> None:
    assert job.run(work) == dict.fromkeys(job.noted)
    assert job.noted == dict.fromkeys(job.noted, expected)


def test_one_agreement_serves_many_sums() -> None:
    def work(session: Session, number: int) -> None:
        for _ in range(4):
            add(session, number)

    all_did(Job(), work, FIRST + 3 * NEXT)


def test_a_sparse_graph_of_masks() -> None:
    def work(session: Session, number: int) -> None:
        for _ in range(3):
            add(session, number)

    all_did(Job(degree=2), work, FIRST + 2 * NEXT)


def test_without_masks_there_are_no_keys() -> None:
    def work(session: Session, number: int) -> None:
        add(session, number)
        assert session.sums._keys is None  # type: ignore[attr-defined]
        assert session.sign_state() == ()
        session.close()

    all_did(Job(mode="off"), work, ["message", "lanes", "message", "leave refused=False"])


def test_a_key_agreement_lasts_for_so_many_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratchet, "MAX_SUMS", 3)

    def work(session: Session, number: int) -> None:
        for _ in range(7):
            add(session, number)

    all_did(Job(), work, FIRST + 2 * NEXT + FIRST + 2 * NEXT + FIRST)


@pytest.mark.parametrize("who", [[2], [1, 3], [1, 2, 3]])
@pytest.mark.parametrize("lose", [end_keys, in_another_process])
def test_where_one_site_has_no_keys_all_make_new_ones(who: list[int], lose: Callable[[Session], None]) -> None:
    def work(session: Session, number: int) -> None:
        add(session, number)
        if number in who:
            lose(session)
        add(session, number)
        add(session, number)

    again = ["ledger", "message", *FIRST[1:]] if len(who) < SITES else FIRST
    all_did(Job(), work, FIRST + again + NEXT)


# --- a refused sum


def altered(site: int, count: int, sender: int) -> Carrier:
    """A carrier that changes a byte of one message on its way to `site`, the `count`-th it is given."""

    def carrier(number: int, now: int, said: list[bytes]) -> list[bytes]:
        if (number, now) == (site, count):
            message = said[sender - 1]
            said[sender - 1] = message[:45] + bytes([message[45] ^ 1]) + message[46:]
        return said

    return carrier


@pytest.mark.parametrize("count", [2, 5])
def test_a_mac_or_signature_that_does_not_hold_refuses_the_sum_at_all_sites(count: int) -> None:
    """Message 2 is a signature of the first sum, 5 a MAC of the second: no site masks a lane. New keys follow."""
    whats: dict[int, str] = {}

    def work(session: Session, number: int) -> None:
        if count == 5:
            add(session, number)
        whats[number] = refused_once(session, number, "the one")
        add(session, number, "the one")
        add(session, number)

    job = Job(altered(1, count, 3))
    assert job.run(work) == dict.fromkeys(job.noted)
    assert "s3" in whats[1]
    if count == 5:
        assert whats[1].startswith("the proposal MAC of site s3 for sum 2")
        assert [whats[u] for u in (2, 3)] == ["site s1 refused sum 2 of this key agreement"] * 2
        before, refusal = FIRST, ["ledger", "message", "message"]
    else:
        before, refusal = [], ["ledger", "message", "message", "message"]
    assert job.noted == dict.fromkeys(job.noted, before + refusal + FIRST + NEXT)


def test_other_proposals_are_named_and_end_the_keys() -> None:
    whats: dict[int, str] = {}

    def work(session: Session, number: int) -> None:
        add(session, number)
        whats[number] = refused_once(session, number, "mean age" if number == 2 else "mean height")
        session.round_ += 1  # each ledger has a name of its own for that round
        add(session, number)

    all_did(Job(), work, [*FIRST, "ledger", "message", "message", *FIRST])
    assert "site s2 proposes another purpose" in whats[1]
    assert "mean height here, mean age there" in whats[1]
    assert "site s1 proposes another purpose" in whats[2]


def test_a_result_that_was_altered_on_its_way_is_found_before_the_next_sum_is_masked() -> None:
    """The carrier gives site 1 what site 1 wants to hear; the MACs of the next sum cover what site 3 has."""
    whats: dict[int, str] = {}

    def carrier(number: int, now: int, said: list[bytes]) -> list[bytes]:
        if now == 4:
            said = [said[number - 1]] * SITES
        return said

    def work(session: Session, number: int) -> None:
        opened = session.open(vector(session, number), session.statistic("first"))
        if number == 3:
            opened.sum_tree = SHA256.tree(b"other")
        session.settle(opened, session.tensors_tree)
        whats[number] = refused_once(session, number, "second")
        add(session, number, "second")

    job = Job(carrier)
    assert job.run(work) == dict.fromkeys(job.noted)
    assert all("proposal MAC of site s3 for sum 2" in whats[u] for u in (1, 2))
    assert "proposal MAC of site s1 for sum 2" in whats[3]
    assert job.noted == {u: [*FIRST, "ledger", "message", "message", *FIRST] for u in job.noted}


def test_sites_that_hold_different_results_make_new_keys_for_the_next_sum() -> None:
    def work(session: Session, number: int) -> None:
        opened = session.open(vector(session, number), session.statistic("first"))
        if number == 3:
            opened.sum_tree = bytes(32)
        with pytest.raises(DataError, match="another sum"):
            session.settle(opened, session.tensors_tree)
        add(session, number, "first")

    all_did(Job(), work, FIRST + FIRST)


def test_the_ledger_refuses_before_anything_is_proposed() -> None:
    """Another vector in a round that was begun, with the keys at hand: nothing is sent, and the keys stay good."""

    def work(session: Session, number: int) -> None:
        add(session, number)
        session.round_ -= 1
        other = vector(session, number)
        other.fill({"x": np.full(4, 7)})
        with pytest.raises(PolicyError, match="another vector"):
            session.add(other, session.statistic("sum 1"))
        session.round_ += 1
        add(session, number)

    all_did(Job(), work, [*FIRST, "ledger", *NEXT])


# --- what is signed


def test_a_checkpoint_is_signed_and_ends_the_keys() -> None:
    signed: dict[int, tuple[bytes, ...]] = {}

    def work(session: Session, number: int) -> None:
        assert session.sign_state() == ()
        add(session, number)
        add(session, number)
        session.tensors_tree = SHA256.tree(b"a model that is made of the sums")
        signed[number] = session.sign_state()
        refuse_unsigned(signed[number], session.party.members, session.state)
        assert session.sign_state() == signed[number], "once"
        add(session, number)

    all_did(Job(), work, [*FIRST, *NEXT, "message", *FIRST])
    assert len(signed[1]) == SITES
    assert len(set(signed.values())) == 1


@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_training_sum_is_signed_where_it_goes_into_a_checkpoint(checkpointed: bool) -> None:
    def work(session: Session, number: int) -> None:
        plan = session.training(session.state, {}, PUBLIC, checkpointed=checkpointed)
        opened = session.open(vector(session, number), plan)
        session.settle(opened, SHA256.tree(b"the next model"))
        signed = session.sign_state()
        refuse_unsigned(signed, session.party.members, session.state)

    all_did(Job(), work, FIRST if checkpointed else [*FIRST, "message"])


def test_a_state_that_one_site_does_not_share_is_not_kept() -> None:
    def work(session: Session, number: int) -> None:
        add(session, number)
        session.tensors_tree = SHA256.tree(b"mine" if number == 2 else b"ours")
        session.sign_state()

    errors = Job().run(work)
    assert len(told(errors)) == SITES
    assert all("has another state" in what for what in told(errors))


def test_what_a_script_has_saved_is_signed() -> None:
    def work(session: Session, number: int) -> None:
        add(session, number)
        session.forget()
        session.forget()
        add(session, number)

    all_did(Job(), work, [*FIRST, "message", *FIRST])


@pytest.mark.parametrize("honest", [True, False])
def test_the_end_is_signed(honest: bool) -> None:
    def work(session: Session, number: int) -> None:
        add(session, number)
        opened = session.open(vector(session, number), session.statistic("last"))
        assert isinstance(session.sums, MpiSums)
        keys = session.sums._keys
        assert keys is not None
        # The carrier lets all believe that they agree.
        keys.settled(session.state, SHA256.tree(b"other") if number == 3 and not honest else opened.sum_tree)
        try:
            session.close()
        finally:
            assert keys.last_word() == b""
            with pytest.raises(ConfigError, match="closed"):
                session.statistic("another")

    job = Job()
    errors = job.run(work)
    if honest:
        assert errors == dict.fromkeys(job.noted)
    else:
        assert len(told(errors)) == SITES
        assert all("has another sum" in what for what in told(errors))
