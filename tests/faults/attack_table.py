"""Every attack that is really made against the whole stack, where it is stopped and with which error.

The numbers are those of the fifteen attacks and bad inputs that the tests were written from; "+" are those that the
protocol adds. test_relayed_attacks.py makes those of ATTACKS with sites as processes and several sums, each in the same
way; those of OTHERS have a test of their own. The table in docs/security.md is that of wire_table.py.
"""

from __future__ import annotations

from dataclasses import dataclass

ALL = (1, 2, 3, 4)
POLICY, PEERS, DATA = "PolicyError", "PeersError", "DataError"


@dataclass(frozen=True)
class Attack:
    """One attack, over the wire, on four sites."""

    number: str
    what: str
    name: str  # of hostile_relay.LIES or DEEDS; with `crime` of a hostile site
    stopped: str  # the message that no victim sends any more
    error: str
    words: str
    victims: tuple[int, ...] = ALL
    crime: str = ""
    criminals: tuple[int, ...] = ()
    job: str = "sums"

    @property
    def exit_code(self) -> int:
        return {POLICY: 77, DATA: 65}.get(self.error, 69)


@dataclass(frozen=True)
class Other:
    """An attack with a test of its own: `test` is FILE::FUNCTION below tests/."""

    number: str
    what: str
    outcome: str
    test: str


def _relay(number: str, what: str, name: str, stopped: str, words: str, *victims: int, error: str = POLICY) -> Attack:
    return Attack(number, what, name, stopped, error, words, victims or ALL)


def _site(number: str, what: str, crime: str, stopped: str, words: str, victims: tuple[int, ...], *by: int) -> Attack:
    """A relay that counts what an honest one takes for absent helps, so that the sites themselves must find it."""
    return Attack(number, what, "counts everything", stopped, POLICY, words, victims, crime, by)


def _numbers(what: str, value: str, words: str) -> Attack:
    return Attack("10", what, "", "READY", DATA, words, (4,), f"poison {value}", (4,))


_OTHER_TAG = "does not have the tag"
_OTHER_SUM = "gave another sum"
_SAME = "site cc signed another transcript in "
_WIDE = "the top bit of a 64-bit lane"
_CHANGES = ("a bit", "the top bit of a 32-bit lane", "a dropped chunk", "swapped chunks")

ATTACKS = (
    _relay("1", "a set of survivors with a site twice", "survivors doubled", "M4", "twice or out of order"),
    _relay("1", "a set of survivors with a stranger", "survivors with a stranger", "M4", "from 1 to"),
    _relay("1", "a set of survivors below the threshold", "survivors too few", "M4", "U3 has 2 sites", 1, 2),
    _relay(
        "2",
        "two sets of survivors, each for half of the sites",
        "survivors split",
        "M5",
        "signatures over",
        error=PEERS,
    ),
    *(
        _relay("4", f"M0 with another {field} for one site", f"M0 {field}", "M1", f"proposes another {field}", 2)
        for field in ("config", "layout", "purpose", "round", "state", "tensors")
    ),
    _relay("4", "M0 with another attempt number for one site", "M0 attempt", "M2", "signed another transcript in M1"),
    _relay("4", "M0 with a base that is in nobody's chain", "base unknown", "M1", "base"),
    *(
        _relay("5", f"{kind} of the round before", f"replayed {kind}", stopped, _SAME + kind, 1, 2, 4)
        for kind, stopped in (("M1", "M2"), ("M2", "M3"), ("M3", "M4"))
    ),
    _relay("5", "all M4 of the round before", "all replayed M4", "M5", "signatures over the set", error=PEERS),
    _relay("5", "all M5 of the round before", "all replayed M5", "M6", "of the 3 shares needed", error=PEERS),
    _relay("7", "another sealing key in M1", "key chan", "M2", "signature of site cc on M1 is not valid", 1, 2, 4),
    _relay("7", "another mask key in M1", "key mask", "M2", "signature of site cc on M1 is not valid", 1, 2, 4),
    *(
        _site(
            "7", f"a low-order point for {key} ({n})", f"low-order {key}, {n}", "M2", "not a usable point", (1, 2, 4), 3
        )
        for key in ("chan", "mask")
        for n in ("zero", "one")
    ),
    _site("7", "two sites with one key", "one key for two", "M2", "two sites sent the same key", (1, 2), 3, 4),
    _site("8", "a share sealed for somebody else", "a box for another", "M3", "does not open", (1,), 4),
    _site("8", "a share that is not the one announced", "another hash", "M3", "site dd sealed other shares", (1,), 4),
    _site(
        "8",
        "shares of another secret than announced",
        "another secret",
        "M6",
        "that site dd dealt do not",
        (1, 2, 3),
        4,
    ),
    _numbers("NaN in a vector", "nan", "holds NaN"),
    _numbers("infinity in a vector", "inf", "holds infinity"),
    _numbers("minus infinity in a vector", "-inf", "holds infinity"),
    _numbers("a value far beyond the bound", "1e+38", "beyond the bound"),
    _numbers("a value just beyond the bound", "8.01", "beyond the bound"),
    _relay("11", "pickled code in place of a message, by the relay", "a pickle", "M2", "malformed", 1, 2, 4),
    _site("11", "pickled code in place of a message, by a site", "a pickle for M1", "M2", "malformed", (1, 2, 4), 3),
    _relay("11", "a torn message", "a torn message", "M3", "malformed", 1, 2, 4),
    *(
        _relay("13", f"the sum altered before it is hashed: {c}", f"signed sum: {c}", "M6", _OTHER_TAG)
        for c in _CHANGES
    ),
    *(_relay("13", f"the sum altered for one site: {c}", f"served sum: {c}", "M6", _OTHER_SUM, 2) for c in _CHANGES),
    _relay("13", "a vector altered at the relay", "a vector altered", "M6", _OTHER_TAG),
    _site("13", "a tag of another vector", "another tag", "M6", _OTHER_TAG, (1, 2, 3), 4),
    _relay("13", "another sum announced to one site", "another sum for one", "M5", "signatures over", 2, error=PEERS),
    _relay("13", "a sum of another length", "a sum of another length", "M6", "bad-length", 2, error="RelayProblem"),
    _relay("14", "a proposal to too few sites", "cohort too small", "M1", "has 2 sites; at least 3", 4),
    _relay("14", "U1 below the threshold", "U1 too small", "M2", "U1 has 2 sites; at least 3", 1, 2),
    _relay("14", "U2 below the threshold", "U2 too small", "M3", "U2 has 2 sites; at least 3", 1, 2),
    Attack(
        *("14", "a sum that is meant for all, over some", "not all of all", "M4", POLICY, "needs every site"),
        victims=(1, 2, 3),
        job="rounds",
    ),
    _relay("+", "another U2 for one site", "U2 another", "M4", "site bb signed another transcript in M3", 1, 3, 4),
    _relay("+", "U2 beyond U1", "U2 beyond U1", "M3", "which are not in U1", 1),
    _relay("+", f"{_WIDE}, before it is hashed", f"signed sum: {_WIDE}", "M6", _OTHER_TAG),
    _relay("+", f"{_WIDE}, for one site", f"served sum: {_WIDE}", "M6", _OTHER_SUM, 2),
)

