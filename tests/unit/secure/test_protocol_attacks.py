"""Each attack is really made by a hostile relay or a hostile site; the error is named and nothing was released first.

The numbers are those of reference/secure-aggregation.md section 9, "8.3" is docs/protocol.md. A hostile relay lies to
chosen sites (Attempt.lies) and holds whatever it likes; a hostile site signs what it likes with its own key.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from protocol_fakes import LAYOUT, Attempt, Site, World, apply, audit, lanes_at_random
from secure_fakes import key_of

from fedhpc.errors import FedhpcError, PeersError, PolicyError
from fedhpc.secure import labels
from fedhpc.secure.keys import AttemptKey, derive
from fedhpc.secure.messages import Survivors, read_survivors
from fedhpc.secure.opening import hidden_streams
from fedhpc.secure.transcript import canon, parse_canon, sign_message, tree

Lie = Callable[[str, int, Any], Any]


def hostile(world: World, lie: Lie | None = None, cohort: list[int] | None = None) -> Attempt:
    attempt = world.attempt(cohort)
    attempt.hostile = True
    if lie is not None:
        attempt.lies = lie
    return attempt


def lie_about(name: str, change: Callable[[Any], Any], *victims: int) -> Lie:
    return lambda at, u, truth: change(truth) if at == name and (not victims or u in victims) else truth


def play(attempt: Attempt) -> None:
    with contextlib.suppress(PeersError):
        attempt.run()
    audit(attempt.world)


def refused(attempt: Attempt, step: str, match: str, *victims: int) -> None:
    """The victims, or everybody, refused in `step` with an error that matches, and sent nothing of it or later."""
    order = ["M1", "M2", "M3", "M4", "M5", "M6"]
    for u in victims or attempt.cohort:
        assert u in attempt.refused, f"site {u} did not refuse"
        at, what = attempt.refused[u]
        assert (at, re.search(match, what) is not None) == (step, True), what
        for later in order[order.index(step) :]:
            assert f"{later}/{u}" not in attempt.objects.small
        private = attempt.world.disks[u].private
        assert private is None or step not in parse_canon(private)["sent"]
        if step in ("M1", "M2", "M3"):
            assert "ledger" not in attempt.world.disks[u].log[attempt.writes_before[u] :]


def resign(world: World, u: int, message: bytes, change: Callable[[dict[str, Any]], None], key: int = 0) -> bytes:
    """A message of site `u` with another body, signed by that site (or by the site `key`)."""
    value = parse_canon(message)
    change(value["body"])
    return sign_message(world.identities[key or u], value["name"], u, bytes.fromhex(value["t"]), value["body"])


# --- 1, 2: sets ---


@pytest.mark.parametrize(
    ("u3", "match"),
    [
        ([1, 2, 2, 3], "twice or out of order"),
        ([3, 2, 1], "twice or out of order"),
        ([1, 2, 3, 9], "from 1 to"),
        ([0, 1, 2, 3], "from 1 to"),
        ([1, 2, 3, "4"], "from 1 to"),
        ([1, 2], "other sites than it brought"),
        ([1, 2, 3], "other sites than it brought"),
    ],
)
def test_1_a_list_of_survivors_that_overlaps_or_is_no_set(u3: list[Any], match: str) -> None:
    world = World(4)
    attempt = hostile(world, lie_about("M4r", lambda m: canon(parse_canon(m) | {"u3": u3})))
    play(attempt)
    refused(attempt, "M4", match)


def subset(*sites: int) -> Lie:
    """M4 of the relay and the M3 it brings, over a set of its choice."""

    def lie(name: str, u: int, truth: Any) -> Any:
        if name == "M4r":
            return canon(parse_canon(truth) | {"u3": list(sites)})
        return {v: m for v, m in truth.items() if v in sites} if name == "M3" else truth

    return lie


def test_1_a_set_without_the_site_or_too_small() -> None:
    attempt = hostile(World(4), subset(1, 2, 3))
    play(attempt)
    refused(attempt, "M4", "lacks this site's own M3", 4)
    assert sorted(attempt.opened) == []  # the sum Y of the relay was over other sites than it said
    attempt = hostile(World(5), subset(1, 2, 3))
    play(attempt)
    refused(attempt, "M4", "U3 has 3 sites; at least 4", 1, 2, 3)


def test_1_both_shares_of_one_site_are_never_asked_out_of_a_site() -> None:
    """After M4 over one set, the relay shows another: the site has signed its one T3, so b and a never both leave."""
    world = World(4)
    attempt = hostile(world)
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


def test_2_a_split_view_of_the_survivors_opens_one_set_at_most() -> None:
    """t = 2 of 7 sites collude and sign both sets; three honest sites see one, two the other."""
    world = World(7)
    assert (world.thresholds.colluders, world.tau) == (2, 5)
    views = {1: (1, 2, 3, 6, 7), 2: (1, 2, 3, 6, 7), 3: (1, 2, 3, 6, 7), 4: (2, 4, 5, 6, 7), 5: (2, 4, 5, 6, 7)}
    both = {side: {} for side in set(views.values())}

    def lie(name: str, u: int, truth: Any) -> Any:
        return subset(*views.get(u, views[1]))(name, u, truth)

    attempt = hostile(world, lie)
    attempt.run(stop="M4")
    m4: dict[tuple[int, ...], dict[int, bytes]] = both
    for u, site in attempt.live.items():
        for side in m4 if u > 5 else [views[u]]:  # a colluder forgets that it has signed before
            machine = site.machine
            if u > 5:
                machine._secrets.sent.pop("M4", None)
            shown = subset(*side)
            m3s = shown("M3", u, attempt.relay.messages("M3"))
            m4[side][u] = machine.receive_survivors(shown("M4r", u, attempt.relay.m4r), m3s)
    for u in (4, 5):
        with pytest.raises(PeersError, match="4 of the 5 signatures"):
            attempt.live[u].machine.receive_signatures(m4[views[u]])
    for u in (1, 2, 3):
        attempt.live[u].machine.receive_signatures(m4[views[u]])
    assert [world.disks[u].ledger.entry_of(7).cohort for u in (4, 5)] == [(), ()]


# --- 3: a late vector ---


def test_3_a_late_vector_opens_nothing() -> None:
    """Site 4 is declared lost after M2; its vector arrives after its mask key was opened. Its self mask stays."""
    world = World(4)
    attempt = hostile(world)
    attempt.run(stop="M3")
    late = attempt.live[4]
    late.machine.receive_shares(attempt.relay.messages("M2"))
    m3, y = late.mask()
    del attempt.live[4]
    opened = attempt.go_on("M3")
    assert set(opened.values()) == {world.sum_over([1, 2, 3])}
    with pytest.raises(PeersError, match="after the set was closed"):
        attempt.relay.put("M3", 4, m3)
    with pytest.raises(PeersError, match="after the set was closed"):
        attempt.relay.put_vector(4, 0, y)
    # The relay colludes with site 1: everything that was opened, and site 4's own mask key, taken off its vector.
    machine = attempt.live[1].machine
    a4 = AttemptKey(late.machine._secrets.mask)
    rest = np.frombuffer(y, dtype=np.uint8).copy()
    edges = []
    for v in (1, 2, 3):
        key = derive(machine._t2, a4.shared(machine._keys[v].mask, "x"), labels.KEY_EDGE, v, 4)
        edges.append((key, 1))  # site 4 subtracted it
    apply(LAYOUT, rest, tuple(edges))
    assert rest.tobytes() != world.plain[4].tobytes()
    key = derive(machine._t2, late.machine._secrets.self_, labels.KEY_SELF, 4)
    apply(LAYOUT, rest, ((key, -1),))
    assert rest.tobytes() == world.plain[4].tobytes()  # the self mask was all that was left, and no share of b_4 left
    answers = [site.machine._own_share(4) for site in attempt.live.values()]
    assert answers == [site.machine._dealt[4].a for site in attempt.live.values()]


# --- 4: what the sites are shown of M0 ---


@pytest.mark.parametrize("field", ["config", "layout", "purpose", "round_", "state", "tensors"])
def test_4_one_site_gets_another_proposal(field: str) -> None:
    other = {"purpose": "weights", "round_": 8, "tensors": ((64, 3),)}.get(field, key_of("other"))
    world = World(4)
    lie = lie_about("M0", lambda m: world.proposal(1, world.numbers, **{field: other}), 2)
    attempt = hostile(world, lie)
    play(attempt)
    refused(attempt, "M1", f"proposes another {field.rstrip('_')}", 2)


def test_4_a_proposal_that_differs_only_where_sites_cannot_know_makes_no_sum() -> None:
    """Another `attempt` for one site: it signs another T0, and is refused by all, and refuses all."""
    world = World(4)
    attempt = hostile(world, lie_about("M0", lambda m: world.proposal(99, world.numbers), 2))
    play(attempt)
    refused(attempt, "M2", "signed another transcript in M1")
    assert attempt.opened == {}


@pytest.mark.parametrize(
    ("cohort", "match"),
    [
        ([1, 2, 3], "lacks this site"),
        ([3, 4], "has 2 sites; at least 3"),
    ],
)
def test_4_and_14_a_cohort_without_the_site_or_too_small(cohort: list[int], match: str) -> None:
    world = World(4)
    attempt = hostile(world, lie_about("M0", lambda m: world.proposal(1, cohort), 4))
    play(attempt)
    refused(attempt, "M1", match, 4)


def test_4_a_base_that_is_not_in_the_chain() -> None:
    world = World(4)
    base = world.state
    cohort = ((1, base), (2, key_of("stale")), (3, base), (4, base))
    attempt = hostile(world, lie_about("M0", lambda m: world.proposal(1, world.numbers, cohort=cohort)))
    play(attempt)
    refused(attempt, "M1", "unknown or too old base for site-2", 1, 3, 4)
    refused(attempt, "M1", "lacks this site with its own base", 2)


# --- 5: replays ---


@pytest.mark.parametrize("name", ["M1", "M2", "M3"])
def test_5_messages_of_an_earlier_attempt(name: str) -> None:
    world = World(4)
    first = world.attempt()
    first.run(stop="M4")
    old = first.relay.messages(name)[3]
    attempt = hostile(world, lie_about(name, lambda truth: truth | {3: old}))
    play(attempt)
    step = {"M1": "M2", "M2": "M3", "M3": "M4"}[name]
    refused(attempt, step, f"site site-3 signed another transcript in {name}", 1, 2, 4)
    refused(attempt, step, f"lacks this site's own {name}", 3)


@pytest.mark.parametrize("name", ["M4", "M5"])
def test_5_answers_of_an_earlier_attempt_do_not_count(name: str) -> None:
    world = World(4)
    first = world.attempt()
    first.run()
    old = {u: first.relay.messages(name)[u] for u in world.numbers}
    attempt = hostile(world, lie_about(name, lambda truth: old))
    play(attempt)
    assert attempt.opened == {}
    assert (name == "M5") == bool(attempt.relay.messages("M5"))
    assert "signed another transcript" in attempt.live[1].machine.faults[0]


@pytest.mark.parametrize("name", ["M1", "M2", "M3", "M4", "M5"])
def test_5_messages_of_an_earlier_round(name: str) -> None:
    """The same sites, keys and numbers of attempts; only the round is another one."""
    before, world = World(4, round_=6).attempt(), World(4, round_=7)
    before.run()
    old = before.relay.messages(name)[3]
    attempt = hostile(world, lie_about(name, lambda truth: truth | {3: old}, 1, 2, 4))
    play(attempt)
    step = {"M1": "M2", "M2": "M3", "M3": "M4"}.get(name)
    if step:
        refused(attempt, step, f"site site-3 signed another transcript in {name}", 1, 2, 4)
    else:  # three of four are enough, and the fourth is told
        assert set(attempt.opened.values()) == {world.sum_over([1, 2, 3, 4])}
        assert all("signed another transcript" in attempt.live[u].machine.faults[0] for u in (1, 2, 4))


def test_5_an_attempt_file_of_another_attempt() -> None:
    world = World(4)
    first = world.attempt()
    first.run(stop="M2")
    second = hostile(world)
    second.relay.propose(second.m0)
    site = Site(first, 1, restarted=True)
    with pytest.raises(PolicyError, match="belongs to another attempt"):
        site.machine.receive_proposal(second.m0, world.expected())


# --- 6 and 8.3: differencing ---


def test_6_two_cohorts_in_one_round() -> None:
    world = World(5)
    assert set(world.attempt().run().values()) == {world.sum_over(world.numbers)}
    attempt = hostile(world, cohort=[1, 2, 3, 4])
    play(attempt)
    refused(attempt, "M4", r"was opened over sites \[1, 2, 3, 4, 5\], not \[1, 2, 3, 4\]")


def test_6_the_same_input_in_another_round() -> None:
    world = World(4)
    world.attempt().run()
    world.round_ = 8  # the relay turns back the state and raises the round; this site's file says the same state
    attempt = hostile(world)
    play(attempt)
    for u in world.numbers:
        assert attempt.refused[u][0] == "M3"
        assert "was summed in round 7 already" in attempt.refused[u][1]
        assert f"M3/{u}" not in attempt.objects.small


def test_8_3_a_second_set_in_a_round_over_two_attempts() -> None:
    """A first attempt that opened over a part of the sites; the relay then wants all of them in."""
    world = World(5)
    first = hostile(world)
    first.hook = lambda step, when, u: first.live.pop(5, None) if (step, when) == ("M3", "before") else None
    play(first)
    assert first.relay.u3 == (1, 2, 3, 4)
    second = hostile(world)
    play(second)
    refused(second, "M4", r"was opened over sites \[1, 2, 3, 4\], not \[1, 2, 3, 4, 5\]", 1, 2, 3, 4)
    assert second.opened == {}


def test_8_3_three_sets_whose_combination_isolates_a_site() -> None:
    """Sums over {1,2,3,4}, {1,2,5,6,…} and so on would give one site by addition; only the first set ever opens."""
    world = World(7)
    sets = [[1, 2, 3, 4, 5], [1, 2, 3, 6, 7], [3, 4, 5, 6, 7]]
    outcomes = []
    for cohort in sets:
        attempt = hostile(world, cohort=cohort)
        play(attempt)
        outcomes.append(sorted(attempt.opened))
        if len(outcomes) > 1:
            bound = [u for u in cohort if u in sets[0]]
            refused(attempt, "M4", "was opened over sites", *bound)
    assert outcomes == [sets[0], [], []]


def test_8_3_a_changed_vector_on_retry() -> None:
    world = World(4)
    first = hostile(world)
    first.run(stop="M4")
    world.plain[2] = lanes_at_random(LAYOUT, 2, "another", 4)
    second = hostile(world)
    play(second)
    at, what = second.refused[2]
    assert at == "M3"
    assert "was begun with another vector" in what
    assert "M3/2" not in second.objects.small
    assert set(second.opened.values()) == {world.sum_over([1, 3, 4])}


# --- 7: keys ---


def swapped(world: World, field: str, value: bytes, signer: int) -> Lie:
    """M1 of site 3 with a key of the relay's choice, signed by the site `signer`."""

    def change(truth: dict[int, bytes]) -> dict[int, bytes]:
        return truth | {3: resign(world, 3, truth[3], lambda body: body.update({field: value.hex()}), signer)}

    return lie_about("M1", change, 1, 2, 4)


