"""One-time tokens and signed requests: what the relay learns, and what nobody can change."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from enrolment_fakes import Enrolment
from secure_fakes import key_of

from fedhpc.enrolment.certificates import new_key, new_request
from fedhpc.enrolment.fingerprints import fingerprint, read_asked
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.secure.join_request import UNPROVED, access_hash, new_token, read_request, sign_request, split_token
from fedhpc.secure.transcript import canon, sign_message

KEY = Ed25519PrivateKey.from_private_bytes(key_of("enrol"))
TOKEN = "00112233445566778899aabbccddeeff"


def test_a_token_has_two_independent_halves_and_shows_neither() -> None:
    halves = split_token(TOKEN)
    assert re.fullmatch("[0-9a-f]{64}", halves.access)
    assert re.fullmatch("[0-9a-f]{64}", halves.proof)
    assert halves.access != halves.proof
    assert split_token(TOKEN) == halves
    assert split_token("1" + TOKEN[1:]).proof != halves.proof
    assert halves.access not in repr(halves)
    assert halves.proof not in repr(halves)
    assert access_hash(halves.access) == hashlib.sha256(halves.access.encode()).hexdigest()
    assert new_token() != new_token()
    split_token(new_token())


@pytest.mark.parametrize("token", ["", "12", TOKEN.upper(), TOKEN + "0", " " + TOKEN, "x" * 32])
def test_what_is_no_token_is_refused_without_repeating_it(token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_token(token)
    assert not token.strip() or token.strip() not in caught.value.lines()


def test_a_request_says_who_made_it_and_with_which_token() -> None:
    token, other = split_token(TOKEN), split_token(new_token())
    request = read_request(sign_request(KEY, "aa", b"csr", token))
    assert (request.name, request.csr) == ("aa", b"csr")
    assert request.sign == KEY.public_key().public_bytes_raw()
    assert request.proved_by(token.proof)
    assert not request.proved_by(other.proof)
    assert not request.proved_by(token.access)  # what the relay knows
    without = read_request(sign_request(KEY, "aa", b"csr"))
    assert without.proof == UNPROVED
    assert not without.proved_by(token.proof)


def test_the_proof_covers_name_and_both_keys() -> None:
    token = split_token(TOKEN)
    made = {
        sign_request(k, n, c, token) for k in (KEY, Ed25519PrivateKey.generate()) for n in "ab" for c in (b"1", b"2")
    }
    assert len({read_request(data).proof for data in made}) == 8


def test_every_changed_field_is_refused() -> None:
    data = sign_request(KEY, "aa", b"csr", split_token(TOKEN))
    message = json.loads(data)
    body = message["body"]
    changed = [
        message | {"body": body | {key: value}}
        for key, value in (
            ("name", "ab"),
            ("csr", "00"),
            ("sign", key_of("x").hex()),
            ("more", "1"),
            ("csr", 1),
            ("name", ["a"]),
        )
    ]
    changed += [
        message | change
        for change in (
            {"t": "0" * 64},
            {"t": "00"},
            {"from": 1},
            {"name": "CONFIG"},
            {"sig": "0" * 128},
            {"more": 1},
            {"t": 1},
        )
    ]
    changed += [{k: v for k, v in message.items() if k != gone} for gone in message]
    changed += [message | {"body": {k: v for k, v in body.items() if k != gone}} for gone in body]
    changed += [[], {}, "text"]
    signed = {"csr": "00", "name": "aa", "sign": KEY.public_key().public_bytes_raw().hex()}
    for wrong in (
        signed | {"more": "1"},
        signed | {"csr": "0"},
        signed | {"csr": "AB"},
    ):  # by its own key, but no request
        with pytest.raises(PolicyError, match="not an enrolment request"):
            read_request(sign_message(KEY, "ENROL", 0, UNPROVED, wrong))
    assert read_request(sign_message(KEY, "ENROL", 0, UNPROVED, signed)).csr == b"\0"
    for value in changed:
        with pytest.raises(PolicyError):
            read_request(canon(value))
    for at in range(0, len(data), 7):
        with pytest.raises(PolicyError):
            read_request(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for bad in (b"", b"\xff", data + b" ", data[:-1], b" " * (1 << 17)):
        with pytest.raises(PolicyError):
            read_request(bad)


def csr(*names: str, curve: ec.EllipticCurve | None = None) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    key = ec.generate_private_key(curve or ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.DER)


def test_the_certificate_request_is_for_this_name_and_a_p256_key_that_signed_it() -> None:
    good = csr("aa")
    asked = read_asked(sign_request(KEY, "aa", good))
    assert asked.csr.startswith(b"-----BEGIN CERTIFICATE REQUEST")
    assert re.fullmatch("[0-9a-f]{64}", asked.tls)
    flipped = bytearray(good)
    flipped[-1] ^= 1
    for bad in (csr("bb"), csr("aa", "bb"), csr(), csr("aa", curve=ec.SECP384R1()), bytes(flipped), b"", b"\x30\x00"):
        with pytest.raises(PolicyError, match="certificate request of site aa"):
            read_asked(sign_request(KEY, "aa", bad))
    pem = new_request(new_key(), "aa")
    assert read_asked(sign_request(KEY, "aa", x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER))).name == "aa"


def test_a_fingerprint_covers_name_and_both_keys() -> None:
    one, other = "11" * 32, "22" * 32
    assert re.fullmatch("[0-9a-f]{4}( [0-9a-f]{4}){7}", fingerprint("aa", one, other))
    assert (
        len({fingerprint(*x) for x in (("aa", one, other), ("ab", one, other), ("aa", other, one), ("aa", one, one))})
        == 4
    )


def test_a_site_sends_the_same_bytes_while_keys_and_token_are_the_same(tmp_path: Path) -> None:
    site = Enrolment(tmp_path).sites["aa"]
    token, other = split_token(TOKEN), split_token(new_token())
    first = site.request(token)[1]
    assert site.request(token)[1] == first
    assert site.request(other)[1] != first
    without = site.request(None)[1]
    assert site.request(None)[1] == without
    (site.path / "request.json").write_text("garbage")
    assert read_request(site.request(None)[1]).sign.hex() == site.keys().sign
    site.rotate()
    assert read_request(site.request(None)[1]).sign.hex() == site.keys().sign != read_request(without).sign.hex()
