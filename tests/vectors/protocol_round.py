"""Whole rounds over the relay from fixed secrets: every message, key and sum. Called by make.py.

`protocol_round` is one with N = 4 and τ = 3, site 3 lost after M2. `variants` are what it does not show: sites lost at
different steps, a sparse mask graph, 64-bit lanes only, bases of different age, the suite blake3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from salted import add_salt, lanes_without_gaps, next_state

from fedhpc.cohort.settings import CohortSettings
from fedhpc.cohort.staleness import discount
from fedhpc.federation.vector import Vector
from fedhpc.relay.rounds.machine import RoundMachine
from fedhpc.secure.attempt import Expected, SiteAttempt
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.masks import Masks
from fedhpc.secure.opening import Streams
from fedhpc.secure.pairwise import Member
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.ring import Codec, Layout, Tensor, lanes_of
from fedhpc.secure.suite import SHA256, Suite, suite_named
from fedhpc.secure.tag import Tagger
from fedhpc.secure.thresholds import Thresholds, choose_thresholds
from fedhpc.secure.transcript import input_hash

MIXED = (
    Tensor("model/weight", "float32", (5,), 24),  # 20 bytes, a gap of 12
    Tensor("measured/rows", "int64", (3,)),  # 24 bytes, a gap of 8
    Tensor("measured/loss", "float64", (), 40),
)
WIDE = (
    Tensor("model/weight", "float64", (3,), 50),  # 24 bytes, a gap of 8
    Tensor("model/empty", "float64", (0, 4), 50),
    Tensor("measured/rows", "int64", (2, 1)),
)
ROUND = 7


def secret(*words: object) -> bytes:
    """A fixed secret [32], below Shamir's prime."""
    return hashlib.sha256(" ".join(map(str, ("fedhpc round vector", *words))).encode()).digest()[:31] + b"\x3f"


@dataclass
class Play:
    """Who takes part in a round, and who is lost at which step."""

    name: str
    sites: int
    tensors: tuple[Tensor, ...] = MIXED
    thresholds: Thresholds | None = None
    degree: int = 0
    lost: dict[int, str] = field(default_factory=dict)  # site -> the first message that it does not send
    stale: dict[int, int] = field(default_factory=dict)  # site -> how many rounds its base lies behind
    suite: Suite = SHA256
    layout: Layout = field(init=False)
    tau: Thresholds = field(init=False)

    def __post_init__(self) -> None:
        self.layout = Layout(self.tensors, salted=True)
        self.tau = self.thresholds or choose_thresholds(self.sites)

    def secret(self, *words: object) -> bytes:
        """A secret of this round; the oldest vector has no name in it."""
        return secret(*([self.name] if self.name else []), *words)

    def base(self, u: int) -> bytes:
        """The state that the vector of site `u` starts from."""
        behind = self.stale.get(u, 0)
        return self.secret("base", *([behind] if behind else []))

    def sends(self, u: int, name: str) -> bool:
        """Whether site `u` still sends M1, M2 or M3."""
        return name < self.lost.get(u, "M9")


class Store:
    """A disk and a relay's storage in memory."""

    def __init__(self, suite: Suite = SHA256) -> None:
        self.suite = suite
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

    def tree(self, name: str) -> bytes:
        """See relay.objects."""
        return self.suite.tree(bytes(self.large.get(name, b"")))

    def make(self, name: str, length: int) -> None:
        """See relay.objects."""

    def read_made(self, name: str, offset: int, view: memoryview) -> None:
        """See relay.objects."""
        self.read_into(name, offset, view)

    def unmake(self, name: str) -> None:
        """See relay.objects."""

    def write(self, name: str, offset: int, data: Any) -> None:
        """See relay.objects."""
        self.large[name] = self.large.get(name, b"")[:offset] + bytes(data)

    def keep(self, name: str, tree: bytes) -> None:
        """See relay.objects."""

    def sent(self, name: str, of: tuple[int, ...] | None = None) -> dict[int, bytes]:
        """The messages of a kind, of all or of a set."""
        there = sorted(int(n.split("/")[1]) for n in self.small if n.startswith(name + "/"))
        return {u: self.small[f"{name}/{u}"] for u in there if of is None or u in of}


def protocol_round() -> dict[str, Any]:
    """See the module."""
    return play(Play("", 4, lost={3: "M3"}))


def variants() -> dict[str, Any]:
    """See the module."""
    plays = [
        Play("losses", 8, thresholds=choose_thresholds(8, 1, 5), lost={8: "M1", 7: "M2", 6: "M3"}),
        Play("sparse", 7, thresholds=choose_thresholds(7, 1, 6), degree=4, lost={4: "M3"}),
        Play("wide", 3, WIDE),
        Play("bases", 4, stale={2: 1, 4: 2}),
        Play("blake3", 4, lost={2: "M3"}, suite=suite_named("blake3")),
    ]
    found = {}
    for one in plays:
        more = {"degree": one.degree, "t": one.tau.colluders}
        found[one.name] = play(one) | more | ({} if one.suite is SHA256 else {"suite": one.suite.name})
    return found


