"""TLS with the relay: the name that is sent, what ends a site and what it waits out, certificates and clocks."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from wire_fakes import Answer, alert, answering, context_of, read_head, saying, speaking_tls

from fedhpc.enrolment.certificates import Issued, issue, issue_new, new_authority, new_key, new_request
from fedhpc.enrolment.mailbox import RelayMailbox
from fedhpc.errors import ConfigError, FedhpcError, PeersError, PolicyError
from fedhpc.transport.https import link as http_link
from fedhpc.transport.https import tls_words
from fedhpc.transport.https.addresses import parse_url, tls_name
from fedhpc.transport.https.link import RelayAccess
from fedhpc.transport.https.retry import Links, Patience, Retry

QUICK = Patience(0.3, 0.05, 0.1)
LONG = Patience(60.0, 0.01, 0.05)
NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
HEALTH = b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{"status":"ok"}'


@dataclass
class Place:
    """A site's keys, a relay's certificate, and what the client told while it waited."""

    folder: Path
    authority: Issued
    relay: Issued
    told: list[Retry] = field(default_factory=list)

    def access(self, port: int, host: str = "127.0.0.1", **changes: str) -> RelayAccess:
        own, relay_pin = self.folder / "site", self.relay.pin()
        access = RelayAccess(
            f"https://{host}:{port}", relay_pin, own.with_suffix(".pem"), own.with_suffix(".key"), stall_s=20.0
        )
        return replace(access, **changes)  # type: ignore[arg-type]

    def links(self, port: int, patience: Patience = QUICK, **changes: str) -> Links:
        return Links(self.access(port, **changes), 1, patience, self.told.append)

    def serve(self, context: ssl.SSLContext | None = None) -> Answer:
        """Health, once a connection."""

        def then(sock: ssl.SSLSocket) -> None:
            if read_head(sock):
                sock.sendall(HEALTH)

        return speaking_tls(context or context_of(self.relay, self.folder), then)


def health(links: Links) -> str:
    def ask(link: http_link.Link) -> str:
        link.send_head("GET", "/v1/health", {})
        found = str(link.read_json(link.response())["status"])
        link.close()
        return found

    return links.persist("ask", ask)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    authority = new_authority()
    issue_new(authority, "site").write(tmp_path, "site")
    return Place(tmp_path, authority, issue_new(authority, "relay"))


# --- the name


@pytest.fixture
def by_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> tuple[Answer, list[str | None]]:
    """A listener that takes nobody who does not name relay.example, as a passthrough route does; names it heard."""
    names: list[str | None] = []

    def choose(sock: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        names.append(name)
        return None if name == "relay.example" else ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME

    context = context_of(place.relay, place.folder)
    context.sni_callback = choose  # type: ignore[assignment]
    real = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda at, *more: real(("127.0.0.1", at[1]), *more))
    return place.serve(context), names


def test_the_name_is_sent_and_the_pin_decides(place: Place, by_name: tuple[Answer, list[str | None]]) -> None:
    """The certificate is for `relay`, not relay.example: that is nobody's business."""
    answer, names = by_name
    with answering(answer) as port:
        assert health(place.links(port, LONG, host="relay.example")) == "ok"
        assert health(place.links(port, LONG, host="Relay.Example.")) == "ok"
        assert set(names) == {"relay.example"}
        place.relay = issue_new(place.authority, "relay.example")
        with pytest.raises(PolicyError, match="the configuration says"):
            health(place.links(port, host="relay.example"))


def test_the_name_is_sent_by_who_has_no_certificate(place: Place, by_name: tuple[Answer, list[str | None]]) -> None:
    answer, names = by_name
    with answering(answer) as port:
        box = RelayMailbox(f"https://relay.example:{port}", place.relay.pin(), "leiden", "token")
        box.send(b"request", 30.0)
    assert set(names) == {"relay.example"}


def test_the_name_is_sent_through_a_proxy(place: Place, by_name: tuple[Answer, list[str | None]]) -> None:
    answer, names = by_name
    heads = []

    def proxy(peer: socket.socket) -> None:
        heads.append(read_head(peer))
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        answer(peer)

    with answering(proxy) as port:
        access = place.access(7, "relay.example", proxy=f"http://127.0.0.1:{port}")
        assert health(Links(access, 1, LONG, place.told.append)) == "ok"
    assert heads[0].startswith("CONNECT relay.example:7 ")
    assert set(names) == {"relay.example"}


def test_addresses_are_not_sent_as_names(place: Place, by_name: tuple[Answer, list[str | None]]) -> None:
    answer, names = by_name
    with answering(answer) as port:
        for host in ("127.0.0.1", "[::1]"):
            with pytest.raises(PeersError, match="unrecognized name"):
                health(place.links(port, host=host))
    assert set(names) == {None}


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("relay.example", "relay.example"),
        ("relay.example.", "relay.example"),
        ("relay", "relay"),
        ("müller.example", "xn--mller-kva.example"),
        ("my_relay.example", "my_relay.example"),
        ("10.1.2.3", None),
        ("127.1", None),
        ("0x7f000001", None),
        ("2130706433", None),
        ("::1", None),
        ("fe80::1%eth0", None),
    ],
)
def test_names_for_tls(host: str, name: str | None) -> None:
    assert tls_name(host) == name


