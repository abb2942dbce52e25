"""Many sums with the keys of one agreement: masks cancel, every step has keys of its own, and what is wrong ends it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_fakes import Sites, begin_sum, key_of, proposal_of, random_bytes

from fedhpc.errors import InternalError, PolicyError
from fedhpc.secure import ratchet as module
from fedhpc.secure.ledger import LedgerEntry, OtherVectorError, RoundLedger
from fedhpc.secure.masks import Masks
from fedhpc.secure.pairwise import PairwiseAttempt
from fedhpc.secure.ratchet import MAX_SUMS, Ratchet
from fedhpc.secure.signed_state import refuse_unsigned
from fedhpc.secure.transcript import canon, parse_canon, sign_message

STATE, SUM = key_of("next"), key_of("tree")


def m0_of(sum_: int, **changes: object) -> bytes:
    return proposal_of(3, round_=sum_, **changes).to_bytes()


def refused(match: str) -> Any:
    return pytest.raises(PolicyError, match=match)


def settle(ratchets: Sequence[Ratchet], state: bytes = STATE, sum_tree: bytes = SUM) -> None:
    for r in ratchets:
        r.settled(state, sum_tree)


def after(sums: int, sites: Sites | None = None) -> list[Ratchet]:
    """Three sites with `sums` sums behind them."""
    sites = sites or Sites(3)
    ratchets = sites.ratchets(proposal_of(3, round_=1))
    for i in range(1, sums + 1):
        begin_sum(ratchets, m0_of(i))
        settle(ratchets)
    return ratchets


def ended(ratchet: Ratchet) -> None:
    """It takes no part in another sum, signs nothing, and its keys are overwritten."""
    assert not ratchet.usable
    assert not ratchet.settled_result
    calls: list[Callable[[], object]] = [
        lambda: ratchet.propose(m0_of(9)), ratchet.edges, ratchet.sign_result, lambda: ratchet.receive_ready([b""] * 3),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InternalError):
            call()
    assert {bytes(chain) for chain in ratchet._chains.values()} == {bytes(32)}


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 9), st.sampled_from([0, 2, 4, 6]), st.sampled_from([32, 64]))
def test_whole_sums(count: int, degree: int, bits: int) -> None:
    ratchets = Sites(count, degree, fixed=False).ratchets()
    partners = count - 1 if degree == 0 or degree >= count - 1 else degree
    seen: set[bytes] = set()
    for i in range(1, 4):
        edges = begin_sum(ratchets, proposal_of(count, round_=i).to_bytes())
        assert all(len(e) == partners for e in edges)
        held: dict[bytes, list[int]] = {}
        for key, sign in (pair for e in edges for pair in e):
            held.setdefault(key, []).append(sign)
        assert all(sorted(signs) == [-1, 1] for signs in held.values())
        assert len(held) == count * partners // 2
        assert not seen & held.keys(), "a mask key of one sum in another"
        seen |= held.keys()
        plain = [random_bytes(8 * 50, u).view(f"<u{bits // 8}") for u in range(count)]
        total = np.add.reduce(plain, dtype=plain[0].dtype)
        summed = np.zeros_like(total)
        for e, values in zip(edges, plain, strict=True):
            Masks(e).add(values, 32)
            summed += values
        assert (summed == total).all()
        settle(ratchets)
    results = [r.sign_result() for r in ratchets]
    for r in ratchets:
        r.receive_results(results)


def test_the_lower_site_adds_and_the_higher_subtracts() -> None:
    signs = [[sign for _, sign in e] for e in Sites(3).summing()]
    assert signs == [[1, 1], [-1, 1], [-1, -1]]


def test_no_lane_is_masked_before_all_sites_said_so() -> None:
    ratchets = after(1)
    proposals = [r.propose(m0_of(2)) for r in ratchets]
    ready = [r.receive_proposals(proposals) for r in ratchets]
    late = copy.deepcopy([vars(r)["_chains"] for r in ratchets])
    with pytest.raises(InternalError):
        ratchets[0].edges()
    ended(ratchets[0])
    with refused("ready MAC of site site-3"):
        ratchets[1].receive_ready([ready[0], ready[1], ready[2][:-1]])
    ended(ratchets[1])
    ratchets[2].receive_ready(ready)
    assert vars(ratchets[2])["_chains"] == late[2], "the index is burnt when keys are handed out"
    assert ratchets[2].edges()
    assert not any(vars(ratchets[2])["_chains"][u] == late[2][u] for u in (1, 2))


def test_the_index_is_burnt_before_the_masks() -> None:
    ratchets = after(1)
    first = begin_sum(ratchets, m0_of(2))
    assert [r.index for r in ratchets] == [3] * 3
    for r in ratchets:
        with pytest.raises(InternalError):
            r.edges()
        ended(r)
    assert first[0]


def test_first_is_for_the_first_sum_and_macs_for_the_others() -> None:
    fresh, old = Sites(3).ratchets()[0], after(1)[0]
    with pytest.raises(InternalError):
        fresh.propose(m0_of(1))
    with pytest.raises(InternalError):
        old.first(m0_of(2))
    ended(fresh)
    ended(old)


# --- attacks


@pytest.mark.parametrize("step", ["propose", "ready"])
@pytest.mark.parametrize("sum_", [2, 3])
def test_macs_replayed_from_an_earlier_sum(step: str, sum_: int) -> None:
    """The same proposal twice: only the index and the head tell the sums apart."""
    ratchets = after(1)
    same = m0_of(1)
    old = [r.propose(same) for r in ratchets]
    old_ready = [r.receive_proposals(old) for r in ratchets]
    for r in ratchets:
        r.receive_ready(old_ready)
        r.edges()
    settle(ratchets)
    for _ in range(sum_ - 2):
        begin_sum(ratchets, same)
        settle(ratchets)
    proposals = [r.propose(same) for r in ratchets]
    me = ratchets[0]
    if step == "propose":
        with refused("proposal MAC of site site-2"):
            me.receive_proposals([proposals[0], old[1], proposals[2]])
    else:
        me.receive_proposals(proposals)
        with refused("ready MAC of site site-2"):
            me.receive_ready([b"", old_ready[1], b""])
    ended(me)


def test_macs_replayed_from_another_agreement() -> None:
    """The same sites, proposals and results: another agreement has other keys, even from the same first proposal."""
    others, mine = after(2, Sites(3, salt="other")), after(2)
    replayed = [r.propose(m0_of(3)) for r in others]
    proposals = [r.propose(m0_of(3)) for r in mine]
    assert replayed[0][:32] == proposals[0][:32]
    with refused("proposal MAC of site site-2"):
        mine[0].receive_proposals([proposals[0], replayed[1], proposals[2]])
    ended(mine[0])


def test_a_site_that_starts_again_has_no_key_of_the_others() -> None:
    """It can only take part in a new agreement; what it makes up for the old one does not hold."""
    ratchets = after(2)
    again = Sites(3, salt="again").ratchets()[1]
    made_up = Ratchet(2, Sites(3).identities[1], Sites(3).roster, ratchets[1]._t2, {1: bytes(32), 3: bytes(32)})
    for impostor in (again, made_up):
        impostor.index, impostor.head = ratchets[1].index, ratchets[1].head
        impostor._last = ratchets[1]._last
    proposals = [r.propose(m0_of(3)) for r in ratchets]
    for impostor in (again, made_up):
        mine = copy.copy(ratchets[0])
        mine._chains = {u: bytearray(chain) for u, chain in mine._chains.items()}
        with refused("proposal MAC of site site-2"):
            mine.receive_proposals([proposals[0], impostor.propose(m0_of(3)), proposals[2]])


@pytest.mark.parametrize("step", ["propose", "ready"])
def test_the_mac_of_another_site(step: str) -> None:
    """Site 3's MAC in the name of site 2, one's own sent back, and one that was meant for another site."""

    def swapped(messages: list[bytes], skip: int) -> list[list[bytes]]:
        mine, his, third = messages
        meant_for_third = his[:skip] + his[skip + 32 :] + his[skip : skip + 32]
        return [[mine, third, his], [mine, mine, third], [mine, meant_for_third, third]]

    for case in range(3):
        ratchets = after(1)
        proposals = [r.propose(m0_of(2)) for r in ratchets]
        me = ratchets[0]
        if step == "propose":
            with refused("proposal MAC of site site-"):
                me.receive_proposals(swapped(proposals, 32)[case])
        else:
            ready = [r.receive_proposals(proposals) for r in ratchets]
            with refused("ready MAC of site site-"):
                me.receive_ready(swapped(ready, 0)[case])
        ended(me)


def test_a_proposal_does_not_stand_for_the_word_that_all_is_checked() -> None:
    ratchets = after(1)
    proposals = [r.propose(m0_of(2)) for r in ratchets]
    ratchets[0].receive_proposals(proposals)
    with refused("ready MAC of site site-2"):
        ratchets[0].receive_ready([p[32:] for p in proposals])
    ended(ratchets[0])


@pytest.mark.parametrize("what", ["state", "sum"])
def test_another_result_of_the_sum_before_is_found_by_the_next(what: str) -> None:
    """Whoever carries M6 lets two sites believe that they agree: the next sum's MACs do not hold, and nothing opens."""
    ratchets = Sites(3).ratchets(proposal_of(3, round_=1))
    begin_sum(ratchets, m0_of(1))
    settle(ratchets[:2])
    ratchets[2].settled(*(key_of("other"), SUM) if what == "state" else (STATE, key_of("other")))
    proposals = [r.propose(m0_of(2)) for r in ratchets]
    assert len({p[:32] for p in proposals}) == 1
    for r in ratchets[:2]:
        with refused("proposal MAC of site site-3 for sum 2"):
            r.receive_proposals(proposals)
        ended(r)
    with refused("proposal MAC of site site-1 for sum 2"):
        ratchets[2].receive_proposals(proposals)