@pytest.mark.parametrize("field", ["chan", "mask"])
def test_7_the_relay_swaps_a_key(field: str) -> None:
    world = World(4)
    attempt = hostile(world, swapped(world, field, AttemptKey().public, signer=1))
    play(attempt)
    refused(attempt, "M2", "signature of site site-3 on M1 is not valid", 1, 2, 4)


@pytest.mark.parametrize("field", ["chan", "mask"])
@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), (2**255 - 20).to_bytes(32, "little")])
def test_7_a_low_order_point(field: str, point: bytes) -> None:
    world = World(4)
    attempt = hostile(world, swapped(world, field, point, signer=3))
    play(attempt)
    refused(attempt, "M2", "not a usable point", 1, 2, 4)


def test_7_a_replayed_or_doubled_key() -> None:
    world = World(4)
    other = hostile(world)
    other.run(stop="M2")
    mask = bytes.fromhex(parse_canon(other.relay.messages("M1")[1])["body"]["mask"])
    attempt = hostile(world)
    attempt.run(stop="M2")
    copied = bytes.fromhex(parse_canon(attempt.relay.messages("M1")[1])["body"]["mask"])
    assert mask != copied
    attempt.lies = swapped(world, "mask", copied, signer=3)
    attempt.each("M2", attempt._m2, (1, 2, 4))
    refused(attempt, "M2", "two sites sent the same key", 1, 2, 4)


