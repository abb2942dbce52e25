"""Windows over some documents of a token store: these documents as one stream, cut into pieces of equal length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Windows:
    """Window w of a stream of documents: its tokens w * context … (w + 1) * context, the last of them only predicted.

    So each token but the stream's first is predicted once. The last window may be shorter.
    """

    def __init__(self, offsets: NDArray[np.int64], documents: NDArray[np.int64], context: int) -> None:
        """`offsets` int64 [d + 1] of all documents in the file; `documents` int64 [k], rising: those of the stream."""
        self.context = context
        starts, stops = offsets[documents], offsets[documents + 1]
        first = np.ones(documents.size, dtype=bool)
        first[1:] = starts[1:] != stops[:-1]  # neighbours in the file are read at once
        self._starts = starts[first]
        lengths = np.add.reduceat(stops - starts, np.flatnonzero(first)) if documents.size else starts
        self._bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)  # of the runs, in the stream

    def __len__(self) -> int:
        return max(0, -(-(int(self._bounds[-1]) - 1) // self.context))

    def parts(self, window: int) -> list[tuple[int, int]]:
        """The ranges of tokens in the file that are this window, in order; together 2 to context + 1 tokens."""
        if not 0 <= window < len(self):
            raise IndexError(f"window {window} of {len(self)}")
        low = window * self.context
        high = min(low + self.context + 1, int(self._bounds[-1]))
        found = []
        run = int(np.searchsorted(self._bounds, low, side="right")) - 1
        while low < high:
            stop = min(high, int(self._bounds[run + 1]))
            start = int(self._starts[run]) + low - int(self._bounds[run])
            found.append((start, start + stop - low))
            low, run = stop, run + 1
        return found
