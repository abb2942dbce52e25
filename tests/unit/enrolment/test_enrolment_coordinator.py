"""The coordinator's folder: who is admitted, what federation.toml becomes, which keys are refused for ever."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

import pytest
from enrolment_fakes import SITES, URL, Enrolment

from fedhpc.agreement.federation_file import read_agreement
from fedhpc.agreement.roster import check_name
from fedhpc.config import parse_toml
from fedhpc.enrolment.coordinator import Coordinator
from fedhpc.enrolment.draft import read_complete
from fedhpc.enrolment.relay import admit
from fedhpc.errors import ConfigError, FedhpcError, PolicyError
from fedhpc.relay.http import mailbox as mailbox
from fedhpc.relay.settings import read_roster, read_settings
from fedhpc.secure.join_request import access_hash, split_token
from fedhpc.wire.pins import pin_of, read_certificate


@pytest.fixture
def new(tmp_path: Path) -> Enrolment:
    return Enrolment(tmp_path)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pins(enrolment: Enrolment) -> list[dict[int, str]]:
    roster = read_roster(enrolment.coordinator.relay / "roster.toml")
    return [{u: pin.hex() for u, pin in f.pins.items()} for f in roster.federations.values()]


def test_a_new_folder_has_what_a_relay_needs_and_no_token(new: Enrolment) -> None:
    folder = new.coordinator.folder
    settings, _ = read_settings(folder / "relay" / "relay.toml")
    assert pin_of(read_certificate(settings.certificate)).hex() == new.pin == new.coordinator.relay_pin
    assert settings.listen.endswith(":8443")
    assert settings.tokens == (folder / "relay" / "tokens.toml").absolute()
    tokens = tomllib.loads((folder / "relay" / "tokens.toml").read_text())
    assert tokens == {name: access_hash(split_token(token).access) for name, token in new.tokens.items()}
    everything = b"".join(tree(folder).values())
    for token in new.tokens.values():
        assert token.encode() not in everything
        assert split_token(token).access.encode() not in everything
    relay = b"".join(tree(folder / "relay").values())
    for token in new.tokens.values():
        assert split_token(token).proof.encode() not in relay  # with it the relay could forge a request
    for path in (folder / "authority.key", folder / "invitations.toml", folder / "relay" / "relay.key"):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("name", "url", "sites"),
    [("Heart!", URL, SITES), ("h", "http://r:1", SITES), ("h", "https://r", SITES), ("h", URL, ("a", "a")),
     ("h", URL, ("a",)), ("h", URL, ("a", "../b")), ("h", URL, ("a", "B")), ("h", URL, ("a", ""))],
)  # fmt: skip
def test_bad_names_are_refused_before_anything_is_written(
    tmp_path: Path, name: str, url: str, sites: tuple[str]
) -> None:
    with pytest.raises(ConfigError):
        Coordinator.new(tmp_path / "co", name, url, sites, rounds=1)
    assert not (tmp_path / "co").exists()


def test_two_sites_are_refused_at_once(tmp_path: Path) -> None:
    """And not only when both have made their keys; two that trust each other say so."""
    with pytest.raises(PolicyError, match="two sites with masking on") as refused:
        Coordinator.new(tmp_path / "co", "h", URL, ("a", "b"), rounds=1)
    assert "--accept-two-sites" in refused.value.hint
    assert not (tmp_path / "co").exists()
    made, _, _ = Coordinator.new(tmp_path / "co", "h", URL, ("a", "b"), rounds=1, accept_two_sites=True)
    assert parse_toml(made.federation.read_bytes(), "")["secure"]["accept_two_sites"] is True


def test_names_are_what_the_hint_says(tmp_path: Path) -> None:
    """One rule, at the coordinator and in the relay's mailbox."""
    for name in ("3rd-hospital", "a", "0", "a_b-c9", "x" * 63):
        check_name(name, "--name")
        assert mailbox._NAME.fullmatch(name)
    for name in ("-a", "_a", "A", "a.b", "", "x" * 64, "ä", "a b"):
        with pytest.raises(ConfigError, match="--name") as refused:
            check_name(name, "--name")
        assert "starting with a letter or a digit" in refused.value.hint
        assert not mailbox._NAME.fullmatch(name)


