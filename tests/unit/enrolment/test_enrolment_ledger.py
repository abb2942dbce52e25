"""What a site's ledger says before its operator signs: whose numbers the sums of a new roster would show."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from enrolment_fakes import Enrolment
from secure_fakes import key_of

from fedhpc.agreement.federation_file import Agreement, read_agreement
from fedhpc.cli import cli
from fedhpc.enrolment.approve import review
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.ledger.adopt import adopt, old_class
from fedhpc.ledger.file import LEDGER_FILE
from fedhpc.ledger.home import home_of, known_federation
from fedhpc.ledger.journal import FileJournal
from fedhpc.ledger.show import ledger_json
from fedhpc.ledger.stores import homes_of, remember_home, store_mark
from fedhpc.secure.ledger import GENESIS, NO_SET, LedgerEntry, Mark, chain
from fedhpc.secure.transcript import canon

SITES = ("aa", "bb", "cc", "dd")
CLASSES = ("train", "weights", "standardise", "measured")


def agreement(path: Path) -> Agreement:
    return read_agreement(path.read_bytes(), str(path))


@pytest.fixture
def enrolled(tmp_path: Path) -> Enrolment:
    """Four sites that have signed epoch 0."""
    made = Enrolment(tmp_path, SITES)
    made.admit()
    for site in made.sites.values():
        review(made.federation, site).sign(site)
    return made


def run(made: Enrolment, name: str, *classes: str) -> None:
    """A run of the present epoch at one site, as its ledger remembers it."""
    present, site = agreement(made.federation), made.sites[name]
    federation = known_federation(present, present.number_of(name))
    journal = FileJournal(home_of(site.file), federation, site.path / "run", accepted=present.secure.accept_difference)
    everybody = tuple(range(1, len(present.roster) + 1))
    data = store_mark(journal.key, site.path / "data.h5")
    for round_, category in enumerate(classes, start=1):
        value, training = key_of(category, present.federation.epoch), category == "train"
        mark = Mark(key_of(category), category, value, not training, data if training else b"")
        entry = LedgerEntry(round_, category, key_of("input", category), mark.fingerprint, everybody)
        journal.admit(mark.on(entry))
    journal.close()


def without_dd(made: Enrolment, *accept: str) -> None:
    made.coordinator.revoke("dd", reinvite=False, accept=accept)


def test_the_first_epoch_and_the_same_roster_ask_nothing(enrolled: Enrolment) -> None:
    run(enrolled, "aa", *CLASSES)
    enrolled.coordinator.next_epoch()
    for name, site in enrolled.sites.items():
        assert review(enrolled.federation, site).shown == (), name
        review(enrolled.federation, site).sign(site)


def test_a_site_that_left_is_named_and_each_class_is_asked(enrolled: Enrolment) -> None:
    """Audit 2 at `site approve`, as shipped: the file must accept it, and this site's operator too."""
    run(enrolled, "aa", *CLASSES)
    without_dd(enrolled)
    site = enrolled.sites["aa"]
    found = review(enrolled.federation, site)
    asked = {d.category for d in found.shown}
    assert {"train", "measured"} <= asked <= set(CLASSES)
    assert {d.shown for d in found.shown} == {("dd",)}
    assert any("over bb, cc, dd before and now over bb, cc" in line and "those of dd" in line for line in found.lines())
    with pytest.raises(PolicyError, match="those of dd") as caught:
        found.sign(site, CLASSES)
    assert caught.value.exit_code == 77
    assert "fedhpc federation next --accept-difference train" in caught.value.hint
    present = site.approvals.present()
    assert present is not None
    assert present.epoch == 0


def test_the_file_and_the_operator_must_both_accept(enrolled: Enrolment) -> None:
    run(enrolled, "aa", *CLASSES)
    without_dd(enrolled, *CLASSES)
    site = enrolled.sites["aa"]
    for given in ((), ("train",), ("measured", "weights")):
        with pytest.raises(PolicyError) as caught:
            review(enrolled.federation, site).sign(site, given)
        assert "fedhpc site approve --accept-difference" in caught.value.hint
    review(enrolled.federation, site).sign(site, CLASSES)
    run(enrolled, "aa", *CLASSES)  # and the run may open them
    # A site that has summed nothing yet is not concerned, and needs no word.
    review(enrolled.federation, enrolled.sites["bb"]).sign(enrolled.sites["bb"])