def test_7_a_message_of_another_site_or_of_nobody() -> None:
    world = World(4)
    attempt = hostile(world, lie_about("M1", lambda t: t | {3: t[2]}, 1))
    play(attempt)
    refused(attempt, "M2", "expected M1 of site site-3, got M1 of number 2", 1)
    attempt = hostile(World(5), lie_about("M1", lambda t: t | {7: t[2]}, 1))
    play(attempt)
    refused(attempt, "M2", r"U1 names sites \[7\], which are not in the cohort", 1)


def test_8_3_another_u1_or_u2_shown_to_one_site() -> None:
    """All sets are large enough and every message is genuine; only the transcripts differ."""
    for name, step, said in (("M1", "M3", "transcript in M2"), ("M2", "M4", "transcript in M3")):
        world = World(7)
        attempt = hostile(world, lie_about(name, lambda t: {v: m for v, m in t.items() if v != 7}, 1))
        play(attempt)
        refused(attempt, step, f"site site-1 signed another {said}", *range(2, 8))
        refused(attempt, step, r"names sites \[7\], which are not in U", 1)
        assert attempt.opened == {}


def test_8_3_another_u2_after_the_site_masked() -> None:
    """Before and after a restart: a second masking of the same vector for another set is refused."""
    world = World(7)
    attempt = hostile(world)
    attempt.run(stop="M3v")
    fewer = {v: m for v, m in attempt.relay.messages("M2").items() if v != 7}
    again = Site(attempt, 1, restarted=True)
    attempt.replay(again, "M3")
    for machine in (attempt.live[1].machine, again.machine):
        with pytest.raises(PolicyError, match="another U2 than this site masked"):
            machine.receive_shares(fewer)


