"""`fedhpc doctor` and the way to a real relay: each step of it is made to fail."""

from __future__ import annotations

import datetime
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doctor_fakes import fails, passes, skips, warns
from relay_process import Proxy
from sum_site import sum_federation

from fedhpc.doctor import route
from fedhpc.doctor.relay import days_left, skew
from fedhpc.doctor.subject import Subject, open_subject
from fedhpc.enrolment.certificates import Issued, issue, issue_new, new_authority, new_request
from fedhpc.enrolment.one_machine import Enrolled, running_relay
from fedhpc.enrolment.relay import drop
from fedhpc.wire.pins import read_certificate

ALL = ("proxy", "relay-name", "relay-connect", "relay-tls", "relay-certificate", "relay-federation")


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Enrolled:
    return sum_federation(tmp_path_factory.mktemp("doctor"))


@pytest.fixture
def relay(enrolled: Enrolled) -> Iterator[None]:
    with running_relay(enrolled.relay):
        yield


def opened(enrolled: Enrolled, **changes: Any) -> Subject:
    """The first site."""
    return open_subject(enrolled.site_file("s1"), {"PATH": "/nowhere"}, federation=enrolled.federation, **changes)


def altered(enrolled: Enrolled, folder: Path, old: str, new: str) -> Subject:
    """The first site with another line in its file."""
    text = enrolled.site_file("s1").read_text()
    assert text.count(old) == 1, text
    home = enrolled.site_file("s1").parent.absolute()
    text = text.replace(old, new)
    for name in ("sign.key", "tls.pem", "tls.key"):
        text = text.replace(f'"{name}"', f'"{home / name}"')
    path = folder / "site.toml"
    path.write_text(text)
    return open_subject(path, {}, federation=enrolled.federation)


def test_the_whole_way(enrolled: Enrolled, relay: None) -> None:
    site = opened(enrolled)
    passes("proxy", site, "directly")
    passes("relay-name", site, "127.0.0.1")
    passes("relay-connect", site, "answers")
    passes("relay-tls", site, "TLS 1.3")
    passes("relay-certificate", site, "a round trip")
    passes("relay-federation", site)
    passes("clock", site, "within a second of the relay's")
    passes("certificates", site, "this site's certificate has", "the relay's certificate has")
    passes("keys-private", site, "sign.key, tls.key")
    passes("keys-roster", site, "sign, tls")
    passes("keys-approved", site)
    skips("spool", site)


def test_no_relay(enrolled: Enrolled) -> None:
    fails("relay-connect", opened(enrolled), "Connection refused", code=69)
    skips("relay-tls", opened(enrolled), "ended at relay-connect")
    skips("clock", opened(enrolled), "ended at relay-connect")
    passes("certificates", opened(enrolled), "this site's")


def test_a_relay_that_is_away_does_not_end_a_job(enrolled: Enrolled) -> None:
    warns("relay-connect", opened(enrolled, quick=True), "the job itself waits for it")


def test_a_host_without_an_address(enrolled: Enrolled, tmp_path: Path) -> None:
    site = altered(enrolled, tmp_path, "127.0.0.1", "relay.invalid")
    fails("relay-name", site, "relay.invalid has no address", code=69)
    skips("relay-connect", site, "ended at relay-name")


def test_name_servers_that_never_answer(enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(route, "_NAME_S", 0.05)
    monkeypatch.setattr(route, "_QUICK_S", 0.05)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *words, **more: [ended.wait()][:0])
    try:
        warns("relay-name", opened(enrolled, quick=True), "no answer of the name servers")
    finally:
        ended.set()


def test_another_key_than_the_agreed_one(enrolled: Enrolled, relay: None, tmp_path: Path) -> None:
    text = enrolled.federation.read_text()
    site = opened(enrolled)
    assert site.agreement is not None
    pin = site.agreement.relay.tls
    other = tmp_path / "federation.toml"
    other.write_text(text.replace(pin, "ab" * 32))
    site = open_subject(enrolled.site_file("s1"), {}, federation=other)
    fails("relay-tls", site, pin, "somebody is in between", code=77)
    skips("relay-certificate", site)
    fails("keys-approved", site, "not the one that this site approved", code=77)


def test_what_listens_speaks_no_tls(enrolled: Enrolled, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):  # the plain connection, then the one for TLS
                connection, _ = listener.accept()
                with connection:
                    if connection.recv(4096):
                        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        port = listener.getsockname()[1]
        fails("relay-tls", altered(enrolled, tmp_path, f":{enrolled.port}", f":{port}"), "TLS", "middlebox", code=69)
        thread.join()


def test_a_certificate_that_the_relay_does_not_take(enrolled: Enrolled, relay: None, tmp_path: Path) -> None:
    home = enrolled.site_file("s1").parent
    key = (home / "tls.key").read_bytes()
    foreign = Issued(key, issue(new_authority(), new_request(key, "s1")))
    foreign.write(tmp_path, "foreign")
    site = altered(enrolled, tmp_path, '"tls.pem"', f'"{tmp_path}/foreign.pem"')
    fails("relay-certificate", site, "does not accept this site's certificate", code=77)
    skips("relay-federation", site, "ended at relay-certificate")


