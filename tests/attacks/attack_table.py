"""The attacks, as data: both stages take their cases from here, and docs/security.md has the same rows.

`number`: of the fifteen attacks that the tests of a masked sum should make (docs/security.md lists them); "P" is one
that docs/protocol.md section 8 names besides.

In memory all is played whose guard is in the machines. Over TLS costs a relay and four sites for each row: it is for
what the transport, the files of a site or the loop around its machine have a part in, and for one of each kind besides.
"""

from __future__ import annotations

from dataclasses import dataclass

import attacks_by_relay as r
import attacks_by_site as s
import numpy as np
from attack_stage import ALL
from attacks_by_relay import OTHER, Play

from fedhpc.secure.keys import AttemptKey


@dataclass(frozen=True)
class Attack:
    """One attack on a round."""

    number: str
    key: str
    what: str
    play: Play
    stops: str  # the first message that the victims do not send; "" where the result is not used
    error: str  # the class, at every victim; "" where they open the sum and say `words` of the liar
    words: str  # in what every victim says; of two, parted by " | ", one of them
    attempt: int = 1  # the one that is attacked
    rest: bool = False  # whether the other sites still open the sum
    only: str = ""  # the one stage where it is played, and why: "memory: …" or "TLS: …"

    @property
    def stages(self) -> tuple[str, ...]:
        return (self.only.split(":")[0],) if self.only else ("memory", "TLS")


@dataclass(frozen=True)
class Elsewhere:
    """What an attack of the list has besides, or instead: `test` is FILE::NAME below tests/, or why there is none."""

    number: str
    what: str
    test: str


def rows() -> list[str]:
    """The table of docs/security.md, line by line."""
    head = ["| no. | what is done | stops before | error at the victim | test | stage |", "|---|---|---|---|---|---|"]
    played = [
        f"| {a.number} | {a.what} | {_stops(a)} | {_said(a)} | `{a.key}` | {a.only or 'memory, TLS'} |" for a in ATTACKS
    ]
    return [*head, *played, *(f"| {e.number} | {e.what} | | | {_link(e.test)} | |" for e in ELSEWHERE)]


def _stops(attack: Attack) -> str:
    return attack.stops or ("the result is used" if attack.error else "nothing")


def _said(attack: Attack) -> str:
    words = " or ".join(attack.words.split(" | "))
    return f"{attack.error}: {words}" if attack.error else f"none; said of the liar: {words}" if words else "none"


def _link(test: str) -> str:
    return test if "::" not in test else f"`{test.removesuffix('::')}`"


POLICY, PEERS, DATA = "PolicyError", "PeersError", "DataError"
_TAG = "the sum does not have the tag of its vectors"
_REACH = "cannot be reached"
_SIGNED = "another sum than"
_POINTS = {"0": "00" * 32, "1": "01" + "00" * 31, "−1": (2**255 - 20).to_bytes(32, "little").hex()}


def _like(key: str) -> str:
    return f"memory: as `{key}` over TLS"


_LOOP = "TLS: the machine is not asked"
_READY = "TLS: numbers become lanes before the machine begins"

