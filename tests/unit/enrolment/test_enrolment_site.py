"""A site's folder and the relay's roster file: keys stay, certificates fit, changes are whole."""

from __future__ import annotations

import dataclasses
import datetime
import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from enrolment_fakes import URL, Enrolment

from fedhpc.agreement.federation_file import read_agreement
from fedhpc.agreement.identity import read_identity
from fedhpc.cli.site import request
from fedhpc.cohort.settings import CohortSettings
from fedhpc.config import parse_toml
from fedhpc.enrolment.certificates import Issued, issue, new_authority, new_key, new_request
from fedhpc.enrolment.relay import admit, drop
from fedhpc.enrolment.site import SiteFolder
from fedhpc.errors import ConfigError, FedhpcError, PeersError, PolicyError
from fedhpc.relay.roster_file import drop_federation, drop_pin, put_federation
from fedhpc.relay.settings import read_roster
from fedhpc.sums.over_relay.access import relay_access
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.link import RelayAccess
from fedhpc.wire.pins import pin_of, read_certificate

CONFIG, OTHER = "ab" * 32, "cd" * 32
PIN = {str(u): f"{u:02}" * 32 for u in range(1, 5)}


@pytest.fixture
def enrolled(tmp_path: Path) -> Enrolment:
    enrolment = Enrolment(tmp_path)
    enrolment.admit()
    return enrolment


def test_keys_are_private_and_the_site_file_leads_to_them(enrolled: Enrolment) -> None:
    site = SiteFolder.open(enrolled.folder / "aa" / "site.toml")
    assert site == SiteFolder.open(enrolled.folder / "aa")
    for path in (site.sign_path, site.tls_path, site.path / "site.toml"):
        assert path.stat().st_mode & 0o077 == 0
    assert len(read_identity(site.sign_path)) == 32
    exchange = site.file.exchange
    assert (exchange.kind, exchange.url) == ("https", URL)
    RelayClient(RelayAccess(URL, bytes.fromhex(site.relay_pin()), site.certificate_path, site.tls_path)).close()
    assert pin_of(read_certificate(site.certificate_path)).hex() == site.keys().tls
    keys = site.keys()
    assert "private" in repr(keys)
    assert read_identity(site.sign_path).hex() not in repr(keys) + str(vars(keys))
    site.tls_path.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read"):
        site.keys()
    site.tls_path.chmod(0o600)
    site.sign_path.chmod(0o604)
    with pytest.raises(FedhpcError, match="read by others"):
        site.keys()


