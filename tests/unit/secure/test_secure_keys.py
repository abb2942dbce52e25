"""Known answers of the primitives as the vault calls them, and the refusals of X25519."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.errors import PolicyError
from fedhpc.secure import labels
from fedhpc.secure.keys import (
    AttemptKey,
    derive,
    identity_public,
    new_identity,
    public_identity,
)

P = 2**255 - 19


@pytest.mark.parametrize(
    ("scalar", "point", "result"),
    [  # RFC 7748, section 5.2
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_x25519_rfc7748_5_2(scalar: str, point: str, result: str) -> None:
    assert AttemptKey(bytes.fromhex(scalar)).shared(bytes.fromhex(point), "b").hex() == result


def test_x25519_rfc7748_iterated() -> None:
    k = u = b"\x09" + bytes(31)
    for step in range(1000):
        k, u = AttemptKey(k).shared(u, "b"), k
        if step == 0:
            assert k.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    assert k.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


ALICE = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"
BOB = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"


def test_x25519_rfc7748_6_1() -> None:
    alice, bob = AttemptKey(bytes.fromhex(ALICE)), AttemptKey(bytes.fromhex(BOB))
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    expected = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.shared(bob.public, "bob").hex() == bob.shared(alice.public, "alice").hex() == expected


LOW_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (P - 1).to_bytes(32, "little"),
    P.to_bytes(32, "little"),
    (P + 1).to_bytes(32, "little"),
]


@pytest.mark.parametrize("point", LOW_ORDER + [p[:31] + bytes([p[31] | 0x80]) for p in LOW_ORDER])
def test_low_order_points_are_refused(point: bytes) -> None:
    with pytest.raises(PolicyError, match=r"site basel .* not a usable point") as caught:
        AttemptKey().shared(point, "basel")
    assert caught.value.exit_code == 77


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(PolicyError, match="site basel"):
        AttemptKey().shared(b"\x09" * length, "basel")


def test_fresh_keys_differ() -> None:
    assert len({AttemptKey().public for _ in range(8)}) == 8
    assert len({new_identity() for _ in range(8)}) == 8


@pytest.mark.parametrize(
    ("ikm", "salt", "info", "okm"),
    [  # RFC 5869, appendix A.1 to A.3
        (
            b"\x0b" * 22,
            bytes(range(0x0D)),
            bytes(range(0xF0, 0xFA)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            bytes(range(0x50)),
            bytes(range(0x60, 0xB0)),
            bytes(range(0xB0, 0x100)),
            "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
            "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
        ),
        (
            b"\x0b" * 22,
            b"",
            b"",
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
    ],
)
def test_hkdf_rfc5869(ikm: bytes, salt: bytes, info: bytes, okm: str) -> None:
    length = len(okm) // 2
    assert HKDF(hashes.SHA256(), length, salt, info).derive(ikm).hex() == okm
    assert plain_hkdf(salt, ikm, info, length).hex() == okm


def plain_hkdf(salt: bytes, ikm: bytes, info: bytes, length: int = 32) -> bytes:
    """HKDF-SHA256 from the text of RFC 5869."""
    prk = hmac.digest(salt or bytes(32), ikm, "sha256")
    okm = block = b""
    counter = 1
    while len(okm) < length:
        block = hmac.digest(prk, block + info + bytes([counter]), "sha256")
        okm, counter = okm + block, counter + 1
    return okm[:length]


@given(st.binary(max_size=64), st.binary(min_size=1, max_size=64), st.integers(0, 65535), st.integers(0, 65535))
def test_derive_is_hkdf_with_the_protocol_s_info(salt: bytes, secret: bytes, i: int, j: int) -> None:
    info = b"fedhpc-secagg/3\0edge\0" + i.to_bytes(2, "little") + j.to_bytes(2, "little")
    assert derive(salt, secret, labels.KEY_EDGE, i, j) == plain_hkdf(salt, secret, info)


def test_every_argument_of_derive_counts() -> None:
    base = (b"salt", b"secret", b"edge", 1, 2)
    other = (b"tlas", b"terces", b"rounding", 2, 3)
    changed = [(*base[:n], other[n], *base[n + 1 :]) for n in range(5)]
    found = {derive(*arguments) for arguments in [base, (*base[:3], 2, 1), *changed]}  # type: ignore[arg-type]
    assert len(found) == 7


def test_ed25519_rfc8032_test_1() -> None:
    private = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595b"
        "be24655141438e7a100b"
    )
    assert identity_public(private).hex() == public
    assert Ed25519PrivateKey.from_private_bytes(private).sign(b"") == signature
    public_identity(bytes.fromhex(public)).verify(signature, b"")


@pytest.mark.parametrize("length", [0, 31, 33])
def test_identity_of_another_length(length: int) -> None:
    with pytest.raises(ValueError, match="32"):
        public_identity(bytes(length))


def test_labels_are_all_different() -> None:
    hash_names = [v for k, v in vars(labels).items() if k.startswith("HASH_")]
    key_names = [v for k, v in vars(labels).items() if k.startswith("KEY_")]
    sign_names = [v for k, v in vars(labels).items() if k.startswith("SIGN_")]
    for names in (hash_names, key_names, sign_names):
        assert len(set(names)) == len(names)
    assert labels.PROTOCOL == b"fedhpc-secagg/3"
    assert all(b"\0" not in name for name in hash_names + key_names)


def test_no_text_of_a_key_object_holds_the_key() -> None:
    canary = hashlib.sha256(b"canary").digest()
    key = AttemptKey(canary)
    shown = " ".join([repr(key), str(key), f"{key}", f"{[key]}", repr({"k": key})])
    assert canary.hex() not in shown
    assert repr(canary)[2:-1] not in shown