RELAY = (
    # 1, 2, 3, 14: sets
    Attack("1", "u3_doubled", "the list of survivors names a site twice", r.survivors(1, 2, 2, 3), "M4", POLICY,
           "a site twice"),
    Attack("1", "u3_out_of_order", "it is out of order", r.survivors(3, 2, 1), "M4", POLICY, "out of order",
           only=_like("u3_doubled")),
    Attack("1", "u3_unknown_site", "it names a site that is not in the roster", r.survivors(1, 2, 3, 9), "M4", POLICY,
           "from 1 to 4", only=_like("u3_doubled")),
    Attack("1", "u3_site_0", "it names a site 0", r.survivors(0, 1, 2, 3), "M4", POLICY, "from 1 to 4",
           only=_like("u3_doubled")),
    Attack("1", "u3_no_number", "it names a site by text", r.told("M4r", r.fields(u3=[1, 2, 3, "4"])), "M4", POLICY,
           "from 1 to 4", only=_like("u3_doubled")),
    Attack("1", "u3_after_a_restart", "a site that signed one set is asked for the other share", r.u3_after_a_restart,
           "M5", POLICY, "another set of survivors or another sum than this site signed"),
    Attack("1", "u3_without_the_site", "a set without the site, though its vector is there", r.u3_without_the_site,
           "M4", PEERS, _REACH, only=_LOOP),
    Attack("1", "u3_to_sign_without_it", "… and its machine is asked to sign it", r.survivors(1, 2, 3, victims=(4,)),
           "M4", POLICY, "lacks this site's own M3", only="memory: over TLS the site waits"),
    Attack("2", "u3_split_view", "two halves are shown two sets", r.u3_split_view, "M5", PEERS,
           "2 of the 3 signatures"),
    Attack("3", "late_vector", "a vector is called late, kept, and its mask key opened", r.late_vector, "M4", PEERS,
           _REACH, only="memory: over TLS its masks are taken off as well (below)"),
    # 4: proposals
    Attack("4", "m0_state", "one site gets a proposal from another model", r.proposed(state=OTHER), "M1", POLICY,
           "another state than"),
    Attack("4", "m0_layout", "… with other tensors", r.proposed(layout=OTHER, tensors=[[64, 6]]), "M1", POLICY,
           "another layout, tensors than"),
    Attack("4", "m0_tensors", "… with other shapes under the same hash", r.proposed(tensors=[[64, 3]]), "M1", POLICY,
           "another tensors than", only=_like("m0_layout")),
    Attack("4", "m0_layout_hash", "… with another hash of the same tensors", r.proposed(layout=OTHER), "M1", POLICY,
           "another layout than", only=_like("m0_layout")),
    Attack("4", "m0_purpose", "… for another purpose", r.proposed(purpose="weights"), "M1", POLICY,
           "another purpose than"),
    Attack("4", "m0_round", "… of another round", r.proposed(round=2), "M1", POLICY, "another round than"),
    Attack("4", "m0_config", "… of another configuration", r.proposed(config=OTHER), "M1", POLICY,
           "another config than"),
    Attack("4", "m0_base", "a site in it starts from an unknown model",
           r.told("M0", r.cohort(*ALL, bases={3: OTHER}), (2,), "M0"), "M1", POLICY, "unknown or too old base"),
    Attack("4", "m0_own_base", "the site itself starts from another model in it",
           r.told("M0", r.cohort(*ALL, bases={2: OTHER}), (2,), "M0"), "M1", POLICY,
           "lacks this site with its own base", only=_like("m0_base")),
    Attack("4", "m0_without_the_site", "the site is not in it", r.told("M0", r.cohort(1, 2, 3), (4,), "M0"), "M1",
           POLICY, "lacks this site with its own base", only="memory: over TLS the site waits"),
    Attack("4", "m0_attempt", "one site gets another number of the attempt", r.m0_attempt, "M2", POLICY,
           "another transcript in M1"),
    Attack("5", "config_signature", "a site's signature under another configuration", r.config_signature, "READY",
           POLICY, "another transcript in CONFIG", only="TLS: before the first round"),
    # 5: replays
    Attack("5", "m1_replayed", "M1 of an earlier attempt", r.replayed("M1", (1, 2, 4)), "M2", POLICY,
           "another transcript in M1", 2),
    Attack("5", "m2_replayed", "M2 of an earlier attempt", r.replayed("M2", (1, 2, 4)), "M3v", POLICY,
           "another transcript in M2", 2, only=_like("m1_replayed")),
    Attack("5", "m3_replayed", "M3 of an earlier attempt", r.replayed("M3", (1, 2, 4)), "M4", POLICY,
           "another transcript in M3", 2, only=_like("m1_replayed")),
    Attack("5", "m4_replayed", "M4 of an earlier attempt", r.replayed("M4"), "M5", PEERS, "1 of the 3 signatures", 2,
           _like("m5_replayed")),
    Attack("5", "m5_replayed", "M5 of an earlier attempt", r.replayed("M5"), "M6", PEERS, "1 of the 3 shares", 2),
    Attack("5", "attempt_replayed", "an attempt is run again with another U2", r.attempt_replayed, "M3v", POLICY,
           "another U2 than this site masked", 2),
    # 6: differences
    Attack("6, P", "second_set", "a second set after the round was opened", r.second_set, "M4", POLICY,
           "was opened over sites [1, 2, 3, 4], not [1, 2, 3]", 2),
    Attack("6, P", "larger_set", "a second set that holds the first", r.larger_set, "M4", POLICY,
           "was opened over sites [1, 2, 3], not [1, 2, 3, 4]", 2, only=_like("second_set")),
    Attack("6", "three_sets", "three sets that together isolate a site", r.three_sets, "M4", POLICY,
           "was opened over sites [1, 2, 3], not [1, 3, 4]", 3),
    Attack("6", "fewer_than_everyone", "fewer sites in a sum that needs all", r.fewer_than_everyone, "M4", POLICY,
           "needs every site", only=_LOOP),
    # 7: keys and senders
    Attack("7", "m1_own_key", "the relay puts its own keys into M1",
           r.told("M1/3", r.body(mask=AttemptKey().public.hex(), chan=AttemptKey().public.hex()), (1, 2, 4), "U1"),
           "M2", POLICY, "on M1 is not valid"),
    Attack("7", "m1_mask_key_signed_by_another", "… its mask key, signed by a site that helps it",
           r.m1_signed_by_another("mask", AttemptKey().public), "M2", POLICY, "on M1 is not valid",
           only=_like("m1_own_key")),
    Attack("7", "m1_sealing_key_signed_by_another", "… its sealing key",
           r.m1_signed_by_another("chan", AttemptKey().public), "M2", POLICY, "on M1 is not valid",
           only=_like("m1_own_key")),
    Attack("7", "m1_of_another_site", "M1 of another site", r.m1_of_another_site, "M2", POLICY,
           "expected M1 of site s3", only=_like("m1_own_key")),
    Attack("7", "u1_beyond_the_cohort", "U1 with a site that was not proposed", r.u1_beyond_the_cohort, "M2", POLICY,
           "names sites [4], which are not in the cohort", only=_like("u1_too_few")),
    Attack("7", "m2_altered", "other commitments in M2", r.told("M2/3", r.body(commit=OTHER), (1, 2, 4), "U2"), "M3v",
           POLICY, "on M2 is not valid"),
    Attack("7", "m2_swapped_boxes", "boxes of shares exchanged in M2", r.told("M2/3", r.swapped_boxes, (1, 2), "U2"),
           "M3v", POLICY, "on M2 is not valid", only=_like("m2_altered")),
    Attack("7", "m3_altered", "another tag in M3", r.told("M3/3", r.body(tag="01" * 24), (1, 2, 4)), "M4", POLICY,
           "on M3 is not valid", only=_like("m2_altered")),
    Attack("7", "m6_forged", "another next state in M6", r.m6_forged, "", PEERS, _REACH),
    # 11: bytes
    Attack("11", "m1_malformed", "pickle for M1", r.told("M1/3", r.instead(b"\x80\x04\x95pickle"), (1, 2, 4), "U1"),
           "M2", POLICY, "is malformed", only=_like("m1_oversized")),
    Attack("11", "m1_oversized", "M1 of 70 000 bytes", r.told("M1/3", r.instead(b"1" * 70_000), (1, 2, 4), "U1"),
           "M2", POLICY, "at most 1024"),
    Attack("11", "m1_other_spelling", "the same M1 in another spelling",
           r.told("M1/3", lambda m: m.replace(b'"from":3', b'"from": 3'), (1, 2, 4), "U1"), "M2", POLICY,
           "not in canonical form", only=_like("m1_oversized")),
    Attack("11", "m2_torn", "M2 without its last bytes", r.told("M2/3", lambda m: m[:-7], (1, 2, 4), "U2"), "M3v",
           POLICY, "is malformed", only=_like("m1_oversized")),
    # 12: silence
    Attack("12", "m4_kept_back", "the others' M4 are kept from one site", r.m4_kept_back, "M5", PEERS, _REACH),
    # 13: the sum
    Attack("13", "y_low_bit", "the sum with its lowest bit flipped, for all", r.altered(r.flipped(0, 0)), "M6",
           POLICY, _TAG),
    Attack("13, P", "y_top_bit", "the top bit of a 64-bit lane flipped, for all", r.altered(r.flipped(7, 7)), "M6",
           POLICY, _TAG, only=_like("y_low_bit")),
    Attack("13, P", "y_top_bit_of_32", "the top bit of a 32-bit lane flipped, for all",
           r.altered(r.flipped(3, 7), **r.NARROW), "M6", POLICY, _TAG, only=_like("y_low_bit")),
    Attack("13", "y_swapped_blocks", "two blocks of 1 MiB exchanged, for all",
           r.altered(r.swapped_blocks, **r.TWO_BLOCKS), "M6", POLICY, _TAG),
    Attack("13", "y_dropped_block", "a part of the sum is zero, for all", r.altered(lambda y: bytes(16) + y[16:]),
           "M6", POLICY, _TAG, only=_like("y_low_bit")),
    Attack("13", "y_for_one_site", "another sum for one site than was signed", r.told("Y", r.flipped(0, 0), (2,)),
           "M6", POLICY, _SIGNED, rest=True),
    Attack("13", "y_top_bit_for_one_site", "… with the top bit of a 64-bit lane flipped",
           r.told("Y", r.flipped(7, 7), (2,)), "M6", POLICY, _SIGNED, rest=True, only=_like("y_for_one_site")),
    Attack("13", "y_top_bit_of_32_for_one_site", "… of a 32-bit lane", r.told("Y", r.flipped(3, 7), (2,), **r.NARROW),
           "M6", POLICY, _SIGNED, rest=True, only=_like("y_for_one_site")),
    Attack("13", "y_dropped_block_for_one_site", "… with a part that is zero",
           r.told("Y", lambda y: bytes(16) + y[16:], (2,)), "M6", POLICY, _SIGNED, rest=True,
           only=_like("y_for_one_site")),
    Attack("13", "y_swapped_blocks_for_one_site", "… with two blocks exchanged",
           r.told("Y", r.swapped_blocks, (2,), **r.TWO_BLOCKS), "M6", POLICY, _SIGNED, rest=True,
           only=_like("y_for_one_site")),
    Attack("13", "y_shorter", "a shorter sum for one site", r.told("Y", lambda y: y[:-8], (2,)), "M6", "RelayProblem",
           "Y has 80 bytes, not 88", rest=True, only="TLS: the transport compares lengths"),
    Attack("13", "y_longer", "a longer sum for one site", r.told("Y", lambda y: y + bytes(16), (2,)), "M6",
           "RelayProblem", "Y has 104 bytes, not 88", rest=True, only="TLS: the transport compares lengths"),
    Attack("13", "m4r_in_another_suite", "the sum as it is, named by Tree of the other suite", r.other_suite, "M6",
           POLICY, _SIGNED, only=_like("y_for_one_site")),
    Attack("13", "vector_altered", "a byte of a site's vector, before it is added", r.vector_altered, "M6", POLICY,
           _TAG),
    Attack("13", "m4r_for_one_site", "another hash of the sum for one site", r.told("M4r", r.fields(sum=OTHER), (2,)),
           "M5", PEERS, "1 of the 3 signatures", rest=True, only=_like("u3_split_view")),
    # 14: small sets
    Attack("14", "m0_too_few", "a proposal over two sites", r.told("M0", r.cohort(1, 2), (2,), "M0"), "M1", POLICY,
           "has 2 sites; at least 3", only=_like("u1_too_few")),
    Attack("14", "u1_too_few", "U1 of two sites", r.told("U1", r.listed(1, 2), (1, 2), "U1"), "M2", POLICY,
           "U1 has 2 sites; at least 3"),
    Attack("14", "u2_too_few", "U2 of two sites", r.told("U2", r.listed(1, 2), (1, 2), "U2"), "M3v", POLICY,
           "U2 has 2 sites; at least 3", only=_like("u1_too_few")),
    Attack("14", "u3_too_few", "U3 of two sites", r.survivors(1, 2, victims=(1, 2)), "M4", POLICY,
           "U3 has 2 sites; at least 3"),
    # P: one site is shown another set
    Attack("P", "u1_for_one_site", "another U1 for one site", r.u1_for_one_site, "M3v", POLICY,
           "another transcript in M2 | which are not in U1", only=_like("u2_for_one_site")),
    Attack("P", "u2_for_one_site", "another U2 for one site", r.u2_for_one_site, "M4", POLICY,
           "another transcript in M3 | which are not in U2"),
    Attack("P", "u2_again", "another U2 for a site that starts again after its vector left", r.u2_again, "M3", POLICY,
           "another U2 than this site masked"),
)  # fmt: skip

