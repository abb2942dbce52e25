"""The fifth rule: what two sums of an institution may not show together, and that honest work is never refused."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from federation_fakes import known
from secure_fakes import key_of

from fedhpc.errors import PolicyError
from fedhpc.ledger.journal import MemoryJournal
from fedhpc.ledger.sum_class import class_of
from fedhpc.secure import labels
from fedhpc.secure.home_ledger import HomeLedger, KnownFederation, federation_from_json
from fedhpc.secure.ledger import NO_SET, NO_VECTOR, ZERO_VALUE, LedgerEntry, Mark
from fedhpc.secure.thresholds import choose_thresholds

WHOLE = (1, 2, 3, 4)
SAME = key_of("the same numbers")
_others = itertools.count()


def sum_of(
    round_: int,
    purpose: str,
    cohort: tuple[int, ...] = WHOLE,
    *,
    value: bytes = b"",
    everyone: bool = False,
    **more: Any,
) -> LedgerEntry:
    """One sum. Without `value` no other has the same numbers."""
    mark = Mark(key_of("print", purpose, round_), class_of(purpose), value or key_of("value", next(_others)), everyone)
    entry = LedgerEntry(round_, purpose, key_of("input", purpose, round_), mark.fingerprint, cohort)
    return dataclasses.replace(mark.on(entry), **more)


def train(round_: int, cohort: tuple[int, ...] = WHOLE, **more: Any) -> LedgerEntry:
    return sum_of(round_, "train", cohort, **({"category": labels.CLASS_TRAIN} | more))


class Site:
    """Site 1 and its home, over its federations."""

    def __init__(self) -> None:
        self.home = HomeLedger()

    def joins(self, federation: KnownFederation, *accepted: str) -> MemoryJournal:
        return MemoryJournal(federation, self.home, accepted)


def federation(name: str, sites: str, colluders: int | None = None) -> KnownFederation:
    """A roster of sites named by letters, of which `a` is this one."""
    t = choose_thresholds(len(sites), colluders, None).colluders
    return KnownFederation(
        key_of("config", name), name, 0, 1 + sites.index("a"), t, tuple(sites), tuple(key_of("site", s) for s in sites)
    )


def refused(journal: MemoryJournal, entry: LedgerEntry, *words: str) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        journal.admit(entry)
    assert caught.value.exit_code == 77
    for word in words:
        assert word in caught.value.what + caught.value.hint, caught.value.lines()
    return caught.value


# --- 5a: the same numbers over two sets


def test_the_same_numbers_over_two_sets_are_refused() -> None:
    """Audit 5: `fed.sum(n)` over four sites and over three shows the fourth."""
    journal = Site().joins(federation("f", "abcd"))
    journal.admit(sum_of(1, "sum 1", value=SAME))
    refused(journal, sum_of(2, "sum 2", (1, 2, 3), value=SAME), "over b, c, d before and now over b, c", "those of d")
    journal.admit(sum_of(3, "sum 3", value=SAME))
    journal.admit(sum_of(4, "other", (1, 2, 3)))


def test_a_set_that_comes_last_is_refused_before_its_signature_and_its_shares() -> None:
    """Over a relay the vector comes first, and the set when it is known."""
    journal = Site().joins(federation("f", "abcd"))
    journal.admit(train(5, value=SAME))
    journal.admit(train(6, NO_SET, value=SAME))
    bare = LedgerEntry(6, "train", key_of("input", "train", 6), key_of("print", "train", 6), (1, 3, 4))
    for ask in (journal.allows, journal.admit):
        with pytest.raises(PolicyError, match="holds the same numbers as an earlier sum") as caught:
            ask(bare)
        assert "fedhpc federation next --again" in caught.value.hint
        assert "goes on from the present model" in caught.value.hint
        assert "those of b" in caught.value.what
    journal.admit(dataclasses.replace(bare, cohort=WHOLE))


def test_abandon_with_a_full_batch() -> None:
    """Audit 9: the round after ABANDON has the same update; with another set it shows the site in between."""
    journal = Site().joins(federation("f", "abcd"))
    journal.admit(train(7, NO_SET, value=SAME))
    journal.admit(train(7, value=SAME))  # M5; then the relay alters Y, a colluder opens X, and all sign ABANDON
    journal.admit(dataclasses.replace(train(7, NO_SET, value=SAME), state=key_of("same tensors")))
    journal.admit(train(8, NO_SET, value=SAME))
    refused(journal, train(8, (1, 2, 4), value=SAME), "those of c", "fedhpc federation next")
    journal.admit(train(8, value=SAME))


def test_a_release_frees_numbers_and_set() -> None:
    journal = Site().joins(federation("f", "abcd"))
    journal.admit(train(5, NO_SET, value=SAME))
    journal.admit(train(5, value=SAME))
    missed = LedgerEntry(5, "train", key_of("input", "train", 5), NO_VECTOR, (2, 3, 4), key_of("next"))
    journal.admit(missed)
    journal.admit(train(6, (1, 2, 3), value=SAME))


def test_two_federations_of_one_home_and_a_rotated_key() -> None:
    site = Site()
    first, second = federation("first", "abcd"), federation("second", "abc")
    site.joins(first).admit(sum_of(1, "count", value=SAME))
    error = refused(site.joins(second), sum_of(1, "number", (1, 2, 3), value=SAME), "those of d")
    assert "everyone=True" in error.hint
    # Who a site is follows from its first key, so a roster with new keys is the same roster.
    renamed = dataclasses.replace(federation("third", "abcd"), names=("a", "bb", "c", "d"))
    site.joins(renamed).admit(sum_of(1, "amount", value=SAME))
    # Sites that nobody knows under these keys are others.
    strangers = dataclasses.replace(second, config=key_of("x"), identities=(first.own, key_of("y"), key_of("z")))
    site.joins(strangers).admit(sum_of(1, "sum of strangers", (1, 2, 3), value=SAME))


def test_combinations_of_more_than_two_sums_are_refused() -> None:
    journal = Site().joins(federation("f", "abcdefg", 1))
    journal.admit(sum_of(1, "one", (1, 2, 3, 4, 5), value=SAME))
    journal.admit(sum_of(2, "two", (1, 4, 5, 6, 7), value=SAME))
    refused(journal, sum_of(3, "three", (1, 2, 3, 6, 7), value=SAME), "together they show those of b, c")


# --- 5b: classes


@pytest.mark.parametrize("category", ["weights", "standardise", "measured"])
def test_statistics_over_everybody_are_asked_once_per_roster(category: str) -> None:
    """Audit 2: a site leaves, and its W, sums of features and held-out rows show, whatever changed meanwhile."""
    site = Site()
    ask = {"everyone": True, "category": category}
    site.joins(federation("epoch 0", "abcd")).admit(sum_of(1, "w", **ask))
    without = federation("epoch 1", "abc")
    error = refused(site.joins(without), sum_of(1, "w", (1, 2, 3), **ask), f"'{category}'", "those of d")
    assert f"fedhpc federation next --accept-difference '{category}'" in error.hint
    assert f"fedhpc site approve --accept-difference '{category}'" in error.hint
    accepted = site.joins(without, category)
    accepted.admit(sum_of(1, "w", (1, 2, 3), **ask))
    for again in ("epoch 2", "epoch 3"):  # the same roster was accepted
        site.joins(federation(again, "abc")).admit(sum_of(1, "w", (1, 2, 3), **ask))
    site.joins(federation("epoch 4", "abcd")).admit(sum_of(1, "w", **ask))
    refused(site.joins(federation("epoch 5", "abcde")), sum_of(1, "w", (1, 2, 3, 4, 5), **ask), "those of e")


def test_before_anything_of_the_vector_leaves() -> None:
    site = Site()
    site.joins(federation("epoch 0", "abcd")).admit(sum_of(1, "weights", everyone=True, category="weights"))
    journal = site.joins(federation("epoch 1", "abc"))
    refused(journal, sum_of(1, "weights", NO_SET, everyone=True, category="weights"), "nothing was sent")
    assert len(journal.ledger) == 0


def test_training_on_the_same_data_is_asked_whatever_the_numbers() -> None:
    site, here, copy, elsewhere = (
        Site(),
        key_of("p") + key_of("c"),
        key_of("q") + key_of("c"),
        key_of("r") + key_of("s"),
    )
    site.joins(federation("epoch 0", "abcd")).admit(train(1, data=here))
    for data in (here, copy, b""):  # a store that is not known may be the same
        journal = site.joins(federation("epoch 1", "abc"))
        refused(journal, train(1, NO_SET, data=data), "'train'", "those of d")
    site.joins(federation("other data", "abc")).admit(train(1, (1, 2, 3), data=elsewhere))
    site.joins(federation("epoch 1", "abc"), "train").admit(train(1, (1, 2, 3), data=here))


def test_accepting_a_class_does_not_accept_the_same_numbers() -> None:
    """A first update that no seed changes (full batch, zero model) is the site's in between, not a near repeat."""
    site = Site()
    site.joins(federation("epoch 0", "abcd")).admit(train(1, value=SAME))
    journal = site.joins(federation("epoch 1", "abc"), "train")
    refused(journal, train(1, (1, 2, 3), value=SAME), "holds the same numbers")