def test_another_result_before_the_end_is_found_by_the_signatures() -> None:
    ratchets = after(1)
    begin_sum(ratchets, m0_of(2))
    settle(ratchets[:2])
    ratchets[2].settled(STATE, key_of("other"))
    said = [r.sign_result() for r in ratchets]
    with refused("site site-3 has another sum after this round"):
        ratchets[0].receive_results(said)


def test_another_proposal_has_another_head_and_no_mac_holds() -> None:
    """An exchange that forges T0 in front of the MACs only moves the refusal."""
    ratchets = after(1)
    mine = [
        ratchets[0].propose(m0_of(2)),
        ratchets[1].propose(m0_of(2, purpose="weights")),
        ratchets[2].propose(m0_of(2)),
    ]
    forged = [mine[0][:32] + message[32:] for message in mine]
    with refused("proposal MAC of site site-2"):
        ratchets[0].receive_proposals(forged)
    ended(ratchets[0])


def test_sites_with_other_proposals_share_no_mask() -> None:
    """Forced, as if nothing were checked: the edge key has the head in it."""
    ratchets = after(1)
    for r, purpose in zip(ratchets, ("train", "weights", "train"), strict=True):
        r.propose(m0_of(2, purpose=purpose))
        r._stage = module._Stage.READY
    edges = [{key for key, _ in r.edges()} for r in ratchets]
    assert not edges[0] & edges[1]
    assert len(edges[0] & edges[2]) == 1