SITE = (
    Attack("5", "second_signature", "a site signs a second set for another site", s.second_signature, "M5", PEERS,
           "2 of the 3 signatures"),
    *(
        Attack("7", f"{name}_is_{point}", f"the point {point} as a {name.replace('_', ' ')} in a signed M1",
               s.bad_key(**{field: key}), "M2", POLICY, "not a usable point",
               only="" if (name, point) == ("mask_key", "0") else _like("mask_key_is_0"))
        for name, field in (("mask_key", "mask"), ("sealing_key", "chan"))
        for point, key in _POINTS.items()
    ),
    Attack("7", "copied_key", "the key of another site in a signed M1", s.copied_key, "M2", POLICY,
           "sent the same key", only=_like("mask_key_is_0")),
    Attack("8", "share_of_another", "a box with another site's shares",
           s.dealt(lambda b: b["sealed"].__setitem__(0, b["sealed"][1])), "M3v", POLICY, "does not open",
           only=_like("false_secret")),
    Attack("8", "false_share", "another share than was announced",
           s.dealt(lambda b: b["hash_a"].__setitem__(0, OTHER)), "M3v", POLICY, "sealed other shares",
           only=_like("false_secret")),
    Attack("8", "false_part_of_the_tag_key", "another part of the tag's key than was announced",
           s.dealt(lambda b: b.update(group=OTHER)), "M3v", POLICY, "sealed other shares",
           only=_like("false_secret")),
    Attack("8", "false_secret", "shares of another secret than was announced",
           s.signs_other("M2", lambda b: b.update(commit=OTHER)), "M6", POLICY,
           "site s3 dealt do not give the secret"),
    Attack("8", "noise_for_shares", "two sites answer with noise", s.answers(s.noise, 3, 4, victims=(1, 2)), "M6",
           PEERS, "2 of the 3 shares"),
    Attack("8", "noise_of_one", "one site answers with noise", s.answers(s.noise, 3), "", "",
           "site s3 sent a wrong share of site"),
    Attack("8", "shares_of_another_site", "one site answers with shares of other sites", s.answers(s.of_another, 3),
           "", "", "site s3 sent a wrong share of site", only=_like("noise_of_one")),
    Attack("8", "short_shares", "one site answers with a box of another length", s.answers(s.short, 3), "", "",
           "not 144 bytes", only=_like("noise_of_one")),
    Attack("8", "no_shares", "one site does not answer", s.silent, "", "", "", only=_like("noise_of_one")),
    Attack("10", "beyond_the_ring", "a number that carries the sum beyond the ring", s.beyond_the_ring, "M6", POLICY,
           "is beyond what", only="TLS: lanes become numbers after the machine"),
    Attack("10", "own_number_too_large", "a number beyond the bound, at an honest site",
           s.own_number(2**62, kind=np.int64, values={2: 2**62}), "READY", DATA, "beyond the bound", only=_READY),
    Attack("10", "own_number_beyond", "… by little", s.own_number(8.01), "READY", DATA, "beyond the bound",
           only=_READY),
    Attack("10", "own_number_is_none", "NaN, at an honest site", s.own_number(np.nan), "READY", DATA, "holds NaN",
           only=_READY),
    Attack("10", "own_number_infinite", "minus infinity, at an honest site", s.own_number(-np.inf), "READY", DATA,
           "holds infinity", only=_READY),
    Attack("13", "one_tag", "the tag of another vector", s.signs_other("M3", lambda b: b.update(tag="01" * 24)), "M6",
           POLICY, _TAG, only=_like("other_vector")),
    Attack("13", "other_vector", "another vector than the signed M3 names, with the relay's help", s.other_vector, "M6",
           POLICY, _TAG),
    Attack("6, P", "changed_vector", "other numbers for the same round after a restart", s.changed_vector, "M1",
           POLICY, "was begun with another vector", 2, only="TLS: the ledger stops it before its machine begins"),
    Attack("6, P", "changed_vector_to_mask", "… and its machine is asked to mask them", s.changed_vector_to_mask,
           "M3v", "OtherVectorError", "was begun with another vector", 2,
           only="memory: over TLS it is stopped before"),
)  # fmt: skip