def test_a_folder_that_is_not_empty_stays_as_it_is(new: Enrolment) -> None:
    before = tree(new.folder)
    with pytest.raises(ConfigError, match="not empty"):
        Coordinator.new(new.coordinator.folder, "h", URL, SITES, rounds=1)
    with pytest.raises(ConfigError, match="already; nothing was changed"):
        new.site("aa")
    with pytest.raises(ConfigError, match="not the folder"):
        Coordinator(new.folder)
    assert tree(new.folder) == before


def test_the_roster_grows_in_the_order_of_the_invitations(new: Enrolment) -> None:
    new.edit("lr = 0.5", "lr = 0.25  # ours")
    new.edit('name = "bb"\n', 'name = "bb"\nsamples = 120\n')
    granted = new.admit("cc")
    assert granted.waiting == ("aa", "bb")
    with pytest.raises(ConfigError, match=r"not complete: the keys of 'aa', 'bb' are missing"):
        read_complete(new.federation)
    with pytest.raises(ConfigError):
        read_agreement(new.federation.read_bytes(), "f")
    granted = new.admit("bb", "aa")
    assert (granted.waiting, granted.epoch, granted.problem) == ((), 0, "")
    agreement = read_complete(new.federation)
    assert agreement.names == list(SITES)
    assert agreement.hash.hex() == granted.hash
    assert [(e.sign, e.tls) for e in agreement.roster] == [(s.keys().sign, s.keys().tls) for s in new.sites.values()]
    assert [e.samples for e in agreement.roster] == [0, 120, 0]
    assert agreement.relay.tls == new.pin
    assert "lr = 0.25  # ours" in new.federation.read_text()
    assert not (new.coordinator.folder / "epochs").exists()


def test_a_renewal_is_only_a_certificate(new: Enrolment) -> None:
    new.admit()
    before, first = new.federation.read_bytes(), new.sites["aa"].certificate()
    candidate = new.candidate("aa")
    assert candidate.kind == "renewal"
    new.coordinator.admit([candidate], 30.0)
    assert new.federation.read_bytes() == before
    second = (new.coordinator.relay / "enrolment" / "aa.pem").read_bytes()
    assert second != first
    new.sites["aa"].take_certificate(second)
    assert new.sites["aa"].certificate() == second


def test_from_the_mailbox_a_certificate_is_renewed_when_it_ends_soon(new: Enrolment) -> None:
    assert new.candidate("aa", mailed=False).kind == "new"
    new.admit()
    assert new.candidate("aa", mailed=False).kind == "current"
    new.coordinator.admit([new.candidate("aa")], 0.001)  # 86 s and the 300 s for late clocks: nearly all of it is over
    assert new.candidate("aa", mailed=False).kind == "renewal"
    (new.coordinator.folder / "certificates" / "bb.pem").unlink()
    assert new.candidate("bb", mailed=False).kind == "renewal"
    foreign = (new.coordinator.folder / "certificates" / "cc.pem").read_bytes()
    (new.coordinator.folder / "certificates" / "bb.pem").write_bytes(foreign)
    assert new.candidate("bb", mailed=False).kind == "renewal"


def test_a_request_is_refused_unless_its_token_or_a_person_vouches_for_it(new: Enrolment) -> None:
    assert new.candidate("aa").proved
    assert not new.candidate("aa", token=False).proved  # by mail: a person compares the fingerprint
    with pytest.raises(PolicyError, match="not made with its current token"):
        new.candidate("aa", mailed=False, token=False)  # what a relay could put into the mailbox
    new.tokens["aa"] = new.tokens["bb"]
    for mailed in (True, False):
        with pytest.raises(PolicyError, match="not made with its current token"):
            new.candidate("aa", mailed=mailed)
    new.tokens["dd"] = new.tokens["bb"]
    uninvited = new.request("dd", new.site("dd"))
    with pytest.raises(PolicyError, match="no site 'dd' was invited"):
        new.coordinator.candidate(uninvited, mailed=True)
    with pytest.raises(ConfigError, match="cannot read"):
        new.coordinator.candidate(new.folder / "nowhere", mailed=True)