def test_nobody_skips_ahead() -> None:
    """A site that is a step further than the others, whatever brought it there."""
    ratchets = after(2)
    ratchets[1].index += 1
    proposals = [r.propose(m0_of(3)) for r in ratchets]
    with refused("proposal MAC of site site-2 for sum 3"):
        ratchets[0].receive_proposals(proposals)
    ended(ratchets[0])


def test_a_key_agreement_ends_after_its_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SUMS", 4)
    assert MAX_SUMS == 1000
    ratchets = after(3)
    assert all(r.usable for r in ratchets)
    begin_sum(ratchets, m0_of(4))
    settle(ratchets)
    assert not any(r.usable for r in ratchets)
    assert all(r.settled_result for r in ratchets), "what it summed is still to be signed"
    with pytest.raises(InternalError, match="cannot begin"):
        ratchets[0].propose(m0_of(5))


@pytest.mark.parametrize("at", ["proposed", "checked", "ready", "summing"])
def test_a_sum_that_does_not_end_well_ends_the_keys(at: str) -> None:
    ratchets = after(1)
    me = ratchets[0]
    proposals = [r.propose(m0_of(2)) for r in ratchets]
    if at != "proposed":
        ready = [r.receive_proposals(proposals) for r in ratchets]
        if at != "checked":
            me.receive_ready(ready)
            if at == "summing":
                me.edges()
    assert not me.usable
    assert not me.settled_result
    with pytest.raises(InternalError):
        me.propose(m0_of(3))
    ended(me)


