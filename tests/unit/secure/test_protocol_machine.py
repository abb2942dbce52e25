"""Machines alone: attacks that no stage of attack_table.py can play, and what is never in anything they give out."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from attack_checks import check
from attack_stage import ALL
from attack_table import Attack
from attacks_by_relay import instead, told
from memory_stage import MemoryStage
from protocol_fakes import LAYOUT, Site, World, apply, audit

from fedhpc.errors import FedhpcError, PeersError, PolicyError
from fedhpc.secure import labels
from fedhpc.secure.keys import AttemptKey, derive
from fedhpc.secure.messages import Survivors
from fedhpc.secure.ring import Layout, Tensor
from fedhpc.secure.transcript import canon, parse_canon, sign_message


def subset(sites: tuple[int, ...]) -> Callable[[str, int, Any], Any]:
    """M4 of the relay and the M3 it brings, over a set of its choice."""

    def lie(name: str, u: int, truth: Any) -> Any:
        if name == "M4r":
            return canon(parse_canon(truth) | {"u3": list(sites)})
        return {v: m for v, m in truth.items() if v in sites} if name == "M3" else truth

    return lie


# --- 1, 2: sets


@pytest.mark.parametrize("u3", [(1, 2), (1, 2, 3)])
def test_survivors_other_than_the_messages_that_came_with_them(u3: tuple[int, ...]) -> None:
    attempt = World(4).attempt()
    attempt.run(stop="M4")
    for site in attempt.live.values():
        with pytest.raises(PolicyError, match="names other sites than it brought M3 messages of"):
            site.machine.receive_survivors(Survivors(bytes(32), u3).to_bytes(), attempt.relay.messages("M3"))
        assert "M4" not in site.machine._secrets.sent


def test_both_shares_of_one_site_are_never_asked_out_of_a_site() -> None:
    """After M4 over one set, the relay shows another: the site has signed its one T3, so b and a never both leave."""
    world = World(4)
    attempt = world.attempt()
    attempt.run(stop="M5")
    for u in (1, 2, 3):
        machine = attempt.live[u].machine
        three = {v: m for v, m in attempt.relay.messages("M3").items() if v != 4}
        with pytest.raises(PolicyError, match="another set of survivors"):
            machine.receive_survivors(Survivors(bytes(32), (1, 2, 3)).to_bytes(), three)
        assert "M5" not in machine._secrets.sent
    # What was shown in between changes nothing: the attempt still opens over the first set.
    assert set(attempt.go_on("M5").values()) == {world.sum_over(world.numbers)}
    audit(world)


def test_another_u2_after_the_site_masked() -> None:
    """Before and after a restart: a second masking of the same vector for another set is refused."""
    attempt = World(7).attempt()
    attempt.run(stop="M3v")
    fewer = {v: m for v, m in attempt.relay.messages("M2").items() if v != 7}
    again = Site(attempt, 1, restarted=True)
    attempt.replay(again, "M3")
    for machine in (attempt.live[1].machine, again.machine):
        with pytest.raises(PolicyError, match="another U2 than this site masked"):
            machine.receive_shares(fewer)


def test_a_split_view_with_colluders_opens_one_set_at_most() -> None:
    """t = 2 of 7 sites collude and sign both sets; three honest sites see one, two the other."""
    world = World(7)
    assert (world.thresholds.colluders, world.tau) == (2, 5)
    first, second = (1, 2, 3, 6, 7), (2, 4, 5, 6, 7)
    views = {1: first, 2: first, 3: first, 4: second, 5: second}
    attempt = world.attempt()
    attempt.run(stop="M4")
    m4: dict[tuple[int, ...], dict[int, bytes]] = {first: {}, second: {}}
    for u, site in attempt.live.items():
        for side in m4 if u > 5 else [views[u]]:  # a colluder forgets that it has signed before
            if u > 5:
                site.machine._secrets.sent.pop("M4", None)
            shown = subset(side)
            m3s = shown("M3", u, attempt.relay.messages("M3"))
            m4[side][u] = site.machine.receive_survivors(shown("M4r", u, attempt.relay.m4r), m3s)
    for u in (4, 5):
        with pytest.raises(PeersError, match="4 of the 5 signatures"):
            attempt.live[u].machine.receive_signatures(m4[second])
    for u in (1, 2, 3):
        attempt.live[u].machine.receive_signatures(m4[first])
    assert [world.disks[u].ledger.entry_of(7).cohort for u in (4, 5)] == [(), ()]


# --- 3: a late vector


def test_a_late_vector_opens_nothing() -> None:
    """Site 4 is declared lost after M2; its vector arrives after its mask key was opened. Its self mask stays."""
    world = World(4)
    attempt = world.attempt()
    attempt.run(stop="M3")
    late = attempt.live.pop(4)
    late.machine.receive_shares(attempt.relay.messages("M2"))
    m3, y = late.mask()
    assert set(attempt.go_on("M3").values()) == {world.sum_over([1, 2, 3])}
    with pytest.raises(PeersError, match="after the set was closed"):
        attempt.relay.put("M3", 4, m3)
    with pytest.raises(PeersError, match="after the set was closed"):
        attempt.relay.put_vector(4, 0, y)
    # The relay colludes with site 1: everything that was opened, and site 4's own mask key, taken off its vector.
    machine = attempt.live[1].machine
    a4 = AttemptKey(late.machine._secrets.mask)
    rest = np.frombuffer(y, dtype=np.uint8).copy()
    shared = {v: a4.shared(machine._keys[v].mask, "x") for v in (1, 2, 3)}
    apply(LAYOUT, rest, tuple((derive(machine._t2, s, labels.KEY_EDGE, v, 4), 1) for v, s in shared.items()))
    assert rest.tobytes() != world.plain[4].tobytes()
    apply(LAYOUT, rest, ((derive(machine._t2, late.machine._secrets.self_, labels.KEY_SELF, 4), -1),))
    assert rest.tobytes() == world.plain[4].tobytes()  # the self mask was all that was left, and no share of b_4 left
    answers = [site.machine._own_share(4) for site in attempt.live.values()]
    assert answers == [site.machine._dealt[4].a for site in attempt.live.values()]


# --- 5, 6: other attempts and rounds


@pytest.mark.parametrize(("name", "stops"), [("M1", "M2"), ("M2", "M3v"), ("M3", "M4"), ("M4", ""), ("M5", "")])
def test_messages_of_an_earlier_round(name: str, stops: str) -> None:
    """The same sites, keys and numbers of attempts; only the round is another one. M4 and M5 of one are not needed."""
    before, stage = MemoryStage(round_=1), MemoryStage(round_=2)
    before.start()
    before.run(1)
    assert before.end(1) is None
    old = before.objects(1).get(f"{name}/3")
    assert old is not None
    error, words = "PolicyError" if stops else "", f"site s3 signed another transcript in {name}"
    play = told(f"{name}/3", instead(old), (1, 2, 4), {"M1": "U1", "M2": "U2"}.get(name, "M4r"))
    check(stage, Attack("5", name, "", play, stops, error, words))


def test_an_attempt_file_of_another_attempt() -> None:
    world = World(4)
    first = world.attempt()
    first.run(stop="M2")
    site = Site(first, 1, restarted=True)
    with pytest.raises(PolicyError, match="belongs to another attempt"):
        site.machine.receive_proposal(world.attempt().m0, world.expected())


def test_the_same_input_in_another_round() -> None:
    """The relay turns back the state and raises the round."""
    before, stage = MemoryStage(round_=1), MemoryStage(round_=2)
    before.start()
    before.run(1)
    assert [before.end(u) for u in ALL] == [None] * 4
    stage.world.disks, stage.world.state = before.world.disks, before.world.state
    stage.start()
    stage.run(1, upto="U2")
    for u in ALL:
        assert "was summed in round 1 already" in str(stage.end(u))
        assert "1/M3" not in stage.sent(u)
        assert f"M3v/{u}" not in stage.objects(1).large


# --- 9: masks


def test_no_mask_key_is_used_twice() -> None:
    """Over attempts of one round: every stream and every tag mask has its own key."""
    world = World(5)
    seen: Counter[bytes] = Counter()
    for _ in range(3):
        attempt = world.attempt()
        attempt.run(stop="M4")
        for site in attempt.live.values():
            seen.update(key for key, _ in site.machine._plan.streams)
    assert sorted(set(seen.values())) == [1, 2]
    assert sum(1 for n in seen.values() if n == 1) == 3 * 5  # self masks
    assert sum(1 for n in seen.values() if n == 2) == 3 * 10  # edges, once at each end


def test_masked_lanes_are_uniform_whatever_the_vector() -> None:
    """χ² of the bytes of masked zero vectors: 255 degrees of freedom, bound at about six sigma."""
    layout = Layout([Tensor("w", "float32", (3000,), 20), Tensor("n", "int64", (1000,))])
    world = World(4, layout=layout)
    for u in world.numbers:
        world.plain[u][:] = 0
    attempt = world.attempt()
    attempt.run(stop="M4r")
    used = np.concatenate([np.arange(p.start, p.stop) for p in layout.pieces(0, layout.nbytes)])
    vectors = [np.frombuffer(site.y, dtype=np.uint8)[used] for site in attempt.live.values()]
    counts = sum(np.bincount(y, minlength=256) for y in vectors)
    mean = counts.sum() / 256
    assert ((counts - mean) ** 2 / mean).sum() < 255 + 6 * np.sqrt(2 * 255)


def test_streams_of_the_lost_are_those_of_the_sparse_graph() -> None:
    """With degree 8 of 9 sites and one lost, eight edges are taken off."""
    attempt = World(9, degree=8).attempt()
    attempt.hook = lambda step, when, u: attempt.live.pop(5, None) if (step, when) == ("M3", "before") else None
    attempt.run()
    machine = attempt.live[1].machine
    assert machine.u3 == (1, 2, 3, 4, 6, 7, 8, 9)
    assert len(machine._opening.streams) == 8 + 8
    assert "streams" in repr(dataclasses.replace(machine._opening, streams=()))


# --- 11: what a site sends to the relay


def test_vectors_of_strangers_and_of_another_length() -> None:
    """Gaps and repeats are the transfer's business (tests/relay); here it is who, and whether it is whole."""
    attempt = World(4).attempt()
    attempt.run(stop="M3v")
    relay, objects = attempt.relay, attempt.objects
    with pytest.raises(PolicyError, match="not in the set"):
        relay.put_vector(9, 0, attempt.live[1].y)
    for u, site in attempt.live.items():
        objects.large[f"M3v/{u}"] = bytearray(site.y)
    objects.large["M3v/1"] += b"\0"
    del objects.large["M3v/2"][-1:]
    assert relay.whole() == (3, 4)
    with pytest.raises(PeersError, match="U3 has 2 sites"):
        relay.close_masked()