# --- 8: shares ---


def test_8_a_wrong_share_is_named_and_done_without() -> None:
    """Site 4 answers with shares of others, with noise, and with a box of another length: any τ honest ones suffice."""
    for kind in ("noise", "swapped", "short", "none"):
        world = World(4)
        attempt = hostile(world)
        attempt.run(stop="M5")
        liar = attempt.live[4].machine
        if kind == "noise":
            liar._own_share = lambda w: key_of("noise", w)  # type: ignore[method-assign]
        elif kind == "swapped":
            liar._own_share = lambda w, d=liar._dealt: d[w % 4 + 1].b  # type: ignore[method-assign, misc]
        elif kind == "short":
            liar._own_share = lambda w: bytes(31)  # type: ignore[method-assign]
        else:
            del attempt.live[4]
        attempt.go_on("M5")
        attempt.live.pop(4, None)
        honest = {u: attempt.opened[u] for u in (1, 2, 3)}
        assert set(honest.values()) == {world.sum_over(world.numbers)}
        faults = attempt.live[1].machine.faults
        said = {"noise": "wrong share of site", "swapped": "wrong share of site", "short": "not 144 bytes", "none": ""}
        assert all("site-4" in f for f in faults)
        assert bool(faults) == (kind != "none")
        assert said[kind] in "".join(faults)