_HERE = "faults/test_relayed_attacks.py::"
_PURE = "unit/test_protocol_attacks.py::"

OTHERS = (
    Other(
        "1",
        "another set of survivors once M4 is signed, with the site restarted",
        "PolicyError before M5: a site signs one set an attempt",
        _HERE + "test_both_shares_of_a_site_are_never_asked_out",
    ),
    Other(
        "2",
        "the same with t colluding sites that sign both sets",
        "one set opens at most",
        _PURE + "test_2_a_split_view_of_the_survivors_opens_one_set_at_most",
    ),
    Other(
        "3",
        "a vector that arrives after its site was declared lost",
        "it opens nothing: its self mask stays closed",
        _HERE + "test_a_late_vector_stays_hidden",
    ),
    Other(
        "4",
        "one site gets another M0",
        "the others go on without it, exact",
        _HERE + "test_the_others_go_on_without_a_site_that_was_lied_to",
    ),
    Other(
        "5",
        "a signature for another configuration",
        "PolicyError before anything of a round",
        _HERE + "test_a_signature_for_another_configuration",
    ),
    Other(
        "5",
        "an attempt file of another attempt",
        "PolicyError before M1",
        _PURE + "test_5_an_attempt_file_of_another_attempt",
    ),
    Other(
        "6",
        "the same input in another round",
        "PolicyError before M3",
        _PURE + "test_6_the_same_input_in_another_round",
    ),
    Other(
        "7",
        "a relay with another TLS key",
        "PolicyError before the first request",
        _HERE + "test_a_relay_with_another_key_gets_nothing",
    ),
    Other(
        "7",
        "an unknown, foreign or expired certificate",
        "refused in the handshake or by its pin",
        "relay/test_identity.py::test_an_expired_or_foreign_certificate_fails_in_the_handshake",
    ),
    Other(
        "8",
        "wrong shares of the lost or the living in M5",
        "the sender is named; the sum of the others is exact",
        _HERE + "test_wrong_shares_are_named_and_not_needed",
    ),
    Other(
        "8", "too few good shares", "PeersError; nothing is applied", _PURE + "test_8_too_few_good_shares_open_nothing"
    ),
    Other(
        "9",
        "masks that are reused, or not uniform",
        "every key once; masked bytes are uniform at the relay",
        _HERE + "test_masked_vectors_look_uniform_at_the_relay",
    ),
    Other(
        "11",
        "lengths that lie, parts out of order, gzip, floods",
        "4xx and no memory",
        "relay/test_hostile.py::test_lengths_that_lie",
    ),
    Other(
        "11",
        "any bytes in place of any message",
        "a named error",
        "unit/test_protocol_fuzz.py::test_parsers_refuse_with_a_policy_error_or_take_the_genuine",
    ),
    Other("12", "losses everywhere", "the fault matrix", "faults/test_relayed_kill.py::test_the_matrix_is_whole"),
    Other(
        "13",
        "messages withheld",
        "the attempt is given up; a later one is exact",
        _HERE + "test_withheld_messages_cost_an_attempt",
    ),
    Other(
        "14",
        "secrets in the relay's store, logs, checkpoints, tracebacks",
        "none",
        "faults/test_relayed_secrets.py::test_no_secret_is_left_anywhere",
    ),
    Other(
        "+",
        "a second and a third set in a round, whose differences are single sites",
        "PolicyError before M4 of the second",
        _HERE + "test_a_round_opens_over_one_set",
    ),
    Other(
        "+",
        "a changed vector on retry",
        "PolicyError before M3, by the site's own ledger",
        _HERE + "test_a_changed_vector_on_retry",
    ),
)
