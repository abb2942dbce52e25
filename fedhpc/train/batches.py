"""Which rows form which step: the same on every rank count, and after every restart.

An epoch is a permutation of the site's training rows; a batch is a contiguous run of it, the last one of an epoch
may be short. A last row of an epoch that would be alone joins the batch before it: batch norm and losses over pairs
have no meaning for one row, and how many rows a site has must not end a federation. Each rank works on a contiguous
share of the batch. The position is two integers: (epoch, offset).
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import DataError

Rows = NDArray[np.int64]


def derive_key(purpose: str, *parts: int | str) -> bytes:
    """32 bytes from `purpose` and `parts` by SHA-256; each part is written with its length, so none can merge."""
    text = [purpose, *(str(p) for p in parts)]
    return hashlib.sha256(b"".join(b"%d:%s" % (len(t.encode()), t.encode()) for t in text)).digest()


def permutation(n: int, seed: int, site: str, epoch: int) -> Rows:
    """The order of rows 0..n-1 in `epoch`, int64 [n].

    Sorts raw words of Philox, whose stream NumPy guarantees (NEP 19); `Generator.permutation` may change.
    """
    key = np.frombuffer(derive_key("fedhpc batches v1", seed, site, epoch)[:16], dtype="<u8")
    words = np.random.Philox(key=key).random_raw(n)
    return np.argsort(words, kind="stable").astype(np.int64)


def share(batch: Rows, rank: int, size: int) -> Rows:
    """The contiguous part of `batch` [m] that `rank` of `size` works on; lengths differ by at most one."""
    low, extra = divmod(batch.size, size)
    start = rank * low + min(rank, extra)
    return batch[start : start + low + (rank < extra)]


@dataclass(frozen=True)
class Piece:
    """Rows that one rank takes through the model at once.

    Backends average gradients over ranks. With the loss `weight` * mean over `rows`, that average is the mean
    gradient over the site's whole batch, exactly also for uneven shares: weight = rows * ranks / rows of the batch.
    A rank without a share passes a row of the batch with weight 0. A piece of one row passes it twice, which leaves
    its mean as it is: batch norm refuses one row, and a batch that one rank can train on must not stop several.
    Where batches of one row are what was asked for, they stay so.
    """

    rows: Rows
    weight: float
    part: float  # of the site's batch that this piece is; the parts of all ranks and pieces add up to 1
    last: bool  # of its step on this rank: the backend averages gradients here


def pieces(
    batch: Rows, rank: int, size: int, accumulation: int, twice: bool = True, equally: bool = False
) -> list[Piece]:
    """What `rank` works on for one step over the site's `batch` [m]; at least one piece, the last marked.

    `twice`: whether a row that is alone is passed twice. `equally`: whether all ranks take equally many pieces; those
    that one has too few of count nothing, and come first.
    """
    times = 2 if twice else 1
    mine = share(batch, rank, size)
    nothing = Piece(np.repeat(batch[:1], times), 0.0, 0.0, last=False)
    most = max(1, min(-(-batch.size // size), accumulation)) if equally else 1
    if not mine.size:
        return [nothing] * (most - 1) + [dataclasses.replace(nothing, last=True)]
    parts = [rows for rows in (share(mine, i, accumulation) for i in range(accumulation)) if rows.size]
    return [nothing] * (most - len(parts)) + [
        Piece(
            np.repeat(rows, times) if rows.size == 1 else rows,
            rows.size * size / batch.size,
            rows.size / batch.size,
            i == len(parts) - 1,
        )
        for i, rows in enumerate(parts)
    ]


class Batches:
    """The endless sequence of a site's batches of training rows."""

    def __init__(self, rows: Rows, batch_size: int, seed: int, site: str) -> None:
        """`rows` int64 [n]: the training rows, as the dataset numbers them; `batch_size` 0 takes all."""
        if not rows.size:
            raise DataError(f"site {site} has no training rows", "it can take part in sums, not in training")
        self.rows = rows
        self.batch_size = min(batch_size or rows.size, rows.size)
        whole, rest = divmod(rows.size, self.batch_size)
        self.steps_per_epoch = whole + (rest > 1)
        self.epoch = 0
        self.offset = 0
        self._seed, self._site = seed, site
        self._ordered: tuple[int, Rows] | None = None

    def next(self) -> Rows:
        """The rows of the site's next batch, int64 [at most batch_size, or one more at an epoch's end]."""
        if self._ordered is None or self._ordered[0] != self.epoch:
            order = permutation(self.rows.size, self._seed, self._site, self.epoch)
            self._ordered = (self.epoch, self.rows[order])
        stop = self.offset + self.batch_size
        if stop + 1 == self.rows.size and self.batch_size > 1:
            stop += 1
        batch = self._ordered[1][self.offset : stop]
        self.offset += batch.size
        if self.offset == self.rows.size:
            self.epoch, self.offset = self.epoch + 1, 0
        return batch

    def seek(self, epoch: int, offset: int) -> None:
        """Go on from a position that was read earlier. Raises DataError if these rows do not have it."""
        if epoch < 0 or not 0 <= offset < self.rows.size:
            raise DataError(
                f"site {self._site}: no position {offset} in an epoch of {self.rows.size} rows",
                "the checkpoint was written with other data",
            )
        self.epoch, self.offset = epoch, offset
