"""TLS at the relay: its own certificate's time, and what it says of a site's that is early or late."""

from __future__ import annotations

import datetime
import logging
import socket
import ssl
import threading
from pathlib import Path

import pytest
from harness import until
from relay_fakes import relay_toml

from fedhpc.enrolment.certificates import Issued, issue, issue_new, new_authority, new_key, new_request
from fedhpc.errors import ConfigError
from fedhpc.relay.http.server import RelayServer
from fedhpc.relay.http.tls import handshake_failure, tls_context
from fedhpc.relay.settings import read_settings

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def certified(authority: Issued, days: float, start: datetime.datetime | None) -> Issued:
    key = new_key()
    return Issued(key, issue(authority, new_request(key, "x"), days, start))


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (NOW + 3 * DAY, r"relay\.pem begins only on .* UTC, and the clock here says "),
        (NOW - 9 * DAY, "expired on .* UTC"),
    ],
    ids=["not yet", "ended"],
)
def test_a_relay_does_not_start_with_a_certificate_out_of_its_time(
    tmp_path: Path, start: datetime.datetime, words: str
) -> None:
    authority = new_authority()
    settings, _ = read_settings(relay_toml(tmp_path, certified(authority, 2.0, start), authority))
    with pytest.raises(ConfigError, match=words) as caught:
        tls_context(settings)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("start", "days", "words"),
    [
        (NOW + 3 * DAY, 7.0, "certificate is not yet valid; is the clock here right?"),
        (NOW - 9 * DAY, 2.0, "certificate has expired; is the clock here right?"),
    ],
    ids=["not yet", "ended"],
)
def test_what_the_relay_says_of_a_sites_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, start: datetime.datetime, days: float, words: str
) -> None:
    authority = new_authority()
    server = RelayServer(*read_settings(relay_toml(tmp_path, issue_new(authority, "relay"), authority)))
    certified(authority, days, start).write(tmp_path, "site")
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(tmp_path / "site.pem", tmp_path / "site.key")
    try:
        with caplog.at_level(logging.INFO, "fedhpc.relay"):
            with (
                socket.create_connection(("127.0.0.1", server.port), 60) as plain,
                context.wrap_socket(plain) as sock,
                pytest.raises(OSError),  # noqa: PT011 - the alert, or a reset that overtakes it
            ):
                sock.recv(1)
            said = f"handshake failed: a certificate was not accepted: {words}"
            until(lambda: said in caplog.text, 60, said)  # its thread may write after the client has heard
    finally:
        server.stop()
        thread.join(60)


def test_other_failures_are_said_as_they_are() -> None:
    assert handshake_failure(ConnectionResetError("reset")) == "reset"
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = 20, "unable to get local issuer certificate"
    words = "a certificate was not accepted: unable to get local issuer certificate"
    assert handshake_failure(error) == words
