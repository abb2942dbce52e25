"""Suites: Tree of BLAKE3 and of SHA-256, and what happens where the package blake3 is missing."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from enrolment_fakes import Enrolment
from secure_fakes import random_bytes

from fedhpc.doctor.software import packages_fit
from fedhpc.enrolment.approve import review
from fedhpc.enrolment.relay import admit
from fedhpc.errors import ConfigError
from fedhpc.relay.settings import read_roster
from fedhpc.secure import suite as suites
from fedhpc.secure.settings import SecureSettings
from fedhpc.secure.suite import SHA256, Suite, suite_named
from fedhpc.secure.transcript import TREE_BLOCK_BYTES
from fedhpc.sums.blocks import BlockHasher

BLAKE3 = suite_named("blake3")
BOTH = pytest.mark.parametrize("suite", [SHA256, BLAKE3], ids=lambda suite: suite.name)


def test_the_digests_are_the_published_ones() -> None:
    """FIPS 180-4 and BLAKE3's own test vectors: bytes 0, 1, …, 250, 0, 1, … of three lengths."""
    assert SHA256.block(b"abc").hex() == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    for length, digest in (
        (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
        (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
    ):
        assert BLAKE3.block(bytes(i % 251 for i in range(length))).hex() == digest


@BOTH
@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20 + 7])
def test_no_tree_of_one_suite_is_one_of_the_other(suite: Suite, size: int) -> None:
    data = random_bytes(size, 1)
    other = SHA256 if suite is BLAKE3 else BLAKE3
    assert suite.tree(data) != other.tree(data)
    # Not even where the digests are: the name is the first part.
    digests = [suite.block(data[i : i + TREE_BLOCK_BYTES].data) for i in range(0, size, TREE_BLOCK_BYTES)]
    assert suite.tree(data) == suite.root(size, digests) != other.root(size, digests)


@BOTH
def test_however_a_block_comes_its_digest_is_the_same(suite: Suite) -> None:
    data = random_bytes(2 * TREE_BLOCK_BYTES + 5, 2)
    hasher = BlockHasher(suite)
    for low, high in ((0, 16), (16, 70_000), (70_000, TREE_BLOCK_BYTES + 3), (TREE_BLOCK_BYTES + 3, data.size)):
        hasher.add(low, data[low:high])
    assert suite.root(data.size, hasher.finish(data.size)) == suite.tree(data)
    halves = [data[:700_000], data[700_000:]]
    assert suite.root(data.size, suite.joined_blocks(halves, 0, 3)) == suite.tree(data)
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(suite.tree, [data] * 16))) == 1
    assert suite.tree(np.asfortranarray(data.view(np.uint8))) == suite.tree(data.tobytes())


def test_the_suite_of_a_federation() -> None:
    assert SecureSettings().tree is SHA256  # a file that names none
    assert SecureSettings(suite="blake3").tree == BLAKE3 != SHA256
    with pytest.raises(ConfigError, match=r"secure\.suite = 'md5'"):
        suite_named("md5")


# --- without the package


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "_blake3", None)


LACKS = "the Python package blake3 is not installed here"


def test_a_site_does_not_sign_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolled = Enrolment(tmp_path)
    enrolled.admit()
    assert 'suite = "blake3"' in enrolled.federation.read_text()
    assert not review(enrolled.federation, enrolled.sites["aa"]).done
    monkeypatch.setattr(suites, "_blake3", None)
    with pytest.raises(ConfigError, match=LACKS) as refused:
        review(enrolled.federation, enrolled.sites["aa"])
    assert refused.value.exit_code == 64
    assert 'suite = "sha256"' in refused.value.hint
    assert not (enrolled.sites["aa"].path / "approvals").exists()
    enrolled.edit('suite = "blake3"', 'suite = "sha256"')
    assert not review(enrolled.federation, enrolled.sites["aa"]).done


def test_nor_does_a_relay_serve_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolled = Enrolment(tmp_path)
    enrolled.admit()
    relay, roster = (enrolled.coordinator.relay / name for name in ("relay.toml", "roster.toml"))
    admit(enrolled.federation, relay, quota_bytes=1 << 30, objects=100)
    assert [of.suite for of in read_roster(roster).federations.values()] == [BLAKE3]
    monkeypatch.setattr(suites, "_blake3", None)
    with pytest.raises(ConfigError, match=LACKS):
        admit(enrolled.federation, relay, quota_bytes=1 << 30, objects=100)
    with pytest.raises(ConfigError, match=LACKS):  # where the relay starts, or reads its roster again
        read_roster(roster)
    enrolled.coordinator.next_epoch()
    enrolled.edit('suite = "blake3"', 'suite = "sha256"')
    text = roster.read_text()
    roster.write_text(text.replace('suite = "blake3"', 'suite = "sha256"'))
    admit(enrolled.federation, relay, quota_bytes=1 << 30, objects=100)
    assert {of.suite.name for of in read_roster(roster).federations.values()} == {"sha256"}


@pytest.mark.usefixtures("missing")
def test_a_roster_without_a_suite_has_sha256(tmp_path: Path) -> None:
    path = tmp_path / "roster.toml"
    path.write_text(f'["{"ab" * 32}"]\nsites = {{ 1 = "{"cd" * 32}" }}\n')
    assert [of.suite for of in read_roster(path).federations.values()] == [SHA256]


def test_doctor_tells_only_where_it_is_needed() -> None:
    wanted = ["blake3>=1.0", "numpy>=2.0"]
    have = {"numpy": "2.1"}
    found = packages_fit(wanted, set(), have.get)
    assert "blake3 is missing" in found.what
    assert 'suite = "sha256"' in found.fix
    assert packages_fit(wanted, set(), have.get, {"blake3"}).what == "numpy 2.1"


def test_everything_is_imported_without_the_package() -> None:
    """A package that is not there, as after `pip uninstall`; what needs it says so."""
    lines = (
        "import sys; sys.modules['blake3'] = None",
        "from fedhpc.secure.settings import SecureSettings",
        "import fedhpc.app.join, fedhpc.relay.http.server",
        "print(SecureSettings().tree.tree(b'abc').hex())",
        "SecureSettings(suite='blake3').require_here()",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    digest = hashlib.sha256(b"abc").digest()
    assert done.stdout.strip() == SHA256.root(3, [digest]).hex()
    assert LACKS in done.stderr
