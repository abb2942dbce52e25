"""A site asks to join: its new public keys, signed by itself and tied to its one-time token.

The token goes to the site's engineer over a channel that both trust, and the relay is none. So the token is split:
`access` opens a mailbox at the relay, `proof` shows the coordinator that the request was not changed on its way. Who
knows only the first cannot put other keys into a request.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.errors import ConfigError, PolicyError
from fedhpc.secure import labels
from fedhpc.secure.keys import derive, public_identity
from fedhpc.secure.transcript import canon, open_message, parse_canon, sign_message

MAX_REQUEST_BYTES = 64 << 10
UNPROVED = bytes(32)  # the proof of a request without token: its keys are compared by people

_TOKEN = re.compile(r"[0-9a-f]{32}")
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_NO_NUMBER = 0  # a site has none before it is in a roster


@dataclass(frozen=True)
class Token:
    """The two halves of a one-time token, 32 bytes each in hex. Neither gives the other."""

    access: str = field(repr=False)
    proof: str = field(repr=False)


@dataclass(frozen=True)
class Request:
    """What a site asks for, after its own signature held."""

    name: str
    sign: bytes  # its Ed25519 public key [32]
    csr: bytes  # certificate signing request for its TLS key, DER
    proof: bytes  # HMAC under the token's `proof` [32]; UNPROVED without token
    source: bytes = field(repr=False)

    def proved_by(self, proof: str) -> bool:
        """Whether the request was made with the token of this `proof`."""
        return hmac.compare_digest(self.proof, _proof(proof, _body(self.name, self.sign, self.csr)))


def new_token() -> str:
    """A fresh token: 128 bits as 32 hex digits, short enough to be read out."""
    return secrets.token_hex(16)


def split_token(token: str) -> Token:
    """The halves of `token`. Raises ConfigError if it is not a token; the message does not repeat it."""
    if not _TOKEN.fullmatch(token):
        raise ConfigError("this is not an enrolment token", "32 hex digits, as `fedhpc federation new` printed them")
    secret = bytes.fromhex(token)
    access, proof = (derive(bytes(32), secret, name) for name in (labels.KEY_ENROL_ACCESS, labels.KEY_ENROL_PROOF))
    return Token(access.hex(), proof.hex())


def access_hash(access: str) -> str:
    """What the relay keeps of a token: SHA-256 of its first half as it stands in the header, in hex."""
    return hashlib.sha256(access.encode("utf-8", "replace")).hexdigest()


def sign_request(key: Ed25519PrivateKey, name: str, csr: bytes, token: Token | None = None) -> bytes:
    """A request [message]. The signature shows that the site has the private half of the key it names."""
    body = _body(name, key.public_key().public_bytes_raw(), csr)
    proof = UNPROVED if token is None else _proof(token.proof, body)
    return sign_message(key, labels.SIGN_ENROL, _NO_NUMBER, proof, body)


def read_request(data: bytes) -> Request:
    """The request in `data`, whose form and signature were checked. Raises PolicyError."""
    if len(data) > MAX_REQUEST_BYTES:
        raise PolicyError(f"the request has {len(data)} bytes; at most {MAX_REQUEST_BYTES}")
    try:
        message = parse_canon(data)
        body = message["body"]
        name, sign, csr, proof = body["name"], body["sign"], body["csr"], message["t"]
        if sorted(body) != ["csr", "name", "sign"] or not all(_HEX.fullmatch(x) for x in (sign, csr, proof)):
            raise ValueError("other fields than a request has")
        if type(name) is not str or len(proof) != 64:
            raise ValueError("other types than a request has")
        key = public_identity(bytes.fromhex(sign))
    except (ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"this is not an enrolment request: {error}", "`fedhpc site request` writes one") from None
    open_message(data, labels.SIGN_ENROL, _NO_NUMBER, bytes.fromhex(proof), key, name)
    return Request(name, bytes.fromhex(sign), bytes.fromhex(csr), bytes.fromhex(proof), data)


def _body(name: str, sign: bytes, csr: bytes) -> dict[str, str]:
    return {"csr": csr.hex(), "name": name, "sign": sign.hex()}


def _proof(proof: str, body: dict[str, str]) -> bytes:
    return hmac.new(bytes.fromhex(proof), canon(body), hashlib.sha256).digest()
