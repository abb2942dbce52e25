"""Which proxy leads to the relay, and what follows from each of its answers."""

from __future__ import annotations

import datetime
import email.utils
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from wire_fakes import Answer, answering, read_head, saying

from fedhpc.agreement.site_file import ExchangeSection
from fedhpc.enrolment.mailbox import RelayMailbox
from fedhpc.errors import ConfigError, PeersError
from fedhpc.transport.https import proxies
from fedhpc.transport.https.link import RelayAccess
from fedhpc.transport.https.proxies import ask_for_tunnel, proxy_for, proxy_from_environment, proxy_url
from fedhpc.transport.https.retry import Patience, pause_s
from fedhpc.transport.link_problems import LinkDown

RELAY = "https://relay.site.example:8443"


def ask(answer: Answer, proxy: str = "http://127.0.0.1:{port}", limit_s: float = 60.0, host: str = "relay") -> bytes:
    """The first bytes that come through the tunnel."""
    with answering(answer) as port, socket.create_connection(("127.0.0.1", port)) as sock:
        ask_for_tunnel(sock, proxy.format(port=port), host, 8443, limit_s)
        return sock.recv(100)


# --- which one


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, ""),
        ({"HTTP_PROXY": "http://p:1"}, ""),
        ({"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ({"HTTPS_PROXY": "p:1"}, "http://p:1"),
        ({"HTTPS_PROXY": "HTTP://p:1/"}, "HTTP://p:1/"),
        ({"https_proxy": "p:1", "HTTPS_PROXY": "p:2"}, "http://p:1"),
        ({"https_proxy": "", "HTTPS_PROXY": "p:2"}, "http://p:2"),
        ({"ALL_PROXY": "p:3"}, "http://p:3"),
        ({"all_proxy": "p:3", "ALL_PROXY": "p:4"}, "http://p:3"),
        ({"HTTPS_PROXY": "p:2", "all_proxy": "socks5h://p:3"}, "http://p:2"),
        ({"HTTPS_PROXY": "p:2", "NO_PROXY": "*.site.example"}, ""),
        ({"ALL_PROXY": "p:2", "NO_PROXY": "site.example"}, ""),
        ({"HTTPS_PROXY": "p:2", "no_proxy": "other", "NO_PROXY": "*"}, "http://p:2"),
        ({"HTTPS_PROXY": "p:2", "no_proxy": "", "NO_PROXY": "*"}, ""),
        ({"HTTPS_PROXY": "socks5://p:2", "NO_PROXY": "site.example:8443"}, ""),
        ({"NO_PROXY": "10.0.0.0/99"}, ""),
    ],
)
def test_the_environment(environment: dict[str, str], expected: str) -> None:
    assert proxy_from_environment(RELAY, environment) == expected


def test_a_relay_on_this_machine_is_no_exception() -> None:
    for host in ("127.0.0.1", "[::1]", "localhost"):
        assert proxy_from_environment(f"https://{host}:8443", {"https_proxy": "p:1"}) == "http://p:1"
        assert proxy_from_environment(f"https://{host}:8443", {"https_proxy": "p:1", "no_proxy": host}) == ""


def test_the_site_file_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "p:1")
    monkeypatch.setenv("no_proxy", "other.example")
    assert proxy_for(RELAY, None) == "http://p:1"
    assert proxy_for(RELAY, "") == ""
    assert proxy_for(RELAY, "q:2") == "http://q:2"


