"""A site's own vector before a sum: equal on its ranks, checked, and known to the ledger by a fingerprint.

Whatever is wrong with this site's own numbers is found here, before any rank waits for another site.
"""

from __future__ import annotations

from fedhpc.errors import DataError, InternalError
from fedhpc.federation.layout import Vector
from fedhpc.federation.party import Party, SumPlan
from fedhpc.secure import labels
from fedhpc.secure.keys import derive
from fedhpc.secure.ledger import FINGERPRINT_BLOCK_BYTES, LedgerKeys, fingerprint, fingerprint_blocks
from fedhpc.secure.ring import Codec
from fedhpc.secure.salt import salt_words
from fedhpc.secure.transcript import canon, input_hash


def share(party: Party, vector: Vector, plan: SumPlan) -> None:
    """Give the leader's `vector` to all ranks of the site, unless they hold it already, and add the site's salt.

    Raises DataError for other shapes.
    """
    if party.site.size > 1 and not plan.replicated:
        # Compared first: a broadcast into a buffer of another size ends in MPI's own words, or never.
        refuse_other_layouts(party, party.site.gather_bytes(vector.layout.hash))
        party.site.broadcast(vector.buffer)
    _add_salt(party, vector, plan)


def _add_salt(party: Party, vector: Vector, plan: SumPlan) -> None:
    """Fill the salt of `vector`, on every rank alike; zeros in mode `off`, where nothing is hidden."""
    if len(party.members) == 1:
        return
    key = party.salt_key if party.masked else None
    if not vector.layout.salted or (party.masked and key is None):
        raise InternalError("a vector of several sites without salt", "please report it")
    words = None if key is None else salt_words(key, party.number, plan.round_, plan.purpose, plan.base)
    vector.salt[:] = 0 if words is None else words


def codec_of(party: Party, plan: SumPlan) -> Codec:
    """What encodes this site's values and decodes the sum. Not for two threads at once."""
    rounding = None
    if party.agreement.secure.rounding == "stochastic":
        input_ = input_hash(plan.purpose, plan.base)
        rounding = derive(input_, party.agreement.hash, labels.KEY_ROUNDING, party.number)
    return Codec(len(party.members), party.name, plan.factors, rounding)


def inspect(party: Party, vector: Vector, plan: SumPlan, part: tuple[int, int]) -> bytes:
    """Check the values of every rank's `part` of the vector; their fingerprint [32] at the leader of a masked site.

    Empty elsewhere. Raises DataError for a value that has no place in the ring, or ranks with other layouts.
    """
    layout = vector.layout
    keys = party.ledger_keys
    gathered = party.site.gather_bytes(layout.hash + _inspect_blocks(vector, part, codec_of(party, plan), keys))
    refuse_other_layouts(party, gathered)
    if keys is None or not party.leads:
        return b""
    factors = canon({name: value.hex() for name, value in plan.factors.items()})
    return fingerprint(keys.whole, layout.hash, factors, layout.payload_bytes, [m[32:] for m in gathered])


def _inspect_blocks(vector: Vector, part: tuple[int, int], codec: Codec, keys: LedgerKeys | None) -> bytes:
    """Block by block while a block is in the caches; gives the blocks' tags, none without keys.

    The salt is checked like all lanes, but no part of what a vector is known by.
    """
    tags = []
    end = vector.layout.payload_bytes
    for start in range(*part, FINGERPRINT_BLOCK_BYTES):
        stop = min(start + FINGERPRINT_BLOCK_BYTES, part[1])
        for piece in vector.layout.pieces(start, stop):
            codec.check(vector.buffer, piece)
        if keys is not None:
            tags.append(fingerprint_blocks(keys.blocks, vector.buffer, start, min(stop, end)))
    return b"".join(tags)


def refuse_other_layouts(party: Party, messages: list[bytes]) -> None:
    """DataError unless every rank of the site begins its message with the same layout hash."""
    if len({message[:32] for message in messages}) > 1:
        raise DataError(
            f"the ranks of site {party.name} sum different names, shapes or scales",
            "every rank of a site makes the same calls with the same names and shapes",
        )
