"""A site's own vector before a sum: equal on its ranks, checked, and known to the ledger by a fingerprint.

Faults of this site's own numbers are found here, before any rank waits for another site.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError, InternalError, PolicyError
from fedhpc.federation.cores import ONE, Cores
from fedhpc.federation.party import Party, SumPlan
from fedhpc.federation.vector import Vector, parts
from fedhpc.mpi.byte_moves import Plan, Span, move
from fedhpc.mpi.collectives import Group
from fedhpc.secure import labels
from fedhpc.secure.geometry import refuse_lane_bits
from fedhpc.secure.keys import derive
from fedhpc.secure.ledger import (
    FINGERPRINT_BLOCK_BYTES,
    NO_SET,
    ZERO_VALUE,
    LedgerEntry,
    LedgerKeys,
    Mark,
    OtherVectorError,
    fingerprint,
    fingerprint_block,
    value_fingerprint,
)
from fedhpc.secure.one_pass import Inspector
from fedhpc.secure.ring import Codec, Layout, Tensor
from fedhpc.secure.salt import SALT_LANES, salt_words
from fedhpc.secure.transcript import canon, u64

_TAGS_AT = 32 + 1 + 8  # after the layout's hash, whether there are numbers, and how many bytes of tags follow
_FIRST = 256  # values, which nearly always tell already that a vector is not zero


def share(party: Party, vector: Vector, plan: SumPlan) -> None:
    """Give the leader's `vector` to all ranks of the site, unless they hold theirs already, and add the site's salt.

    Raises DataError for other shapes, PolicyError for lanes that sites do not sum in.
    """
    _refuse_lanes(vector.layout)
    if party.site.size > 1 and not (plan.replicated or plan.by_range):
        # Compared first: a broadcast into a buffer of another size ends in MPI's own words, or never.
        refuse_other_layouts(party, party.site.gather_bytes(vector.layout.hash))
        party.site.broadcast(vector.whole())
    _add_salt(party, vector, plan)


def _refuse_lanes(layout: Layout) -> None:
    for tensor in layout.tensors:
        refuse_lane_bits(tensor.bits, f"tensor '{tensor.name}'")
        if tensor.bits != tensor.value_bits:
            what = f"tensor '{tensor.name}' is {tensor.kind} in {tensor.bits}-bit lanes"
            raise PolicyError(what, "lanes of another width than their values are not built")


def _add_salt(party: Party, vector: Vector, plan: SumPlan) -> None:
    """Fill the salt of `vector`, as much as this rank holds; zeros in mode `off`, where nothing is hidden."""
    if len(party.members) == 1:
        return
    key = party.salt_key if party.masked else None
    if not vector.layout.salted or (party.masked and key is None):
        raise InternalError("a vector of several sites without salt", "please report it")
    words = None if key is None else salt_words(key, party.number, plan.round_, plan.purpose, plan.base)
    vector.put_salt(np.zeros(SALT_LANES, dtype=np.int64) if words is None else words)


def codec_of(party: Party, plan: SumPlan) -> Codec:
    """What encodes this site's values and decodes the sum. Not for two threads at once."""
    rounding = None
    if party.agreement.secure.rounding == "stochastic":
        rounding = derive(plan.input, party.agreement.hash, labels.KEY_ROUNDING, party.number)
    return Codec(len(party.members), party.name, plan.factors, rounding, plan.exponents)


def inspect(party: Party, vector: Vector, plan: SumPlan, parts_: Sequence[tuple[int, int]]) -> Mark:
    """Check the values of every rank's part of the vector; what the ledger remembers of it, at a site's leader.

    `parts_`: of each rank, in bytes. The mark is empty where nothing is signed. Raises DataError for a value that has
    no place in the ring, or for ranks with different layouts.
    """
    layout, keys, part = vector.layout, party.ledger_keys, parts_[party.site.rank]
    tags = inspect_blocks(vector, part, lambda: codec_of(party, plan), keys, party.cores)
    found = layout.hash + bytes([_has_numbers(vector, part)]) + u64(len(tags)) + tags
    if keys is not None and vector.sources:
        found += source_tags(vector, keys, party.site, parts_ if plan.by_range else None)
    gathered = party.site.gather_bytes(found)
    refuse_other_layouts(party, gathered)
    if keys is None or not party.leads:
        return Mark(b"")
    ends = [_TAGS_AT + int.from_bytes(m[33:_TAGS_AT], "little") for m in gathered]
    tags_of = [m[_TAGS_AT:end] for m, end in zip(gathered, ends, strict=True)]
    factors = canon({name: value.hex() for name, value in plan.factors.items()})
    factors += b"".join(plan.exponents[t.name].tobytes() for t in layout.named if t.name in plan.exponents)
    mark = fingerprint(keys.whole, layout.hash, factors, layout.payload_bytes, tags_of)
    if not party.masked:
        return Mark(mark)
    value = ZERO_VALUE
    if any(m[32] for m in gathered):
        sources = [m[end:] for m, end in zip(gathered, ends, strict=True)] if vector.sources else tags_of
        value = value_fingerprint(keys.value, value_header(vector), sources)
    return Mark(mark, plan.category or plan.purpose, value, plan.everyone, plan.data)


