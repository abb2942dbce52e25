"""One connection from a site to the relay: TLS 1.3 with both keys pinned, through a proxy if there is one.

The relay's name only locates it: its key must be the one in the signed configuration, so neither DNS nor a public
authority is trusted. OpenSSL still proves that the relay owns that key. http.client does the heads; bodies go from and
to the caller's memory.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedhpc.errors import ConfigError, FedhpcError, PolicyError
from fedhpc.secure.suite import SHA256, Suite
from fedhpc.transport.https import tls_words
from fedhpc.transport.https.addresses import parse_url, place_of, tls_name
from fedhpc.transport.https.proxies import ask_for_tunnel
from fedhpc.transport.link_problems import MOST_JSON_BYTES, LinkDown, NoWayError, RelayProblem, printable, refusal
from fedhpc.transport.transport import Traffic
from fedhpc.wire.certificate_times import COMPARE_CLOCKS, begins_later, has_ended
from fedhpc.wire.pins import load_pair, pin_of, read_der, require_private, same_pin
from fedhpc.wire.tls_read import read_available, readable


@dataclass(frozen=True)
class RelayAccess:
    """Where the relay is, and what both sides show. `proxy`: http://[user:password@]host:port or ''."""

    url: str  # https://host:port
    relay_pin: bytes  # [32] SPKI SHA-256
    certificate: Path
    key: Path
    proxy: str = field(default="", repr=False)  # it may hold a password
    connect_s: float = 15.0
    stall_s: float = 60.0
    keys_hint: str = "`fedhpc site request DIR --wait` fetches the certificate of the key that the site has"
    """What to do about a key or certificate that cannot be used."""
    suite: Suite = SHA256  # of the federation: what Trees of its objects are made of

    def __post_init__(self) -> None:
        parse_url(self.url, "https", "the relay's address")
        if self.proxy:
            parse_url(self.proxy, "http", "the proxy's address")
        if len(self.relay_pin) != 32:
            raise ConfigError("the relay's pin has 32 bytes")

    @property
    def place(self) -> str:
        """The relay as host:port."""
        return place_of(self.url)


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

    def __init__(
        self, access: RelayAccess, context: ssl.SSLContext, traffic: Traffic, met: threading.Event | None = None
    ) -> None:
        """`met`: set once the relay has proved its key, and shared by all connections of a client."""
        self._access, self._context, self._traffic = access, context, traffic
        self._met = threading.Event() if met is None else met
        self._http: http.client.HTTPConnection | None = None
        self.stage: Literal["connect", "tls", "open"] = "connect"  # how far the connection is, or got
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
        """Whether the relay has answered before the body was sent: it refuses the body and reads no further."""
        with self._troubles():
            sock = self._sock()
        return sock.pending() > 0 or readable(sock)

    def response(self, wait_s: float = 0.0) -> http.client.HTTPResponse:
        """The answer's head, for 2xx and 404. Raises LinkDown if another try may help, else the refusal."""
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
            refused = refusal(response)
        if isinstance(refused, LinkDown) or response.will_close:
            self.close()
        raise refused

    def read_json(self, response: http.client.HTTPResponse) -> dict[str, Any]:
        """A small JSON object. Raises RelayProblem if it is none."""
        with self._troubles():
            data = response.read(MOST_JSON_BYTES + 1)
            self._traffic.count(down=len(data))
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or len(data) > MOST_JSON_BYTES:
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
        """End for good what the connection waits for; called from another thread."""
        self._aborted = True
        self.interrupt()

    def interrupt(self) -> None:
        """Cut the connection, so that its thread gets LinkDown; called from another thread."""
        if (sock := self._raw) is not None:
            with contextlib.suppress(OSError):  # the plain socket's, because SSLSocket.shutdown drops the TLS state
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    # --- the connection

    def _open(self) -> http.client.HTTPConnection:
        if self._http is None or self._http.sock is None:
            self.close()
            relay = parse_url(self._access.url, "https", "the relay's address")
            host, port = relay.hostname or "", relay.port or 0
            self.stage = "connect"
            plain = self._dial(host, port)
            try:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # The name (SNI) serves machines that route TLS by it, unopened; only the pin is trusted.
                sock = self._context.wrap_socket(plain, do_handshake_on_connect=False, server_hostname=tls_name(host))
            except BaseException:
                plain.close()
                raise
            try:
                self._hold(sock)
                self.stage = "tls"
                sock.do_handshake()
                self._require_pin(sock)
            except BaseException:
                sock.close()
                raise
            self._met.set()
            self.stage = "open"
            sock.settimeout(self._access.stall_s)
            connection = http.client.HTTPConnection(host, port)
            connection.auto_open = 0
            connection.sock = sock
            self._http = connection
        return self._http

    def _hold(self, sock: socket.socket) -> None:
        """`abort` and `interrupt` end this socket from now on."""
        self._raw = sock
        if self._aborted:
            raise LinkDown("the connection is closed")

    def _dial(self, host: str, port: int) -> socket.socket:
        """A connection to the relay, or through the proxy's tunnel."""
        if not self._access.proxy:
            return socket.create_connection((host, port), self._access.connect_s)
        proxy = parse_url(self._access.proxy, "http", "the proxy's address")
        try:
            sock = socket.create_connection((proxy.hostname or "", proxy.port or 0), self._access.connect_s)
        except OSError as error:
            words = printable(error.strerror or str(error))
            raise LinkDown(f"the proxy {place_of(self._access.proxy)}: {words}") from None
        try:
            self._hold(sock)
            ask_for_tunnel(sock, self._access.proxy, host, port, self._access.stall_s)
            sock.settimeout(self._access.connect_s)
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
                "somebody is in between, or the relay has a new key that not all sites have signed yet",
            )
        now = datetime.datetime.now(datetime.UTC)
        if early := begins_later(certificate, now):
            raise PolicyError(f"the relay's certificate {early}", COMPARE_CLOCKS)
        if late := has_ended(certificate, now):
            raise PolicyError(f"the relay's certificate {late}", f"its operator renews it; or {COMPARE_CLOCKS}")

    def _sock(self) -> ssl.SSLSocket:
        if self._http is None or not isinstance(self._http.sock, ssl.SSLSocket):
            raise LinkDown("the connection is closed")
        return self._http.sock

    def _sock_of(self, response: http.client.HTTPResponse) -> ssl.SSLSocket:
        """The socket, even if http.client has dropped it because the relay will close it."""
        if self._http is not None and isinstance(self._http.sock, ssl.SSLSocket):
            return self._http.sock
        raw: Any = response.fp
        sock: ssl.SSLSocket = raw.raw._sock
        return sock

    @contextlib.contextmanager
    def _troubles(self) -> Any:
        """Turn every failure of the network into LinkDown, and a rejected certificate into a message."""
        try:
            yield
        except (LinkDown, FedhpcError):
            raise
        except ssl.SSLError as error:
            raise self._tls_trouble(error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise LinkDown(printable(words) or type(error).__name__) from None

    def _tls_trouble(self, error: ssl.SSLError) -> LinkDown | FedhpcError:
        """Once the relay has answered on a connection, or proved its key on another, it is only away for a while."""
        words, answered = tls_words.words_of(error), self.used
        self.close()
        kind = tls_words.kind_of(words)
        if kind == "certificate" and not answered:
            return tls_words.refused_certificate(words, self._access.certificate)
        if kind == "no relay" and self.stage == "tls":
            reason, hint = tls_words.no_relay(words, self._access.place)
            if not self._met.is_set():
                return NoWayError(f"the relay {self._access.url} cannot be reached: {reason}", hint)
            return LinkDown(reason)
        return LinkDown(f"TLS: {words}")