def test_what_the_file_accepts_by_name_is_told_to_the_operator_too(enrolled: Enrolment) -> None:
    """The ledger would let it pass when it is summed, and nobody at this site would have been asked."""
    run(enrolled, "aa", "patients")
    without_dd(enrolled, "patients", "rows")
    shown = review(enrolled.federation, enrolled.sites["aa"])
    assert [(d.category, d.shown) for d in shown.shown] == [("patients", ("dd",))]
    with pytest.raises(PolicyError, match="'patients' was opened over bb, cc, dd before") as caught:
        shown.sign(enrolled.sites["aa"])
    assert "fedhpc site approve --accept-difference patients" in caught.value.hint
    shown.sign(enrolled.sites["aa"], ("patients",))
    for name in ("bb", "cc"):  # they were in no such sum
        review(enrolled.federation, enrolled.sites[name]).sign(enrolled.sites[name])


def test_other_data_are_not_the_same_training(enrolled: Enrolment) -> None:
    site = enrolled.sites["aa"]
    store = site.path / "data.h5"
    store.write_bytes(b"old rows")
    run(enrolled, "aa", "train")
    without_dd(enrolled)
    assert [d.category for d in review(enrolled.federation, site).shown] == ["train"]
    store.write_bytes(b"new rows at the same place")
    assert [d.category for d in review(enrolled.federation, site).shown] == ["train"]
    text = (site.path / "site.toml").read_text()
    (site.path / "site.toml").write_text(text.replace('"data.h5"', '"other.h5"'))
    (site.path / "other.h5").write_bytes(b"other rows")
    assert review(enrolled.federation, type(site).open(site.path)).shown == ()
    (site.path / "other.h5").write_bytes(b"old rows")  # a copy
    assert [d.category for d in review(enrolled.federation, type(site).open(site.path)).shown] == ["train"]


def test_keys_that_were_changed_are_the_same_site(enrolled: Enrolment) -> None:
    """bb loses its keys: the roster of the next epoch has new ones, and nothing is asked for that."""
    run(enrolled, "aa", *CLASSES)
    _, _, enrolled.tokens["bb"] = enrolled.coordinator.revoke("bb", reinvite=True)
    enrolled.sites["bb"].rotate()
    enrolled.sites["bb"] = type(enrolled.sites["bb"]).open(enrolled.sites["bb"].path)
    enrolled.admit("bb")
    present = agreement(enrolled.federation)
    entry = present.roster[1]
    assert entry.first_sign
    assert entry.first_sign != entry.sign
    assert review(enrolled.federation, enrolled.sites["aa"]).shown == ()


def test_the_command(enrolled: Enrolment) -> None:
    run(enrolled, "aa", *CLASSES)
    without_dd(enrolled, *CLASSES)
    words = ["site", "approve", str(enrolled.federation), "--site", str(enrolled.sites["aa"].path), "--yes"]
    runner = CliRunner()
    done = runner.invoke(cli, words)
    assert isinstance(done.exception, PolicyError)
    assert "those of dd" in done.output
    flags = [word for name in CLASSES for word in ("--accept-difference", name)]
    done = runner.invoke(cli, [*words, *flags])
    assert done.exception is None, done.output
    assert "approved by aa" in done.output


# --- what operators see


def test_show(enrolled: Enrolment) -> None:
    run(enrolled, "aa", *CLASSES)
    without_dd(enrolled)
    with pytest.raises(PolicyError):
        run(enrolled, "aa", "train")
    done = CliRunner().invoke(cli, ["site", "ledger", "show", "--json", "--site", str(enrolled.sites["aa"].path)])
    found = json.loads(done.output)
    assert {"entries", "classes", "refused"} <= found.keys()
    assert [e["category"] for e in found["entries"]] == list(CLASSES)
    assert found["entries"][0]["sites"] == list(SITES)
    assert len(found["entries"][0]["set"]) == 4
    assert found["classes"]["weights"][0]["sites"] == list(SITES)
    assert [(r["category"], r["round"]) for r in found["refused"]] == [("train", 1)]
    assert "those of dd" in found["refused"][0]["reason"]
    lone = CliRunner().invoke(cli, ["site", "ledger", "show", "--json"])  # the only home of this user
    assert json.loads(lone.output) == found
    run(enrolled, "bb")
    several = CliRunner().invoke(cli, ["site", "ledger", "show"])
    assert isinstance(several.exception, ConfigError)
    assert "--site" in several.exception.hint