def test_8_too_few_good_shares_open_nothing() -> None:
    world = World(4)
    attempt = hostile(world)
    attempt.run(stop="M5")
    for u in (3, 4):
        attempt.live[u].machine._own_share = lambda w: key_of("noise", w)  # type: ignore[method-assign]
    attempt.go_on("M5")
    assert 1 not in attempt.opened
    assert 2 not in attempt.opened
    with pytest.raises(PeersError, match="2 of the 3 shares needed"):
        attempt.live[1].machine.receive_answers(attempt.relay.messages("M5"))


@pytest.mark.parametrize("what", ["share", "commit", "group", "hash_a"])
def test_8_a_dealer_of_false_shares_is_named(what: str) -> None:
    """Site 4 seals other shares than it hashed, or announces another secret than it deals."""
    world = World(4)
    attempt = hostile(world)
    attempt.run(stop="U2")

    def change(body: dict[str, Any]) -> None:
        if what == "share":
            body["sealed"][0] = body["sealed"][1]
        elif what == "hash_a":
            body["hash_a"][0] = key_of("x").hex()
        else:
            body[what] = key_of("x").hex()

    attempt.objects.small["M2/4"] = resign(world, 4, attempt.objects.small["M2/4"], change)
    attempt.go_on("U2") if what != "commit" else play_on(attempt)
    if what == "commit":
        refused(attempt, "M6", "shares that site site-4 dealt do not give the secret", 1, 2, 3)
    else:
        match = "does not open" if what == "share" else "site site-4 sealed other shares"
        refused(attempt, "M3", match, 1)


