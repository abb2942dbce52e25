"""Messages that a whole round does not show, each with what it is made from. Called by make.py."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from protocol_round import Store, secret

from fedhpc.enrolment.fingerprints import fingerprint
from fedhpc.federation.state_tensors import state_arrays
from fedhpc.relay.rounds.ready import read_ready
from fedhpc.secure import labels
from fedhpc.secure.catch_up_messages import BLOCK_BYTES, CommonKnowledge, Giver, Taker
from fedhpc.secure.epochs import Configuration, approve, check_signed
from fedhpc.secure.join_request import access_hash, read_request, sign_request, split_token
from fedhpc.secure.keys import AttemptKey
from fedhpc.secure.ledger import GENESIS, NO_SET, NO_VECTOR, LedgerEntry, chain
from fedhpc.secure.messages import Result, Survivors, read_sites, read_survivors
from fedhpc.secure.pairwise import Member
from fedhpc.secure.results import RoundResults, abandon
from fedhpc.secure.sealing import seal
from fedhpc.secure.suite import SHA256
from fedhpc.secure.thresholds import choose_thresholds
from fedhpc.secure.transcript import canon, input_hash, sign_message, state_hash

SITES, ROUND = 4, 9
IDENTITIES = {u: Ed25519PrivateKey.from_private_bytes(secret("identity", u)) for u in range(1, SITES + 1)}
ROSTER = [Member(u, f"site-{u}", key.public_key()) for u, key in IDENTITIES.items()]
CONFIG, PRESENT = secret("config"), secret("present state")
STATE_BYTES = BLOCK_BYTES + 21


def lone_messages() -> dict[str, Any]:
    """See the module."""
    return {
        "N": SITES,
        "config": CONFIG.hex(),
        "identity_private": [secret("identity", u).hex() for u in IDENTITIES],
        "ABANDON": _abandon(),
        "CATCH-UP": _catch_up(),
        "CONFIG": _config(),
        "ENROL": _enrol(),
        "LEDGER": _ledger(),
        "M5 box": _box(),
        "M6": _results(),
        "READY": _ready(),
        "sets": _sets(),
        "tensors of a state": _state(),
    }


def pattern(nbytes: int) -> bytes:
    """Bytes that both sides of a test can make: byte i is i² + ⌊i/251⌋ mod 256."""
    return bytes((i * i + i // 251) & 255 for i in range(nbytes))


def _text(message: bytes) -> str:
    return message.decode("ascii")


def _abandon() -> dict[str, Any]:
    """Two operators give the round up and one site had signed M6 for the same state: τ = 3 stand behind it."""
    kept = SHA256.tree(pattern(STATE_BYTES))
    following = state_hash(CONFIG, ROUND, kept)
    entry = LedgerEntry(ROUND, "train", input_hash("train", PRESENT), secret("fingerprint"), (1, 2, 3))
    results = RoundResults(ROSTER, choose_thresholds(SITES), PRESENT)
    messages = {u: abandon(IDENTITIES[u], u, Store(), entry, PRESENT, following) for u in (1, 4)}
    m6 = sign_message(
        IDENTITIES[2],
        labels.SIGN_RESULT,
        2,
        secret("some T3"),
        Result(following, secret("some sum"), (1, 2, 3)).as_json(),
    )
    for message in (*messages.values(), m6):
        results.receive(message)
    settled = results.settled()
    assert settled is not None
    return {
        "round": ROUND,
        "present": PRESENT.hex(),
        "tensors_tree": kept.hex(),
        "following": settled.state.hex(),
        "messages": {str(u): _text(m) for u, m in messages.items()},
        "M6 of the same state": _text(m6),
    }


def _results() -> dict[str, Any]:
    """M6 of one body from τ sites, two of them of one attempt and one of another."""
    body = Result(state_hash(CONFIG, ROUND, SHA256.tree(pattern(STATE_BYTES))), secret("sum tree"), (1, 2, 4)).as_json()
    of = {1: secret("T3 of attempt 1"), 2: secret("T3 of attempt 1"), 4: secret("T3 of attempt 2")}
    messages = {u: sign_message(IDENTITIES[u], labels.SIGN_RESULT, u, t, body) for u, t in of.items()}
    results = RoundResults(ROSTER, choose_thresholds(SITES), PRESENT)
    for message in messages.values():
        results.receive(message)
    assert results.settled() is not None
    return {"t": {str(u): t.hex() for u, t in of.items()}, "messages": {str(u): _text(m) for u, m in messages.items()}}


def _catch_up() -> dict[str, Any]:
    """Site 3 was away since round 5; site 2 gives it the state after round 9, in a whole block and a short one."""
    taker_key, giver_key = AttemptKey(secret("need key")), AttemptKey(secret("state key"))
    known = CommonKnowledge(CONFIG, ROSTER, choose_thresholds(SITES), STATE_BYTES)
    taker = Taker(known, 3, IDENTITIES[3], secret("old state"), 5, fresh=taker_key)
    proof = [message.encode() for message in _results()["messages"].values()]
    giver = Giver(known, 2, IDENTITIES[2], 3, taker.need, ROUND, proof, fresh=giver_key)
    data = pattern(STATE_BYTES)
    boxes = [giver.box(n, data[n * BLOCK_BYTES : (n + 1) * BLOCK_BYTES]) for n in (0, 1)]
    taker.receive_state(2, giver.state)
    assert b"".join(taker.block(n, box) for n, box in enumerate(boxes)) == data
    assert taker.finish(SHA256.tree(data)).round_ == ROUND
    return {
        "taker": 3,
        "giver": 2,
        "round": ROUND,
        "old_state": secret("old state").hex(),
        "taker_private": secret("need key").hex(),
        "giver_private": secret("state key").hex(),
        "pattern_bytes": STATE_BYTES,
        "NEED": _text(taker.need),
        "STATE": _text(giver.state),
        "box 0, SHA-256": hashlib.sha256(boxes[0]).hexdigest(),
        "box 1": boxes[1].hex(),
    }


def _config() -> dict[str, Any]:
    """Every site signs the first configuration, and the one that follows it."""
    first = Configuration(CONFIG, 0, b"")
    second = Configuration(secret("next config"), 1, CONFIG)
    signed = []
    for before, after in ((None, first), (first, second)):
        signatures = {u: approve(key, u, before, after) for u, key in IDENTITIES.items()}
        check_signed(after, ROSTER, signatures)
        signed.append(
            {
                "hash": after.hash.hex(),
                "epoch": after.epoch,
                "previous": after.previous.hex(),
                "messages": {str(u): _text(m) for u, m in signatures.items()},
            }
        )
    return {"signed": signed}


def _enrol() -> dict[str, Any]:
    """A request with a token and one without. To the protocol the certificate request is bytes."""
    token = "00112233445566778899aabbccddeeff"
    halves, csr = split_token(token), pattern(90)
    private, tls = secret("new site"), secret("pin of a TLS key").hex()
    key = Ed25519PrivateKey.from_private_bytes(private)
    proved, plain = sign_request(key, "site-5", csr, halves), sign_request(key, "site-5", csr)
    assert read_request(proved).proved_by(halves.proof)
    assert not read_request(plain).proved_by(halves.proof)
    return {
        "token": token,
        "access": halves.access,
        "access_hash": access_hash(halves.access),
        "proof": halves.proof,
        "private": private.hex(),
        "csr": csr.hex(),
        "tls": tls,
        "fingerprint": fingerprint("site-5", key.public_key().public_bytes_raw().hex(), tls),
        "with token": _text(proved),
        "without token": _text(plain),
    }


def _state() -> dict[str, Any]:
    """A model of two tensors with the state of an adaptive strategy, W and the number of training rounds."""
    model = {"w": np.array([[1.5, -0.0]], dtype=np.float32), "a": np.array([0.1])}
    outer = {
        f"{kind}/{name}": np.full_like(t, i) for i, kind in enumerate(("second", "moment")) for name, t in model.items()
    }
    data = b"".join(array.tobytes() for array in state_arrays(model, outer, 640.0, 3, secret("blind")))
    return {
        "round": ROUND,
        "model": [[name, a.dtype.name, [x.hex() for x in a.ravel().tolist()]] for name, a in model.items()],
        "strategy": [[name, a.dtype.name, [x.hex() for x in a.ravel().tolist()]] for name, a in outer.items()],
        "W": (640.0).hex(),
        "rounds": 3,
        "blind": secret("blind").hex(),
        "bytes": data.hex(),
        "state": state_hash(CONFIG, ROUND, SHA256.tree(data)).hex(),
    }


def _ledger() -> dict[str, Any]:
    """The lines of a ledger: a round that gains vector, set and state, and one that ended without this site."""
    train, statistic = input_hash("train", PRESENT), input_hash("mean age", bytes(32))
    entries = [
        LedgerEntry(8, "mean age", statistic, secret("print 8"), NO_SET),
        LedgerEntry(8, "mean age", statistic, NO_VECTOR, (1, 2, 4), secret("state 8")),
        LedgerEntry(9, "train", train, secret("print 9"), NO_SET),
        LedgerEntry(9, "train", train, secret("print 9"), (1, 3, 4)),
        LedgerEntry(9, "train", train, secret("print 9"), (1, 3, 4), secret("state 9")),
    ]
    head, lines = GENESIS, []
    for entry in entries:
        head = chain(head, entry)
        lines.append(_text(canon({"entry": entry.as_json(), "head": head.hex()})))
    return {"lines": lines}


def _box() -> dict[str, Any]:
    """One box of M5: three shares."""
    key, t3, content = secret("k_chan"), secret("T3"), b"".join(secret("share", w) for w in (1, 2, 4))
    return {
        "key": key.hex(),
        "t": t3.hex(),
        "content": content.hex(),
        "box": seal(key, labels.SEAL_UNMASK, t3, content).hex(),
    }


def _ready() -> dict[str, Any]:
    """READY as a site writes it, and texts that are none."""
    body = {
        "base": PRESENT.hex(),
        "everyone": 0,
        "layout": secret("layout").hex(),
        "purpose": "train",
        "state": PRESENT.hex(),
        "tensors": [[32, 5], [64, 3]],
    }
    text = _text(canon(body))
    read_ready(text.encode())
    return {
        "body": body,
        "text": text,
        "refused": [
            _text(canon(body | {"everyone": 2})),
            _text(canon(body | {"tensors": [[31, 5]]})),
            _text(canon(body | {"tensors": [[32, -1]]})),
            _text(canon(body | {"tensors": []})),
            _text(canon(body | {"state": PRESENT.hex().upper()})),
            _text(canon({name: value for name, value in body.items() if name != "base"})),
            _text(canon(body | {"round": ROUND})),
            text.replace(":0,", ":0 ,"),
        ],
    }


def _sets() -> dict[str, Any]:
    """U1 or U2, the relay's M4, and lists that are no sets of N sites."""
    sets, sum_ = [(1, 2, 3, 4), (2, 3, 4)], secret("tree of Y")
    texts = [_text(canon(list(u))) for u in sets]
    survivors = [_text(Survivors(sum_, u).to_bytes()) for u in sets]
    for text, m4r in zip(texts, survivors, strict=True):
        read_sites(text.encode(), SITES, "U1")
        read_survivors(m4r.encode(), SITES)
    return {
        "U1 or U2": texts,
        "refused": [
            "[2,1,3]",
            "[1,1,2]",
            "[0,1,2]",
            "[1,2,5]",
            "[1, 2, 3]",
            '["1"]',
            "[1.0]",
            "{}",
            "[1,2,3,4,5]",
            "[01]",
        ],
        "sum": sum_.hex(),
        "M4r": survivors,
    }
