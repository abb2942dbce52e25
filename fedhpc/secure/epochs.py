"""Configurations: each is signed by every site, and follows the one before it (docs/protocol.md section 1).

A site signs and obeys only its first configuration, or one whose epoch is one more and that names the present one by
its hash: an old roster, with a key that was revoked since, cannot be brought back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedhpc.errors import PolicyError
from fedhpc.secure import labels, messages
from fedhpc.secure.pairwise import Member
from fedhpc.secure.transcript import sign_message

FIRST_EPOCH = 0
NO_PREVIOUS = b""


@dataclass(frozen=True)
class Configuration:
    """What counts of a federation.toml for its place in the chain."""

    hash: bytes  # SHA-256 of its bytes [32]
    epoch: int
    previous: bytes  # the hash of the one before [32]; NO_PREVIOUS in the first


def check_follows(present: Configuration | None, following: Configuration) -> None:
    """Raise PolicyError unless `following` is the next configuration after `present` (None: this site has none)."""
    if present is None:
        # A site that joins later starts at that epoch; it has no older one that could come back.
        if (following.epoch == FIRST_EPOCH) != (following.previous == NO_PREVIOUS) or following.epoch < FIRST_EPOCH:
            raise PolicyError(f"the configuration of epoch {following.epoch} names a wrong previous one")
        return
    if following == present:
        return
    if following.epoch != present.epoch + 1:
        raise PolicyError(
            f"the configuration has epoch {following.epoch}; this site is at epoch {present.epoch}",
            f"only epoch {present.epoch + 1} can follow; older rosters are never taken again",
        )
    if following.previous != present.hash:
        raise PolicyError(
            f"the configuration of epoch {following.epoch} follows {following.previous.hex()[:16]}, "
            f"and this site has {present.hash.hex()[:16]}",
            "compare the hashes with the coordinator by telephone",
        )


def approve(identity: Ed25519PrivateKey, me: int, present: Configuration | None, following: Configuration) -> bytes:
    """This site's signature over `following` [message], after its operator read it. PolicyError if it cannot follow."""
    check_follows(present, following)
    return sign_message(identity, labels.SIGN_CONFIG, me, following.hash, {})


def check_signed(config: Configuration, roster: Sequence[Member], signatures: Mapping[int, bytes]) -> None:
    """Raise PolicyError that names the sites unless every site of the configuration's own roster signed it."""
    missing = [m.name for m in roster if m.number not in signatures]
    if missing:
        raise PolicyError(
            f"the configuration is not signed by {', '.join(missing)}", "each site runs `fedhpc site approve` first"
        )
    for member in roster:
        data = signatures[member.number]
        body = messages.open_signed(data, labels.SIGN_CONFIG, config.hash, member, len(roster))
        messages.read_empty(body, labels.SIGN_CONFIG, member.name)


def move(
    present: Configuration | None,
    following: Configuration,
    me: int,
    own: bytes | None,
    roster: Sequence[Member],
    signatures: Mapping[int, bytes],
) -> Configuration:
    """The configuration that this site obeys from now on. `own`: this site's own signature, as it kept it.

    Raises PolicyError if the configuration does not follow, is not signed by all, or was not approved here.
    """
    check_follows(present, following)
    if own is None or signatures.get(me) != own:
        raise PolicyError("this site did not approve the configuration", "read it, then run `fedhpc site approve`")
    check_signed(following, roster, signatures)
    return following
