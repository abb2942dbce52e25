"""Who may do what: certificates, pins, rosters, TLS versions, proxies. Every refusal over the wire."""

from __future__ import annotations

import datetime
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from relay_process import CONFIG, MIB, OTHER_CONFIG, SITES, Proxy, Relay, World, name, read_answer, until

from fedhpc.enrolment.certificates import Issued, issue, issue_new, new_authority, new_key, new_request
from fedhpc.errors import ConfigError, PeersError, PolicyError
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.link import RelayAccess
from fedhpc.transport.https.proxies import proxy_from_environment
from fedhpc.transport.https.retry import Patience
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.wire.pins import pin_of, read_certificate, same_pin

QUICK = Patience(1.0, 0.05, 0.2)
LIST = f"GET /v1/objects/{CONFIG}/1/0/ HTTP/1.1\nhost: r"


def client(relay: Relay, who: str, **changes: object) -> RelayClient:
    return RelayClient(relay.world.access(relay.port, who, **changes), 1, QUICK)


def test_without_a_certificate_only_health_is_open(relay: Relay) -> None:
    assert relay.ask("GET /v1/health HTTP/1.1\nhost: r", who="")[0] == 200
    assert relay.ask("HEAD /v1/health HTTP/1.1\nhost: r", who="")[0] == 200
    for path in (
        "/",
        "/v1/",
        f"/v1/objects/{CONFIG}/1/0/",
        f"/v1/objects/{CONFIG}/1/0/M1/1",
        "/metrics",
        "/v1/health/x",
    ):
        status, text = relay.ask(f"GET {path} HTTP/1.1\nhost: r", who="")
        assert status == 401, text
        assert '"type": "urn:fedhpc:relay:certificate-needed"' in text
        assert "content-type: application/problem+json" in text
    assert relay.ask(f"PUT /v1/objects/{CONFIG}/1/0/M1/1 HTTP/1.1\nhost: r\ncontent-length: 2", b"hi", who="")[0] == 401
    assert relay.ask(LIST)[0] == 200


def test_a_certificate_that_no_roster_names_opens_nothing(relay: Relay) -> None:
    with pytest.raises(PolicyError, match="is no site of federation"):
        client(relay, "stranger").put(name("M1/1"), b"x")
    assert relay.ask(LIST, who="stranger")[0] == 403


def test_another_federations_site_sees_nothing(relay: Relay) -> None:
    relay.client(1).put(name("M1/1", round_=20), b"secret")
    with pytest.raises(PolicyError, match="403"):
        client(relay, "outsider").get(name("M1/1", round_=20))
    client(relay, "outsider").put(name("M1/1", OTHER_CONFIG), b"own")
    with pytest.raises(PolicyError, match="403"):
        relay.client(1).get(name("M1/1", OTHER_CONFIG))


def test_a_site_writes_only_its_own_objects(relay: Relay) -> None:
    for text in ("M1/2", "M3v/3", "Y", "M0", "M4r", "M1/99"):
        with pytest.raises(PolicyError, match=r"403 forbidden.*may not write"):
            client(relay, "site1").put(name(text, round_=21), b"x")
        with pytest.raises(PolicyError, match="403"):
            client(relay, "site1").upload(name(text, round_=21), MIB).write(0, memoryview(bytes(MIB)))
    with pytest.raises(PolicyError, match="belongs to another site"):
        client(relay, "site1").missing(name("M1/2", round_=21))


def test_an_expired_or_foreign_certificate_fails_in_the_handshake(relay: Relay, world: World) -> None:
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=9)
    expired = issue(world.authority, new_request(world.sites[1].key, "site1"), 1.0, past)
    issued = Issued(world.sites[1].key, expired)  # the right key, so only the date is wrong
    issued.write(world.folder, "expired")
    with pytest.raises(PolicyError, match=r"does not accept this site's certificate.*expired"):
        client(relay, "expired").put(name("M1/1", round_=22), b"x")
    foreign = issue(new_authority(), new_request(world.sites[1].key, "site1"))
    Issued(world.sites[1].key, foreign).write(world.folder, "foreign")
    with pytest.raises(PolicyError, match="does not accept this site's certificate"):
        client(relay, "foreign").put(name("M1/1", round_=22), b"x")
    assert relay.client(2).get(name("M1/1", round_=22)) is None


def test_who_is_refused_in_the_handshake_can_still_read_why(relay: Relay, world: World) -> None:
    """In TLS 1.3 a site sends its request before the relay has judged it; a relay that just closed would reset that."""
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3)
    late = issue(world.authority, new_request(world.sites[1].key, "late"), 1.0, past)
    Issued(world.sites[1].key, late).write(world.folder, "late")
    before = relay.log_text().count("handshake failed")
    with relay.raw("late") as sock:
        sock.sendall(LIST.replace("\n", "\r\n").encode())
        until(lambda: relay.log_text().count("handshake failed") > before)
        for _ in range(3):
            sock.sendall(b"x: y\r\n")
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.expired"):
            sock.recv(1)


def test_a_renewed_certificate_of_the_same_key_is_the_same_site(relay: Relay, world: World) -> None:
    again = issue(world.authority, new_request(world.sites[1].key, "another name"))
    Issued(world.sites[1].key, again).write(world.folder, "renewed")
    client(relay, "renewed").put(name("M1/1", round_=23), b"x")
    assert relay.client(2).get(name("M1/1", round_=23)) == b"x"