def play_on(attempt: Attempt) -> None:
    """From U2 on, with site 4's own machine made to believe in its forged M2."""
    forged = attempt.objects.small["M2/4"]
    secrets = attempt.live[4].machine._secrets
    secrets.sent["M2"] = forged
    attempt.go_on("U2")


# --- 9: masks ---


def test_9_no_mask_key_is_used_twice() -> None:
    """Over attempts of one round: every stream and every tag mask has its own key."""
    world = World(5)
    seen: Counter[bytes] = Counter()
    for _ in range(3):
        attempt = hostile(world)
        attempt.run(stop="M4")
        for site in attempt.live.values():
            plan = site.machine._plan
            seen.update(key for key, _ in plan.streams)
    assert sorted(set(seen.values())) == [1, 2]
    assert sum(1 for n in seen.values() if n == 1) == 3 * 5  # self masks
    assert sum(1 for n in seen.values() if n == 2) == 3 * 10  # edges, once at each end


def test_9_masked_lanes_are_uniform_whatever_the_vector() -> None:
    """χ² of the bytes of many masked zero vectors: 255 degrees of freedom, bound at about six sigma."""
    world = World(4)
    for u in world.numbers:
        world.plain[u][:] = 0
    counts = np.zeros(256)
    used = np.concatenate([np.arange(p.start, p.stop) for p in LAYOUT.pieces(0, LAYOUT.nbytes)])
    for _ in range(40):
        attempt = hostile(world)
        attempt.run(stop="M4r")
        for site in attempt.live.values():
            counts += np.bincount(np.frombuffer(site.y, dtype=np.uint8)[used], minlength=256)
    mean = counts.sum() / 256
    assert ((counts - mean) ** 2 / mean).sum() < 255 + 6 * np.sqrt(2 * 255)


# --- 10, 11: numbers and bytes ---


def test_11_vectors_of_strangers_and_of_another_length() -> None:
    """Gaps and repeats are the transfer's business (tests/relay); here it is who, and whether it is whole."""
    world = World(4)
    attempt = hostile(world)
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


