"""A site without a certificate sends its request to the relay, and waits for the certificate there.

The relay shows its pinned key, the site the first half of its one-time token. Requests and certificates are checked by
those who use them: if the relay loses or changes them, this is noticed.
"""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fedhpc.errors import PeersError, PolicyError
from fedhpc.transport.https.link import Link, RelayAccess
from fedhpc.transport.https.retry import Patience, pause_s
from fedhpc.transport.https.transfer import declared_length
from fedhpc.transport.link_problems import LinkDown, RelayProblem
from fedhpc.transport.transport import Traffic
from fedhpc.wire.pins import MAX_CERTIFICATE_BYTES

_POLL_S = 30.0
_PATIENCE = Patience(longest_s=10.0)  # its pauses; each call says how long
_HINT = "name or token may be wrong, or used with other keys; ask for a new one: `fedhpc federation invite`"
_T = TypeVar("_T")


@dataclass(frozen=True)
class RelayMailbox:
    """One site's mailbox at a relay."""

    url: str
    relay_pin: bytes  # [32]
    name: str
    access: str = field(repr=False)  # first half of the token
    proxy: str = field(default="", repr=False)  # it may hold a password
    on_down: Callable[[str, float], None] = field(default=lambda reason, left_s: None, repr=False)
    """Called with the relay's host:port, why it cannot be reached, and how many more seconds it is tried."""

    def send(self, request: bytes, patience_s: float = 60.0) -> None:
        """Leave the request there; the same bytes may be sent again.

        Raises PolicyError (wrong name or token, used with another request, wrong relay), PeersError.
        """

        def put(link: Link, left_s: float) -> None:
            link.send_head("PUT", self._path, self._headers, len(request))
            link.send(memoryview(request))
            response = link.response()
            if response.status == 404:
                raise RelayProblem(404, "absent", "this relay takes no requests", "mail the request to the coordinator")
            link.read_json(response)

        self._persist(put, patience_s)

    def certificate(self, known: bytes, patience_s: float) -> bytes | None:
        """A certificate with other bytes than `known` [PEM, may be empty], or None if none comes in time."""
        after = f"&after={hashlib.sha256(known).hexdigest()}" if known else ""

        def get(link: Link, left_s: float) -> bytes | None:
            wait_s = min(_POLL_S, left_s)
            link.send_head("GET", f"{self._path}?wait={wait_s:.3f}{after}", self._headers)
            response = link.response(wait_s)
            if response.status == 404:
                link.read_json(response)
                return None
            length = declared_length(response)
            if not 0 < length <= MAX_CERTIFICATE_BYTES:
                raise RelayProblem(200, "too-large", f"a certificate of {length} bytes")
            pem = bytearray(length)
            link.read_into(response, memoryview(pem))
            link.end(response)
            return bytes(pem)

        end = time.monotonic() + patience_s
        while True:
            pem = self._persist(get, max(0.0, end - time.monotonic()))
            if pem is not None or time.monotonic() >= end:
                return pem

    @property
    def _path(self) -> str:
        return f"/v1/enrolment/{self.name}"

    @property
    def _headers(self) -> Mapping[str, str]:
        return {"fedhpc-token": self.access}

    def _persist(self, act: Callable[[Link, float], _T], patience_s: float) -> _T:
        """Call `act` with the seconds left; repeat with growing pauses while the relay cannot be reached."""
        access = RelayAccess(self.url, self.relay_pin, Path(), Path(), self.proxy)
        link = Link(access, _context(), Traffic())
        end, failures = time.monotonic() + patience_s, 0
        try:
            while True:
                try:
                    return act(link, max(0.0, end - time.monotonic()))
                except LinkDown as down:
                    link.close()
                    left = end - time.monotonic()
                    pause, failures = pause_s(_PATIENCE, failures, down.retry_after_s, left), failures + 1
                    if pause > left:
                        hint = "is it running, and may this host dial out?"
                        raise PeersError(f"the relay {self.url} cannot be reached: {down}", hint) from None
                    self.on_down(f"{access.place}: {down}", left)
                    time.sleep(pause)
                except PolicyError as error:
                    raise PolicyError(error.what, error.hint or _HINT) from None
        finally:
            link.close()


def _context() -> ssl.SSLContext:
    """TLS 1.3 without a certificate of our own; the link compares the relay's pin before anything is sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
