"""The attacks, as data: the tests take their cases from here, and docs/security.md has the same rows.

`number`: of the fifteen attacks that the tests of a masked sum should make (docs/security.md lists them); "P" is one
that docs/protocol.md section 8 names besides.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attack:
    """One attack over the wire: the function `key` of relay_attacks.py or site_attacks.py makes it."""

    number: str
    key: str
    what: str
    stops: str  # the first message that the victims do not send
    error: str  # the class, at every victim
    words: str  # in what the victim says; "" where it says nothing and waits
    attempt: int = 1  # the one that is attacked


@dataclass(frozen=True)
class Elsewhere:
    """What an attack of the list has besides, or instead: `test` is FILE::NAME below tests/, or why there is none."""

    number: str
    what: str
    test: str


def rows() -> list[str]:
    """The table of docs/security.md, line by line."""
    head = ["| no. | what is done | stops before | error at the victim | test |", "|---|---|---|---|---|"]
    wire = [
        f"| {a.number} | {a.what} | {a.stops or 'the result is used'} | {a.error}{': ' + a.words if a.words else ''} | "
        f"`{a.key}` |"
        for a in (*RELAY, *SITE)
    ]
    return [*head, *wire, *(f"| {e.number} | {e.what} | | | {_link(e.test)} |" for e in ELSEWHERE)]


def _link(test: str) -> str:
    return test if "::" not in test else f"`{test.removesuffix('::')}`"


_TAG = "the sum does not have the tag of its vectors"
_REACH = "cannot be reached"

RELAY = (
    Attack("1", "u3_doubled", "the list of survivors names a site twice", "M4", "PolicyError", "a site twice"),
    Attack("1", "u3_unknown_site", "it names a site that is not in the roster", "M4", "PolicyError", "from 1 to 4"),
    Attack("1", "u3_after_a_restart", "a site that signed one set is asked for the other share", "M5", "PolicyError",
           "another set of survivors or another sum than this site signed"),
    Attack("1", "u3_without_the_site", "a set without the site, though its vector is there", "M4", "PeersError",
           _REACH),
    Attack("2", "u3_split_view", "two halves are shown two sets", "M5", "PeersError", "2 of the 3 signatures"),
    Attack("3", "late_vector", "a vector is called late, kept, and its mask key opened", "M4", "PeersError", _REACH),
    Attack("4", "m0_state", "one site gets a proposal from another model", "M1", "PolicyError", "another state than"),
    Attack("4", "m0_layout", "… with other tensors", "M1", "PolicyError", "another layout, tensors than"),
    Attack("4", "m0_purpose", "… for another purpose", "M1", "PolicyError", "another purpose than"),
    Attack("4", "m0_round", "… of another round", "M1", "PolicyError", "another round than"),
    Attack("4", "m0_config", "… of another configuration", "M1", "PolicyError", "another config than"),
    Attack("4", "m0_base", "a site in it starts from an unknown model", "M1", "PolicyError", "unknown or too old base"),
    Attack("4", "m0_attempt", "one site gets another number of the attempt", "M2", "PolicyError",
           "another transcript in M1"),
    Attack("5", "config_signature", "a site's signature under another configuration", "READY", "PolicyError",
           "another transcript in CONFIG"),
    Attack("5", "m1_replayed", "M1 of an earlier attempt", "M2", "PolicyError", "another transcript in M1", 2),
    Attack("5", "m2_replayed", "M2 of an earlier attempt", "M3v", "PolicyError", "another transcript in M2", 2),
    Attack("5", "m3_replayed", "M3 of an earlier attempt", "M4", "PolicyError", "another transcript in M3", 2),
    Attack("5", "m4_replayed", "M4 of an earlier attempt", "M5", "PeersError", "1 of the 3 signatures", 2),
    Attack("5", "m5_replayed", "M5 of an earlier attempt", "M6", "PeersError", "1 of the 3 shares", 2),
    Attack("5", "attempt_replayed", "an attempt is run again with another U2", "M3v", "PolicyError",
           "another U2 than this site masked", 2),
    Attack("6, P", "second_set", "a second set after the round was opened", "M4", "PolicyError",
           "was opened over sites [1, 2, 3, 4], not [1, 2, 3]", 2),
    Attack("6", "three_sets", "three sets that together isolate a site", "M4", "PolicyError",
           "was opened over sites [1, 2, 3], not [1, 3, 4]", 3),
    Attack("6", "fewer_than_everyone", "fewer sites in a sum that needs all", "M4", "PolicyError", "needs every site"),
    Attack("7", "m1_own_key", "the relay puts its own keys into M1", "M2", "PolicyError", "on M1 is not valid"),
    Attack("7", "m1_of_another_site", "M1 of another site", "M2", "PolicyError", "expected M1 of site s3"),
    Attack("7", "m2_altered", "other commitments in M2", "M3v", "PolicyError", "on M2 is not valid"),
    Attack("7", "m2_swapped_boxes", "boxes of shares exchanged in M2", "M3v", "PolicyError", "on M2 is not valid"),
    Attack("7", "m3_altered", "another tag in M3", "M4", "PolicyError", "on M3 is not valid"),
    Attack("7", "m6_forged", "another next state in M6", "", "PeersError", _REACH),
    Attack("11", "m1_malformed", "pickle for M1", "M2", "PolicyError", "is malformed"),
    Attack("11", "m1_oversized", "M1 of 70 000 bytes", "M2", "PolicyError", "at most 1024"),
    Attack("11", "m1_other_spelling", "the same M1 in another spelling", "M2", "PolicyError", "not in canonical form"),
    Attack("11", "m2_torn", "M2 without its last bytes", "M3v", "PolicyError", "is malformed"),
    Attack("12", "m4_kept_back", "the others' M4 are kept from one site", "M5", "PeersError", _REACH),
    Attack("13", "y_low_bit", "the sum with its lowest bit flipped, for all", "M6", "PolicyError", _TAG),
    Attack("13, P", "y_top_bit", "the top bit of a 64-bit lane flipped, for all", "M6", "PolicyError", _TAG),
    Attack("13, P", "y_top_bit_of_32", "the top bit of a 32-bit lane flipped, for all", "M6", "PolicyError", _TAG),
    Attack("13", "y_swapped_blocks", "two blocks of 1 MiB exchanged, for all", "M6", "PolicyError", _TAG),
    Attack("13", "y_dropped_block", "a part of the sum is zero, for all", "M6", "PolicyError", _TAG),
    Attack("13", "y_for_one_site", "another sum for one site than was signed", "M6", "PolicyError", "another sum than"),
    Attack("13", "y_shorter", "a shorter sum for one site", "M6", "RelayProblem", "Y has 80 bytes, not 88"),
    Attack("13", "y_longer", "a longer sum for one site", "M6", "RelayProblem", "Y has 104 bytes, not 88"),
    Attack("13", "vector_altered", "a byte of a site's vector, before it is added", "M6", "PolicyError", _TAG),
    Attack("13", "m4r_for_one_site", "another hash of the sum for one site", "M5", "PeersError",
           "1 of the 3 signatures"),
    Attack("14", "m0_too_few", "a proposal over two sites", "M1", "PolicyError", "has 2 sites; at least 3"),
    Attack("14", "u1_too_few", "U1 of two sites", "M2", "PolicyError", "U1 has 2 sites; at least 3"),
    Attack("14", "u2_too_few", "U2 of two sites", "M3v", "PolicyError", "U2 has 2 sites; at least 3"),
    Attack("14", "u3_too_few", "U3 of two sites", "M4", "PolicyError", "U3 has 2 sites; at least 3"),
    Attack("P", "u1_for_one_site", "another U1 for one site", "M3v", "PolicyError", ""),
    Attack("P", "u2_for_one_site", "another U2 for one site", "M4", "PolicyError", ""),
    Attack("P", "u2_again", "another U2 for a site that starts again after its vector left", "M3", "PolicyError",
           "another U2 than this site masked"),
)  # fmt: skip

SITE = (
    Attack("5", "second_signature", "a site signs a second set for another site", "M5", "PeersError",
           "2 of the 3 signatures"),
    Attack("7", "low_order_sealing_key", "a sealing key of low order in a signed M1", "M2", "PolicyError",
           "not a usable point"),
    Attack("7", "low_order_key", "a mask key of low order in a signed M1", "M2", "PolicyError", "not a usable point"),
    Attack("7", "copied_key", "the key of another site in a signed M1", "M2", "PolicyError", "sent the same key"),
    Attack("8", "share_of_another", "a box with another site's shares", "M3v", "PolicyError", "does not open"),
    Attack("8", "false_share", "another share than was announced", "M3v", "PolicyError", "sealed other shares"),
    Attack("8", "false_secret", "shares of another secret than was announced", "M6", "PolicyError",
           "site s3 dealt do not give the secret"),
    Attack("8", "noise_for_shares", "two sites answer with noise", "M6", "PeersError", "2 of the 3 shares"),
    Attack("10", "beyond_the_ring", "a number that carries the sum beyond the ring", "M6", "PolicyError",
           "is beyond what"),
    Attack("10", "own_number_too_large", "a number beyond the bound, at an honest site", "READY", "DataError",
           "beyond the bound"),
    Attack("10", "own_number_beyond", "… by little", "READY", "DataError", "beyond the bound"),
    Attack("10", "own_number_is_none", "NaN, at an honest site", "READY", "DataError", "holds NaN"),
    Attack("10", "own_number_infinite", "minus infinity, at an honest site", "READY", "DataError", "holds infinity"),
    Attack("13", "one_tag", "the tag of another vector", "M6", "PolicyError", _TAG),
    Attack("13", "other_vector", "another vector than the signed M3 names", "M6", "PolicyError", _TAG),
    Attack("6, P", "changed_vector", "other numbers for the same round after a restart", "M1", "PolicyError",
           "was begun with another vector", 2),
)  # fmt: skip

_LOST = "faults/test_relayed_lost_folder.py::"

ELSEWHERE = (
    Elsewhere("3", "a late vector is hidden by its self mask alone",
              "faults/test_wire_attacks.py::test_a_late_vector_is_hidden_by_its_self_mask_alone"),
    Elsewhere("3", "by exhaustion on tiny rings: a late vector stays uniform",
              "unit/secure/test_protocol_secrecy.py::"),
    Elsewhere("5", "a certificate that expired, of another enrolment, of another key; another roster",
              "faults/test_relayed_bad_input.py::test_a_certificate_that_the_relay_does_not_accept"),
    Elsewhere("5", "messages of an earlier round",
              "unit/secure/test_protocol_attacks.py::test_5_messages_of_an_earlier_round"),
    Elsewhere("5, 7", "an older configuration or roster", "faults/test_relayed_bad_input.py::"
              "test_a_roster_that_this_site_did_not_approve"),
    Elsewhere("7", "a relay with another key", "faults/test_relayed_bad_input.py::test_a_relay_with_another_key"),
    Elsewhere("1", "both shares of a site, with kill −9",
              "faults/test_relayed_attacks.py::both_shares_of_a_site_are_never_asked_out"),
    Elsewhere("4", "the others go on without a site that was lied to",
              "faults/test_relayed_attacks.py::the_others_go_on_without_a_site_that_was_lied_to"),
    Elsewhere("6, P", "other numbers after a restart, with kill −9",
              "faults/test_relayed_attacks.py::a_changed_vector_on_retry"),
    Elsewhere("8", "one site with wrong shares is named and done without",
              "faults/test_wire_attacks.py::test_wrong_shares_are_named_and_not_needed"),
    Elsewhere("9", "published values of the generator", "unit/secure/test_secure_masks.py::"),
    Elsewhere("9", "no mask key is used twice",
              "unit/secure/test_protocol_attacks.py::test_9_no_mask_key_is_used_twice"),
    Elsewhere("9", "masked lanes are uniform",
              "unit/secure/test_protocol_attacks.py::test_9_masked_lanes_are_uniform_whatever_the_vector"),
    Elsewhere("9", "… on the relay's disk",
              "faults/test_wire_attacks.py::test_masked_vectors_look_uniform_on_the_relays_disk"),
    Elsewhere("10", "NaN, infinity, signed zeros, the bound itself, weights", "unit/secure/test_secure_ring.py::"),
    Elsewhere("11", "blocks that are short, doubled, too long, out of order", "relay/test_hostile.py::"),
    Elsewhere("11", "what no site may send in a round that runs",
              "faults/test_relayed_bad_input.py::test_what_is_no_vector_of_the_round"),
    Elsewhere("11", "arbitrary bytes for every parser", "fuzz/test_targets.py::"),
    Elsewhere("12", "sites and relay die at every message",
              "unit/secure/test_protocol_faults.py::test_the_matrix_is_whole"),
    Elsewhere("12", "messages withheld from all: a later attempt gives the sum",
              "faults/test_relayed_attacks.py::withheld_messages_cost_an_attempt"),
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
              "unit/secure/test_protocol_attacks.py::test_14_nothing_private_is_in_what_the_relay_holds"),
    Elsewhere("14", "two sites, and settings that are not safe", "unit/secure/test_secure_thresholds.py::"),
    Elsewhere("15", "differential privacy, its ledger and seeds", "not built"),
    Elsewhere("15", "attestation reports", "not built"),
)  # fmt: skip

if __name__ == "__main__":
    print("\n".join(rows()))