@pytest.mark.parametrize("host", ["a b", "a/b", ".a", "a..b", "x" * 64, "*", "[::1", "a@b@c d", "ä" * 63])
def test_hosts_that_are_none_are_refused_when_they_are_read(host: str) -> None:
    with pytest.raises(ConfigError, match="the relay's address is not https://host:port"):
        parse_url(f"https://{host}:8443", "https", "the relay's address")


def test_hints_show_the_whole_address() -> None:
    for url in ("http://relay.example:8443/path", "https://relay.example", "https://relay.example:8443/?q#f"):
        with pytest.raises(ConfigError) as caught:
            parse_url(url, "https", "the relay's address")
        assert caught.value.hint == f"given: {url}"


# --- what is no relay


def tls_1_2(place: Place) -> Answer:
    context = context_of(place.relay, place.folder)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return speaking_tls(context)


OTHERS: dict[str, tuple[Callable[[Place], Answer], str]] = {
    "plain HTTP": (lambda place: lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), r"speak TLS \("),
    "a greeting": (lambda place: lambda peer: (peer.sendall(b"SSH-2.0-OpenSSH\r\n"), peer.recv(9999)), r"speak TLS \("),
    "TLS 1.2": (tls_1_2, "does not speak TLS 1.3 as a relay does .alert protocol version"),
    "nothing in common": (lambda place: alert(40), "alert handshake failure"),
    "too weak": (lambda place: alert(71), "alert insufficient security"),
    "another protocol in TLS": (lambda place: alert(120), "alert no application protocol"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_service_ends_a_site_at_once(place: Place, other: str) -> None:
    make, words = OTHERS[other]
    with answering(make(place)) as port:
        with pytest.raises(PeersError, match=words) as caught:
            health(place.links(port, LONG))
        assert caught.value.what.startswith(f"the relay https://127.0.0.1:{port} cannot be reached: TLS: what answers")
        assert f"is 127.0.0.1:{port} " in caught.value.hint
        assert "site.toml" in caught.value.hint
        box = RelayMailbox(f"https://127.0.0.1:{port}", place.relay.pin(), "leiden", "token")
        with pytest.raises(PeersError, match=words):
            box.send(b"request", 60.0)
    assert not place.told, "it is not tried again"


@pytest.mark.parametrize("other", OTHERS)
def test_where_the_relay_was_before_it_is_waited_for(place: Place, other: str) -> None:
    """A load balancer may answer for a relay that starts again."""
    make, _ = OTHERS[other]
    serve, strange = place.serve(), make(place)
    turns = iter([serve, strange, strange, serve])
    with answering(lambda peer: next(turns)(peer)) as port:
        links = place.links(port, LONG)
        assert [health(links), health(links)] == ["ok", "ok"]
    reasons = {told.reason for told in place.told}
    assert all(reason.startswith(f"127.0.0.1:{port}: TLS: ") for reason in reasons), reasons
    assert reasons


def cut(peer: socket.socket) -> None:
    peer.recv(4096)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (alert(80), "TLS: alert internal error"),
        (alert(20), "TLS: alert bad record mac"),
        (alert(51), "TLS: alert decrypt error"),
        (alert(90), "TLS: alert user cancelled"),
        (alert(112), "TLS: unrecognized name"),
        (alert(0), "TLS: "),
        (cut, "TLS: the connection was closed in the middle"),
    ],
    ids=["internal error", "mac", "decrypt", "cancelled", "name", "close", "cut"],
)
def test_trouble_in_a_handshake_reads_as_the_wait_that_it_is(place: Place, trouble: Answer, words: str) -> None:
    """The relay may be starting again, whether or not it was ever reached."""
    turns = iter([trouble, trouble, place.serve()])
    with answering(lambda peer: next(turns)(peer)) as port:
        assert health(place.links(port, LONG)) == "ok"
    assert place.told
    assert all(told.reason.startswith(f"127.0.0.1:{port}: {words}") for told in place.told), place.told


