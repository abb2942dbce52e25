"""A relay that guesses, with everything that was ever on its disk, and whoever reads a site's spool.

Sums of one small number, W, scales and a model of one parameter: each hash that is there is tried against all that it
could be of. The formulas are shown to be right by the hash that only S, or the blind, gives.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spool_sites import carriers, place_of, use_spool
from tiny_federations import Tiny, relay_of, run_sites
from tiny_site import rows_of

from fedhpc.agreement.federation_file import read_agreement
from fedhpc.secure import labels
from fedhpc.secure.ring import MAX_SCALE, Layout, Tensor, scale_for
from fedhpc.secure.suite import SHA256
from fedhpc.secure.transcript import state_hash, u64

SITES = ("aa", "bb", "cc")
ONE = {"bias": (1,)}
MILLION = 1_000_000
_HASH = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


class Reader:
    """Reads every file that is ever below a folder, again and again in a thread, for the hashes in it."""

    def __init__(self, folder: Path) -> None:
        self.hashes: set[bytes] = set()
        self.names: set[str] = set()
        self._folder = folder
        self._seen: set[tuple[int, int, int]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._once()

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            self._once()

    def _once(self) -> None:
        for parent, _, names in os.walk(self._folder):
            for name in names:
                with contextlib.suppress(OSError):  # it has gone meanwhile
                    path = Path(parent, name)
                    status = path.stat()
                    known = status.st_ino, status.st_mtime_ns, status.st_size
                    if known not in self._seen:
                        self._seen.add(known)
                        self.names.add(path.name)
                        self.hashes |= {bytes.fromhex(h.decode()) for h in _HASH.findall(path.read_bytes())}


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two federations of three sites, one of them behind a spool: what each site has, and what was there to be read."""
    folder = tmp_path_factory.mktemp("guessing")
    tiny = Tiny.enrol(folder / "tiny", SITES)
    tiny.federation("small")
    tiny.federation("one")
    found: dict[str, Any] = {"tiny": tiny}
    with relay_of(tiny), Reader(tiny.base.relay.parent) as relay:
        for name in ("small", "one"):
            spool = folder / f"spool {name}"
            use_spool(tiny, name, ("cc",), spool)
            place = place_of(tiny, name, "cc", spool)
            with Reader(place) as seen, carriers(tiny, name, ("cc",)):
                more = {"what": "small"} if name == "small" else {"shapes": ONE}
                found[name] = run_sites({site: [tiny.case(name, site, **more)] for site in SITES})
            found[f"spool {name}"] = seen.hashes
    found["relay"] = relay.hashes
    return found


@pytest.fixture(params=["relay", "spool"])
def eyes(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def there(played: dict[str, Any], eyes: str, name: str) -> set[bytes]:
    found = played["relay" if eyes == "relay" else f"spool {name}"]
    assert len(found) > 20
    return set(found)


def roots(lane_values: range, shift: int, behind: bytes) -> Iterator[tuple[int, bytes]]:
    """(value, Tree of one 64-bit lane value << shift and `behind`), fast: the sum of one number, as M6 names it."""
    length = 8 + len(behind)
    head = labels.PROTOCOL + b"\0tree\0" + u64(6) + b"sha256" + u64(8) + u64(length) + u64(32)
    begun = hashlib.sha256(head)
    for value in lane_values:
        digest = begun.copy()
        digest.update(hashlib.sha256((value << shift).to_bytes(8, "little") + behind).digest())
        yield value, digest.digest()


def test_the_quick_guesser_hashes_as_tree_does() -> None:
    for behind in (b"", bytes(48)):
        assert dict(roots(range(5, 6), 3, behind))[5] == SHA256.tree((5 << 3).to_bytes(8, "little") + behind)


@pytest.mark.parametrize(("what", "shift"), [("patients", 0), ("W", None)])
def test_no_integer_sum_to_a_million_is_found(played: dict[str, Any], eyes: str, what: str, shift: int | None) -> None:
    """M6 of the protocol before named the hash of the sum alone: 720 in 0.002 s."""
    hashes = there(played, eyes, "small")
    truth = played["small"]["aa"][0]
    shift = scale_for(2.0**40, 64, 3) if shift is None else shift
    value = int(truth[what])
    assert 0 < value < MILLION
    salt = bytes.fromhex(truth["salts"][what])
    assert dict(roots(range(value, value + 1), shift, bytes(8) + salt))[value] in hashes, "else nothing was looked at"
    assert len({found[0]["salts"][what] for found in played["small"].values()}) == 1
    for behind in (b"", bytes(48)):
        assert [v for v, h in roots(range(MILLION + 1), shift, behind) if h in hashes] == []


def test_no_scale_is_found(played: dict[str, Any], eyes: str) -> None:
    """It tells the size of what was summed: of a statistic without bound, and of every site's update."""
    rows = Tensor("measured/n", "int64", ())
    measured = [rows, Tensor("measured/first", "float64", (), scale_for(2.0**40, 64, 3))]
    named = {"small": Tensor("x", "float64", ()), "one": Tensor("model/bias", "float32", (1,))}
    for name, tensor in named.items():
        hashes = there(played, eyes, name)
        assert Layout([Tensor("n", "int64", ())], salted=True).hash in hashes or name == "one"  # public: no scale
        for scale in range(-MAX_SCALE, MAX_SCALE + 1):
            scaled = Tensor(tensor.name, tensor.kind, tensor.shape, scale)
            for tensors in ([scaled], [scaled, *measured]):
                assert not {Layout(tensors, salted=s).hash for s in (True, False)} & hashes, f"{name}: 2^{scale}"


def test_no_state_of_a_one_parameter_model_is_found(played: dict[str, Any], eyes: str) -> None:
    hashes = there(played, eyes, "one")
    truth = played["one"]["aa"][0]
    agreement = read_agreement(played["tiny"].made["one"].federation.read_bytes(), "federation.toml")
    value = np.float32(truth["tensors"]["bias"][0]).tobytes()
    weight = np.float64(sum(rows_of(site) for site in SITES)).tobytes()

    def guessed(blinds: tuple[bytes, ...]) -> set[bytes]:
        tails = [w + rounds.to_bytes(8, "little") for w in (weight, bytes(8)) for rounds in range(4)]
        trees = [SHA256.tree(value + tail + blind) for tail in tails for blind in blinds]
        return {state_hash(agreement.hash, round_, t) for round_ in range(20) for t in trees}

    assert not guessed((b"", bytes(32))) & hashes
    assert guessed((bytes.fromhex(truth["blind"]),)) & hashes, "else nothing was looked at"
    assert truth["sha256"] not in {h.hex() for h in hashes}