def old_run(made: Enrolment, folder: Path, entries: list[LedgerEntry]) -> Path:
    """RUN of version 0.1.0 with the part of site aa."""
    (folder / "aa").mkdir(parents=True)
    source = made.federation.read_text()
    source = "\n".join(line for line in source.splitlines() if not line.startswith("protocol"))
    (folder / "federation.toml").write_text(source)
    head, lines = GENESIS, b""
    for entry in entries:
        head = chain(head, entry)
        lines += canon({"entry": entry.as_json(), "head": head.hex()}) + b"\n"
    (folder / "aa" / LEDGER_FILE).write_bytes(lines)
    return folder


OLD = [
    LedgerEntry(1, "standardise.mean", key_of(1), key_of("f", 1), (1, 2, 3, 4)),
    LedgerEntry(2, "weights", key_of(2), key_of("f", 2), (1, 2, 3, 4)),
    LedgerEntry(3, "scale of round 3", key_of(3), key_of("f", 3), (1, 2, 3, 4)),
    LedgerEntry(4, "train", key_of(4), key_of("f", 4), NO_SET),
    LedgerEntry(4, "train", key_of(4), key_of("f", 4), (1, 2, 3, 4)),
    LedgerEntry(5, "sum 5", key_of(5), key_of("f", 5), (1, 2, 3, 4)),
]


def test_a_ledger_of_the_first_version_is_taken_over(enrolled: Enrolment, tmp_path: Path) -> None:
    folder = old_run(enrolled, tmp_path / "old", OLD)
    site = enrolled.sites["aa"]
    words = ["site", "ledger", "adopt", str(folder), "--site", str(site.path)]
    first = CliRunner().invoke(cli, words)
    assert first.exception is None, first.output
    assert "aa: 6 lines" in first.output
    before = home_of(site.file).ledger.read_bytes()
    assert "0 new" in CliRunner().invoke(cli, words).output
    assert home_of(site.file).ledger.read_bytes() == before, "a second time changes nothing"
    found = ledger_json(home_of(site.file))
    assert [e["category"] for e in found["entries"]] == ["standardise", "weights", "scale", "train", "unnamed"]
    assert {"measured", *CLASSES} <= found["classes"].keys()
    without_dd(enrolled)
    asked = {d.category for d in review(enrolled.federation, site).shown}
    assert {"train", "measured"} <= asked


def test_what_cannot_be_taken_over(enrolled: Enrolment, tmp_path: Path) -> None:
    home = home_of(enrolled.sites["aa"].file)
    folder = old_run(enrolled, tmp_path / "old", OLD)
    path = folder / "aa" / LEDGER_FILE
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"weights"', b'"weightz"'))
    with pytest.raises(PolicyError, match="line 2: the chain of hashes is broken"):
        adopt(home, folder / "aa")
    path.write_bytes(whole[:-20])  # torn: nothing was sent after it
    assert adopt(home, folder / "aa").entries == 5
    path.write_bytes(whole)
    assert adopt(home, folder / "aa").new == 1
    other = old_run(enrolled, tmp_path / "other", [dataclasses.replace(OLD[0], fingerprint=key_of("x"))])
    with pytest.raises(PolicyError, match="another vector"):
        adopt(home, other / "aa")
    (folder / "aa").rename(folder / "zz")
    with pytest.raises(ConfigError, match="not in the roster"):
        adopt(home, folder / "zz")


@pytest.mark.parametrize(
    ("purpose", "expected"),
    [
        ("train", "train"), ("weights", "weights"), ("weights 7", "weights"), ("weights of age", "weights"),
        ("standardise.variance", "standardise"), ("scale of sum 3", "scale"), ("metrics after round 9", "measured"),
        ("sum 12", "unnamed"), ("sum of ages", "sum of ages"),
    ],
)  # fmt: skip
def test_classes_of_old_purposes(purpose: str, expected: str) -> None:
    assert old_class(purpose) == expected


def test_homes_of_a_store(enrolled: Enrolment, tmp_path: Path) -> None:
    store = tmp_path / "rows.h5"
    one, two = (home_of(enrolled.sites[name].file) for name in ("aa", "bb"))
    remember_home(one, store)
    assert homes_of(store) == [], "it is not there yet"
    run(enrolled, "aa")
    run(enrolled, "bb")
    for _ in range(2):
        remember_home(one, store)
    assert homes_of(store) == [str(one.folder)]
    remember_home(two, store)
    assert homes_of(store) == [str(one.folder), str(two.folder)]
    (tmp_path / "link").symlink_to(store)
    assert homes_of(tmp_path / "link") == homes_of(store)