def test_11_messages_written_twice_by_others_or_too_long() -> None:
    world = World(4)
    attempt = hostile(world)
    attempt.run(stop="U1")
    relay = attempt.relay
    m1 = attempt.objects.small["M1/1"]
    relay.put("M1", 1, m1)
    forged = resign(world, 1, m1, lambda body: body.update(left_s=7))
    for name, u, data, match in [
        ("M1", 1, forged, "there already with other bytes"),
        ("M1", 2, m1, "expected M1 of site 2"),
        ("M2", 1, m1, "expected M2 of site 1"),
        ("M9", 1, m1, "expected M9 of site 1"),
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


# --- 13: the relay alters the sum ---


def flipped(at: int, bit: int = 0) -> Callable[[bytes], bytes]:
    return lambda y: y[:at] + bytes([y[at] ^ 1 << bit]) + y[at + 1 :]


WIDE = next(p for p in LAYOUT.pieces(0, LAYOUT.nbytes) if p.tensor.bits == 64)
ALTERED = {
    "one bit of a word": flipped(0),
    "the top bit of a 32-bit lane": flipped(3, 7),
    "the top bit of a 64-bit lane (8.3)": flipped(WIDE.start + 7, 7),
    "a dropped chunk": lambda y: bytes(16) + y[16:],
    "two tensors swapped": lambda y: y[48:64] + y[16:48] + y[:16] + y[64:],
}


@pytest.mark.parametrize("how", ALTERED)
def test_13_the_relay_alters_the_sum_and_signs_nothing_else(how: str) -> None:
    """It alters Y before it hashes it, so that all sites see one sum and sign it: the tag shows it."""
    world = World(4)
    attempt = hostile(world)
    attempt.run(stop="M4r")
    attempt.relay.close_masked()
    y = ALTERED[how](bytes(attempt.objects.large["Y"]))
    attempt.objects.large["Y"] = bytearray(y)
    truth = read_survivors(attempt.objects.small["M4r"], 4)
    attempt.objects.small["M4r"] = Survivors(tree(np.frombuffer(y, dtype=np.uint8)), truth.u3).to_bytes()
    attempt.go_on("M4")
    refused(attempt, "M6", "does not have the tag")


@pytest.mark.parametrize("how", ALTERED)
def test_13_the_relay_gives_another_sum_than_it_hashed(how: str) -> None:
    world = World(4)
    attempt = hostile(world, lie_about("Y", ALTERED[how], 2))
    play(attempt)
    refused(attempt, "M6", "gave another sum than the one the sites signed", 2)
    assert set(attempt.opened.values()) == {world.sum_over(world.numbers)}


def test_13_another_sum_for_one_site_makes_another_t3() -> None:
    world = World(4)
    change = lie_about("M4r", lambda m: canon(parse_canon(m) | {"sum": key_of("x").hex()}), 2)
    attempt = hostile(world, change)
    play(attempt)
    # Three others still agree; site 2 finds no signature over its own T3.
    assert sorted(attempt.opened) == [1, 3, 4]
    assert len(attempt.live[2].machine.faults) == 3
    assert "M5/2" not in attempt.objects.small


def test_13_a_vector_that_was_changed_on_its_way_to_the_relay() -> None:
    world = World(4)
    attempt = hostile(world)
    attempt.run(stop="M3v")
    attempt.live[3].y = flipped(5, 3)(attempt.live[3].y)
    attempt.go_on("M3v")
    refused(attempt, "M6", "does not have the tag")


def test_a_tag_of_the_wrong_vector_is_found() -> None:
    """A site that tags something else than it masks spoils the round, and nothing is applied."""
    world = World(4)
    attempt = hostile(world)
    attempt.run(stop="M3v")
    attempt.objects.small["M3/3"] = forged = resign(
        world, 3, attempt.objects.small["M3/3"], lambda body: body.update(tag=(b"\1" * 24).hex())
    )
    attempt.live[3].machine._secrets.sent["M3"] = forged
    attempt.go_on("M3v")
    refused(attempt, "M6", "does not have the tag", 1, 2, 4)


# --- 14: small cohorts, and what the relay holds ---


@pytest.mark.parametrize(("name", "what"), [("M1", "U1"), ("M2", "U2")])
def test_14_a_set_that_is_too_small(name: str, what: str) -> None:
    world = World(4)
    attempt = hostile(world, lie_about(name, lambda t: {v: m for v, m in t.items() if v in (1, 2)}, 1, 2))
    play(attempt)
    refused(attempt, "M2" if name == "M1" else "M3", f"{what} has 2 sites; at least 3", 1, 2)


def test_14_nothing_private_is_in_what_the_relay_holds() -> None:
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
    world = World(4)
    attempt = world.attempt()
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
    world = World(4)
    attempt = world.attempt()
    attempt.run(stop="M2")
    fresh = Site(attempt, 1).machine
    empty: dict[int, bytes] = {}
    for call in (
        lambda: fresh.receive_keys(empty),
        lambda: fresh.receive_shares(empty),
        lambda: fresh.begin_masking(bytes(32)),
        lambda: fresh.receive_survivors(b"", empty),
        lambda: fresh.receive_signatures(empty),
        lambda: fresh.receive_answers(empty),
        lambda: fresh.result(bytes(32), bytes(32)),
    ):
        with pytest.raises(FedhpcError, match=r"out of order|before"):
            call()


def test_streams_of_the_lost_are_those_of_the_sparse_graph() -> None:
    """With degree 6 of 9 sites and one lost, six edges are taken off, not eight."""
    world = World(9, degree=8)
    attempt = world.attempt()
    attempt.hook = lambda step, when, u: attempt.live.pop(5, None) if (step, when) == ("M3", "before") else None
    attempt.run()
    machine = attempt.live[1].machine
    assert machine.u3 == (1, 2, 3, 4, 6, 7, 8, 9)
    streams = machine._opening.streams
    assert len(streams) == 8 + 8
    kept = dataclasses.replace(machine._opening, streams=())
    assert "streams" in repr(kept)
    assert hidden_streams is not None
