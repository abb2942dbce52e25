"""Inputs that fuzzing has found to end in a traceback instead of a named error (tests/fuzz)."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedhpc.agreement.site_file import read_site
from fedhpc.app.features import read_feature_set
from fedhpc.config import parse_toml
from fedhpc.enrolment.certificates import issue, issue_new, new_authority, new_key, new_request
from fedhpc.enrolment.fingerprints import read_asked
from fedhpc.errors import ConfigError, DataError, PolicyError
from fedhpc.secure.catch_up_messages import CommonKnowledge
from fedhpc.secure.join_request import sign_request
from fedhpc.secure.thresholds import choose_thresholds
from fedhpc.sums.over_relay.catch_up import Attendant
from fedhpc.sums.over_relay.exchange import objects_of
from fedhpc.wire.pins import read_certificate, read_der, read_pem


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "a = " + "1" * 5000, "a = 1" + "0" * 5000 + "\n"])
def test_toml_that_python_cannot_hold(text: str) -> None:
    with pytest.raises(ConfigError, match=r"federation\.toml: "):
        parse_toml(text.encode(), "federation.toml")


def test_a_path_with_a_null_byte() -> None:
    with pytest.raises(ConfigError, match=r"site\.key = .* has the wrong type"):
        read_site(b'[site]\nname = "a"\nkey = "a\\u0000b"\n', Path("site.toml"))


FEATURES = b'{"names":[],"units":[],"codings":[],"label":{"name":"y"},"row_shape":[%s]}'


@pytest.mark.parametrize("data", [b"[" * 5000, FEATURES % b"1e999", FEATURES % b'"x"', b"[]"])
def test_feature_lists_that_cannot_be_read(data: bytes) -> None:
    with pytest.raises(DataError, match="site b sent a feature list that cannot be read"):
        read_feature_set(data, "b")


def changed(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new, 1)


P256, NO_CURVE = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06082a8648ce3d030177")


@pytest.fixture(scope="module")
def certificate() -> bytes:
    pem = issue_new(new_authority(), "site-2").certificate
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (P256, NO_CURVE),
        (bytes.fromhex("a003020102"), bytes.fromhex("a003020142")),
        (b"\x03\x42\x00\x04", b"\x03\x42\x00\x05"),
    ],
    ids=["a curve that nobody knows", "a version that nobody knows", "a point that is none"],
)
def test_certificates_that_cannot_be_read(certificate: bytes, tmp_path: Path, old: bytes, new: bytes) -> None:
    bad = changed(certificate, old, new)
    with pytest.raises(ValueError, match=r"[a-z]"):
        read_der(bad)
    pem = pem_of(bad, "CERTIFICATE")
    with pytest.raises(ValueError, match=r"[a-z]"):
        read_pem(pem)
    (tmp_path / "a.pem").write_bytes(pem)
    with pytest.raises(ConfigError, match="cannot read the certificate"):
        read_certificate(tmp_path / "a.pem")
    assert read_pem(pem_of(certificate, "CERTIFICATE")) == read_der(certificate)


@pytest.mark.parametrize(
    ("old", "new"),
    [(P256, NO_CURVE), (b"\x02\x01\x00\x30", b"\x02\x01\x20\x30")],
    ids=["a curve that nobody knows", "a version that nobody knows"],
)
def test_certificate_requests_that_cannot_be_read(old: bytes, new: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    pem = new_request(new_key(), "site-2")
    bad = changed(x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER), old, new)
    with pytest.raises(ConfigError, match="not a certificate request"):
        issue(new_authority(), pem_of(bad, "CERTIFICATE REQUEST"))
    with pytest.raises(PolicyError, match="the certificate request of site site-2 cannot be read"):
        read_asked(sign_request(Ed25519PrivateKey.generate(), "site-2", bad))


def pem_of(der: bytes, what: str) -> bytes:
    import base64

    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (what.encode(), base64.encodebytes(der), what.encode())


@pytest.mark.parametrize("said", [7, None, "sums", {"sum": 8}, [7, None, [8]]])
def test_hints_of_another_form_are_no_hints(said: Any) -> None:
    assert objects_of({"sums": said}, "sums") == []
    assert objects_of({"sums": [{"sum": 8}, 7]}, "sums") == [{"sum": 8}]
    assert objects_of({}, "sums") == []


def test_requests_for_help_that_name_nobody() -> None:
    roster = [SimpleNamespace(number=u) for u in (1, 2, 3)]
    known = CommonKnowledge(bytes(32), roster, choose_thresholds(3), 0)  # type: ignore[arg-type]
    asked = [(2, 5), (4, 5), (0, 5), (2, 0), (2, 1 << 53), (-1, 5), (2, -7), ("2", 5), (True, 5), (2, 1.5)]
    needs = [{"site": site, "attempt": number, "asked": 1} for site, number in asked]
    exchange = SimpleNamespace(standing=lambda: {"needs": [*needs, {"site": 2, "attempt": 9, "asked": 3}, 7]}, me=1)
    attendant = Attendant(known, exchange, None, None)  # type: ignore[arg-type]
    assert attendant._asked() == [(2, 5)]