def test_names_and_unnamed_are_asked_on_equal_numbers() -> None:
    site = Site()
    site.joins(federation("one", "abcd")).admit(sum_of(1, "patients", value=SAME, everyone=True))
    journal = site.joins(federation("two", "abc"))
    refused(
        journal, sum_of(1, "rows", (1, 2, 3), value=SAME, everyone=True), "--accept-difference 'rows'", "those of d"
    )
    unnamed = sum_of(2, "sum 2", (1, 2, 3), value=SAME, everyone=True, category=class_of(None))
    refused(journal, unnamed, "--accept-difference 'unnamed'")
    journal.admit(sum_of(3, "patients", (1, 2, 3), everyone=True))  # other numbers
    site.joins(federation("two", "abc"), "rows").admit(sum_of(1, "rows", (1, 2, 3), value=SAME, everyone=True))


@pytest.mark.parametrize("category", ["weights", "standardise", "measured"])
def test_the_same_numbers_under_another_class_are_asked_about_too(category: str) -> None:
    """The rows were summed as a statistic of four sites; as W of three they would show those of the fourth."""
    site = Site()
    site.joins(federation("one", "abcd")).admit(sum_of(1, "patients", value=SAME, everyone=True))
    weights = sum_of(1, category, (1, 2, 3), value=SAME, everyone=True, category=category)
    refused(site.joins(federation("two", "abc")), weights, f"--accept-difference '{category}'", "those of d")
    site.joins(federation("two", "abc"), category).admit(weights)


