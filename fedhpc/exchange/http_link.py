"""One connection from a site to the relay: TLS 1.3 with both keys pinned, through a proxy if there is one.

The relay's name is irrelevant: its key must be the one in the signed configuration, so neither DNS nor a public
authority is believed. OpenSSL still proves that the relay owns that key. http.client does the heads; bodies go from and
to the caller's memory.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import http.client
import json
import os
import socket
import ssl
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.errors import ConfigError, FedhpcError, PeersError, PolicyError
from fedhpc.exchange.http_traffic import Traffic
from fedhpc.exchange.pins import load_pair, pin_of, read_der, require_private, same_pin
from fedhpc.exchange.tls_read import read_available, readable

_CLOCK_SKEW = datetime.timedelta(minutes=5)
_MOST_JSON_BYTES = 4 << 20
_MOST_PROXY_HEAD_BYTES = 16 << 10
_RETRY = {408, 429, 500, 502, 503, 504}
_ROUND_KINDS = {"round-over", "too-late"}  # where the round stands; no rule was broken
_CERTIFICATE_ALERTS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR")


@dataclass(frozen=True)
class RelayAccess:
    """Where the relay is, and what both sides show. `proxy`: http://[user:password@]host:port or ''."""

    url: str  # https://host:port
    relay_pin: bytes  # [32] SPKI SHA-256
    certificate: Path
    key: Path
    proxy: str = ""
    connect_s: float = 15.0
    stall_s: float = 60.0
    keys_hint: str = "`fedhpc site request DIR --wait` fetches the certificate of the key that the site has"
    """What to do about a key or certificate that cannot be used."""

    def __post_init__(self) -> None:
        parse_url(self.url, "https", "the relay's address")
        if self.proxy:
            parse_url(self.proxy, "http", "the proxy's address")
        if len(self.relay_pin) != 32:
            raise ConfigError("the relay's pin has 32 bytes")


class LinkDown(Exception):  # noqa: N818 - what callers retry
    """The connection failed or the relay is busy: try again."""


class RelayProblem(PeersError):  # noqa: N818 - the name RFC 9457 uses
    """The relay refused, with one of its problem documents. `kind` is the last part of its type."""

    def __init__(self, status: int, kind: str, detail: str, hint: str = "") -> None:
        super().__init__(f"the relay refused ({status} {kind}): {detail}", hint)
        self.status, self.kind = status, kind


def parse_url(url: str, scheme: str, what: str) -> urllib.parse.SplitResult:
    """The parts of `scheme://host:port`. Raises ConfigError."""
    parts = urllib.parse.urlsplit(url)
    try:
        good = parts.scheme == scheme and parts.hostname and (parts.port or 0) > 0
    except ValueError:
        good = False
    if not good or parts.path.strip("/") or parts.query:
        raise ConfigError(f"{what} is not {scheme}://host:port", f"given: {without_password(url)}")
    return parts


def without_password(url: str) -> str:
    """An address as a message may show it: whole, but without user and password."""
    head, mark, rest = url.partition("://")
    host, slash, path = (rest if mark else head).partition("/")
    return f"{head + mark if mark else ''}{host.rpartition('@')[2]}{slash}{path}"


def proxy_from_environment(url: str) -> str:
    """HTTPS_PROXY for the relay at `url`, or '' where there is none or NO_PROXY names the host."""
    import urllib.request

    host = parse_url(url, "https", "the relay's address").hostname or ""
    if urllib.request.proxy_bypass(host):
        return ""
    found = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or ""
    return found if "://" in found or not found else "http://" + found


def site_context(access: RelayAccess) -> ssl.SSLContext:
    """TLS 1.3 with the site's certificate. The relay is judged by its pin, after the handshake and before any byte."""
    require_private(access.key, access.keys_hint)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    load_pair(context, access.certificate, access.key, access.keys_hint)
    return context


