#!/usr/bin/env bash
# A TLS server on OpenSSL tells a client whose certificate has ended so ("certificate expired", alert 45). A client whose
# certificate has not begun yet, usually one whose own clock or whose issuer's clock is wrong, hears "bad certificate"
# (alert 42), the word for a damaged one: RFC 8446 section 6.2 lists "certificate_expired" for a certificate that "has
# expired or is not currently valid". Who wants to tell people of a wrong clock must look at the dates at the client.
#
# Versions: cryptography 45.0.7 makes the certificates, the ssl module of the Python at hand is both ends; its OpenSSL is
# printed. Source: RFC 8446, 6.2; OpenSSL's ssl_x509err2alert() (ssl/statem/statem_lib.c) maps
# X509_V_ERR_CERT_NOT_YET_VALID to bad_certificate and X509_V_ERR_CERT_HAS_EXPIRED to certificate_expired.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet cryptography==45.0.7
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import datetime
import socket
import ssl
import sys
import threading
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM
authority_key = ec.generate_private_key(ec.SECP256R1())


def issue(name, begins, ends, key, authority=False):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(begins).not_valid_after(ends)
    builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    pem = builder.sign(authority_key, hashes.SHA256()).public_bytes(PEM)
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    Path(f"{name}.pem").write_bytes(pem + private)


issue("authority", NOW - 9 * DAY, NOW + 9 * DAY, authority_key, authority=True)
for name, begins, ends in (
    ("server", -1, 1), ("ended", -3, -2), ("not-begun", 2, 3), ("good", -1, 1),
):
    issue(name, NOW + begins * DAY, NOW + ends * DAY, ec.generate_private_key(ec.SECP256R1()))


def hears(name):
    """What a client with this certificate hears from the server."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain("server.pem")
    server.load_verify_locations("authority.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.load_verify_locations("authority.pem")
    client.load_cert_chain(f"{name}.pem")
    here, there = socket.socketpair()

    def serve():
        try:
            with server.wrap_socket(there, server_side=True) as sock:
                sock.sendall(b"welcome")
        except ssl.SSLError:
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(here) as sock:
            return sock.recv(100).decode()
    except ssl.SSLError as error:
        return error.reason
    finally:
        thread.join()


expected = {"good": "welcome", "ended": "SSLV3_ALERT_CERTIFICATE_EXPIRED", "not-begun": "SSLV3_ALERT_CERTIFICATE_EXPIRED"}
known = expected | {"not-begun": "SSLV3_ALERT_BAD_CERTIFICATE"}
seen = {name: hears(name) for name in expected}
print(f"{ssl.OPENSSL_VERSION}, Python {sys.version.split()[0]}")
for name in expected:
    print(f"{name:9}  expected {expected[name]:32}  seen {seen[name]}")
if seen != known:
    sys.exit("this has changed")
PYTHON