@pytest.mark.parametrize(("first", "then"), [("weights", "standardise"), ("standardise", "weights")])
def test_the_number_of_rows_is_in_two_classes(first: str, then: str) -> None:
    """W over four sites and the rows of a standardisation over three would show those of the fourth."""
    site = Site()
    site.joins(federation("one", "abcd")).admit(sum_of(1, first, everyone=True, category=first))
    second = sum_of(1, then, (1, 2, 3), everyone=True, category=then)
    refused(site.joins(federation("two", "abc")), second, f"--accept-difference '{then}'", "those of d")
    site.joins(federation("two", "abc"), then).admit(second)
    same = site.joins(federation("same", "abcd"))
    same.admit(sum_of(1, then, everyone=True, category=then))
    same.admit(sum_of(2, first, everyone=True, category=first))


# --- honest daily work


def test_sweeps_and_two_federations_at_once_over_one_roster() -> None:
    site = Site()
    journals = [site.joins(federation(f"lr {n}", "abcd")) for n in range(5)]
    for round_ in range(1, 4):
        for n, journal in enumerate(journals):
            for category in ("weights", "standardise", "measured"):
                round_of = 10 * round_ + 3 * ("weights", "standardise", "measured").index(category)
                journal.admit(sum_of(round_of, f"{category} {round_}", everyone=True, category=category, value=SAME))
            journal.admit(train(10 * round_ + 9, value=SAME if round_ == 1 else key_of(n, round_)))


