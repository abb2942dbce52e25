"""TLS at the relay: its context, and what is done where a handshake fails."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import time

from fedhpc.errors import ConfigError
from fedhpc.relay.settings import RelaySettings
from fedhpc.wire.certificate_times import COMPARE_CLOCKS, begins_later, utc
from fedhpc.wire.pins import load_pair, read_certificate

_LINGER_S = 2.0  # for a peer whose handshake failed
_LINGER_BYTES = 64 << 10
_TIME_ERRORS = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED


def tls_context(settings: RelaySettings) -> ssl.SSLContext:
    """TLS 1.3 only, no session tickets (every connection proves its key), client certificates read if one is shown."""
    certificate = read_certificate(settings.certificate)
    now = datetime.datetime.now(datetime.UTC)
    if early := begins_later(certificate, now):
        raise ConfigError(f"the certificate {settings.certificate} {early}", COMPARE_CLOCKS)
    if certificate.not_valid_after_utc < now:
        raise ConfigError(
            f"the certificate {settings.certificate} expired on {utc(certificate.not_valid_after_utc)}, "
            f"and the clock here says {utc(now)}",
            "renew it over the same key",
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    load_pair(
        context,
        settings.certificate,
        settings.key,
        "put back the pair that `fedhpc federation new` wrote, both files: the sites know the relay by this key",
    )
    for authority in settings.client_authorities:
        try:
            context.load_verify_locations(authority)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cannot read the client authority {authority}: {error}") from None
    return context


def handshake_failure(error: Exception) -> str:
    """Why a handshake failed, with what a site's operator has to be told of a certificate's time."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return str(error)
    words = f"a certificate was not accepted: {error.verify_message}"
    return f"{words}; is the clock here right?" if error.verify_code in _TIME_ERRORS else words


def let_read(sock: ssl.SSLSocket) -> None:
    """Give the peer time to read the alert: in TLS 1.3 it has sent a request already, and closing on that resets."""
    deadline, left = time.monotonic() + _LINGER_S, _LINGER_BYTES
    with contextlib.suppress(OSError, ValueError):
        socket.socket.shutdown(sock, socket.SHUT_WR)
        while left > 0 and (wait_s := deadline - time.monotonic()) > 0:
            sock.settimeout(wait_s)
            got = len(socket.socket.recv(sock, 1 << 14))
            if not got:
                return
            left -= got