def inspect_blocks(
    vector: Vector, part: tuple[int, int], codec: Callable[[], Codec], keys: LedgerKeys | None, cores: Cores = ONE
) -> bytes:
    """Check values block by block, and tag each block while it is in the caches; no tags without keys.

    The salt is checked like all lanes, but it is not part of what the ledger knows a vector by. Raises DataError for
    the first block with a value that has no place in the ring.
    """
    starts = range(*part, FINGERPRINT_BLOCK_BYTES)
    end = vector.layout.payload_bytes

    def look(share: tuple[int, int]) -> bytes:
        inspector = Inspector(codec(), None if keys is None else keys.blocks)
        tags = []
        for start in starts[slice(*share)]:
            stop = min(start + FINGERPRINT_BLOCK_BYTES, part[1])
            low, high = vector.layout.values_of(start, stop)
            tagged = vector.layout.values_of(start, min(stop, end))[1] - low if start < end else 0
            block = vector.buffer[low - vector.first : high - vector.first]
            number = start // FINGERPRINT_BLOCK_BYTES
            tags.append(inspector.look(block, low, number, vector.layout.pieces(start, stop), tagged))
        return b"".join(tags)

    return b"".join(cores.map(look, cores.shares(len(starts))))


def _has_numbers(vector: Vector, part: tuple[int, int]) -> bool:
    """Whether a value of this part is not 0; most vectors show it at once."""
    end = min(part[1], vector.layout.payload_bytes)
    for start in range(part[0], end, FINGERPRINT_BLOCK_BYTES):
        for piece in vector.layout.pieces(start, min(start + FINGERPRINT_BLOCK_BYTES, end)):
            values = vector.of(piece)
            if values[:_FIRST].any() or values.any():
                return True
    return False


def value_header(vector: Vector) -> bytes:
    """Names, kinds and shapes of what is summed, before lanes are chosen for it."""
    return canon([[t.name, vector.sources.get(t.name, t.kind), list(t.shape)] for t in vector.layout.named])


def source_tags(
    vector: Vector, keys: LedgerKeys, site: Group, parts_: Sequence[tuple[int, int]] | None = None
) -> bytes:
    """Tags of this rank's share of the vector, as if each tensor were as wide as its source. Collective.

    A model then has one fingerprint of its values, in lanes of any width. `parts_`: which bytes of the lanes each rank
    holds, absent where all hold all. Shares of the narrow vector end at other values; those come from other ranks.
    """
    kinds = vector.sources
    narrow = Layout([Tensor(t.name, kinds.get(t.name, t.kind), t.shape) for t in vector.layout.named])
    shares = parts(narrow.nbytes, site.size)
    held = [_narrow_runs(vector, narrow, part) for part in parts_ or [vector.part] * site.size]
    every = sorted(run for runs in held for run in runs) if parts_ else held[0]
    wide = {piece.tensor.name: (piece, vector.of(piece)) for piece in vector.named_pieces(vector.part)}

    def read(start: int, stop: int, into: NDArray[np.uint8]) -> None:
        for piece in narrow.pieces(start, stop):
            first, values = wide[piece.tensor.name]
            out = piece.values_in(into, start)
            out[:] = values[piece.lane - first.lane : piece.lane - first.lane + out.size]

    tags = []
    for number in range(-(-max(stop - start for start, stop in shares) // FINGERPRINT_BLOCK_BYTES)):
        blocks = [_block_of(share, number) for share in shares]
        start, stop = blocks[site.rank]
        block = np.zeros(stop - start, dtype=np.uint8)
        give = [[run for other in blocks for run in _within(runs, *other)] for runs in held]
        plan = Plan(give, [_within(every, *block_) for block_ in blocks])
        move(site, plan, read, partial(_put, block, start))
        if start < stop:
            tags.append(fingerprint_block(keys.blocks, start // FINGERPRINT_BLOCK_BYTES, block))
    return b"".join(tags)


def _within(runs: Sequence[Span], start: int, stop: int) -> list[Span]:
    """The rising `runs` in bytes start..stop, cut to them."""
    first = bisect.bisect_right(runs, start, key=lambda run: run[1])
    last = bisect.bisect_left(runs, stop, key=lambda run: run[0])
    return [(max(low, start), min(high, stop)) for low, high in runs[first:last] if max(low, start) < min(high, stop)]


def _narrow_runs(vector: Vector, narrow: Layout, part: tuple[int, int]) -> list[tuple[int, int]]:
    """Where what is in bytes `part` of the lanes of `vector` lies in the bytes of `narrow`, tensor by tensor."""
    places = {t.name: (narrow.offsets[i], t.lane_bytes) for i, t in enumerate(narrow.named)}
    runs = []
    for piece in vector.named_pieces(part):
        offset, item = places[piece.tensor.name]
        count = (piece.stop - piece.start) // piece.tensor.lane_bytes
        runs.append((offset + piece.lane * item, offset + (piece.lane + count) * item))
    return runs


def _block_of(share: tuple[int, int], number: int) -> tuple[int, int]:
    """(start, stop) of block `number` of a rank's share; empty beyond its end."""
    start = min(share[0] + number * FINGERPRINT_BLOCK_BYTES, share[1])
    return start, min(start + FINGERPRINT_BLOCK_BYTES, share[1])


def _put(block: NDArray[np.uint8], first: int, start: int, stop: int, data: NDArray[np.uint8]) -> None:
    block[start - first : stop - first] = data


def refuse_other_vector(party: Party, plan: SumPlan, mark: Mark) -> None:
    """OtherVectorError if this site put another vector than that of `mark` into the round, before it says READY.

    Other refusals of the ledger come when the round's line is written. Leaders only.
    """
    assert party.journal is not None
    try:
        party.journal.ledger.check(LedgerEntry(plan.round_, plan.purpose, plan.input, mark.fingerprint, NO_SET))
    except OtherVectorError:
        raise
    except PolicyError:
        return


def refuse_other_layouts(party: Party, messages: list[bytes]) -> None:
    """DataError unless every rank of the site begins its message with the same layout hash."""
    if len({message[:32] for message in messages}) > 1:
        raise DataError(
            f"the ranks of site {party.name} sum different names, shapes or scales",
            "every rank of a site makes the same calls with the same names and shapes",
        )