def test_messages_written_twice_by_others_or_too_long() -> None:
    world = World(4)
    attempt = world.attempt()
    attempt.run(stop="U1")
    relay = attempt.relay
    m1 = attempt.objects.small["M1/1"]
    relay.put("M1", 1, m1)
    signed = parse_canon(m1)
    body = signed["body"] | {"mask": "11" * 32}
    forged = sign_message(world.identities[1], "M1", 1, bytes.fromhex(signed["t"]), body)
    for name, u, data, match in [
        ("M1", 1, forged, "there already with other bytes"),
        ("M1", 2, m1, "expected M1 of site 2"),
        ("M2", 1, m1, "expected M2 of site 1"),
        ("M1", 9, m1, "expected M1 of site 9"),
        ("M1", 1, b"{" * 1000, "malformed"),
        ("M1", 1, b"x" * 5000, "has 5000 bytes; at most"),
        ("M1", 1, b"\x80\x04pickle", "malformed"),
        ("M1", 1, b"[]", "fields"),
    ]:
        with pytest.raises(PolicyError, match=match):
            relay.put(name, u, data)
    with pytest.raises(PolicyError, match="another M0 is there"):
        relay.propose(world.proposal(5, world.numbers))


# --- 14: what the relay holds, and what is shown of secrets


