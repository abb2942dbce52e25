"""Certificates and keys that do not belong together, and addresses in messages."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedhpc.enrolment.certificates import issue_new, new_authority, new_key
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.transport.https.addresses import parse_url, without_password
from fedhpc.wire.pins import load_pair


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    issue_new(new_authority(), "aa").write(tmp_path, "tls")
    return tmp_path


def load(folder: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_pair(context, folder / "tls.pem", folder / "tls.key", "what helps")


def test_a_pair_is_taken(pair: Path) -> None:
    load(pair)


@pytest.mark.parametrize("kind", ["another key", "another kind of key"])
def test_a_key_of_another_pair_is_refused_by_policy(pair: Path, kind: str) -> None:
    other = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (pair / "tls.key").write_bytes(new_key() if kind == "another key" else other)
    with pytest.raises(PolicyError, match=r"tls\.pem and the key .*tls\.key do not fit") as refused:
        load(pair)
    assert refused.value.hint == "what helps"


@pytest.mark.parametrize("name", ["tls.pem", "tls.key"])
@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_file_that_is_none_is_a_mistake(pair: Path, name: str, content: bytes | None) -> None:
    (pair / name).unlink()
    if content is not None:
        (pair / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"tls\.pem") as refused:
        load(pair)
    assert refused.value.hint == "what helps"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://relay.example", "https://relay.example"),
        ("http://relay.example:8443/a/b?c=d", "http://relay.example:8443/a/b?c=d"),
        ("relay.example:8443", "relay.example:8443"),
        ("https://user:secret@relay.example:x", "https://relay.example:…"),
        ("https://user:secret:relay.example:3128", "https://user:…"),
        ("https://user:secret", "https://user:…"),
        ("user:secret", "user:…"),
        ("user:se@cret@relay.example:3128", "relay.example:3128"),
        ("https://[::1]:70000/", "https://[::1]:70000/"),
        ("", ""),
    ],
)
def test_a_hint_shows_the_whole_address_and_no_password(given: str, shown: str) -> None:
    assert without_password(given) == shown
    with pytest.raises(ConfigError, match=r"is not https://host:port") as refused:
        parse_url(given, "https", "it")
    assert refused.value.hint == f"given: {shown}"
    assert "secret" not in refused.value.hint
