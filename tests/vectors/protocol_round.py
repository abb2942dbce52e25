"""A whole round over the relay, N = 4 and τ = 3, site 3 lost after M2: every message, key and sum, from fixed secrets.

Called by make.py. Each site draws e, a, b, c, then the coefficients of b and of a, from its own fixed stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.federation.layout import Vector
from fedhpc.relay.round_machine import RoundMachine
from fedhpc.secure.attempt_site import Expected, SiteAttempt
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.masks import Masks
from fedhpc.secure.opening import Streams
from fedhpc.secure.pairwise import Member
from fedhpc.secure.proposal import Proposal, one_base
from fedhpc.secure.ring import Layout, Tensor, lanes_of
from fedhpc.secure.tag import Tagger
from fedhpc.secure.thresholds import choose_thresholds
from fedhpc.secure.transcript import input_hash, state_hash, tree

SITES, LOST = 4, 3
LAYOUT = Layout(
    [
        Tensor("model/weight", "float32", (5,), 24),  # 20 bytes, a gap of 12
        Tensor("measured/rows", "int64", (3,)),  # 24 bytes, a gap of 8
        Tensor("measured/loss", "float64", (), 40),
    ]
)


def secret(*words: object) -> bytes:
    """A fixed secret [32], below Shamir's prime."""
    return hashlib.sha256(" ".join(map(str, ("fedhpc round vector", *words))).encode()).digest()[:31] + b"\x3f"


class Store:
    """A disk and a relay's storage in memory."""

    def __init__(self) -> None:
        self.small: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}

    def allows(self, entry: LedgerEntry) -> None:
        """Not tested here."""

    admit = allows

    def save(self, private: bytes) -> None:
        """The attempt file."""
        self.small["file"] = private

    def get(self, name: str) -> bytes | None:
        """See relay.objects."""
        return self.small.get(name)

    def put(self, name: str, data: bytes) -> None:
        """See relay.objects."""
        self.small[name] = data

    def names(self) -> list[str]:
        """See relay.objects."""
        return list(self.small)

    def size(self, name: str) -> int:
        """See relay.objects."""
        return len(self.large.get(name, b""))

    def read_into(self, name: str, offset: int, view: memoryview) -> None:
        """See relay.objects."""
        view[:] = self.large[name][offset : offset + len(view)]

    def write(self, name: str, offset: int, data: Any) -> None:
        """See relay.objects."""
        self.large[name] = self.large.get(name, b"")[:offset] + bytes(data)

    def keep(self, name: str, tree: bytes) -> None:
        """See relay.objects."""

    def sent(self, name: str) -> dict[int, bytes]:
        """The messages of a kind."""
        return {u: self.small[f"{name}/{u}"] for u in range(1, SITES + 1) if f"{name}/{u}" in self.small}