def test_the_others_are_told_that_a_site_refuses() -> None:
    ratchets = after(1)
    proposals = [r.propose(m0_of(2)) for r in ratchets]
    ready = [r.receive_proposals(proposals) for r in ratchets]
    with refused("site site-3 refused sum 2"):
        ratchets[0].receive_ready([ready[0], ready[1], b""])
    ended(ratchets[0])


@pytest.mark.parametrize("flaw", [b"", b"x", bytes(96), bytes(32 + 64 + 1), bytes(1 << 20)])
def test_malformed_messages_are_named(flaw: bytes) -> None:
    for step in ("propose", "ready"):
        ratchets = after(1)
        proposals = [r.propose(m0_of(2)) for r in ratchets]
        me = ratchets[0]
        with refused("site site-2"):
            if step == "propose":
                me.receive_proposals([proposals[0], flaw, proposals[2]])
            else:
                ready = [r.receive_proposals(proposals) for r in ratchets]
                me.receive_ready([ready[0], flaw, ready[2]])
        ended(me)


def test_a_process_image_that_is_put_back_repeats_keys_and_the_ledger_refuses_another_vector() -> None:
    """What CRIU or a snapshot of a machine brings back has an old index: the keys are those of that sum, no others.

    With the same vector nothing new is shown. Another one in that round is refused before anything is proposed.
    """
    ratchets = after(1)
    images = copy.deepcopy(
        [{n: v for n, v in vars(r).items() if n in ("_chains", "index", "head", "_last")} for r in ratchets]
    )
    ledger = RoundLedger()
    entry = LedgerEntry(2, "train", key_of("input"), key_of("vector"), (1, 2, 3))
    assert ledger.check(entry)
    ledger.add(entry)
    first = begin_sum(ratchets, m0_of(2))
    for r, image in zip(ratchets, images, strict=True):
        vars(r).update(image)
        r._stage = module._Stage.IDLE
    assert begin_sum(ratchets, m0_of(2)) == first, "the danger is real"
    assert not ledger.check(entry)  # the same vector again
    with pytest.raises(OtherVectorError):
        ledger.check(LedgerEntry(2, "train", key_of("input"), key_of("other vector"), (1, 2, 3)))


def test_old_keys_are_overwritten() -> None:
    ratchets = after(1)
    buffers = [chain for r in ratchets for chain in r._chains.values()]
    before = [bytes(chain) for chain in buffers]
    begin_sum(ratchets, m0_of(2))
    assert not {bytes(chain) for chain in buffers} & set(before)
    for r in ratchets:
        r.wipe()
    assert {bytes(chain) for chain in buffers} == {bytes(32)}