def play(one: Play) -> dict[str, Any]:
    """Every value of a round."""
    layout, numbers = one.layout, range(1, one.sites + 1)
    config, state = one.secret("config"), one.base(0)
    identities = {u: Ed25519PrivateKey.from_private_bytes(one.secret("identity", u)) for u in numbers}
    roster = [Member(u, f"site-{u}", key.public_key()) for u, key in identities.items()]
    shapes = tuple((b, n) for b, n in layout.shapes())
    cohort = tuple((u, one.base(u)) for u in numbers)
    m0 = Proposal(3, cohort, config, layout.hash, "train", ROUND, state, shapes).to_bytes()
    bases = frozenset(base for _, base in cohort)
    drawn: dict[int, list[bytes]] = {u: [] for u in numbers}
    disks = {u: Store() for u in numbers}
    sites = {
        u: SiteAttempt(u, identities[u], roster, one.tau, disks[u], degree=one.degree, draw=_draws(one, u, drawn[u]))
        for u in numbers
    }
    objects = Store(one.suite)
    relay = RoundMachine(objects, one.sites, one.tau.threshold)
    relay.propose(m0)
    for u, site in sites.items():
        own = Expected(config, layout.hash, "train", ROUND, state, shapes, one.base(u), bases)
        m1 = site.receive_proposal(m0, own)
        if one.sends(u, "M1"):
            objects.put(f"M1/{u}", m1)
    u1 = relay.close_keys()
    for u in u1:
        m2 = sites[u].receive_keys(objects.sent("M1", u1))
        if one.sends(u, "M2"):
            objects.put(f"M2/{u}", m2)
    u2 = relay.close_shares()
    out: dict[str, Any] = {"encoded": [], "masked": [], "tag": [], "k_self": [], "k_tag": ""}
    edges: dict[str, str] = {}
    for u, site in sites.items():
        if u not in u2:
            for name in ("encoded", "masked", "tag", "k_self"):
                out[name].append("")
            continue
        site.receive_shares(objects.sent("M2", u2))
        plan = site.begin_masking(bytes(32))
        buffer = _encoded(one, u)
        out["encoded"].append(buffer.tobytes().hex())
        tag = Tagger(plan.tag_key).of(buffer, layout.pieces(0, layout.nbytes))
        _apply(layout, buffer, plan.streams)
        out["masked"].append(buffer.tobytes().hex())
        out["tag"].append(tag.to_bytes().hex())
        out["k_self"].append(plan.streams[0][0].hex())
        out["k_tag"] = plan.tag_key.hex()
        for v, (key, _) in zip(_near(one, u, u2), plan.streams[1:], strict=True):
            edges[f"{min(u, v)}-{max(u, v)}"] = key.hex()
        m3 = site.masked(one.suite.tree(buffer), tag)
        if one.sends(u, "M3"):
            objects.put(f"M3/{u}", m3)
            objects.write(f"M3v/{u}", 0, buffer.tobytes())
    survivors = relay.close_masked()
    m4r, left = survivors.to_bytes(), survivors.u3
    for u in left:
        objects.put(f"M4/{u}", sites[u].receive_survivors(m4r, objects.sent("M3")))
    for u in left:
        objects.put(f"M5/{u}", sites[u].receive_signatures(objects.sent("M4")))
    total = objects.large["Y"]
    x, streams, following = b"", (), b""
    for u in left:
        opening = sites[u].receive_answers(objects.sent("M5"))
        buffer = np.frombuffer(total, dtype=np.uint8).copy()
        _apply(layout, buffer, opening.streams)
        tag = Tagger(opening.tag_key).of(buffer, layout.pieces(0, layout.nbytes))
        sites[u].check_sum(one.suite.tree(np.frombuffer(total, dtype=np.uint8)), tag)
        x, streams = buffer.tobytes(), opening.streams
        opened = Vector(layout)
        opened.buffer[:] = buffer
        # As if the lanes were the next model.
        blind, salt = one.secret("blind"), opened.salt.tobytes()
        following = next_state(lanes_without_gaps(opened), config, ROUND, blind, salt, one.suite)
        objects.put(f"M6/{u}", sites[u].result(following, b""))
    late = [u for u, name in one.lost.items() if name == "M3"]
    return (
        out
        | {
            "N": one.sites,
            "tau": one.tau.threshold,
            "lost": late,
            "config": config.hex(),
            "input": input_hash("train", state).hex(),
            "layout": layout.as_json(),
            "identity_private": [one.secret("identity", u).hex() for u in numbers],
            "drawn": [[value.hex() for value in drawn[u]] for u in numbers],
            "M0": m0.decode("ascii"),
            **{
                name: {str(u): message.decode("ascii") for u, message in objects.sent(name).items()}
                for name in ("M1", "M2", "M3", "M4", "M5", "M6")
            },
            "M4r": m4r.decode("ascii"),
            "T0": sites[left[0]]._t0.hex(),
            "T1": sites[left[0]]._t1.hex(),
            "T2": sites[left[0]]._t2.hex(),
            "T3": sites[left[0]]._t3.hex(),
            "k_edge": edges,
            "Y": total.hex(),
            "streams": [[key.hex(), sign] for key, sign in streams],
            "X": x.hex(),
            "blind": one.secret("blind").hex(),
            "state": following.hex(),
        }
        | ({} if one.name else {"attempt_file": {str(u): disks[u].small["file"].decode("ascii") for u in (1, *late)}})
        | (_values(one) if one.stale else {})
    )