def protocol_round() -> dict[str, Any]:
    """See the module."""
    numbers = range(1, SITES + 1)
    config, base = secret("config"), secret("base")
    identities = {u: Ed25519PrivateKey.from_private_bytes(secret("identity", u)) for u in numbers}
    roster = [Member(u, f"site-{u}", key.public_key()) for u, key in identities.items()]
    shapes = tuple((b, n) for b, n in LAYOUT.shapes())
    own = Expected(config, LAYOUT.hash, "train", 7, base, shapes, base, frozenset([base]))
    m0 = Proposal(3, one_base(numbers, base), config, LAYOUT.hash, "train", 7, base, shapes).to_bytes()
    drawn: dict[int, list[bytes]] = {u: [] for u in numbers}
    disks = {u: Store() for u in numbers}
    thresholds = choose_thresholds(SITES)
    sites = {u: SiteAttempt(u, identities[u], roster, thresholds, disks[u], draw=_draws(u, drawn[u])) for u in numbers}
    objects = Store()
    relay = RoundMachine(objects, SITES, thresholds.threshold)
    relay.propose(m0)
    for u, site in sites.items():
        objects.put(f"M1/{u}", site.receive_proposal(m0, own))
    relay.close_keys()
    for u, site in sites.items():
        objects.put(f"M2/{u}", site.receive_keys(objects.sent("M1")))
    relay.close_shares()
    out: dict[str, Any] = {"encoded": [], "masked": [], "tag": [], "k_self": [], "k_tag": ""}
    edges: dict[str, str] = {}
    for u, site in sites.items():
        site.receive_shares(objects.sent("M2"))
        plan = site.begin_masking(bytes(32))
        buffer = _encoded(u)
        out["encoded"].append(buffer.tobytes().hex())
        tag = Tagger(plan.tag_key).of(buffer, LAYOUT.pieces(0, LAYOUT.nbytes))
        _apply(buffer, plan.streams)
        out["masked"].append(buffer.tobytes().hex())
        out["tag"].append(tag.to_bytes().hex())
        out["k_self"].append(plan.streams[0][0].hex())
        out["k_tag"] = plan.tag_key.hex()
        for v, (key, _) in zip([v for v in numbers if v != u], plan.streams[1:], strict=True):
            edges[f"{min(u, v)}-{max(u, v)}"] = key.hex()
        m3 = site.masked(tree(buffer), tag)
        if u != LOST:
            objects.put(f"M3/{u}", m3)
            objects.write(f"M3v/{u}", 0, buffer.tobytes())
    m4r = relay.close_masked().to_bytes()
    left = [u for u in numbers if u != LOST]
    for u in left:
        objects.put(f"M4/{u}", sites[u].receive_survivors(m4r, objects.sent("M3")))
    for u in left:
        objects.put(f"M5/{u}", sites[u].receive_signatures(objects.sent("M4")))
    total = objects.large["Y"]
    x, streams, state = b"", (), b""
    for u in left:
        opening = sites[u].receive_answers(objects.sent("M5"))
        buffer = np.frombuffer(total, dtype=np.uint8).copy()
        _apply(buffer, opening.streams)
        sites[u].check_sum(tree(np.frombuffer(total, dtype=np.uint8)), opening.tag)
        x, streams = buffer.tobytes(), opening.streams
        state = state_hash(config, 7, tree(buffer))  # as if the lanes were the next model
        objects.put(f"M6/{u}", sites[u].result(state, tree(buffer)))
    return out | {
        "N": SITES,
        "tau": thresholds.threshold,
        "lost": [LOST],
        "config": config.hex(),
        "input": input_hash("train", base).hex(),
        "layout": LAYOUT.as_json(),
        "identity_private": [secret("identity", u).hex() for u in numbers],
        "drawn": [[value.hex() for value in drawn[u]] for u in numbers],
        "M0": m0.decode("ascii"),
        **{
            name: {str(u): message.decode("ascii") for u, message in objects.sent(name).items()}
            for name in ("M1", "M2", "M3", "M4", "M5", "M6")
        },
        "M4r": m4r.decode("ascii"),
        "T0": sites[1]._t0.hex(),
        "T1": sites[1]._t1.hex(),
        "T2": sites[1]._t2.hex(),
        "T3": sites[1]._t3.hex(),
        "k_edge": edges,
        "Y": total.hex(),
        "streams": [[key.hex(), sign] for key, sign in streams],
        "X": x.hex(),
        "state": state.hex(),
        "attempt_file": {str(u): disks[u].small["file"].decode("ascii") for u in (1, LOST)},
    }


def _draws(u: int, record: list[bytes]) -> Callable[[int], bytes]:
    def draw(count: int) -> bytes:
        value = secret("draw", u, len(record))
        record.append(value)
        return value[:count]

    return draw


def _encoded(u: int) -> np.ndarray[Any, Any]:
    """Lanes of site `u`: small ones, both signs, and the largest that are allowed."""
    vector = Vector(LAYOUT)
    bound32, bound64 = ((1 << 31) - 1) // SITES, ((1 << 63) - 1) // SITES
    pieces = LAYOUT.pieces(0, LAYOUT.nbytes)
    values = [
        [bound32, -bound32, u, -u, 0],
        [bound64, -bound64, (-1) ** u * 10**15 * u],
        [-(1 << 40) * u],
    ]
    for piece, lanes in zip(pieces, values, strict=True):
        vector.buffer[piece.start : piece.stop].view(f"<i{piece.tensor.lane_bytes}")[:] = lanes
    return vector.buffer


def _apply(buffer: np.ndarray[Any, Any], streams: Streams) -> None:
    masks = Masks(streams)
    for piece in LAYOUT.pieces(0, LAYOUT.nbytes):
        masks.add(lanes_of(buffer, piece.start, piece.stop, piece.tensor.bits), piece.start)