ATTACKS = (*RELAY, *SITE)

_LOST = "faults/test_relayed_lost_folder.py::"

_RATCHET = "unit/secure/test_secure_ratchet.py::"

ELSEWHERE = (
    Elsewhere("3", "a late vector is hidden by its self mask alone",
              "faults/test_attacks_over_tls.py::test_a_late_vector_is_hidden_by_its_self_mask_alone"),
    Elsewhere("3", "by exhaustion on tiny rings: a late vector stays uniform",
              "unit/secure/test_protocol_secrecy.py::"),
    Elsewhere("1", "… and it is shown another U2 or U3 without having ended",
              "unit/secure/test_protocol_machine.py::test_both_shares_of_one_site_are_never_asked_out_of_a_site"),
    Elsewhere("2", "a split view with two colluders of seven sites",
              "unit/secure/test_protocol_machine.py::test_a_split_view_with_colluders_opens_one_set_at_most"),
    Elsewhere("6", "the same input in another round, from a state that was turned back",
              "unit/secure/test_protocol_machine.py::test_the_same_input_in_another_round"),
    Elsewhere("11", "a message under another site's name, twice, too long; a vector of another length, of a stranger",
              "unit/secure/test_protocol_machine.py::test_messages_written_twice_by_others_or_too_long"),
    Elsewhere("5", "a certificate that expired, of another enrolment, of another key; another roster",
              "faults/test_relayed_bad_input.py::test_a_certificate_that_the_relay_does_not_accept"),
    Elsewhere("5", "messages of an earlier round",
              "unit/secure/test_protocol_machine.py::test_messages_of_an_earlier_round"),
    Elsewhere("5, 7", "an older configuration or roster", "faults/test_relayed_bad_input.py::"
              "test_a_roster_that_this_site_did_not_approve"),
    Elsewhere("7", "a relay with another key", "faults/test_relayed_bad_input.py::test_a_relay_with_another_key"),
    Elsewhere("1", "what a site has signed holds after kill −9 at each message",
              "faults/test_relayed_kill.py::test_cell"),
    Elsewhere("4", "the others go on without a site that was lied to",
              "faults/test_attacks_over_tls.py::test_the_others_go_on_without_a_site_that_was_lied_to"),
    Elsewhere("9", "published values of the generator", "unit/secure/test_secure_masks.py::"),
    Elsewhere("9", "no mask key is used twice",
              "unit/secure/test_protocol_machine.py::test_no_mask_key_is_used_twice"),
    Elsewhere("9", "masked lanes are uniform",
              "unit/secure/test_protocol_machine.py::test_masked_lanes_are_uniform_whatever_the_vector"),
    Elsewhere("9", "… on the relay's disk",
              "faults/test_attacks_over_tls.py::test_masked_vectors_look_uniform_on_the_relays_disk"),
    Elsewhere("10", "NaN, infinity, signed zeros, the bound itself, weights", "unit/secure/test_secure_ring.py::"),
    Elsewhere("11", "blocks that are short, doubled, too long, out of order", "relay/test_hostile.py::"),
    Elsewhere("11", "what no site may send in a round that runs",
              "faults/test_relayed_bad_input.py::test_what_is_no_vector_of_the_round"),
    Elsewhere("11", "arbitrary bytes for every parser", "fuzz/test_targets.py::"),
    Elsewhere("12", "sites and relay die at every message",
              "unit/secure/test_protocol_faults.py::test_the_matrix_is_whole"),
    Elsewhere("12", "messages withheld from all: a later attempt gives the sum",
              "faults/test_attacks_over_tls.py::test_messages_withheld_from_all_cost_an_attempt"),
    Elsewhere("12", "one site says that all are needed, and keeps its vector back: the others go on",
              "unit/relay/test_relay_hostile_site.py::test_a_site_that_says_everyone_and_keeps_its_vector_back"),
    Elsewhere("12", "one site answers before enough have signed: the others open another set",
              "unit/relay/test_relay_hostile_site.py::test_a_lone_answer_and_no_signature"),
    Elsewhere("12", "one site is ready with as much as the relay takes, again and again: the others are not slowed",
              "unit/relay/test_relay_hostile_site.py::test_a_ready_is_read_without_the_lock_of_its_federation"),
    Elsewhere("12", "64 silent connections of strangers, and more as they end: every site gets in",
              "relay/test_strangers.py::test_silent_connections_lock_no_site_out"),
    Elsewhere("6", "a site is lost once: no sum that another one lacks shows its counts",
              "unit/federation/test_sums_over_everyone.py::test_a_lost_site_does_not_show_its_counts"),
    Elsewhere("6", "… nor its weight, nor a number that is summed twice without a name",
              "unit/federation/test_sums_over_everyone.py::test_a_sum_that_a_lost_site_would_show_itself_by_is_over_everyone"),
    Elsewhere("6", "other numbers under an old name: refused, and the old total is not given",
              "relay/test_skip.py::test_a_second_different_sum_under_an_old_name_is_refused"),
    Elsewhere("10", "marks of exponents that no honest sites made: a stop that blames nobody, and no second count",
              "unit/federation/test_sums_over_everyone.py::"
              "test_counts_that_no_honest_sites_made_stop_the_run_and_blame_nobody"),
    Elsewhere("10", "a mark at the last bin: no model that is rounded to zero in silence",
              "unit/federation/test_sums_over_everyone.py::"
              "test_a_mark_at_the_last_bin_does_not_round_the_model_to_zero_in_silence"),
    Elsewhere("10", "how many sites reach the largest size of a number in a statistic is not told, and nobody takes "
              "a mark away", "unit/secure/test_secure_largest.py"),
    Elsewhere("10", "a false mark in a statistic: its sums lose digits, which honest sites are told, and no feature "
              "becomes a constant",
              "unit/federation/test_element_scales.py::test_a_false_mark_is_told_and_makes_no_constant"),
    Elsewhere("12", "a site is killed in a sum over everyone: the others do without it",
              "relay/test_skip.py::test_a_site_killed_in_a_sum_over_everyone_holds_nobody_up"),
    Elsewhere("6", "a site that lost its run directory: its vector again and no other, or a round without it",
              _LOST + "test_training_that_does_not_repeat_sits_a_round_out"),
    Elsewhere("6", "… and lost its ledger with it: nothing more of it in this epoch",
              _LOST + "test_with_the_ledger_lost_too_the_next_epoch_is_told"),
    Elsewhere("12", "… whose keys of an open attempt are gone: nobody waits for a deadline",
              _LOST + "test_a_lost_run_directory_heals"),
    Elsewhere("12", "… again and again ready for nothing: a round that needs all is given up twice at the most",
              "unit/sums/test_standing_aside.py::test_it_does_not_spoil_a_round_that_needs_all_again_and_again"),
    Elsewhere("14", "nothing private is in what the relay holds",
              "unit/secure/test_protocol_machine.py::test_nothing_private_is_in_what_the_relay_holds"),
    Elsewhere("14", "two sites, and settings that are not safe", "unit/secure/test_secure_thresholds.py::"),
    Elsewhere("5", "in one job: MACs of an earlier sum, whatever its proposal",
              _RATCHET + "test_macs_replayed_from_an_earlier_sum"),
    Elsewhere("5", "… of another key agreement", _RATCHET + "test_macs_replayed_from_another_agreement"),
    Elsewhere("5", "… a rank that starts again with the old index",
              _RATCHET + "test_a_site_that_starts_again_has_no_key_of_the_others"),
    Elsewhere("7", "… the MAC of another site, one's own sent back, one meant for another",
              _RATCHET + "test_the_mac_of_another_site"),
    Elsewhere("4", "… another proposal under a forged hash",
              _RATCHET + "test_another_proposal_has_another_head_and_no_mac_holds"),
    Elsewhere("13", "… M6 of the sum before altered on its way: nothing is masked",
              "unit/sums/test_job_keys.py::"
              "test_a_result_that_was_altered_on_its_way_is_found_before_the_next_sum_is_masked"),
    Elsewhere("9", "… more sums than one agreement is for", _RATCHET + "test_a_key_agreement_ends_after_its_sums"),
    Elsewhere("7", "… a MAC altered for one site: all refuse the sum, new keys follow",
              "unit/sums/test_job_keys.py::"
              "test_a_mac_or_signature_that_does_not_hold_refuses_the_sum_at_all_sites"),
    Elsewhere("6", "… a process image that is put back: the ledger refuses another vector", _RATCHET +
              "test_a_process_image_that_is_put_back_repeats_keys_and_the_ledger_refuses_another_vector"),
    Elsewhere("7", "… a checkpoint that not all sites signed",
              _RATCHET + "test_a_kept_state_needs_all_signatures_over_one_head"),
    Elsewhere("15", "differential privacy, its ledger and seeds", "not built"),
    Elsewhere("15", "attestation reports", "not built"),
)  # fmt: skip

if __name__ == "__main__":
    print("\n".join(rows()))