def test_nothing_private_is_in_what_the_relay_holds() -> None:
    """Vectors, sums, secrets and shares of all sites, as bytes and as hex, against every object of the relay."""
    world = World(4)
    attempt = world.attempt()
    attempt.run()
    held = b"\n".join([*attempt.objects.small.values(), *map(bytes, attempt.objects.large.values())])
    canaries = [world.plain[u].tobytes()[:16] for u in world.numbers] + [world.sum_over(world.numbers)[:16]]
    for site in attempt.live.values():
        secrets = site.machine._secrets
        canaries += [secrets.chan, secrets.mask, secrets.self_, secrets.group, secrets.own_a, secrets.own_b]
        canaries += [key for key, _ in site.machine._plan.streams] + [site.machine._plan.tag_key]
        canaries += [value for d in site.machine._dealt.values() for value in (d.a, d.b, d.c)]
    assert len(canaries) == 5 + 4 * (6 + 5 + 12)
    for canary in canaries:
        assert canary not in held
        assert canary.hex().encode() not in held


def test_secrets_are_in_no_repr_and_no_error() -> None:
    attempt = World(4).attempt()
    attempt.run()
    site = attempt.live[1]
    secrets = site.machine._secrets
    shown = " ".join(map(repr, [site.machine, secrets, site.machine._plan, site.machine._opening, site.machine._dealt]))
    for secret in (secrets.chan, secrets.mask, secrets.self_, secrets.group, secrets.own_b):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
    site.machine.forget()
    with pytest.raises(FedhpcError):
        site.machine.receive_keys(attempt.relay.messages("M1"))


def test_steps_out_of_order_are_refused() -> None:
    attempt = World(4).attempt()
    attempt.run(stop="M2")
    fresh = Site(attempt, 1).machine
    for call in (
        lambda: fresh.receive_keys({}),
        lambda: fresh.receive_shares({}),
        lambda: fresh.begin_masking(bytes(32)),
        lambda: fresh.receive_survivors(b"", {}),
        lambda: fresh.receive_signatures({}),
        lambda: fresh.receive_answers({}),
        lambda: fresh.result(bytes(32), bytes(32)),
    ):
        with pytest.raises(FedhpcError, match=r"out of order|before"):
            call()