@pytest.mark.parametrize(
    "proxy", ["https://me:secret@p:1", "socks5h://me:secret@p:1", "socks5://p:1", "SOCKS4a://me:secret@p:1"]
)
def test_proxies_of_another_kind_are_refused_with_words(proxy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        proxy_from_environment(RELAY, {"ALL_PROXY": proxy})
    assert caught.value.what.startswith("ALL_PROXY cannot be used: the proxy's address is not http://host:port")
    assert f"{proxy.partition(':')[0].lower()}:// is not supported" in caught.value.what
    assert "http://host:port of a CONNECT proxy" in caught.value.hint
    assert "secret" not in caught.value.lines()


@pytest.mark.parametrize(
    "proxy",
    [
        "http://me:secret@p",
        "me:secret@p",
        "http://me:sec#secret@p:1",
        "http://me:12/secret@p:1",
        "http://me:secret?@p:1",
        "http://me:secret@[::1:1",
        "http://me:secret\uff03@p:1",
        "http://me:secret@p:0",
        "http://me:secret@p q:1",
        "http://me:secret@p:1/path",
    ],
)
def test_a_password_is_never_told(proxy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        proxy_url(proxy, "HTTPS_PROXY")
    assert "secret" not in caught.value.lines()
    assert "%40" in caught.value.hint
    with pytest.raises(ConfigError) as caught:
        RelayAccess(RELAY, bytes(32), Path(), Path(), proxy)
    assert "secret" not in caught.value.lines()


def test_a_password_is_in_no_text_of_an_object() -> None:
    proxy = "http://me:secret@p:1"
    for found in (
        RelayAccess(RELAY, bytes(32), Path(), Path(), proxy),
        RelayMailbox(RELAY, bytes(32), "leiden", "token", proxy),
        ExchangeSection("https", url=RELAY, certificate=Path("c"), key=Path("k"), proxy=proxy),
    ):
        assert "secret" not in repr(found)


# --- its answers


@pytest.mark.parametrize("status", ["200 OK", "200", "201 Fine", "299 "])
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_a_tunnel(status: str, end: str) -> None:
    """What follows the head is TLS's, to the byte."""
    assert ask(saying(f"HTTP/1.0 {status}{end}Via: x{end}{end}\x16\x03".encode())) == b"\x16\x03"


def test_what_the_proxy_is_asked() -> None:
    heads = []

    def answer(peer: socket.socket) -> None:
        heads.append(read_head(peer))
        peer.sendall(b"HTTP/1.1 200 OK\r\n\r\nx")

    ask(answer)
    assert heads == ["CONNECT relay:8443 HTTP/1.1\r\nHost: relay:8443\r\n\r\n"]
    ask(answer, "http://me:p%40s%3As%20@127.0.0.1:{port}", host="::1")
    assert heads[1].startswith("CONNECT [::1]:8443 HTTP/1.1\r\nHost: [::1]:8443\r\n")
    assert "\r\nProxy-Authorization: Basic bWU6cEBzOnMg\r\n" in heads[1]
    ask(answer, host="müller.example")
    assert heads[2].startswith("CONNECT xn--mller-kva.example:8443 ")


@pytest.mark.parametrize("status", [408, 425, 429, 500, 501, 502, 503, 504, 505, 511, 522, 599])
def test_waited_out(status: int) -> None:
    with pytest.raises(LinkDown, match=rf"the proxy 127\.0\.0\.1:\d+ answered {status} Words for relay:8443"):
        ask(saying(f"HTTP/1.1 {status} Words\r\n\r\n".encode()))


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 410])
def test_refused(status: int) -> None:
    with pytest.raises(PeersError, match=f"refused to connect to relay:8443: {status} Words") as caught:
        ask(saying(f"HTTP/1.1 {status} Words\x1b\r\n\r\n".encode()))
    assert caught.value.what.endswith("Words?")
    assert "allow CONNECT to this host and port" in caught.value.hint