def test_a_key_of_another_site_is_refused(new: Enrolment) -> None:
    new.admit("aa")
    for key in ("sign.key", "tls.key"):
        theirs, ours = new.sites["aa"].path / key, new.sites["bb"].path / key
        kept = ours.read_bytes()
        ours.write_bytes(theirs.read_bytes())
        with pytest.raises(PolicyError, match="site bb asks with a key of site aa"):
            new.candidate("bb")
        ours.write_bytes(kept)


def test_rotated_keys_are_a_new_epoch_that_names_the_one_before(new: Enrolment) -> None:
    new.admit()
    before = new.federation.read_bytes()
    new.sites["bb"].rotate()
    candidate = new.candidate("bb", token=False)
    assert candidate.kind == "changed"
    granted = new.coordinator.admit([candidate], 30.0)
    assert (granted.epoch, granted.new_epoch) == (1, True)
    after = read_complete(new.federation)
    assert (after.federation.epoch, after.federation.previous) == (1, hashlib.sha256(before).hexdigest())
    assert after.roster[1].sign == new.sites["bb"].keys().sign
    assert after.names == list(SITES)
    assert (new.coordinator.folder / "epochs" / "0.toml").read_bytes() == before


def test_two_changes_in_one_go_are_one_epoch(new: Enrolment) -> None:
    new.admit()
    for name in ("aa", "bb"):
        new.sites[name].rotate()
    granted = new.coordinator.admit([new.candidate(name, token=False) for name in ("aa", "bb")], 30.0)
    assert granted.epoch == 1


def test_a_site_that_joins_later_is_a_new_epoch_and_leaves_the_signed_file_alone_until_then(new: Enrolment) -> None:
    new.admit()
    before = new.federation.read_bytes()
    new.tokens["dd"] = new.coordinator.invite("dd")
    assert new.federation.read_bytes() == before
    assert new.admit("aa").hash == hashlib.sha256(before).hexdigest()  # a renewal meanwhile
    new.sites["dd"] = new.site("dd")
    granted = new.admit("dd")
    assert granted.epoch == 1
    assert read_complete(new.federation).names == [*SITES, "dd"]


def test_an_invitation_ends_the_token_before_and_empties_the_mailbox(new: Enrolment) -> None:
    mailbox = new.coordinator.relay / "enrolment" / "aa.request"
    mailbox.write_bytes(new.request("aa").read_bytes())
    assert new.coordinator.mailbox() == [mailbox]
    old, new.tokens["aa"] = new.tokens["aa"], new.coordinator.invite("aa")
    assert new.coordinator.mailbox() == []
    tokens = tomllib.loads((new.coordinator.relay / "tokens.toml").read_text())
    assert tokens["aa"] == access_hash(split_token(new.tokens["aa"]).access)
    fresh = Coordinator(new.coordinator.folder)
    assert fresh.candidate(new.request("aa"), mailed=False).proved
    new.tokens["aa"] = old
    with pytest.raises(PolicyError, match="not made with its current token"):
        fresh.candidate(new.request("aa"), mailed=False)


def test_revoked_keys_are_out_of_the_relay_at_once_and_never_come_back(new: Enrolment) -> None:
    new.tokens["dd"], new.sites["dd"] = new.coordinator.invite("dd"), new.site("dd")
    new.admit()
    relay = new.coordinator.relay / "relay.toml"
    agreement, _ = admit(new.federation, relay, quota_bytes=10, objects=10)
    mine = new.sites["bb"].keys().tls
    lost, granted, token = new.coordinator.revoke("bb", reinvite=False)
    assert (lost, token) == ([agreement.hash.hex()], "")
    assert granted is not None
    assert (granted.epoch, granted.problem) == (1, "")
    assert [sorted(p) for p in pins(new)] == [[1, 3, 4]]
    assert read_complete(new.federation).names == ["aa", "cc", "dd"]
    assert not list(new.coordinator.folder.rglob("bb.pem"))
    assert "bb" not in tomllib.loads((new.coordinator.relay / "tokens.toml").read_text())
    (new.folder / "old.toml").write_bytes(agreement.source)
    with pytest.raises(PolicyError, match="the key of site bb was revoked"):
        admit(new.folder / "old.toml", relay, quota_bytes=10, objects=10)
    with pytest.raises(PolicyError, match="no site 'bb' was invited"):
        Coordinator(new.coordinator.folder).candidate(new.request("bb"), mailed=True)
    new.tokens["bb"] = new.coordinator.invite("bb")
    revoked = {key: (new.sites["bb"].path / key).read_bytes() for key in ("sign.key", "tls.key")}
    new.sites["bb"].rotate()
    for key, stolen in revoked.items():  # one of both is enough to be refused
        path = new.sites["bb"].path / key
        fresh = path.read_bytes()
        path.write_bytes(stolen)
        with pytest.raises(PolicyError, match="a key that was revoked from site bb"):
            Coordinator(new.coordinator.folder).candidate(new.request("bb"), mailed=True)
        path.write_bytes(fresh)
    new.admit("bb")
    assert mine not in new.federation.read_text()
    assert read_complete(new.federation).names == ["aa", "cc", "dd", "bb"]


