"""Keys: who a site is (Ed25519), what two sites share for one attempt (X25519), and how keys derive (HKDF).

Private keys are held as objects of the `cryptography` package, never as text; nothing here prints or stores one.
"""

from __future__ import annotations

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedhpc.errors import PolicyError
from fedhpc.secure import labels
from fedhpc.secure.transcript import u16

KEY_BYTES = 32


def derive(salt: bytes, secret: bytes, name: bytes, i: int = 0, j: int = 0) -> bytes:
    """KDF(salt, ikm, name, i, j): HKDF-SHA256 (RFC 5869) [32].

    The salt is a transcript hash: the same secret in another round, attempt or set gives another key.
    """
    info = labels.PROTOCOL + b"\0" + name + b"\0" + u16(i) + u16(j)
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def new_identity() -> bytes:
    """A fresh Ed25519 private key from the operating system's generator, raw [32]."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


def identity_public(private: bytes) -> bytes:
    """The public half of a raw Ed25519 private key [32]."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def public_identity(raw: bytes) -> Ed25519PublicKey:
    """The Ed25519 public key in `raw` [32]. Raises ValueError for another length."""
    return Ed25519PublicKey.from_public_bytes(raw)


class AttemptKey:
    """A fresh X25519 key pair for one attempt. It is never stored and is dropped with the attempt."""

    def __init__(self, private: bytes | None = None) -> None:
        """`private` [32] only for test vectors; otherwise the operating system's generator."""
        self._private = X25519PrivateKey.generate() if private is None else X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "AttemptKey(<private>)"

    def shared(self, public: bytes, who: str) -> bytes:
        """X25519 with the public key of site `who` [32].

        Raises PolicyError for a wrong length and for a low-order point, whose result would be known to anybody.
        """
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise PolicyError(
                f"site {who} sent an X25519 key that is not a usable point", "the round is refused"
            ) from None