def test_a_certificate_ends_also_on_an_open_connection(relay: Relay, world: World) -> None:
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=300)
    short = issue(world.authority, new_request(world.sites[1].key, "s"), 2.5 / 86400, start)
    Issued(world.sites[1].key, short).write(world.folder, "short")
    with relay.raw("short") as sock:
        answers = []

        def asked() -> bool:
            sock.sendall(LIST.replace("\n", "\r\n").encode() + b"\r\n\r\n")
            answers.append(read_answer(sock)[1])
            return " 403 " in answers[-1]

        until(asked)
        assert " 200 " in answers[0]
        assert "expired" in answers[-1]


def test_swapped_certificate_and_key(relay: Relay, world: World) -> None:
    access = world.access(relay.port)
    mixed = RelayAccess(access.url, access.relay_pin, world.folder / "site1.pem", world.folder / "site2.key")
    with pytest.raises(PolicyError, match="do not fit") as told:
        RelayClient(mixed)
    assert "fedhpc site request" in told.value.hint
    with pytest.raises(PolicyError, match="site 2 may not write"):  # site 2 in the place of site 1
        client(relay, "site2").put(name("M1/1", round_=24), b"x")


def test_another_relay_is_refused_before_anything_is_said(relay: Relay, world: World) -> None:
    with pytest.raises(PolicyError, match=f"the configuration says {world.stranger.pin().hex()}"):
        client(relay, "site1", relay_pin=world.stranger.pin()).put(name("M1/1", round_=25), b"x")
    assert relay.client(1).missing(name("M1/1", round_=25)) is None


def test_tls_1_2_is_refused(relay: Relay) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol.version"), relay.raw(context=context):
        pass
    with relay.raw() as sock:
        assert sock.version() == "TLSv1.3"


def test_revoked_by_sighup(new_relay: Callable[..., Relay], world: World) -> None:
    relay = new_relay()
    site = relay.client(1)
    site.put(name("M1/1"), b"x")
    (relay.folder / "roster.toml").write_text(world.roster(without=1))
    assert relay.process is not None
    os.kill(relay.process.pid, signal.SIGHUP)
    until(lambda: "roster read" in relay.log_text())
    with pytest.raises(PolicyError, match="403"):
        site.put(name("M1/1", round_=2), b"x")
    assert relay.client(2).get(name("M1/1")) == b"x"
    (relay.folder / "roster.toml").write_text("nonsense")
    os.kill(relay.process.pid, signal.SIGHUP)
    until(lambda: "the old one stays" in relay.log_text())
    assert relay.client(2).get(name("M1/1")) == b"x"


def test_through_a_proxy(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = Proxy()
    through = client(relay, "site1", proxy=proxy.url.replace("http://", "http://me:p%40ss@"))
    through.put(name("M1/1", round_=26), b"x" * (2 * MIB))
    assert proxy.seen[0].startswith(f"CONNECT 127.0.0.1:{relay.port} HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic bWU6cEBzcw==" in proxy.seen[0]
    proxy.allow = False
    with pytest.raises(PeersError, match=r"refused to connect to .*403 Forbidden") as caught:
        client(relay, "site1", proxy=proxy.url).health()
    assert caught.value.exit_code == 69
    monkeypatch.setenv("HTTPS_PROXY", "proxy.example:3128")
    assert proxy_from_environment("https://relay.example:8443") == "http://proxy.example:3128"
    monkeypatch.setenv("NO_PROXY", "relay.example")
    assert proxy_from_environment("https://relay.example:8443") == ""
    proxy.close()


def test_nobody_there_ends_with_69_after_the_patience(relay: Relay) -> None:
    retries: list[float] = []
    access = relay.world.access(1)
    with pytest.raises(PeersError, match=r"cannot be reached: .*refused") as caught:
        RelayClient(access, 1, Patience(0.8, 0.05, 0.3), lambda r: retries.append(r.patience_left_s)).health()
    assert caught.value.exit_code == 69
    assert len(retries) >= 3
    assert retries == sorted(retries, reverse=True)


def test_keys_that_others_can_read_are_refused(relay: Relay, world: World, tmp_path: Path) -> None:
    loose = tmp_path / "loose.key"
    loose.write_bytes(world.sites[1].key)
    loose.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read"):
        client(relay, "site1", key=loose)
    text = (relay.folder / "relay.toml").read_text()
    (tmp_path / "relay.toml").write_text(text.replace(f"{world.folder}/relay.key", str(loose)))
    done = subprocess.run(
        [sys.executable, "-m", "fedhpc", "relay", "serve", tmp_path / "relay.toml"],
        executable=os.sys.executable,  # type: ignore[attr-defined]
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 64
    assert "error: others can read the key file" in done.stderr


def test_certificates_and_pins(world: World) -> None:
    certificate = read_certificate(world.folder / "site1.pem")
    assert pin_of(certificate) == world.sites[1].pin()
    command = f"openssl x509 -in {world.folder}/site1.pem -pubkey -noout | openssl pkey -pubin -outform der | sha256sum"
    assert subprocess.run(command, shell=True, capture_output=True, text=True).stdout[:64] == world.sites[1].pin().hex()
    assert same_pin(world.sites[1].pin(), pin_of(certificate))
    assert not same_pin(world.sites[1].pin(), world.sites[2].pin())
    assert len({s.pin() for s in world.sites.values()}) == SITES
    request = bytearray(new_request(new_key(), "a"))
    request[200] ^= 3
    with pytest.raises(ConfigError, match="request"):
        issue(world.authority, bytes(request))
    assert issue_new(world.authority, "b").pin() != issue_new(world.authority, "b").pin()
    assert RelayProblem(404, "absent", "x").exit_code == 69