def test_a_site_whose_keys_were_lost_keeps_its_place(new: Enrolment) -> None:
    new.admit()
    admit(new.federation, new.coordinator.relay / "relay.toml", quota_bytes=10, objects=10)
    before = new.federation.read_bytes()
    _, granted, new.tokens["bb"] = new.coordinator.revoke("bb", reinvite=True)
    assert granted is None
    assert [sorted(p) for p in pins(new)] == [[1, 3]]
    assert new.federation.read_bytes() == before
    new.sites["bb"].rotate()
    assert new.admit("bb").epoch == 1
    assert read_complete(new.federation).names == list(SITES)


def test_a_roster_that_became_too_small_is_said_so(new: Enrolment) -> None:
    new.admit()
    _, granted, _ = new.coordinator.revoke("bb", reinvite=False)
    assert granted is not None
    assert "2 sites with masking on" in granted.problem
    with pytest.raises(ConfigError, match="no site 'bb' was invited"):
        new.coordinator.revoke("bb", reinvite=False)


def test_revoking_the_last_one_that_was_missing_completes_the_roster(new: Enrolment) -> None:
    new.coordinator.invite("dd")
    new.admit("aa", "bb", "cc")
    _, granted, _ = new.coordinator.revoke("dd", reinvite=False)
    assert granted is not None
    assert (granted.waiting, granted.epoch, granted.problem) == ((), 0, "")
    new.sites["aa"].rotate()
    assert new.coordinator.admit([new.candidate("aa", token=False)], 30.0).epoch == 1


@pytest.mark.parametrize(
    ("old", "new_text"),
    [
        ("lr = 0.5", "lr = "),
        ("# ---- The roster.", "# "),
        ("epoch = 0", "epochs = 0"),
        ("[secure]", "[secure]\nthreshold = 2"),
    ],
)
def test_a_file_that_people_broke_is_not_written_over(new: Enrolment, old: str, new_text: str) -> None:
    new.admit("aa", "bb")
    if old == "epoch = 0":
        new.admit("cc")
        new.sites["cc"].rotate()
    new.edit(old, new_text)
    before = tree(new.coordinator.folder)
    with pytest.raises(FedhpcError):
        new.coordinator.admit([new.candidate("cc", token=False)], 30.0)
    assert tree(new.coordinator.folder) == before


def test_the_next_epoch_is_begun_before_a_signed_file_is_changed(new: Enrolment) -> None:
    new.admit()
    before = new.federation.read_bytes()
    new.coordinator.next_epoch()
    new.edit("rounds = 5", "rounds = 6")
    after = read_complete(new.federation)
    assert (after.federation.epoch, after.federation.rounds) == (1, 6)
    assert after.federation.previous == hashlib.sha256(before).hexdigest()
    assert (new.coordinator.folder / "epochs" / "0.toml").read_bytes() == before


def test_requests_have_a_size(new: Enrolment) -> None:
    path = new.folder / "large"
    path.write_bytes(b"x" * (1 << 20))
    with pytest.raises(PolicyError, match="at most 65536"):
        new.coordinator.candidate(path, mailed=True)
