"""Keys as people compare them by telephone, and what is checked of a request before anybody is asked."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fedhpc.errors import PolicyError
from fedhpc.secure import labels
from fedhpc.secure.join_request import Request, read_request
from fedhpc.secure.transcript import hash_parts
from fedhpc.wire.pins import UNREADABLE, pin_of_key

_SHOWN_BYTES = 16  # 128 bits: nobody can find other keys with the same fingerprint


@dataclass(frozen=True)
class Asked:
    """A request that is consistent: both signatures are valid, and it asks for one name only."""

    request: Request
    tls: str  # pin of the key in the certificate request, hex
    csr: bytes  # PEM

    @property
    def name(self) -> str:
        """The site's name."""
        return self.request.name

    @property
    def sign(self) -> str:
        """Its Ed25519 public key, hex."""
        return self.request.sign.hex()

    @property
    def fingerprint(self) -> str:
        """As `fingerprint`."""
        return fingerprint(self.name, self.sign, self.tls)


def fingerprint(name: str, sign: str, tls: str) -> str:
    """Eight groups of four hex digits over a site's name and both its public keys (hex): short enough to read out."""
    parts = (name.encode("ascii"), bytes.fromhex(sign), bytes.fromhex(tls))
    return grouped(hash_parts(labels.HASH_ENROL, *parts)[:_SHOWN_BYTES].hex())


def grouped(digits: str) -> str:
    """Hex digits in groups of four."""
    return " ".join(digits[at : at + 4] for at in range(0, len(digits), 4))


def read_asked(data: bytes) -> Asked:
    """The request in `data` with its certificate request. Raises PolicyError."""
    request = read_request(data)
    try:
        csr = x509.load_der_x509_csr(request.csr)
        key, good = csr.public_key(), csr.is_signature_valid
        subject = [(part.oid, part.value) for part in csr.subject]
    except UNREADABLE as error:
        raise PolicyError(f"the certificate request of site {request.name} cannot be read: {error}") from None
    if not good or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise PolicyError(f"the certificate request of site {request.name} is not signed by its own P-256 key")
    if subject != [(NameOID.COMMON_NAME, request.name)]:
        raise PolicyError(f"the certificate request of site {request.name} asks for another name")
    return Asked(request, pin_of_key(key).hex(), csr.public_bytes(Encoding.PEM))