# --- M6


def flaws_of(sites: Sites, ratchets: list[Ratchet], attempt: PairwiseAttempt) -> list[tuple[bytes, str]]:
    me, him = ratchets[0], sites.identities[1]
    good = ratchets[1].sign_result()
    body = parse_canon(good)["body"]

    def signed(name: str = "M6", key: Any = him, t: bytes = me.head, **changes: Any) -> bytes:
        return sign_message(key, name, 2, t, body | changes)

    return [
        (ratchets[1].sign_result(key_of("other")), "site site-2 has another state after this round"),
        (signed(sum="00" * 32), "site site-2 has another sum after this round"),
        (signed(u3=[1, 2]), "site site-2 has another state"),
        (signed(x=1), "site site-2 has another"),
        (sign_message(him, "M6", 2, me.head, [body]), "site site-2 has another"),
        (sign_message(him, "M6", 2, me.head, {}), "site site-2 has another"),
        (signed("MPI"), "expected M6 of site site-2"),
        (signed(key=sites.identities[2]), "signature of site site-2 on M6"),
        (signed(t=attempt.t2), "site site-2 signed another transcript in M6"),
        (signed(t=key_of("head")), "site site-2 signed another transcript in M6"),
        (ratchets[2].sign_result(), "expected M6 of site site-2, got M6 of number 3"),
        (canon(parse_canon(good) | {"body": body | {"sum": "00" * 32}}), "site-2"),
        (b"", "M6 message of site site-2 is malformed"),
    ]


def test_every_difference_in_a_result_is_named() -> None:
    sites = Sites(3)
    attempts = sites.signed(proposal_of(3, round_=1))
    ratchets = after(2, sites)
    good = [r.sign_result() for r in ratchets]
    me = ratchets[0]
    me.receive_results(good)
    assert parse_canon(good[1])["body"] == {"state": STATE.hex(), "sum": SUM.hex(), "u3": [1, 2, 3]}
    assert parse_canon(good[1])["t"] == me.head.hex()
    refuse_unsigned(good, sites.roster, STATE)
    for flaw, match in flaws_of(sites, ratchets, attempts[0]):
        messages = [good[0], flaw, good[2]]
        with refused(match) as caught:
            me.receive_results(messages)
        assert caught.value.exit_code == 77
        with refused("site-2"):
            refuse_unsigned(messages, sites.roster, STATE)


def test_a_state_that_followed_since_the_last_sum_is_signed_too() -> None:
    ratchets = after(2)
    said = [r.sign_result(key_of("made of it")) for r in ratchets]
    for r in ratchets:
        r.receive_results(said, key_of("made of it"))
        with refused("another state"):
            r.receive_results(said)
    refuse_unsigned(said, Sites(3).roster, key_of("made of it"))


def test_a_kept_state_needs_all_signatures_over_one_head() -> None:
    sites = Sites(3)
    earlier, ratchets = after(1, sites), after(2, sites)
    good = [r.sign_result() for r in ratchets]
    for messages, match in [
        (good[:2], "2 of 3 sites signed"),
        ([], "0 of 3 sites signed"),
        ([good[0], earlier[1].sign_result(), good[2]], "site site-2 signed another transcript"),
        ([good[1], good[0], good[2]], "expected M6 of site site-1"),
        ([b"{}", *good[1:]], "M6 message of site site-1 is malformed"),
        ([canon(parse_canon(good[0]) | {"t": "x"}), *good[1:]], "no transcript or sum"),
    ]:
        with refused(match):
            refuse_unsigned(messages, sites.roster, STATE)
    with refused("another state"):
        refuse_unsigned(good, sites.roster, key_of("altered"))


def test_nothing_to_sign_before_the_first_sum() -> None:
    ratchet = Sites(3).ratchets()[0]
    assert not ratchet.settled_result
    with pytest.raises(InternalError):
        ratchet.sign_result()
