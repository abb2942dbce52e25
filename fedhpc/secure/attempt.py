"""One site's side of one attempt over an untrusted relay, without I/O and without a clock (docs/protocol.md 4 and 5).

    receive_proposal  M0        -> M1        receive_survivors   M4 of R, M3 of U3 -> M4
    receive_keys      M1 of U1  -> M2        receive_signatures  M4 of U3          -> M5
    receive_shares    M2 of U2               receive_answers     M5 of U3          -> what to take from Y
    begin_masking     ledger    -> streams   check_sum           Tree(Y), tag of X
    masked            Tree(y)   -> M3        result              next state        -> M6

Every call checks all that section 5 lists before it gives a message out, keeps the attempt file and the ledger durable
first (SiteDisk), and changes nothing where it refuses, so it can be called again with other messages. After a restart
the same calls, with the machine made from the attempt file, give the stored bytes or refuse.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.errors import InternalError, PeersError, PolicyError
from fedhpc.secure import labels, messages, transcript_chain
from fedhpc.secure.attempt_file import AttemptSecrets, SiteDisk, fresh_secrets
from fedhpc.secure.dealing import Dealt, deal, take
from fedhpc.secure.keys import derive
from fedhpc.secure.ledger import NO_SET, LedgerEntry
from fedhpc.secure.messages import Keys, Masked, Result, Shares
from fedhpc.secure.opening import Opening, Pools, Streams, edge_key, hidden_streams, near, open_box
from fedhpc.secure.pairwise import Member
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.sealing import seal
from fedhpc.secure.shares import Draw
from fedhpc.secure.tag import Tag, tag_from_bytes, tag_masks
from fedhpc.secure.thresholds import Thresholds, check_degree
from fedhpc.secure.transcript import canon, input_hash, parse_canon, sign_message

_T = TypeVar("_T")


@dataclass(frozen=True)
class Expected:
    """What this site itself would put into M0."""

    config: bytes
    layout: bytes
    purpose: str
    round_: int
    state: bytes
    tensors: tuple[tuple[int, int], ...]  # (bits, lanes)
    base: bytes  # the state this site's vector starts from [32]; 32 zero bytes for a statistic
    bases: frozenset[bytes]  # what others may start from: states of this site's chain within `staleness` rounds


@dataclass(frozen=True)
class MaskPlan:
    """How this site hides its vector: keys for every rank of the site, to be dropped after use."""

    streams: Streams  # its own self mask first, then an edge per neighbour
    tag_key: bytes

    def __repr__(self) -> str:
        return f"MaskPlan({len(self.streams)} streams)"


class SiteAttempt:
    """One site's side of one attempt.

    Raises PolicyError where a rule would be broken, PeersError where too few answered so far.
    """

    def __init__(
        self,
        me: int,
        identity: Ed25519PrivateKey,
        roster: Sequence[Member],
        thresholds: Thresholds,
        disk: SiteDisk,
        *,
        degree: int = 0,
        stored: AttemptSecrets | None = None,
        draw: Draw = os.urandom,
    ) -> None:
        """`me`: this site's number. `stored`: the attempt file of this attempt. `draw`: given by test vectors only."""
        if degree and degree < thresholds.sites - 1:
            check_degree(degree, thresholds)
        if stored is not None and stored.site != me:
            raise PolicyError(f"the attempt file belongs to site {stored.site}, not to {me}")
        self._me, self._identity, self._disk = me, identity, disk
        self._members = {m.number: m for m in roster}
        self._sites, self._tau = thresholds.sites, thresholds.threshold
        self._degree, self._draw = degree, draw
        self._secrets = stored
        self._m0: Proposal | None = None
        self._own: Expected | None = None
        self._t0 = self._t1 = self._t2 = self._t3 = b""
        self._keys: dict[int, Keys] = {}
        self._chan: dict[int, tuple[bytes, bytes]] = {}  # v -> keys of boxes to v and from v
        self._edges: dict[int, bytes] = {}  # v -> what the two mask keys share
        self._shares: dict[int, Shares] = {}
        self._dealt: dict[int, Dealt] = {}
        self._fingerprint = b""
        self._plan: MaskPlan | None = None
        self._masked: dict[int, Masked] = {}
        self._sum_tree = b""
        self._opening: Opening | None = None
        self._sum_checked = False
        self.faults: list[str] = []
        """Sites that sent something bad which the attempt could do without, and what it was."""

    def __repr__(self) -> str:
        return f"SiteAttempt(site {self._me})"

    @property
    def u1(self) -> tuple[int, ...]:
        """The sites whose keys count, once receive_keys took them."""
        return tuple(self._keys)

    @property
    def u2(self) -> tuple[int, ...]:
        """The sites whose masks are in the vectors."""
        return tuple(self._shares)

    @property
    def u3(self) -> tuple[int, ...]:
        """The sites whose vectors are in the sum."""
        return tuple(self._masked)

    # --- M0, M1 ---

    def receive_proposal(self, m0: bytes, own: Expected) -> bytes:
        """M0 of the relay; gives M1."""
        proposed = messages.read_proposal(m0, self._sites)
        self._check_proposal(proposed, own)
        secrets = self._secrets
        if secrets is None:
            secrets = fresh_secrets(own.config, self._me, m0, self._draw)
        elif secrets.m0 != m0 or secrets.config != own.config:
            raise PolicyError("the attempt file belongs to another attempt", "a new attempt starts without a file")
        self._m0, self._own, self._secrets = proposed, own, secrets
        self._t0 = transcript_chain.t0(m0)
        body = Keys(secrets.chan_key().public, secrets.mask_key().public, -1).as_json()
        return self._sign_once(labels.SIGN_KEYS, self._t0, body)

    def _check_proposal(self, proposed: Proposal, own: Expected) -> None:
        wrong = [
            name
            for name in ("config", "layout", "purpose", "round_", "state", "tensors")
            if getattr(proposed, name) != getattr(own, name)
        ]
        if wrong:
            raise PolicyError(
                f"the relay proposes another {', '.join(n.rstrip('_') for n in wrong)} than this site has",
                "all sites must run the same federation.toml from the same checkpoint with the same software",
            )
        self._check_size([u for u, _ in proposed.cohort], "the proposed cohort")
        bases = dict(proposed.cohort)
        if bases.get(self._me) != own.base:
            raise PolicyError("the proposed cohort lacks this site with its own base")
        stale = [self._name(u) for u, base in proposed.cohort if base not in own.bases]
        if stale:
            raise PolicyError(f"the proposal has an unknown or too old base for {', '.join(stale)}")

    # --- U1, M2 ---

    def receive_keys(self, m1s: Mapping[int, bytes]) -> bytes:
        """The M1 messages of U1, by site; gives M2."""
        secrets, m0 = _given(self._secrets), _given(self._m0)
        u1 = self._check_set(m1s, [u for u, _ in m0.cohort], labels.SIGN_KEYS, "U1", "the cohort")
        bodies = {u: self._open(m1s[u], labels.SIGN_KEYS, self._t0, u) for u in u1}
        keys = {u: messages.read_keys(body, self._name(u)) for u, body in bodies.items()}
        publics = [key for k in keys.values() for key in (k.chan, k.mask)]
        if len(set(publics)) != len(publics):
            raise PolicyError("two sites sent the same key", "a key was replayed; the attempt is refused")
        t1 = transcript_chain.t1(self._t0, {u: canon(body) for u, body in bodies.items()})
        chan = self._channels(t1, keys)
        mask = secrets.mask_key()
        edges = {v: mask.shared(k.mask, self._name(v)) for v, k in keys.items() if v != self._me}
        self._refuse_other_transcript(labels.SIGN_SHARES, t1, "U1 or other keys")
        if labels.SIGN_SHARES not in secrets.sent:
            to = {v: pair[0] for v, pair in chan.items()}
            dealt, body = deal(self._me, secrets, t1, u1, self._tau, to, self._draw)
            secrets.own_a, secrets.own_b = dealt.a, dealt.b
            message = self._sign_once(labels.SIGN_SHARES, t1, body.as_json())
        else:
            message = secrets.sent[labels.SIGN_SHARES]
        self._keys, self._t1, self._chan, self._edges = keys, t1, chan, edges
        return message

    def _channels(self, t1: bytes, keys: Mapping[int, Keys]) -> dict[int, tuple[bytes, bytes]]:
        """(key to v, key from v) for every other site of U1."""
        mine = _given(self._secrets).chan_key()
        found = {}
        for v, k in keys.items():
            if v != self._me:
                shared = mine.shared(k.chan, self._name(v))
                to, back = (
                    derive(t1, shared, labels.KEY_CHAN, self._me, v),
                    derive(t1, shared, labels.KEY_CHAN, v, self._me),
                )
                found[v] = (to, back)
        return found

    # --- U2, keys of the masks ---

    def receive_shares(self, m2s: Mapping[int, bytes]) -> None:
        """The M2 messages of U2, by site. Every share and c sealed to this site is opened and checked."""
        secrets = _given(self._secrets if self._t1 else None)
        u2 = self._check_set(m2s, self.u1, labels.SIGN_SHARES, "U2", "U1")
        bodies = {u: self._open(m2s[u], labels.SIGN_SHARES, self._t1, u) for u in u2}
        places = {u: i for i, u in enumerate(self.u1)}
        shares = {u: messages.read_shares(b, places[u], len(places), self._name(u)) for u, b in bodies.items()}
        t2 = transcript_chain.t2(self._t1, {u: canon(body) for u, body in bodies.items()})
        if secrets.t2 not in (b"", t2):
            raise PolicyError(
                "the relay shows another U2 than this site masked its vector for",
                "a site masks for one set per attempt; nothing was sent",
            )
        mine = places[self._me]
        dealt = {}
        for u in u2:
            own = Dealt(secrets.own_b, secrets.own_a, secrets.group) if u == self._me else None
            box = None if own is not None else self._chan[u][1]
            dealt[u] = take(shares[u], self._t1, u, self._me, mine, box, own, self._name(u))
        self._shares, self._dealt, self._t2 = shares, dealt, t2

    def begin_masking(self, fingerprint: bytes) -> MaskPlan:
        """The keys that hide this site's vector, after the ledger took its `fingerprint` [32].

        Before this call returns, nothing of the vector may leave the site. Raises PolicyError if the ledger forbids it.
        """
        own = _given(self._own if self._t2 else None)
        secrets = _given(self._secrets)
        self._disk.admit(self._entry(own, fingerprint, NO_SET))
        if not secrets.t2:
            self._disk.save(replace(secrets, t2=self._t2).export_private())
            secrets.t2 = self._t2
        self._fingerprint = fingerprint
        self_key = derive(self._t2, secrets.self_, labels.KEY_SELF, self._me)
        self._plan = MaskPlan(((self_key, 1), *self._mask_streams(self._t2, self.u2)), self._tag_key())
        return self._plan

    def masked(self, vector_tree: bytes, tag: Tag) -> bytes:
        """M3: Tree(y) [32] of the masked vector and the tag of the unmasked one."""
        hidden = tag + tag_masks(self._t2, _given(self._plan).streams)
        return self._sign_once(labels.SIGN_MASKED, self._t2, Masked(hidden.to_bytes(), vector_tree).as_json())

    def _mask_streams(self, t2: bytes, u2: tuple[int, ...]) -> Streams:
        me = self._me
        return tuple((edge_key(t2, self._edges[v], me, v), 1 if v > me else -1) for v in near(me, u2, self._degree))

    def _tag_key(self) -> bytes:
        return derive(self._t2, b"".join(self._dealt[u].c for u in self.u2), labels.KEY_TAG)

    # --- U3, M4 ---

    def receive_survivors(self, m4r: bytes, m3s: Mapping[int, bytes]) -> bytes:
        """The relay's M4 and the M3 messages of its U3; gives this site's M4, the one T3 it signs in this attempt."""
        _given(self._fingerprint)
        survivors = messages.read_survivors(m4r, self._sites)
        if tuple(sorted(m3s)) != survivors.u3:
            raise PolicyError("the relay's M4 names other sites than it brought M3 messages of")
        u3 = self._check_set(m3s, self.u2, labels.SIGN_MASKED, "U3", "U2")
        bodies = {u: self._open(m3s[u], labels.SIGN_MASKED, self._t2, u) for u in u3}
        masked = {u: messages.read_masked(body, self._name(u)) for u, body in bodies.items()}
        t3 = transcript_chain.t3(self._t2, {u: canon(body) for u, body in bodies.items()}, survivors.sum_)
        self._refuse_other_transcript(labels.SIGN_SURVIVORS, t3, "set of survivors or another sum")
        # A signature over a set that this site could not answer over would only help others to bind themselves to it.
        self._disk.allows(self._entry(_given(self._own), self._fingerprint, tuple(u3)))
        message = self._sign_once(labels.SIGN_SURVIVORS, t3, {})
        self._t3, self._masked, self._sum_tree = t3, masked, survivors.sum_
        return message

    # --- M5 ---

    def receive_signatures(self, m4s: Mapping[int, bytes]) -> bytes:
        """M4 messages of members of U3, by site; gives M5 once τ of them hold over the T3 this site signed.

        The ledger takes U3 first. Raises PeersError while fewer than τ are valid; those that are not are in `faults`.
        """
        own = _given(self._own if self._t3 else None)
        self._refuse_outsiders(m4s, labels.SIGN_SURVIVORS)
        valid = {self._me}
        for v in self.u3:
            if v in m4s and v != self._me:
                body = self._tolerate(self._opened_empty, m4s[v], v)
                if body is not None:
                    valid.add(v)
        if len(valid) < self._tau:
            raise PeersError(
                f"{len(valid)} of the {self._tau} signatures over the set of survivors so far",
                "nothing was opened; the relay may start a new attempt",
            )
        self._disk.admit(self._entry(own, self._fingerprint, self.u3))
        return self._sign_once(labels.SIGN_UNMASK, self._t3, self._answer().as_json())

    def _opened_empty(self, message: bytes, v: int) -> bool:
        messages.read_empty(self._open(message, labels.SIGN_SURVIVORS, self._t3, v), "M4", self._name(v))
        return True

    def _answer(self) -> messages.Unmask:
        """This site's shares, sealed to each of U3: of b for a site in the sum, of a for a lost one; never both."""
        shares = b"".join(self._own_share(w) for w in self.u2)
        return messages.Unmask(
            tuple(
                b"" if v == self._me else seal(self._chan[v][0], labels.SEAL_UNMASK, self._t3, shares) for v in self.u3
            )
        )

    def _own_share(self, w: int) -> bytes:
        return self._dealt[w].b if w in self._masked else self._dealt[w].a

    # --- the sum, M6 ---

    def receive_answers(self, m5s: Mapping[int, bytes]) -> Opening:
        """M5 messages of members of U3, by site; gives the streams that turn Y into X, and the tag that X must have.

        Bad shares are skipped and their sender put into `faults`. Raises PeersError while fewer than τ good ones are
        there for any secret, PolicyError that names the dealer of shares that open nothing.
        """
        if labels.SIGN_UNMASK not in _given(self._secrets).sent or not self._t3:
            raise InternalError("answers before this site's own")
        self._refuse_outsiders(m5s, labels.SIGN_UNMASK)
        pools = Pools(self._t1, self.u1, self.u3, self._shares)
        pools.add(self._me, b"".join(self._own_share(w) for w in self.u2))
        for v in self.u3:
            if v in m5s and v != self._me:
                self._tolerate(self._collect, m5s[v], v, pools)
        recovered = pools.open(self._tau, self._keys, self._name)
        streams = hidden_streams(self._t2, recovered, self.u2, self.u3, self._keys, self._degree)
        tag = tag_masks(self._t2, streams)
        for masked in self._masked.values():
            tag = tag + tag_from_bytes(masked.tag)
        self._opening = Opening(streams, self._tag_key(), tag)
        return self._opening

    def _collect(self, message: bytes, v: int, pools: Pools) -> bool:
        u3, u2, who = self.u3, self.u2, self._name(v)
        body = self._open(message, labels.SIGN_UNMASK, self._t3, v)
        boxes = messages.read_unmask(body, u3.index(v), len(u3), len(u2), who).sealed
        plain = open_box(boxes[u3.index(self._me)], self._chan[v][1], self._t3, len(u2), who)
        self.faults += [f"site {who} sent a wrong share of site {self._name(w)}" for w in pools.add(v, plain)]
        return True

    def check_sum(self, sum_tree: bytes, tag: Tag) -> None:
        """Tree(Y) [32] of the downloaded sum and the tag of X. Raises PolicyError unless both are what was signed."""
        opening = _given(self._opening)
        if not hmac.compare_digest(sum_tree, self._sum_tree):
            raise PolicyError("the relay gave another sum than the one the sites signed", "the sum is not used")
        if not hmac.compare_digest(tag.to_bytes(), opening.tag.to_bytes()):
            raise PolicyError(
                "the sum does not have the tag of its vectors: it was altered between the sites",
                "it is not used; keep the relay's files and the sites' logs as evidence",
            )
        self._sum_checked = True

    def result(self, state: bytes, plain_tree: bytes) -> bytes:
        """M6: the next state [32] and Tree(X) [32], after check_sum. The ledger allows one next state per round."""
        if not self._sum_checked:
            raise InternalError("a result before its sum was checked")
        own = _given(self._own)
        self._disk.admit(self._entry(own, self._fingerprint, self.u3, state))
        return self._sign_once(labels.SIGN_RESULT, self._t3, Result(state, plain_tree, self.u3).as_json())

    def forget(self) -> None:
        """Drop every key of the attempt; the outer layer deletes the attempt file."""
        self._secrets = None
        self._chan, self._edges, self._dealt, self._plan, self._opening = {}, {}, {}, None, None
        self._t0 = self._t1 = self._t2 = self._t3 = self._fingerprint = b""

    # --- the rules that the steps share: sets, signatures, one transcript each ---

    def _check_size(self, members: Sequence[int], what: str) -> None:
        if len(members) < self._tau:
            raise PolicyError(f"{what} has {len(members)} sites; at least {self._tau} are needed")

    def _check_set(self, found: Mapping[int, bytes], within: Sequence[int], name: str, what: str, of: str) -> list[int]:
        """The rising members of a set of the relay: within the one before, large enough, this site unchanged."""
        outside = sorted(set(found) - set(within))
        if outside:
            raise PolicyError(f"{what} names sites {outside}, which are not in {of}")
        self._check_size(list(found), what)
        sent = _given(self._secrets).sent.get(name)
        if sent is None or found.get(self._me) != sent:
            raise PolicyError(f"{what} lacks this site's own {name} message, or has it changed")
        return sorted(found)

    def _refuse_outsiders(self, found: Mapping[int, bytes], name: str) -> None:
        outside = sorted(set(found) - set(self._masked))
        if outside:
            raise PolicyError(f"{name} messages of sites {outside}, which are not in U3")

    def _refuse_other_transcript(self, name: str, transcript: bytes, what: str) -> None:
        """Raise PolicyError if this site signed another transcript in message `name` of this attempt."""
        sent = _given(self._secrets).sent.get(name)
        if sent is not None and parse_canon(sent)["t"] != transcript.hex():
            raise PolicyError(
                f"the relay shows another {what} than this site signed in {name} of this attempt",
                "a site signs one transcript of each kind per attempt; nothing was sent",
            )

    def _sign_once(self, name: str, transcript: bytes, body: Any) -> bytes:
        """The signed message, durable before it is given out; a stored one is repeated, and never replaced."""
        secrets = _given(self._secrets)
        self._refuse_other_transcript(name, transcript, "transcript")
        message = sign_message(self._identity, name, self._me, transcript, body)
        stored = secrets.sent.get(name)
        if stored is not None and stored != message:
            raise PolicyError(f"this site's {name} would differ from the one it signed in this attempt")
        if stored is None:
            secrets.sent[name] = message
            try:
                self._disk.save(secrets.export_private())
            except BaseException:
                del secrets.sent[name]
                raise
        return message

    def _open(self, message: bytes, name: str, transcript: bytes, u: int) -> Any:
        return messages.open_signed(message, name, transcript, self._members[u], self._sites)

    def _tolerate(self, check: Callable[..., _T], *arguments: Any) -> _T | None:
        """What `check` gives; where it refuses, the reason goes to `faults` and the attempt goes on without."""
        try:
            return check(*arguments)
        except PolicyError as error:
            self.faults.append(error.what)
            return None

    def _entry(self, own: Expected, fingerprint: bytes, u3: tuple[int, ...], state: bytes = b"") -> LedgerEntry:
        input_ = input_hash(own.purpose, own.base)
        return LedgerEntry(own.round_, own.purpose, input_, fingerprint, u3, state)

    def _name(self, u: int) -> str:
        return self._members[u].name


def _given(value: _T | None) -> _T:
    """`value`, or InternalError where a step was called before the one that makes it."""
    if not value:
        raise InternalError("the steps of an attempt were called out of order, or after it was dropped")
    return value