class Link:
    """One connection, opened when first used, for one thread at a time; `abort` and `interrupt` come from others."""

    def __init__(self, access: RelayAccess, context: ssl.SSLContext, traffic: Traffic) -> None:
        self._access, self._context, self._traffic = access, context, traffic
        self._http: http.client.HTTPConnection | None = None
        self._aborted = False
        self._raw: socket.socket | None = None  # what `interrupt` shuts down
        self.used = False  # whether this connection has answered before: then a cut may just be the relay's idle limit

    # --- requests

    def send_head(self, method: str, path: str, headers: Mapping[str, str], body_bytes: int = 0) -> None:
        """Send a request's head; the body follows by `send`. Raises LinkDown or an error for people."""
        with self._troubles():
            connection = self._open()
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if method == "PUT":
                connection.putheader("content-length", str(body_bytes))
            connection.endheaders()
            self._traffic.count(requests=1)

    def send(self, view: memoryview) -> None:
        """Send a piece of the body, from the caller's memory."""
        with self._troubles():
            self._sock().sendall(view)
            self._traffic.count(up=len(view))

    def answered_early(self) -> bool:
        """Whether the relay has answered before the body was sent: it refuses, and reads no further."""
        with self._troubles():
            sock = self._sock()
        return sock.pending() > 0 or readable(sock)

    def response(self, wait_s: float = 0.0) -> http.client.HTTPResponse:
        """The answer's head, for 2xx and 404. Raises LinkDown where it pays to try again, else the refusal."""
        with self._troubles():
            self._sock().settimeout(self._access.stall_s + wait_s)
            assert self._http is not None
            begun = time.perf_counter()
            response = self._http.getresponse()
            self._traffic.count(waited_s=time.perf_counter() - begun)
            self._sock_of(response).settimeout(self._access.stall_s)
            self.used = True
            if response.status < 300 or response.status == 404:
                return response
            refusal = _refusal(response)
        if isinstance(refusal, LinkDown) or response.will_close:
            self.close()
        raise refusal

    def read_json(self, response: http.client.HTTPResponse) -> dict[str, Any]:
        """A small JSON object. Raises RelayProblem if it is none."""
        with self._troubles():
            data = response.read(_MOST_JSON_BYTES + 1)
            self._traffic.count(down=len(data))
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or len(data) > _MOST_JSON_BYTES:
            self.close()
            raise RelayProblem(response.status, "nonsense", "the answer is not a JSON object")
        return value

    def read_into(self, response: http.client.HTTPResponse, view: memoryview) -> None:
        """Fill `view` from the answer's body. Raises LinkDown if it ends early."""
        with self._troubles():
            sock = self._sock_of(response)
            filled = response.fp.readinto1(view)  # http.client may hold the first bytes; the others come from TLS
            while 0 < filled < len(view):
                count = read_available(sock, view[filled:], self._access.stall_s)
                filled = count and filled + count
            sock.settimeout(self._access.stall_s)
            if not filled:
                raise ConnectionError("the answer ended early")
            self._traffic.count(down=filled)

    def end(self, response: http.client.HTTPResponse) -> None:
        """Tell http.client that the body was read in place."""
        response.close()

    def peer_certificate(self) -> bytes:
        """The certificate that the relay showed on this connection, DER. Raises LinkDown if there is none."""
        return self._sock().getpeercert(binary_form=True) or b""

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._http is not None:
            self._http.close()
        self._http, self.used, self._raw = None, False, None

    def abort(self) -> None:
        """End for good whatever the connection waits for; from another thread."""
        self._aborted = True
        self.interrupt()

    def interrupt(self) -> None:
        """Cut the connection, so that its thread finds LinkDown; from another thread."""
        if (sock := self._raw) is not None:
            with contextlib.suppress(OSError):  # the plain socket's, because SSLSocket.shutdown drops the TLS state
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    # --- the connection

    def _open(self) -> http.client.HTTPConnection:
        if self._http is None or self._http.sock is None:
            self.close()
            relay = parse_url(self._access.url, "https", "the relay's address")
            plain = self._dial(relay.hostname or "", relay.port or 0)
            try:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock = self._context.wrap_socket(plain, do_handshake_on_connect=False)
            except BaseException:
                plain.close()
                raise
            try:
                self._raw = sock
                if self._aborted:
                    raise LinkDown("the connection is closed")
                sock.do_handshake()
                self._require_pin(sock)
            except BaseException:
                sock.close()
                raise
            sock.settimeout(self._access.stall_s)
            connection = http.client.HTTPConnection(relay.hostname or "", relay.port)
            connection.auto_open = 0
            connection.sock = sock
            self._http = connection
        return self._http

    def _dial(self, host: str, port: int) -> socket.socket:
        if not self._access.proxy:
            return socket.create_connection((host, port), self._access.connect_s)
        proxy = parse_url(self._access.proxy, "http", "the proxy's address")
        sock = socket.create_connection((proxy.hostname or "", proxy.port or 0), self._access.connect_s)
        try:
            target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
            if proxy.username is not None:
                pair = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
                lines.append("Proxy-Authorization: Basic " + base64.b64encode(pair.encode()).decode())
            sock.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
            head = b""
            while not head.endswith(b"\r\n\r\n"):  # byte by byte: what follows belongs to TLS
                byte = sock.recv(1)
                if not byte or len(head) > _MOST_PROXY_HEAD_BYTES:
                    raise ConnectionError("the proxy closed the connection")
                head += byte
            status = _printable(head.split(b"\r\n", 1)[0].decode("latin-1"))
            if status.split(" ")[1:2] != ["200"]:
                raise PeersError(
                    f"the proxy {proxy.hostname}:{proxy.port} refused to connect to {target}: {status}",
                    "ask its operators to allow CONNECT to this host and port, or unset HTTPS_PROXY",
                )
        except BaseException:
            sock.close()
            raise
        return sock

    def _require_pin(self, sock: ssl.SSLSocket) -> None:
        try:
            certificate = read_der(sock.getpeercert(binary_form=True) or b"")
        except ValueError as error:
            raise PolicyError(f"the relay's certificate cannot be read: {error}") from None
        if not same_pin(pin_of(certificate), self._access.relay_pin):
            raise PolicyError(
                f"the relay at {self._access.url} has the key {pin_of(certificate).hex()}, "
                f"the configuration says {self._access.relay_pin.hex()}",
                "somebody stands between, or the relay has a new key that not all sites have signed yet",
            )
        now = datetime.datetime.now(datetime.UTC)
        if not certificate.not_valid_before_utc - _CLOCK_SKEW <= now <= certificate.not_valid_after_utc + _CLOCK_SKEW:
            ends = certificate.not_valid_after_utc
            raise PolicyError(f"the relay's certificate ended on {ends}, or the clock here is wrong", "renew it")

    def _sock(self) -> ssl.SSLSocket:
        if self._http is None or not isinstance(self._http.sock, ssl.SSLSocket):
            raise LinkDown("the connection is closed")
        return self._http.sock

    def _sock_of(self, response: http.client.HTTPResponse) -> ssl.SSLSocket:
        """The socket, also where http.client has let go of it because the relay will close it."""
        if self._http is not None and isinstance(self._http.sock, ssl.SSLSocket):
            return self._http.sock
        raw: Any = response.fp
        sock: ssl.SSLSocket = raw.raw._sock
        return sock

    @contextlib.contextmanager
    def _troubles(self) -> Any:
        """Turn every failure of the network into LinkDown, and a rejected certificate into words."""
        try:
            yield
        except (LinkDown, FedhpcError):
            raise
        except ssl.SSLError as error:
            self.close()
            reason = error.reason or ""
            if "ALERT" in reason and any(word in reason for word in _CERTIFICATE_ALERTS):
                raise PolicyError(
                    f"the relay does not accept this site's certificate ({reason.lower().replace('_', ' ')})",
                    "it may have expired, or come from another enrolment: renew it with `fedhpc site request`",
                ) from None
            raise LinkDown(f"TLS: {reason or error}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise LinkDown(_printable(words) or type(error).__name__) from None


def _refusal(response: http.client.HTTPResponse) -> Exception:
    """The error of an answer that is not 2xx."""
    try:
        document = json.loads(response.read(_MOST_JSON_BYTES))
        kind, detail = str(document["type"]).rsplit(":", 1)[-1], str(document["detail"])
    except (ValueError, KeyError, TypeError, RecursionError):
        kind, detail = "unknown", response.reason
    kind, detail = _printable(kind), _printable(detail)
    if response.status in _RETRY:
        return LinkDown(f"the relay answered {response.status} {kind}: {detail}")
    if response.status in (401, 403, 409) and kind not in _ROUND_KINDS:
        return PolicyError(f"the relay refused ({response.status} {kind}): {detail}")
    return RelayProblem(response.status, kind, detail)


def _printable(text: str) -> str:
    """One line for a terminal, whatever the relay sent."""
    return "".join(c if c.isprintable() else "?" for c in text[:300])
