"""X.509 certificates of relay and sites, and the pins that make them mean something.

The identity is the key: both sides pin the SHA-256 of the SubjectPublicKeyInfo (RFC 7469 section 2.4), so a certificate
can be renewed every few days while roster and configuration stay as they were signed. The issuing key only says how
long a certificate lives; without the pin its certificates open nothing.

Keys are ECDSA P-256: allowed by every TLS policy met on clusters, also OpenSSL in FIPS mode and RHEL's crypto-policies,
where Ed25519 in TLS is often switched off. Messages are signed by a site's separate Ed25519 key, never by this one.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhpc.errors import ConfigError, StorageError
from fedhpc.wire.pins import MAX_CERTIFICATE_BYTES, UNREADABLE, pin_of

CLOCK_SKEW_S = 300  # a certificate is valid this long before it was made, for sites whose clocks run late


@dataclass(frozen=True)
class Issued:
    """A private key and its certificate, PEM."""

    key: bytes
    certificate: bytes

    def pin(self) -> bytes:
        """The SPKI SHA-256 of the certificate [32]."""
        return pin_of(x509.load_pem_x509_certificate(self.certificate))

    def write(self, folder: Path, name: str) -> tuple[Path, Path]:
        """Write `name.key` (mode 0600) and `name.pem` into `folder`; returns (certificate path, key path)."""
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        write_private(key, self.key)
        certificate.write_bytes(self.certificate)
        return certificate, key


def new_authority(name: str = "fedhpc enrolment", days: float = 365.0) -> Issued:
    """A self-signed issuing certificate; the relay takes client certificates only from such issuers."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = _key_usage(signs_certificates=True)
    builder = _dated(x509.CertificateBuilder(), days).subject_name(subject).issuer_name(subject)
    builder = (
        builder.public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return Issued(_pem(key), builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


def new_key() -> bytes:
    """A fresh P-256 private key, PEM."""
    return _pem(ec.generate_private_key(ec.SECP256R1()))


def new_request(key: bytes, name: str) -> bytes:
    """A certificate signing request for `key`, PEM: what a site sends, so that its key never leaves."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return request.sign(_load_key(key), hashes.SHA256()).public_bytes(Encoding.PEM)


def issue(authority: Issued, request: bytes, days: float = 7.0, start: datetime.datetime | None = None) -> bytes:
    """A certificate for the key of `request`, PEM. Raises ConfigError if the request does not sign itself.

    Name and key are taken from the request, nothing else: extensions that it asks for are ignored.
    """
    if len(request) > MAX_CERTIFICATE_BYTES:
        raise ConfigError("the certificate request is too large")
    try:
        asked = x509.load_pem_x509_csr(request)
        public, good = asked.public_key(), asked.is_signature_valid
    except UNREADABLE as error:
        raise ConfigError(f"not a certificate request: {error}", "make one with `fedhpc site request`") from None
    if not good or not isinstance(public, ec.EllipticCurvePublicKey):
        raise ConfigError("the certificate request is not signed by its own P-256 key")
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    issuer_key = _load_key(authority.key)
    both = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
    builder = _dated(x509.CertificateBuilder(), days, start)
    builder = (
        builder.subject_name(asked.subject)
        .issuer_name(issuer.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)


def issue_new(authority: Issued, name: str, days: float = 7.0, start: datetime.datetime | None = None) -> Issued:
    """A fresh key with its certificate, for tests and demos where one machine plays every role."""
    key = new_key()
    return Issued(key, issue(authority, new_request(key, name), days, start))


def write_private(path: Path, data: bytes) -> None:
    """Write a new secret file with mode 0600. Raises StorageError if it exists or cannot be written."""
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from None


def _dated(
    builder: x509.CertificateBuilder, days: float, start: datetime.datetime | None = None
) -> x509.CertificateBuilder:
    begin = start or datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=CLOCK_SKEW_S)
    return builder.not_valid_before(begin).not_valid_after(begin + datetime.timedelta(days=days, seconds=CLOCK_SKEW_S))


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(pem, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the key is not a P-256 key")
    return key
