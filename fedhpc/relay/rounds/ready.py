"""READY: what a site would put into M0, read, compared, and made into a proposal (docs/relay-rounds.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fedhpc.errors import PolicyError
from fedhpc.relay.rounds.summing import MAX_VECTOR_BYTES
from fedhpc.secure import messages
from fedhpc.secure.geometry import Geometry
from fedhpc.secure.proposal import Proposal
from fedhpc.secure.transcript import HASH_BYTES, canon, parse_canon
from fedhpc.wire.kinds import MAX_PURPOSE, MAX_READY_BYTES, MAX_TENSORS

_FIELDS = ("base", "everyone", "layout", "purpose", "state", "tensors")

Tensors = tuple[tuple[int, int], ...]  # (bits, lanes)


@dataclass(frozen=True)
class Ready:
    """One site's own values of M0; of the tensors a hash, since all sites' READY are held in memory."""

    base: bytes  # [32]
    everyone: bool  # the sum means something over all sites only
    layout: bytes  # [32]
    purpose: str
    state: bytes  # [32]
    tensors: bytes  # SHA-256 of their canonical form [32]
    nbytes: int  # of a vector

    def differs_from(self, other: Ready, *, any_base: bool) -> bool:
        """Whether the two could not be summed in one attempt; `any_base`: older models are allowed."""
        return self != (replace(other, base=self.base) if any_base else other)


def read_ready(data: bytes) -> tuple[Ready, Tensors]:
    """READY of a site. Raises PolicyError for any other form, or a vector that no relay takes."""
    what = "READY"
    if len(data) > MAX_READY_BYTES:
        raise PolicyError(f"{what} has {len(data)} bytes; at most {MAX_READY_BYTES}")
    try:
        value = messages.read_object(parse_canon(data), _FIELDS, what)
    except ValueError as error:
        raise PolicyError(f"{what} is malformed: {error}") from None
    base, layout, state = (
        messages.read_hex(value[name], HASH_BYTES, f"{name} of {what}") for name in ("base", "layout", "state")
    )
    everyone = messages.read_int(value["everyone"], 0, 1, f"everyone in {what}") == 1
    if type(value["purpose"]) is not str or len(value["purpose"]) > MAX_PURPOSE:
        raise PolicyError(f"the purpose of {what} is not text of at most {MAX_PURPOSE} characters")
    tensors = messages.read_tensors(value["tensors"], MAX_TENSORS, what)
    nbytes = Geometry(tensors).nbytes
    if not 0 < nbytes <= MAX_VECTOR_BYTES:
        raise PolicyError(f"{what} names a vector of {nbytes} bytes")
    digest = hashlib.sha256(canon(tensors)).digest()
    return Ready(base, everyone, layout, value["purpose"], state, digest, nbytes), tensors


def largest_group(ready: Mapping[int, Ready], *, any_base: bool) -> tuple[Ready, frozenset[int]] | None:
    """The values that most sites share and who they are; of equals the group with the lowest site. None: nobody."""
    groups: list[tuple[Ready, set[int]]] = []
    for u in sorted(ready):
        for fields, members in groups:
            if not ready[u].differs_from(fields, any_base=any_base):
                members.add(u)
                break
        else:
            groups.append((ready[u], {u}))
    if not groups:
        return None
    fields, members = max(groups, key=lambda group: len(group[1]))
    return fields, frozenset(members)


def proposal(
    config: str,
    round_: int,
    attempt: int,
    fields: Ready,
    tensors: Tensors,
    cohort: Iterable[int],
    bases: Mapping[int, bytes],
) -> bytes:
    """M0 with `fields` over `cohort`. A site without an entry in `bases` gets the base of `fields`."""
    return Proposal(
        attempt,
        tuple((u, bases.get(u, fields.base)) for u in sorted(cohort)),
        bytes.fromhex(config),
        fields.layout,
        fields.purpose,
        round_,
        fields.state,
        tensors,
    ).to_bytes()