@pytest.mark.parametrize(
    ("proxy", "header", "hint"),
    [
        ("http://127.0.0.1:{port}", 'Basic realm="Digest, Negotiate"', "http://user:password@host:port"),
        ("http://127.0.0.1:{port}", "", "http://user:password@host:port"),
        ("http://me:secret@127.0.0.1:{port}", 'Basic realm="x"', "does not take the user and password"),
        ("http://me:secret@127.0.0.1:{port}", 'Negotiate, basic realm="x"', "does not take the user and password"),
        ("http://me:secret@127.0.0.1:{port}", "Negotiate", "it asks for Negotiate, and only Basic is spoken"),
        ("http://127.0.0.1:{port}", 'NTLM\r\nProxy-Authenticate: Digest realm="Basic"', "it asks for NTLM"),
    ],
)
def test_a_proxy_that_asks_who_one_is(proxy: str, header: str, hint: str) -> None:
    given = f"Proxy-Authenticate: {header}\r\n" if header else ""
    with pytest.raises(PeersError, match="refused to connect to relay:8443: 407 Who") as caught:
        ask(saying(f"HTTP/1.1 407 Who\r\n{given}\r\n".encode()), proxy)
    assert hint in caught.value.hint
    assert "secret" not in caught.value.lines()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (saying(b"\x1b[2J\x00rubbish\r\n\r\n"), r"its answer begins with \?\[2J\?rubbish$"),
        (saying(b"HTTP/2 200\r\n\r\n"), "its answer begins with HTTP/2 200$"),
        (saying(b"HTTP/1.1 OK\r\n\r\n"), "its answer begins with HTTP/1.1 OK$"),
        (saying(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 9000), "its answer begins with HTTP/1.1 200 OK$"),
        (saying(b"x" * 65536, hold=True), "its answer begins with x+$"),
        (lambda peer: (peer.sendall(b"SSH-2.0-OpenSSH\r\n"), peer.recv(9999), peer.recv(1)), "with SSH-2.0-OpenSSH$"),
        (saying(bytes([21, 3, 3, 0, 2, 2, 40]), hold=True), "it speaks TLS, and https:// proxies are not supported"),
    ],
    ids=["rubbish", "another version", "no number", "no end", "all one line", "a greeting", "TLS"],
)
def test_what_is_no_proxy_ends_at_once(answer: Answer, words: str) -> None:
    with pytest.raises(PeersError, match=words) as caught:
        ask(answer)
    assert "what answers at 127.0.0.1:" in caught.value.what
    assert "http://host:port of a CONNECT proxy" in caught.value.hint


def test_a_proxy_that_closes_or_stalls_is_waited_out() -> None:
    with pytest.raises(LinkDown, match=r"the proxy 127\.0\.0\.1:\d+: it closed the connection without an answer"):
        ask(saying(b""))
    with pytest.raises(LinkDown, match="in the middle of an answer"):
        ask(saying(b"HTTP/1.1 200 OK\r\nVia"))
    with pytest.raises(LinkDown, match="gave no answer within 0 s"):
        ask(saying(b"HTTP/1.1 200 OK\r\nVia", hold=True), limit_s=0.05)


def test_a_proxy_that_drips_is_not_listened_to_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, and the whole never does: the clock goes on by a second a byte."""
    now = iter(range(1000))
    monkeypatch.setattr(proxies.time, "monotonic", lambda: float(next(now)))
    with pytest.raises(LinkDown, match="gave no answer within 30 s"):
        ask(saying(b"HTTP/1.1 200 OK\r\n" + b"x" * 1000, hold=True), limit_s=30.0)


# --- Retry-After


def in_a_while(seconds: float) -> str:
    return email.utils.format_datetime(datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("header", "fits"),
    [
        ("Retry-After: 7", lambda s: s == 7),
        ("retry-after:120 ", lambda s: s == 120),
        ("Retry-After: {later}", lambda s: 8000 < s <= 9000),
        ("Retry-After: {before}", lambda s: s == 0),
        ("Retry-After: soon", lambda s: s == 0),
        ("Retry-After: -7", lambda s: s == 0),
        ("X: y", lambda s: s == 0),
    ],
    ids=["seconds", "spaced", "later", "before", "no number", "negative", "absent"],
)
def test_how_long_the_proxy_asks_to_wait(header: str, fits: Callable[[float], bool]) -> None:
    header = header.format(later=in_a_while(9000), before=in_a_while(-50))
    with pytest.raises(LinkDown) as caught:
        ask(saying(f"HTTP/1.1 503 Busy\r\n{header}\r\n\r\n".encode()))
    assert fits(caught.value.retry_after_s), caught.value.retry_after_s


def test_pauses() -> None:
    patience = Patience(300.0, 1.0, 30.0)
    for _ in range(20):
        assert 0.5 <= pause_s(patience, 0, 0.0, 300.0) <= 1.0
        assert 15.0 <= pause_s(patience, 9, 0.0, 300.0) <= 30.0
        assert 20.0 <= pause_s(patience, 0, 20.0, 300.0) <= 30.0, "what is asked for, and spread"
        assert 60.0 <= pause_s(patience, 0, 86400.0, 300.0) <= 90.0, "within reason"
        assert pause_s(patience, 0, 86400.0, 5.0) == 5.0, "one more try before patience ends"
        assert pause_s(patience, 9, 0.0, 5.0) > 5.0, "no pause fits any more"
