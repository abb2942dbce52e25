"""What a site approved, and that nothing else runs: hashes, fields that differ, epochs, damaged folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from enrolment_fakes import Enrolment

from fedhpc.agreement.approvals import configuration, difference
from fedhpc.agreement.federation_file import Agreement, read_agreement
from fedhpc.enrolment.approve import review
from fedhpc.errors import ConfigError, PolicyError, StorageError
from fedhpc.secure.epochs import check_signed, move


def agreement(path: Path) -> Agreement:
    return read_agreement(path.read_bytes(), str(path))


@pytest.fixture
def enrolled(tmp_path: Path) -> Enrolment:
    enrolment = Enrolment(tmp_path)
    enrolment.admit()
    return enrolment


def approve(enrolment: Enrolment, name: str) -> bytes:
    site = enrolment.sites[name]
    return review(enrolment.federation, site).sign(site)


def test_signatures_of_all_sites_let_a_configuration_run(enrolled: Enrolment) -> None:
    signatures = {u: approve(enrolled, name) for u, name in enumerate(enrolled.sites, 1)}
    present = agreement(enrolled.federation)
    check_signed(configuration(present), present.members(), signatures)
    own = enrolled.sites["bb"].approvals.own(present)
    assert own == signatures[2]
    assert move(None, configuration(present), 2, own, present.members(), signatures) == configuration(present)
    with pytest.raises(PolicyError, match="not signed by cc"):
        check_signed(configuration(present), present.members(), {u: signatures[u] for u in (1, 2)})
    with pytest.raises(PolicyError, match="CONFIG"):
        check_signed(configuration(present), present.members(), signatures | {1: signatures[2]})


def test_nothing_is_taken_before_it_is_approved(enrolled: Enrolment) -> None:
    site = enrolled.sites["aa"]
    assert site.approvals.present() is None
    with pytest.raises(
        PolicyError, match=f"not approved the configuration {agreement(enrolled.federation).hash.hex()}"
    ):
        site.approvals.own(agreement(enrolled.federation))
    first = approve(enrolled, "aa")
    assert approve(enrolled, "aa") == first
    assert (site.path / "approvals").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("rounds = 5", "rounds = 6", "federation.rounds (5, now 6)"),
        ("lr = 0.5", "lr = 0.25", "train.lr (0.5, now 0.25)"),
        ("batch_size = 0 ", "batch_size = 0\nmax_steps = 3 ", "train.max_steps (absent, now 3)"),
        ("features = 13", "features = 14", "task.options.features (13, now 14)"),
        ('policy = "sync"', 'policy = "quorum"', "cohort.policy (sync, now quorum)"),
        ("# the model", "# the Model", "comments or spacing only"),
        ('name = "bb"', 'name = "bbb"', "site.order"),
    ],
)
def test_a_changed_file_is_refused_with_both_hashes_and_the_field(
    enrolled: Enrolment, old: str, new: str, field: str
) -> None:
    approve(enrolled, "aa")
    before = agreement(enrolled.federation)
    enrolled.edit(old, new)
    after = agreement(enrolled.federation)
    with pytest.raises(PolicyError) as caught:
        enrolled.sites["aa"].approvals.own(after)
    for word in (field, before.hash.hex(), after.hash.hex()):
        assert word in caught.value.what
    with pytest.raises(PolicyError, match="epoch 0; this site is at epoch 0") as again:
        review(enrolled.federation, enrolled.sites["aa"])
    assert field in again.value.what
    assert "fedhpc federation next" in again.value.hint


def test_the_roster_is_compared_by_name() -> None:
    one = b'[[site]]\nname = "a"\nsign = "1"\n[[site]]\nname = "b"\nsign = "2"\n'
    other = b'[[site]]\nname = "a"\nsign = "1"\n[[site]]\nname = "b"\nsign = "3"\n'
    assert difference(one, other) == "site.b.sign (2, now 3)"
    swapped = b'[[site]]\nname = "b"\nsign = "2"\n[[site]]\nname = "a"\nsign = "1"\n'
    assert difference(one, swapped) == "site.order (['a', 'b'], now ['b', 'a'])"
    assert difference(one, one) == "nothing"
    many = b"".join(b"k%d = 1\n" % i for i in range(20))
    assert difference(b"", many).endswith("12 more")
    assert difference(b'a = "\\u001b[31m"', b'a = "\\u001b[32m"') == "a (?[31m, now ?[32m)"


def test_only_the_next_epoch_that_names_the_present_one_can_follow(enrolled: Enrolment) -> None:
    approve(enrolled, "aa")
    first = agreement(enrolled.federation)
    enrolled.coordinator.next_epoch()
    enrolled.edit("rounds = 5", "rounds = 7")
    kept = enrolled.federation.read_bytes()
    second = agreement(enrolled.federation)
    assert (second.federation.epoch, second.federation.previous) == (1, first.hash.hex())
    enrolled.edit(first.hash.hex(), "ab" * 32)
    with pytest.raises(PolicyError, match=f"follows {'ab' * 8}"):
        review(enrolled.federation, enrolled.sites["aa"])
    enrolled.federation.write_bytes(kept)
    assert "federation.rounds (5, now 7)" in review(enrolled.federation, enrolled.sites["aa"]).changes
    approve(enrolled, "aa")
    with pytest.raises(PolicyError, match=r"they differ in federation\.epoch") as caught:
        enrolled.sites["aa"].approvals.own(first)
    assert "older epoch" in caught.value.hint
    enrolled.coordinator.next_epoch()
    enrolled.coordinator.next_epoch()
    with pytest.raises(PolicyError, match=r"epoch 3; this site is at epoch 1.*approved .* given .* differ"):
        review(enrolled.federation, enrolled.sites["aa"])
    approve(enrolled, "cc")  # a site without a configuration may begin at any epoch
    present = enrolled.sites["cc"].approvals.present()
    assert present is not None
    assert present.epoch == 3


def test_a_file_for_other_keys_or_another_relay_is_not_signed(enrolled: Enrolment) -> None:
    site = enrolled.sites["aa"]
    with pytest.raises(ConfigError, match="'zz' is not in the roster"):
        review(enrolled.federation, enrolled.site("zz"))
    with pytest.raises(PolicyError, match="another key for this site: sign = "):
        review(enrolled.federation, enrolled.site("aa", "other"))
    certified, fresh = site.tls_path.read_bytes(), enrolled.folder / "other" / "tls.key"
    site.tls_path.write_bytes(fresh.read_bytes())
    with pytest.raises(PolicyError, match="another key for this site: tls = "):
        review(enrolled.federation, site)
    site.tls_path.write_bytes(certified)
    (site.path / "relay.pin").write_text("ab" * 32)
    with pytest.raises(PolicyError, match="another key for the relay"):
        review(enrolled.federation, site)
    (site.path / "relay.pin").write_text("nonsense")
    with pytest.raises(ConfigError, match="is not a pin"):
        review(enrolled.federation, site)
    (site.path / "relay.pin").write_text(enrolled.pin)
    enrolled.edit(f'tls = "{site.keys().tls}"\n', "")
    with pytest.raises(ConfigError, match="no pin"):
        review(enrolled.federation, site)
    assert site.approvals.present() is None


def test_a_previous_that_is_no_hash_is_refused(enrolled: Enrolment) -> None:
    enrolled.edit('previous = ""', 'previous = "abc"')
    with pytest.raises(ConfigError, match="previous is not a SHA-256"):
        review(enrolled.federation, enrolled.sites["aa"])


def test_a_damaged_folder_is_refused(enrolled: Enrolment) -> None:
    approve(enrolled, "aa")
    approvals, present = enrolled.sites["aa"].approvals, agreement(enrolled.federation)
    copy = approvals.folder / f"{present.hash.hex()}.toml"
    good = copy.read_bytes()
    copy.write_bytes(good.replace(b"rounds = 5", b"rounds = 9"))
    with pytest.raises(StorageError, match="was changed after it was approved"):
        approvals.own(present)
    copy.write_bytes(good)
    (approvals.folder / f"{present.hash.hex()}.json").unlink()
    with pytest.raises(StorageError, match=r"\.json is missing"):
        approvals.own(present)
    (approvals.folder / f"{present.hash.hex()}.json").write_bytes(b'{"body":')
    with pytest.raises(StorageError, match=r"\.json is damaged"):
        approvals.own(present)
    for name, words in (("../" + present.hash.hex(), "names no"), ("ab" * 32, "abab.toml is lost"), ("", "names no")):
        (approvals.folder / "present").write_text(name)
        with pytest.raises(StorageError, match=words):
            approvals.present()


def test_a_lost_copy_comes_from_the_same_file(enrolled: Enrolment) -> None:
    """And from no other: what is asked for is told by its SHA-256."""
    signature = approve(enrolled, "aa")
    approvals, present = enrolled.sites["aa"].approvals, agreement(enrolled.federation)
    copy = approvals.folder / f"{present.hash.hex()}.toml"
    copy.unlink()
    enrolled.edit("rounds = 5", "rounds = 9")
    with pytest.raises(StorageError, match=f"{copy.name} is lost") as lost:
        approvals.own(agreement(enrolled.federation))
    assert "epochs/" in lost.value.hint
    enrolled.edit("rounds = 9", "rounds = 5")
    assert approvals.own(present) == signature
    assert copy.read_bytes() == enrolled.federation.read_bytes()
    copy.unlink()
    assert approve(enrolled, "aa") == signature
    assert copy.exists()


def test_what_is_signed_is_shown(enrolled: Enrolment) -> None:
    text = "\n".join(review(enrolled.federation, enrolled.sites["aa"]).lines())
    present = agreement(enrolled.federation)
    assert present.hash.hex() in text
    for site in enrolled.sites.values():
        assert site.keys().fingerprint in text
    for word in ("t = 1, τ = 3, d = 0", "policy sync", "name logistic", "lr 0.5", present.relay.tls):
        assert word in text
    enrolled.edit('mode = "pairwise"', 'mode = "off"')
    assert "privacy: NONE" in "\n".join(review(enrolled.federation, enrolled.sites["aa"]).lines())


def test_the_images_that_sites_run_in_are_shown_and_signed(enrolled: Enrolment) -> None:
    assert not [line for line in review(enrolled.federation, enrolled.sites["aa"]).lines() if "containers" in line]
    enrolled.edit("[train]", f'[container]\ncpu = "sha256:{"ab" * 32}"\n\n[train]')
    shown = review(enrolled.federation, enrolled.sites["aa"]).lines()
    at = next(number for number, line in enumerate(shown) if line.startswith("containers: every site runs in one"))
    assert shown[at + 1] == f"  cpu  {'ab' * 32}"
    approve(enrolled, "aa")
    signed = agreement(enrolled.federation)
    assert enrolled.sites["aa"].approvals.own(signed)
    other = read_agreement(signed.source.replace(b"ab" * 32, b"cd" * 32), "federation.toml")
    with pytest.raises(PolicyError, match=r"they differ in container\.cpu"):
        enrolled.sites["aa"].approvals.own(other)