def test_converged_models_with_zero_updates_while_sites_are_lost() -> None:
    journal = Site().joins(federation("f", "abcd"))
    for round_, cohort in enumerate([WHOLE, (1, 2, 3), (1, 3, 4), (1, 2, 4)], start=1):
        journal.admit(train(round_, cohort, value=ZERO_VALUE))


def test_equal_counts_of_an_evaluation() -> None:
    """Measured values repeat in every round over the same roster."""
    journal = Site().joins(federation("f", "abcd"))
    for round_ in range(1, 6):
        journal.admit(sum_of(round_, f"measured after round {round_}", value=SAME, everyone=True, category="measured"))


def test_disjoint_partners() -> None:
    site = Site()
    for n, partners in enumerate(["abcd", "aefg", "ahij", "aklm"]):
        journal = site.joins(federation(f"f{n}", partners))
        for round_, category in enumerate(["weights", "standardise", "measured", "patients"], start=1):
            journal.admit(sum_of(round_, category, everyone=True, category=category, value=SAME))
        journal.admit(train(9, value=SAME))
        journal.admit(sum_of(10, "count", value=SAME))


def test_exponent_counts_that_repeat_while_a_site_is_lost() -> None:
    journal = Site().joins(federation("f", "abcd"))
    for round_, cohort in enumerate([WHOLE, (1, 2, 3), (1, 3, 4)], start=1):
        journal.admit(sum_of(round_, f"scale of round {round_}", cohort, value=SAME, category=labels.CLASS_SCALE))
    journal.admit(train(9, (1, 2, 3), value=SAME))


def test_three_sites_are_two_others() -> None:
    """One sum alone is always allowed, also over t + 1 others."""
    journal = Site().joins(federation("f", "abc"))
    for round_ in range(1, 4):
        journal.admit(train(round_, (1, 2, 3), value=SAME))


def test_the_start_of_an_epoch_is_exempt() -> None:
    site = Site()
    site.joins(federation("epoch 0", "abcd")).admit(sum_of(1, "x", value=SAME, category=labels.CLASS_START))
    site.joins(federation("epoch 1", "abc")).admit(
        sum_of(1, "y", (1, 2, 3), value=SAME, everyone=True, category=labels.CLASS_START)
    )


# --- names, and the file's own forms


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, "unnamed"), ("", "unnamed"), ("weights", "weights"), ("weights of age", "weights"),
        ("weights 3", "weights"), ("standardise.mean", "standardise"), ("mean age", "mean age"),
        ("scale", "statistic scale"), ("start", "statistic start"), ("train", "statistic train"),
        ("measured", "statistic measured"),
    ],
)  # fmt: skip
def test_the_class_of_a_statistic(name: str | None, expected: str) -> None:
    """No name that a script gives makes its sum exempt."""
    assert class_of(name) == expected


def test_a_federation_comes_back_from_its_json() -> None:
    made = known()
    assert federation_from_json(made.as_json()) == made
    good = made.as_json()
    bad: list[Any] = [
        None, [], {}, good | {"more": 1}, good | {"config": "zz"}, good | {"number": 9}, good | {"roster": 3},
        good | {"roster": [["a"]]}, good | {"epoch": "0"}, {k: v for k, v in good.items() if k != "name"},
    ]  # fmt: skip
    for value in bad:
        with pytest.raises(ValueError):  # noqa: PT011
            federation_from_json(value)
