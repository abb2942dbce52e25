"""Facts about a store that do not reveal what is in it.

Counts, names, hashes and licences describe a store. The smallest and largest value of a feature are the values of
two persons, so they are given only on request.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedhpc.data.schema import compare_features
from fedhpc.data.store import SCHEMA_VERSION, SiteStore
from fedhpc.data.tokens import FORMAT, TokenStore

__all__ = ["compare_features", "compare_tokenizers", "describe", "describe_tokens"]

MOST_CLASSES = 20
FEW = 5  # rows of a class that are only said to be few
_BLOCK_BYTES = 16 << 20


def describe(store: SiteStore, *, values: bool = False) -> dict[str, Any]:
    """Facts about a validated store, ready for JSON. `values` adds each feature's min and max, which are data."""
    label = store.feature_set.label
    features: list[dict[str, Any]] = [
        # A store with missing values cannot be opened, so this is a fact and not a count.
        {"name": f.name, "unit": f.unit, "coding": f.coding, "missing": 0}
        for f in store.feature_set.features
    ]
    if values:
        for feature, low, high in zip(features, *_ranges(store), strict=True):
            feature["min"], feature["max"] = low, high
    return {
        "path": str(store.path),
        "schema_version": SCHEMA_VERSION,
        "site": store.site,
        "n": store.n,
        "row_shape": list(store.feature_set.row_shape),
        "features": features,
        "label": {"name": label.name, "dtype": label.dtype, "unit": label.unit, "coding": label.coding},
        "classes": _classes(store),
        "feature_sha256": store.feature_sha256,
        **store.facts,
    }


def _classes(store: SiteStore) -> dict[str, int] | None:
    """Rows of each class; None where the label is a number, or has more than MOST_CLASSES values."""
    if store.feature_set.label.dtype != "int64":
        return None
    values, counts = np.unique(store.labels(), return_counts=True)
    if values.size > MOST_CLASSES:
        return None
    return {str(int(value)): int(count) for value, count in zip(values, counts, strict=True)}


def describe_tokens(store: TokenStore) -> dict[str, Any]:
    """Facts about a validated token store, ready for JSON."""
    return {
        "path": str(store.path),
        "format": FORMAT,
        "documents": store.offsets.size - 1,
        "tokens": store.n,
        "vocabulary": store.vocabulary,
        "tokenizer_sha256": store.tokenizer_sha256,
        "token_bytes": store.token_bytes is not None,
    }


def compare_tokenizers(first: TokenStore, second: TokenStore) -> list[str]:
    """What differs of two stores that are to be trained on together, a line each."""
    lines = []
    if first.tokenizer_sha256 != second.tokenizer_sha256:
        lines.append(f"tokenizer_sha256 {first.tokenizer_sha256[:16]}… and {second.tokenizer_sha256[:16]}…")
    if first.vocabulary != second.vocabulary:
        lines.append(f"vocabulary {first.vocabulary} and {second.vocabulary}")
    return lines


def _ranges(store: SiteStore) -> tuple[list[float | None], list[float | None]]:
    """Per feature, the smallest and the largest value; None where there are no rows."""
    shape = store.feature_set.row_shape
    low, high = np.full(shape[0], np.inf), np.full(shape[0], -np.inf)
    step = max(1, _BLOCK_BYTES // (4 * math.prod(shape)))
    for start in range(0, store.n, step):
        block = store.features(slice(start, start + step))
        block = block.reshape(len(block), shape[0], -1)
        low = np.minimum(low, block.min(axis=(0, 2)))
        high = np.maximum(high, block.max(axis=(0, 2)))
    if not store.n:
        return [None] * shape[0], [None] * shape[0]
    return low.tolist(), high.tolist()