def test_a_federation_that_the_relay_does_not_serve(enrolled: Enrolled, tmp_path: Path) -> None:
    other = enrolled.variant(tmp_path, enrolled.federation.read_bytes() + b"\n# another file\n")
    site = opened(other)
    assert site.agreement is not None
    drop(site.agreement.hash.hex(), enrolled.relay)
    with running_relay(enrolled.relay):
        fails("relay-federation", site, "403", "fedhpc relay admit", code=77)
        passes("relay-certificate", site)


def test_a_proxy(enrolled: Enrolled, relay: None, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy()
    monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("//", "//me:secret@"))
    monkeypatch.setenv("NO_PROXY", "")
    site = opened(enrolled)
    passes("proxy", site, proxy.url.removeprefix("http://"), "from HTTPS_PROXY")
    for name in ALL:
        passes(name, site)
    assert any(line.startswith(f"CONNECT 127.0.0.1:{enrolled.port}") for line in proxy.seen)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    passes("proxy", opened(enrolled), "directly", "NO_PROXY")
    proxy.close()


def test_a_proxy_that_refuses(enrolled: Enrolled, relay: None, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy(allow=False)
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    monkeypatch.setenv("NO_PROXY", "")
    fails("relay-connect", opened(enrolled), "refused to connect", "403", "allow CONNECT", code=69)
    proxy.close()


def test_a_proxy_that_cannot_be_used(enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://me:secret@proxy:1080")
    monkeypatch.setenv("NO_PROXY", "")
    fails("proxy", opened(enrolled), "HTTPS_PROXY cannot be used", "http://host:port", code=64)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/99")
    fails("proxy", opened(enrolled), "NO_PROXY: '10.0.0.0/99' is not a host", "[exchange]", code=64)


def test_a_proxy_elsewhere_for_a_relay_here(enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://me:secret@proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "")
    warns("proxy", opened(enrolled), "proxy.example:3128, from ALL_PROXY", "the proxy's own machine", "NO_PROXY")


def test_a_proxy_that_is_busy(enrolled: Enrolled, monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay is away: the proxy says so, and a job would wait."""
    proxy = Proxy()
    monkeypatch.setenv("https_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "other.example")
    fails("relay-connect", opened(enrolled), f"127.0.0.1:{enrolled.port}: the proxy", "answered 503", code=69)
    proxy.close()


@pytest.mark.parametrize(
    ("seconds", "state", "words"),
    [
        (0.4, "ok", "within a second"),
        (-20.0, "ok", "behind"),
        (40.0, "warn", "39 s ahead of"),
        (-400.0, "fail", "6 min 39 s behind"),
    ],
)
def test_clocks(seconds: float, state: str, words: str) -> None:
    finding = skew(seconds, 0.1)
    assert (finding.state, finding.exit_code) == (state, 77 if state == "fail" else 0)
    assert words in finding.what


def test_a_clock_that_is_wrong(enrolled: Enrolled, relay: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = route.time.time
    monkeypatch.setattr(route.time, "time", lambda: real() + 100)
    warns("clock", opened(enrolled), "ahead of the relay's", "chrony")


@pytest.mark.parametrize(
    ("begins", "days", "state", "words"),
    [
        (-1, 30.0, "ok", "29 d"),
        (-1, 5.0, "warn", "has 4 d left"),
        (-9, 5.0, "fail", "ended 4 d ago"),
        (2, 5.0, "fail", "begins only on"),
    ],
)
def test_days_of_certificates(tmp_path: Path, begins: int, days: float, state: str, words: str) -> None:
    now = datetime.datetime.now(datetime.UTC)
    start = now + datetime.timedelta(days=begins)
    issue_new(new_authority(), "x", days, start).write(tmp_path, "x")
    finding = days_left(read_certificate(tmp_path / "x.pem"), "this certificate", now, "renew it")
    assert (finding.state, finding.exit_code) == (state, 77 if state == "fail" else 0)
    assert words in finding.what, finding


def test_a_certificate_that_has_ended(enrolled: Enrolled, tmp_path: Path) -> None:
    home = enrolled.site_file("s1").parent
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3)
    key = (home / "tls.key").read_bytes()
    Issued(key, issue(new_authority(), new_request(key, "s1"), 1.0, past)).write(tmp_path, "late")
    site = altered(enrolled, tmp_path, '"tls.pem"', f'"{tmp_path}/late.pem"')
    fails("certificates", site, "ended", "fedhpc site request", code=77)
    passes("keys-roster", site)


def test_keys_of_another_site(enrolled: Enrolled, tmp_path: Path) -> None:
    other = enrolled.site_file("s2").parent.absolute()
    site = altered(enrolled, tmp_path, '"tls.key"', f'"{other}/tls.key"')
    fails("keys-roster", site, "not the TLS key of the roster", code=77)