def _draws(one: Play, u: int, record: list[bytes]) -> Callable[[int], bytes]:
    def draw(count: int) -> bytes:
        value = one.secret("draw", u, len(record))
        record.append(value)
        return value[:count]

    return draw


def _near(one: Play, u: int, u2: tuple[int, ...]) -> list[int]:
    """The neighbours of `u` in U2, rising: whose streams follow its self mask."""
    count = len(u2)
    if one.degree == 0:
        return [v for v in u2 if v != u]
    steps = [(u2.index(v) - u2.index(u)) % count for v in u2]
    return [v for v, step in zip(u2, steps, strict=True) if 0 < min(step, count - step) <= one.degree // 2]


def _encoded(one: Play, u: int) -> np.ndarray[Any, Any]:
    """Lanes of site `u`: small, both signs, the largest that are allowed; with `stale` values through the codec."""
    vector = Vector(one.layout)
    add_salt(vector, one.secret("config"), one.secret("identity", u), u, ROUND, one.base(u))
    pieces = one.layout.pieces(0, one.layout.nbytes)
    if one.stale:
        vector.fill(_inputs(u))
        codec = Codec(one.sites, f"site-{u}", {"model/weight": _factor(one, u)})
        for piece in pieces:
            codec.check(piece.values_in(vector.buffer), piece)
            codec.encode(piece.values_in(vector.buffer), piece.lanes_in(vector.buffer), piece)
        return vector.buffer
    bound32, bound64 = ((1 << 31) - 1) // one.sites, ((1 << 63) - 1) // one.sites
    if one.tensors is WIDE:
        values = [[bound64, -bound64, -u], [(-1) ** u * bound64, u << 40]]
    else:
        values = [
            [bound32, -bound32, u, -u, 0],
            [bound64, -bound64, (-1) ** u * 10**15 * u],
            [-(1 << 40) * u],
        ]
    for piece, lanes in zip(pieces, values, strict=False):  # the salt is there already
        vector.buffer[piece.start : piece.stop].view(f"<i{piece.tensor.lane_bytes}")[:] = lanes
    return vector.buffer


_STALENESS = CohortSettings(policy="buffered", staleness=2, discount=0.5)


def _factor(one: Play, u: int) -> float:
    """w_u/W of equal weights, less for an update that began from an older state."""
    return 1.0 / one.sites * discount(_STALENESS, one.stale.get(u, 0))


def _inputs(u: int) -> dict[str, np.ndarray[Any, Any]]:
    weight = np.array([0.1 * u, -3.7, 2.0**-20, -(2.0**-25), 12.0], dtype=np.float32)
    return {
        "model/weight": weight,
        "measured/rows": np.array([u, -u, 10**6], dtype=np.int64),
        "measured/loss": np.array(1.5 / u),
    }


def _values(one: Play) -> dict[str, Any]:
    """What a second implementation needs to encode the vectors itself; floats as C99 hexadecimal text."""
    numbers = range(1, one.sites + 1)
    return {
        "discount": _STALENESS.discount,
        "behind": [one.stale.get(u, 0) for u in numbers],
        "factors": [_factor(one, u).hex() for u in numbers],
        "values": [{name: _exact(array) for name, array in _inputs(u).items()} for u in numbers],
    }


def _exact(array: np.ndarray[Any, Any]) -> list[Any]:
    return [x if isinstance(x, int) else x.hex() for x in array.reshape(-1).tolist()]


def _apply(layout: Layout, buffer: np.ndarray[Any, Any], streams: Streams) -> None:
    masks = Masks(streams)
    for piece in layout.pieces(0, layout.nbytes):
        masks.add(lanes_of(buffer, piece.start, piece.stop, piece.tensor.bits), piece.start)
