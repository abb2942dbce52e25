"""What a site keeps to go on with an attempt after a restart: the attempt file (docs/protocol.md section 6).

An outer layer keeps them in a file of mode 0600, outside checkpoints, locked to one process, replaced by rename and
fsynced before a message leaves. A thief who reads the file while the attempt lasts can open this site's vector.

Each replacement leaves the blocks of the version before it somewhere on the disk. So every version is sealed under a
key that lies in a file of its own, is written once and is overwritten in place at the end: then no version opens again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedhpc.errors import PolicyError
from fedhpc.secure import labels
from fedhpc.secure.keys import KEY_BYTES, AttemptKey, derive
from fedhpc.secure.ledger import LedgerEntry
from fedhpc.secure.message_kinds import OF_AN_ATTEMPT
from fedhpc.secure.sealing import SEAL_BYTES, seal, unseal
from fedhpc.secure.shares import Draw, draw_scalar
from fedhpc.secure.transcript import canon, parse_canon

VERSION = 1
MAGIC = b"fedhpc attempt 1\n"
_SALT_BYTES = 32

_FIELDS = ("chan", "config", "group", "m0", "mask", "own_a", "own_b", "self", "sent", "site", "t2", "version")


class SiteDisk(Protocol):
    """What must be durable before a message leaves. Calls return once it is, or raise and nothing may be sent."""

    def allows(self, entry: LedgerEntry) -> None:
        """Raise PolicyError if the ledger forbids `entry`; nothing is written."""
        ...

    def admit(self, entry: LedgerEntry) -> None:
        """Write `entry` to the round ledger, or raise PolicyError if the ledger forbids it."""
        ...

    def save(self, private: bytes) -> None:
        """Replace the attempt file by `private`."""
        ...


@dataclass
class AttemptSecrets:
    """One site's private half of one attempt, and every message it signed in it."""

    config: bytes
    site: int
    m0: bytes
    chan: bytes  # private X25519 [32]
    mask: bytes  # a_u: private X25519 and an element of Shamir's field [32]
    self_: bytes  # b_u, an element of the field [32]
    group: bytes  # c_u [32]
    own_a: bytes = b""  # this site's share of its own a, from M2 on [32]
    own_b: bytes = b""
    t2: bytes = b""  # the one T2 under which the vector is masked, from begin_masking on [32]
    sent: dict[str, bytes] = field(default_factory=dict)  # message name -> its bytes

    def __repr__(self) -> str:
        return f"AttemptSecrets(<private>, site {self.site}, sent {sorted(self.sent)})"

    def chan_key(self) -> AttemptKey:
        """The key pair that seals boxes."""
        return AttemptKey(self.chan)

    def mask_key(self) -> AttemptKey:
        """The key pair of the masks."""
        return AttemptKey(self.mask)

    def export_private(self) -> bytes:
        """The attempt file's bytes."""
        secrets = {"chan": self.chan, "group": self.group, "mask": self.mask, "self": self.self_}
        shares = {"own_a": self.own_a, "own_b": self.own_b, "t2": self.t2}
        return canon(
            {name: value.hex() for name, value in (secrets | shares).items()}
            | {"config": self.config.hex(), "m0": self.m0.hex(), "site": self.site, "version": VERSION}
            | {"sent": {name: data.hex() for name, data in self.sent.items()}}
        )


def fresh_secrets(config: bytes, site: int, m0: bytes, draw: Draw) -> AttemptSecrets:
    """New keys for a new attempt: e, a, b, c in this order."""
    chan, mask, self_ = draw(KEY_BYTES), draw_scalar(draw), draw_scalar(draw)
    return AttemptSecrets(config, site, m0, chan, mask, self_, draw(KEY_BYTES))


def from_private(data: bytes) -> AttemptSecrets:
    """The secrets in an attempt file. Raises PolicyError, without a word of the content, for any other form."""
    try:
        value = parse_canon(data)
        if not isinstance(value, dict) or tuple(sorted(value)) != _FIELDS or value["version"] != VERSION:
            raise ValueError("fields or version")
        found = AttemptSecrets(
            config=_hex(value["config"], 32),
            site=_site(value["site"]),
            m0=_hex(value["m0"]),
            chan=_hex(value["chan"], KEY_BYTES),
            mask=_hex(value["mask"], KEY_BYTES),
            self_=_hex(value["self"], KEY_BYTES),
            group=_hex(value["group"], KEY_BYTES),
            own_a=_hex(value["own_a"], KEY_BYTES if value["own_a"] else 0),
            own_b=_hex(value["own_b"], KEY_BYTES if value["own_b"] else 0),
            t2=_hex(value["t2"], KEY_BYTES if value["t2"] else 0),
        )
        for name, text in value["sent"].items():
            if name not in OF_AN_ATTEMPT:
                raise ValueError("an unknown message")
            found.sent[name] = _hex(text)
        if found.export_private() != data:
            raise ValueError("another form")
    except (ValueError, TypeError, KeyError, AttributeError):
        raise _damaged() from None
    return found


def sealed(key: bytes, private: bytes) -> bytes:
    """One version of an attempt file as it lies on the disk, under the file's `key` [32].

    Its salt makes a key of its own, so that no key seals twice.
    """
    salt = os.urandom(_SALT_BYTES)
    return MAGIC + salt + seal(derive(salt, key, labels.KEY_ATTEMPT_FILE), 0, MAGIC, private)


def unsealed(key: bytes, data: bytes) -> bytes:
    """What `sealed` was given. Raises PolicyError, without a word of the content, for any other bytes."""
    head = len(MAGIC) + _SALT_BYTES
    box = data[head:]
    try:
        if data[: len(MAGIC)] != MAGIC or len(box) < SEAL_BYTES:
            raise PolicyError("not sealed")
        own = derive(data[len(MAGIC) : head], key, labels.KEY_ATTEMPT_FILE)
        return unseal(own, 0, MAGIC, box, len(box) - SEAL_BYTES, "this site's own")
    except PolicyError:
        raise _damaged() from None


def _damaged() -> PolicyError:
    return PolicyError(
        "the attempt file is damaged or of another version",
        "remove it: this site then stays silent in that attempt and joins the next one",
    )


def _hex(value: Any, nbytes: int = -1) -> bytes:
    data = bytes.fromhex(value)
    if nbytes >= 0 and len(data) != nbytes:
        raise ValueError("length")
    return data


def _site(value: Any) -> int:
    if type(value) is not int:
        raise ValueError("site")
    return value
