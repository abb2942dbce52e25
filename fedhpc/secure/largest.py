"""The largest of the sites' private levels, by a sum that shows hardly more (docs/protocol.md section 3, Scale).

Each site fills one cell per level. Up to its own level a cell is a random number; beyond, a random multiple of 2^32.
In the sum the low half of a cell is 0 beyond the largest level of all sites, and random up to it, however many sites
reach it. Nobody can take another site's mark away, since that would need its random numbers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedhpc.secure import labels
from fedhpc.secure.keys import derive
from fedhpc.secure.masks import SLACK_BYTES, Keystream
from fedhpc.secure.ring import lane_bound
from fedhpc.secure.transcript import hash_parts

_MARK_BITS = 32
_MARK = (1 << _MARK_BITS) - 1
NONE = -1  # the level of a value of 0


def marks_stream(key: bytes, number: int, purpose: str) -> Keystream:
    """The random words of site `number` for one sum, from its k_salt [32]: the same whenever the round is repeated."""
    salt = hash_parts(labels.HASH_LARGEST, purpose.encode("ascii"))
    return Keystream(derive(salt, key, labels.KEY_LARGEST, number))


def marks(
    levels: NDArray[np.int64], bins: int, sites: int, stream: Keystream | None, lane: int = 0
) -> NDArray[np.int64]:
    """The cells of a site for its private `levels` [n], each NONE or 0 … bins − 1: int64 [n, bins].

    `stream`: None where nothing is hidden, for plain ones. `lane`: the first cell's number in the vector. `sites` of
    the roster: the sum of so many cells stays within a lane.
    """
    reached = np.arange(bins) <= levels[:, None]
    if stream is None:
        return reached.astype(np.int64)
    nbytes = 8 * levels.size * bins
    read = stream.read(8 * lane, nbytes, np.empty(nbytes + SLACK_BYTES, np.uint8))
    words = read.view("<u8").reshape(levels.size, bins)
    np.bitwise_and(words, np.uint64((1 << _room(sites)) - 1), out=words)
    words[reached & (words & np.uint64(_MARK) == 0)] |= np.uint64(1)  # one mark alone is never 0
    np.bitwise_and(words, ~np.uint64(_MARK), out=words, where=~reached)
    return words.astype(np.int64)


def largest(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """The largest level [n] of any site from the summed `cells` [n, bins]; NONE where no site has one.

    Marks of several sites add up to 0 with a probability of 2^-32; the level is then too low by one, and a value that
    does not fit is refused, never clipped.
    """
    bins = cells.shape[1]
    marked = (cells & _MARK) != 0
    found = bins - 1 - np.argmax(marked[:, ::-1], axis=1)
    return np.where(marked.any(axis=1), found, NONE).astype(np.int64)


def _room(sites: int) -> int:
    """Bits of a cell, so that the sum over `sites` does not leave its lane."""
    return lane_bound(64, sites).bit_length() - 1
