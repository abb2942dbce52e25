"""What tasks on texts share: windows of a token store as tensors, split by document, and what is summed over tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedhpc.data.tokens import TokenStore
from fedhpc.data.windows import Windows
from fedhpc.errors import DataError
from fedhpc.train.batches import Rows
from fedhpc.train.evaluate import BYTES, NATS, TOKENS
from fedhpc.train.held_out import split_rows

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_MEASURED_LOGITS = 1 << 24
NOT_PREDICTED = -100  # what cross_entropy leaves out


class TextDataset(torch.utils.data.Dataset[Batch]):
    """Windows of a site's token store: x int64 [context], y int64 [context], the next tokens, and the bytes of y [].

    Before `held_out_split` they are of all documents; after it first those for training, then those held out. A window
    at the end of its stream is filled up, with y = NOT_PREDICTED.
    """

    def __init__(self, path: Path, context: int, vocabulary: int, tokenizer_sha256: str) -> None:
        """Raises DataError if the store is of another tokenizer, and what TokenStore.open raises."""
        self.text = TokenStore.open(path)
        self.context, self._vocabulary = context, vocabulary
        if self.text.tokenizer_sha256 != tokenizer_sha256:
            raise DataError(
                f"{path} was made with the tokenizer {self.text.tokenizer_sha256[:16]}…, and the federation's is "
                f"{tokenizer_sha256[:16]}…",
                "the same tokens must mean the same at all sites: `fedhpc data tokenize` with the federation's "
                "tokenizer.json; `sha256sum tokenizer.json` is tokenizer_sha256",
            )
        if self.text.vocabulary > vocabulary:
            raise DataError(
                f"{path} has a vocabulary of {self.text.vocabulary} tokens, and the model one of {vocabulary}",
                "task.options.vocabulary is the tokenizer's, or more",
            )
        self._parts = [Windows(self.text.offsets, np.arange(self.text.offsets.size - 1), context)]

    def held_out_split(self, held_out: float, seed: int, site: str) -> tuple[Rows, Rows]:
        """Training and held-out rows, int64 each: documents are dealt out as rows of a table are (split_rows)."""
        sides = split_rows(self.text.offsets.size - 1, held_out, seed, site)
        self._parts = [Windows(self.text.offsets, documents, self.context) for documents in sides]
        training, every = len(self._parts[0]), len(self)
        return np.arange(training, dtype=np.int64), np.arange(training, every, dtype=np.int64)

    @property
    def measure_rows(self) -> int:
        """So many windows at once that their logits have at most 2^24 numbers."""
        return max(1, _MEASURED_LOGITS // (self.context * self._vocabulary))

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __getitem__(self, row: int) -> Batch:
        x, y, nbytes = self.rows(np.array([row], dtype=np.int64))
        return x[0], y[0], nbytes[0]

    def rows(self, rows: NDArray[np.int64]) -> Batch:
        """A batch at once: x and y int64 [m, context], bytes int64 [m]."""
        tokens = np.zeros((rows.size, self.context + 1), np.int64)
        real = np.zeros_like(tokens, dtype=bool)
        for i, row in enumerate(rows):
            at = 0
            for start, stop in self._ranges(int(row)):
                tokens[i, at : at + stop - start] = self.text.tokens(start, stop)
                at += stop - start
            real[i, :at] = True
        x, y = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        lengths = self.text.token_bytes
        nbytes = np.zeros(rows.size, np.int64) if lengths is None else (lengths[y] * real[:, 1:]).sum(1, dtype=np.int64)
        y[~real[:, 1:]] = NOT_PREDICTED
        return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(nbytes)

    def _ranges(self, row: int) -> list[tuple[int, int]]:
        first = len(self._parts[0])
        return self._parts[0].parts(row) if row < first else self._parts[1].parts(row - first)


def text_loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Nats of the tokens y [m, context] by logits [m, context, vocabulary], over m * context.

    So each token counts the same, in whatever row; of full windows it is the mean over tokens.
    """
    nats = functional.cross_entropy(
        logits.float().flatten(0, 1), y.flatten(), reduction="sum", ignore_index=NOT_PREDICTED
    )
    return nats / y.numel()


def text_sums(logits: torch.Tensor, y: torch.Tensor, nbytes: torch.Tensor) -> dict[str, torch.Tensor]:
    """n, and the sums of nats, tokens and bytes behind loss, perplexity and bits per byte."""
    nats = functional.cross_entropy(
        logits.float().flatten(0, 1), y.flatten(), reduction="none", ignore_index=NOT_PREDICTED
    )
    return {
        "n": torch.tensor(y.shape[0]),
        NATS: nats.double().sum(),
        TOKENS: (y != NOT_PREDICTED).sum(),
        BYTES: nbytes.sum(),
    }