def test_every_wait_names_the_relay(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    down: list[str] = []
    box = RelayMailbox(
        f"https://127.0.0.1:{port}", place.relay.pin(), "leiden", "token", on_down=lambda why, left: down.append(why)
    )
    with pytest.raises(PeersError, match=f"the relay https://127.0.0.1:{port} cannot be reached: Connection refused"):
        box.send(b"request", 0.5)
    with pytest.raises(PeersError, match=f"the relay https://127.0.0.1:{port} cannot be reached: Connection refused"):
        health(place.links(port))
    assert {told.reason for told in place.told} == set(down) == {f"127.0.0.1:{port}: Connection refused"}


def test_a_proxy_that_is_away_is_named_too(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = f"127.0.0.1:{listener.getsockname()[1]}"
    access = place.access(7, "relay.example", proxy=f"http://me:secret@{proxy}")
    with pytest.raises(PeersError, match=f"cannot be reached: the proxy {proxy}: Connection refused"):
        health(Links(access, 1, QUICK, place.told.append))
    assert {told.reason for told in place.told} == {f"relay.example:7: the proxy {proxy}: Connection refused"}


def test_a_proxy_that_says_busy_is_waited_out_and_heeded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = []
    monkeypatch.setattr(Links, "_pause", lambda self, what, reason, seconds, clock: pauses.append(seconds))
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\n"
    serve = place.serve()

    def through(peer: socket.socket) -> None:
        saying(b"HTTP/1.1 200 OK\r\n\r\n")(peer)
        serve(peer)

    turns = iter([saying(busy), saying(busy), through])
    with answering(lambda peer: next(turns)(peer)) as port:
        access = place.access(7, "relay.example", proxy=f"http://127.0.0.1:{port}")
        assert health(Links(access, 1, LONG, place.told.append)) == "ok"
    assert len(pauses) == 2
    assert all(7.0 <= seconds <= 10.5 for seconds in pauses)


def test_a_tunnel_that_never_comes_can_be_interrupted(place: Place) -> None:
    """`Links.close` ends a wait for a proxy's answer."""
    links: list[Links] = []

    def answer(peer: socket.socket) -> None:
        read_head(peer)
        links[0].close()
        with contextlib.suppress(OSError):
            peer.recv(1)

    with answering(answer) as port:
        access = replace(place.access(7, "relay.example", proxy=f"http://127.0.0.1:{port}"), stall_s=3600.0)
        links.append(Links(access, 1, Patience(7200.0), place.told.append))
        with pytest.raises(PeersError, match="closed by this program"):
            health(links[0])


# --- certificates and clocks


def certified(place: Place, key: bytes, days: float, start: datetime.datetime) -> Issued:
    return Issued(key, issue(place.authority, new_request(key, "x"), days, start))


def own_certificate(place: Place, days: float, start: datetime.datetime) -> Path:
    """The site's certificate, which takes the place of the one it had."""
    place.access(1).key.unlink()
    return certified(place, new_key(), days, start).write(place.folder, "site")[0]


@pytest.mark.parametrize(
    ("start", "days", "words"),
    [
        (
            NOW + 3 * DAY,
            7.0,
            r"the relay's certificate begins only on \S+ \S+ UTC, and the clock here says \S+ \S+ UTC",
        ),
        (NOW - 9 * DAY, 2.0, r"the relay's certificate ended on \S+ \S+ UTC, or the clock here is wrong: it says \S+"),
    ],
    ids=["not yet", "ended"],
)
def test_the_relays_certificate(place: Place, start: datetime.datetime, days: float, words: str) -> None:
    place.relay = certified(place, place.relay.key, days, start)
    with answering(place.serve()) as port, pytest.raises(PolicyError, match=words) as caught:
        health(place.links(port))
    assert "compare `date -u` here" in caught.value.hint


def refused(place: Place, days: float, start: datetime.datetime) -> FedhpcError:
    """What a site hears whose certificate a relay judges by OpenSSL."""
    own_certificate(place, days, start)
    context = context_of(place.relay, place.folder)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=place.authority.certificate.decode())

    def answer(peer: socket.socket) -> None:
        sock = context.wrap_socket(peer, server_side=True, do_handshake_on_connect=False)
        with contextlib.suppress(OSError):
            sock.do_handshake()
        socket.socket.shutdown(sock, socket.SHUT_WR)
        while socket.socket.recv(sock, 4096):
            pass

    with answering(answer) as port, pytest.raises(PolicyError) as caught:
        health(place.links(port))
    return caught.value


def test_the_sites_certificate(place: Place) -> None:
    early, late = refused(place, 7.0, NOW + 3 * DAY), refused(place, 2.0, NOW - 9 * DAY)
    assert "this site's certificate (alert bad certificate): it begins only on " in early.what
    assert "the clock here says " in early.what
    assert "compare `date -u` here" in early.hint
    assert "this site's certificate (alert certificate expired): it ended on " in late.what
    assert late.hint == "renew it with `fedhpc site request DIR --wait`"


def test_the_relays_clock_may_be_the_wrong_one(place: Place) -> None:
    own = own_certificate(place, 7.0, NOW - DAY)
    late = tls_words.refused_certificate("alert certificate expired", own)
    assert "it ends on " in late.what
    assert "compare `date -u` here" in late.hint
    early = tls_words.refused_certificate("alert bad certificate", own)
    assert "where the relay's clock is behind that, it has not begun" in early.hint
    foreign = tls_words.refused_certificate("alert unknown ca", own)
    assert "another enrolment" in foreign.hint
    assert tls_words.refused_certificate("alert certificate required", Path("/nowhere")).exit_code == 77