@pytest.mark.parametrize(
    "bad", [{"name": "A"}, {"relay": "http://x:1"}, {"relay_pin": "12"}, {"data": 'a"b'}, {"data": "a\nb"}], ids=str
)
def test_bad_words_are_refused_before_a_key_is_made(tmp_path: Path, bad: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        SiteFolder.new(tmp_path / "s", **{"name": "a", "relay": "", "relay_pin": "", "data": "d.h5"} | bad)  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


def test_only_a_certificate_for_the_own_key_that_holds_now_is_kept(enrolled: Enrolment) -> None:
    site, authority = enrolled.sites["aa"], new_authority()
    before = site.certificate()
    theirs = enrolled.sites["bb"].certificate()
    with pytest.raises(PolicyError, match="not for this site's"):
        site.take_certificate(theirs)
    now = datetime.datetime.now(datetime.UTC)
    for days, words in ((-9, "it has ended by the clock here"), (9, "it has not begun by the clock here")):
        shifted = issue(authority, new_request(site.keys().tls_key, "aa"), 1.0, now + datetime.timedelta(days=days))
        with pytest.raises(PolicyError, match=f"the certificate is valid from .*{words}, .* UTC"):
            site.take_certificate(shifted)
    for junk in (b"", b"-----BEGIN CERTIFICATE-----\n", before + b"x" * (1 << 17), site.keys().tls_key):
        with pytest.raises(PolicyError, match="not a certificate"):
            site.take_certificate(junk)
    assert site.certificate() == before
    assert site.take_certificate(before) > now


@pytest.mark.parametrize("junk", ["", "junk\n", "-----BEGIN CERTIFICATE-----\n"])
def test_a_damaged_certificate_is_none_so_that_a_request_brings_another(enrolled: Enrolment, junk: str) -> None:
    """As if it were not there: `site request --wait` compares the present one with what the coordinator answers."""
    site = enrolled.sites["aa"]
    whole = site.certificate()
    site.certificate_path.write_text(junk)
    assert site.certificate() == b""
    agreement = read_agreement(enrolled.federation.read_bytes(), "federation.toml")
    with pytest.raises(ConfigError, match=r"cannot read the certificate .*tls\.pem: Unable to load PEM file$") as told:
        relay_access(agreement, site.file, 1)
    assert told.value.hint.startswith(f"`fedhpc site request {site.path} --wait` fetches one")
    site.take_certificate(whole)
    assert relay_access(agreement, site.file, 1).certificate == site.certificate_path


def test_rotation_keeps_the_old_keys_once_and_drops_what_belonged_to_them(enrolled: Enrolment) -> None:
    site = enrolled.sites["aa"]
    sign, tls, before = site.sign_path.read_bytes(), site.tls_path.read_bytes(), site.keys()
    site.keep_token(enrolled.tokens["aa"])
    assert site.token() == enrolled.tokens["aa"]
    old = site.rotate()
    assert [path.read_bytes() for path in old] == [sign, tls]
    assert all(path.stat().st_mode & 0o077 == 0 for path in [*old, site.sign_path, site.tls_path])
    after = site.keys()
    assert len({before.sign, after.sign}) == len({before.tls, after.tls}) == 2
    assert site.certificate() == b""
    assert site.token() == ""
    with pytest.raises(ConfigError, match=r"sign\.key\.old exists"):
        site.rotate()
    assert site.keys().sign == after.sign


@pytest.mark.parametrize("lost", [("sign.key",), ("tls.key",), ("sign.key", "tls.key")])
def test_lost_keys_are_told_and_made_anew(enrolled: Enrolment, lost: tuple[str, ...]) -> None:
    site = enrolled.sites["aa"]
    for name in lost:
        (site.path / name).unlink()
    with pytest.raises(FedhpcError, match=f"cannot read the key file .*{lost[0]}") as told:
        site.keys()
    for command in (f"`fedhpc site rotate {site.path}`", f"site request {site.path} --token", "federation invite"):
        assert command in told.value.hint
    kept = [path.name for path in site.rotate()]
    assert kept == [f"{name}.old" for name in ("sign.key", "tls.key") if name not in lost]
    assert len(site.keys().sign) == len(site.keys().tls) == 64


def test_a_site_file_for_mpi_cannot_enrol(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('[site]\nname = "aa"\nkey = "k"\n')
    with pytest.raises(ConfigError, match="is not for a relay"):
        SiteFolder.open(tmp_path)
    assert SiteFolder.new(tmp_path / "new", "aa", relay="", relay_pin="", data="d.h5").relay_pin() == ""


def test_a_mailbox_needs_the_relays_pin(tmp_path: Path) -> None:
    from fedhpc.secure.join_request import new_token, split_token

    site = SiteFolder.new(tmp_path / "s", "aa", relay=URL, relay_pin="", data="d.h5")
    with pytest.raises(ConfigError, match="pin is not known"):
        site.mailbox(split_token(new_token()))


# --- the relay's roster file


def test_a_federation_comes_with_everything_the_relay_needs(enrolled: Enrolment) -> None:
    enrolled.coordinator.next_epoch()
    enrolled.edit('policy = "sync"', 'policy = "quorum"\nminimum = 3\ngrace_s = 7.5')
    relay = enrolled.coordinator.relay / "relay.toml"
    agreement, changed = admit(enrolled.federation, relay, quota_bytes=123, objects=45)
    assert changed
    assert not admit(enrolled.federation, relay, quota_bytes=123, objects=45)[1]
    path = enrolled.coordinator.relay / "roster.toml"
    table = parse_toml(path.read_bytes(), "r")[agreement.hash.hex()]
    cohort = table.pop("cohort")
    assert table == {
        "bytes": 123,
        "objects": 45,
        "threshold": 3,
        "suite": "blake3",
        "durable": "disk",
        "sites": {str(u): s.keys().tls for u, s in enumerate(enrolled.sites.values(), 1)},
    }
    assert CohortSettings(**cohort) == agreement.cohort
    assert cohort.keys() == {f.name for f in dataclasses.fields(CohortSettings)}
    assert admit(enrolled.federation, relay, quota_bytes=124, objects=45)[1]
    assert read_roster(path).federations[agreement.hash.hex()].quota.bytes == 124
    drop(agreement.hash.hex(), relay)
    assert read_roster(path).federations == {}
    with pytest.raises(ConfigError, match="serves no federation"):
        drop(agreement.hash.hex(), relay)


def test_a_federation_without_pins_masks_or_for_another_relay_is_refused(enrolled: Enrolment) -> None:
    relay, text = enrolled.coordinator.relay / "relay.toml", enrolled.federation.read_text()
    broken = {
        f'tls = "{enrolled.sites["bb"].keys().tls}"': ("", "no TLS pin for bb"),
        f'tls = "{enrolled.pin}"': ("", "no TLS pin for the relay"),
        enrolled.pin: ("ab" * 32, f"for the relay with the key {'ab' * 32}; this one has {enrolled.pin}"),
        'mode = "pairwise"': ('mode = "off"', 'mode = "off"'),
    }
    for old, (new, words) in broken.items():
        enrolled.federation.write_text(text.replace(old, new))
        with pytest.raises(FedhpcError, match=words):
            admit(enrolled.federation, relay, quota_bytes=1, objects=1)
    assert read_roster(enrolled.coordinator.relay / "roster.toml").federations == {}


def test_changes_of_the_roster_file_are_checked_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "roster.toml"
    path.write_text("")
    one = {
        "bytes": 5,
        "objects": 6,
        "threshold": 2,
        "sites": {k: PIN[k] for k in "12"},
        "cohort": {"policy": "sync", "grace_s": 1.5},
    }
    assert put_federation(path, CONFIG, one)
    assert not put_federation(path, CONFIG, one)
    assert put_federation(path, OTHER, {"sites": {"1": PIN["1"], "2": PIN["3"]}})
    assert parse_toml(path.read_bytes(), "r") == {CONFIG: one, OTHER: {"sites": {"1": PIN["1"], "2": PIN["3"]}}}
    before = path.read_bytes()
    for config, bad in (
        ("xy", one),
        (CONFIG, one | {"sites": {"1": PIN["1"], "2": PIN["1"]}}),
        (CONFIG, one | {"sites": {"0": PIN["1"]}}),
        (CONFIG, one | {"sites": {}}),
        (CONFIG, one | {"bytes": 0}),
        (CONFIG, one | {"cohort": {"policy": 'x"\n[evil]\ny = "'}}),
        (CONFIG, one | {"cohort": {"policy": None}}),
        (CONFIG, one | {"cohort": {"policy": float("nan")}}),
    ):
        with pytest.raises(ConfigError):
            put_federation(path, config, bad)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["roster.toml"]
    assert drop_pin(path, PIN["4"]) == []
    assert drop_pin(path, PIN["1"]) == [CONFIG, OTHER]
    assert {c: (f.pins, f.revoked, f.numbers) for c, f in read_roster(path).federations.items()} == {
        CONFIG: ({2: bytes.fromhex(PIN["2"])}, (1,), 2),
        OTHER: ({2: bytes.fromhex(PIN["3"])}, (1,), 2),
    }
    assert drop_pin(path, PIN["3"]) == [OTHER]  # the last one: the federation goes
    drop_federation(path, CONFIG)
    assert read_roster(path).federations == {}
    path.write_text("nonsense")
    with pytest.raises(ConfigError):
        drop_pin(path, PIN["1"])
    assert re.fullmatch("nonsense", path.read_text())


def test_a_certificate_does_not_carry_what_a_request_asks_for(enrolled: Enrolment) -> None:
    certificate = read_certificate(enrolled.sites["aa"].certificate_path)
    assert certificate.subject.rfc4514_string() == "CN=aa"
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=29) < left <= datetime.timedelta(days=30)
    assert Issued(new_key(), enrolled.sites["aa"].certificate()).pin().hex() == enrolled.sites["aa"].keys().tls


def test_a_request_waits_no_longer_than_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for a relay that is away when the request is sent."""
    enrolment = Enrolment(tmp_path)
    asked: list[float] = []

    class Away:
        url = URL

        def send(self, request: bytes, patience_s: float) -> None:
            asked.append(patience_s)

        def certificate(self, known: bytes, patience_s: float) -> None:
            asked.append(patience_s)

    monkeypatch.setattr(SiteFolder, "mailbox", lambda *words: Away())
    words = [str(tmp_path / "aa"), "--token", enrolment.tokens["aa"], "--wait", "--for", "5"]
    with pytest.raises(PeersError, match="no new certificate within 5 s"):
        CliRunner().invoke(request, words, catch_exceptions=False)
    assert asked[0] == 5.0
    assert 0.0 <= asked[1] <= 5.0
