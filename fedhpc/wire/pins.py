"""Pins: the SHA-256 of a certificate's public key, by which relay and sites know each other."""

from __future__ import annotations

import hashlib
import hmac
import ssl
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from fedhpc.errors import ConfigError, PolicyError

MAX_CERTIFICATE_BYTES = 64 << 10
# What the `cryptography` package raises for certificates and requests of strangers; only the first is a ValueError.
UNREADABLE = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)


def pin_of(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's SubjectPublicKeyInfo in DER (RFC 7469 section 2.4) [32]."""
    return pin_of_key(certificate.public_key())


def pin_of_key(key: CertificatePublicKeyTypes) -> bytes:
    """The pin of a public key [32]."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def pin_of_der(der: bytes) -> bytes:
    """The pin of a DER certificate as a peer sent it [32]. Raises ValueError if it cannot be read."""
    return pin_of(read_der(der))


def read_der(der: bytes) -> x509.Certificate:
    """A DER certificate as a peer sent it. Raises ValueError if it or its key cannot be read."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise ValueError("the certificate is too large")
    try:
        return _with_key(x509.load_der_x509_certificate(der))
    except UNREADABLE as error:
        raise ValueError(str(error)) from None


def read_pem(pem: bytes) -> x509.Certificate:
    """The first certificate in PEM text. Raises ValueError if it or its key cannot be read."""
    if len(pem) > MAX_CERTIFICATE_BYTES:
        raise ValueError("the certificate is too large")
    try:
        return _with_key(x509.load_pem_x509_certificate(pem))
    except UNREADABLE as error:
        raise ValueError(str(error)) from None


def same_pin(one: bytes, other: bytes) -> bool:
    """Whether two pins are equal, in constant time."""
    return hmac.compare_digest(one, other)


def read_certificate(path: Path, hint: str = "") -> x509.Certificate:
    """The first certificate of a PEM file. Raises ConfigError, with `hint`, if there is none."""
    try:
        with path.open("rb") as file:
            return read_pem(file.read(MAX_CERTIFICATE_BYTES))
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error).partition(". ")[0]
        raise ConfigError(f"cannot read the certificate {path}: {words}", hint) from None


def _with_key(certificate: x509.Certificate) -> x509.Certificate:
    """`certificate`, if its key, which is read only when asked for, can be read too."""
    pin_of(certificate)
    return certificate


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path, hint: str) -> None:
    """Give `context` a certificate and its key. Raises PolicyError if they are not of one pair, with `hint`;
    ConfigError if one of them cannot be read."""
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH" or _other_kinds(certificate, key):
            raise PolicyError(f"the certificate {certificate} and the key {key} do not fit", hint) from None
        raise ConfigError(f"cannot use the certificate {certificate} with the key {key}: {error}", hint) from None
    except OSError as error:
        words = error.strerror or str(error)
        raise ConfigError(f"cannot read {certificate} and {key}: {words}", hint) from None


def _other_kinds(certificate: Path, key: Path) -> bool:
    """Whether both can be read and are not of one pair: for keys of two kinds OpenSSL has other words."""
    try:
        public = load_pem_private_key(key.read_bytes(), None).public_key()
        shown = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(shown).digest() != pin_of(read_certificate(certificate))
    except (*UNREADABLE, OSError, ConfigError):
        return False


def require_private(path: Path, hint: str = "") -> None:
    """Raises ConfigError unless `path` is a file that only its owner can read; `hint`: where there is none."""
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"cannot read the key file {path}: {error.strerror}", hint) from None
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
        raise ConfigError(f"others can read the key file {path}", f"run `chmod 600 {path}`")
