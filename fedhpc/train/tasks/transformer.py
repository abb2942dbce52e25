"""A decoder-only transformer that predicts the next token of a text, on a site's token store.

Options: `vocabulary` and `tokenizer_sha256`, which `fedhpc data tokenize` prints; `context`, tokens of a window (128);
`width` (128), `layers` (4) and `heads` (4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from fedhpc.config import read_section
from fedhpc.data.tokens import LARGEST_VOCABULARY
from fedhpc.errors import ConfigError
from fedhpc.train.tasks.texts import Batch, TextDataset, text_loss, text_sums

_SHA256 = re.compile(r"[0-9a-f]{64}")
_STD = 0.02  # the standard deviation of first weights, as GPT-2's


@dataclass(frozen=True)
class _Options:
    vocabulary: int
    tokenizer_sha256: str
    context: int = 128
    width: int = 128
    layers: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        if min(self.context, self.width, self.layers, self.heads) < 1:
            raise ConfigError("task.options: context, width, layers and heads must be 1 or more")
        if not 2 <= self.vocabulary <= LARGEST_VOCABULARY:
            raise ConfigError(f"task.options.vocabulary = {self.vocabulary} must be 2 to {LARGEST_VOCABULARY}")
        if self.width % self.heads:
            raise ConfigError(
                f"task.options.heads = {self.heads} does not divide width = {self.width}",
                "each head has width / heads numbers",
            )
        if not _SHA256.fullmatch(self.tokenizer_sha256):
            raise ConfigError(
                "task.options.tokenizer_sha256 is not a SHA-256", "`sha256sum tokenizer.json`, or `fedhpc data check`"
            )


class Block(torch.nn.Module):
    """Causal self-attention, then a perceptron of four times the width; each after a LayerNorm, and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = torch.nn.LayerNorm(width)
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.attention_out = torch.nn.Linear(width, width)
        self.mlp_norm = torch.nn.LayerNorm(width)
        self.mlp_in = torch.nn.Linear(width, 4 * width)
        self.mlp_out = torch.nn.Linear(4 * width, width)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """[m, t, width] of h [m, t, width]."""
        m, t, width = h.shape
        heads = self.qkv(self.attention_norm(h)).view(m, t, 3, self.heads, width // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # [m, heads, t, width / heads] each
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.attention_out(seen.transpose(1, 2).reshape(m, t, width))
        return h + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(h))))  # type: ignore[no-any-return]


class Transformer(torch.nn.Module):
    """Embeddings of tokens and learned positions, blocks, a LayerNorm, and the embedding again as the head."""

    def __init__(self, options: _Options) -> None:
        super().__init__()
        self.tokens = torch.nn.Embedding(options.vocabulary, options.width)
        self.positions = torch.nn.Embedding(options.context, options.width)
        self.blocks = torch.nn.ModuleList(Block(options.width, options.heads) for _ in range(options.layers))
        self.norm = torch.nn.LayerNorm(options.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [m, t, vocabulary] of the tokens after x int64 [m, t], t up to context."""
        h = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return functional.linear(self.norm(h), self.tokens.weight)


def fill(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """The first value of the parameter `name`, float32 of `shape`. Each block begins as the identity."""
    if "norm" in name:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    if name.endswith("bias") or "_out." in name:
        return torch.zeros(shape)
    # Not normal: torch's draws of that differ in the last bits between kinds of CPU, and all sites begin alike.
    most = _STD * 3**0.5
    return torch.empty(shape).uniform_(-most, most, generator=generator)


def model(options: dict[str, Any]) -> torch.nn.Module:
    """The model for `options`; `fill` gives its first values."""
    return Transformer(read_section(_Options, options, "task.options"))


def dataset(path: Path, options: dict[str, Any]) -> TextDataset:
    """The site's token store at `path`."""
    read = read_section(_Options, options, "task.options")
    return TextDataset(path, read.context, read.vocabulary, read.tokenizer_sha256)


def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Nats for each token of the windows."""
    x, y, _ = batch
    return text_loss(model(x), y)


def sums(model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    """n, and the sums of nats, tokens and bytes."""
    x, y, nbytes = batch
    return text_sums(model(x), y, nbytes)
