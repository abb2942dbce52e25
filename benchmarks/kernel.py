"""CPU seconds of check, fingerprint, encoding, three masks and the tag: each compiled path beside Python's.

    python -m benchmarks.kernel [--millions 25] [--turns 7]

Prints one JSON line for each path and kind. Turns alternate between the two, in one process and one thread. Python's
AES is OpenSSL's, which takes the best instructions the CPU has: for an honest comparison of `aesni` they are hidden
from it by OPENSSL_ia32cap=":~0x600d0230000" in the environment, and the line says so.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.kernel.calls import Kernel, Keys, Place, Span
from fedhpc.kernel.extension import load
from fedhpc.secure.ledger import FINGERPRINT_BLOCK_BYTES, fingerprint_block
from fedhpc.secure.masks import Masks
from fedhpc.secure.ring import Codec, Layout, Tensor, lane_bound, scale_for
from fedhpc.secure.tag import Tag, Tagger

SITES = 4
EDGES = [(bytes([i]) * 32, 1 if i % 2 else -1) for i in range(3)]
TAG_KEY, BLOCK_KEY = b"t" * 32, b"b" * 32
HIDDEN_FROM_OPENSSL = "OPENSSL_ia32cap"

Once = Callable[[NDArray[np.uint8], NDArray[np.uint8]], tuple[list[bytes], Tag]]


def python(layout: Layout) -> Once:
    codec, masks, tagger = Codec(SITES, "site"), Masks(EDGES), Tagger(TAG_KEY)

    def once(values: NDArray[np.uint8], window: NDArray[np.uint8]) -> tuple[list[bytes], Tag]:
        tags, tag = [], Tag()
        for start in range(0, values.size, FINGERPRINT_BLOCK_BYTES):
            block = values[start : start + FINGERPRINT_BLOCK_BYTES]
            for piece in layout.pieces(start, start + block.size):
                codec.check(piece.values_in(values), piece)
            tags.append(fingerprint_block(BLOCK_KEY, start // FINGERPRINT_BLOCK_BYTES, block))
        for start in range(0, values.size, FINGERPRINT_BLOCK_BYTES):
            stop = min(start + FINGERPRINT_BLOCK_BYTES, values.size)
            lanes = window[: stop - start]
            pieces = layout.pieces(start, stop)
            for piece in pieces:
                codec.encode(piece.values_in(values), piece.lanes_in(lanes, start), piece)
            tag = tag + tagger.of(lanes, pieces, start)
            for piece in pieces:
                masks.add(piece.lanes_in(lanes, start), piece.start)
        return tags, tag

    return once


def compiled(layout: Layout, kernel: Kernel) -> Once:
    key, keys = kernel.gmac_key(BLOCK_KEY), Keys(kernel.streams(EDGES), kernel.streams([(TAG_KEY, 1)]))
    factor = 2.0 ** layout.tensors[0].scale
    bound = lane_bound(layout.tensors[0].bits, SITES)

    def once(values: NDArray[np.uint8], window: NDArray[np.uint8]) -> tuple[list[bytes], Tag]:
        tags, tag = [], Tag()
        for start in range(0, values.size, FINGERPRINT_BLOCK_BYTES):
            block = values[start : start + FINGERPRINT_BLOCK_BYTES]
            found = kernel.inspect(
                block, [Span(0, block.size, layout.tensors[0].kind)], key, start // FINGERPRINT_BLOCK_BYTES
            )
            if not found.largest[0] * factor <= bound:
                raise ValueError("beyond the bound")
            tags.append(found.tag)
        for start in range(0, values.size, FINGERPRINT_BLOCK_BYTES):
            stop = min(start + FINGERPRINT_BLOCK_BYTES, values.size)
            lanes = window[: stop - start]
            for piece in layout.pieces(start, stop):
                place = Place(piece.start, piece.lane_number)
                parts = kernel.hide(piece.values_in(values), piece.lanes_in(lanes, start), factor, place, keys)
                tag = tag + Tag(*parts)
        return tags, tag

    return once


def measure(name: str, kind: str, numbers: int, turns: int) -> dict[str, Any]:
    bits = 32 if kind == "float32" else 64
    layout = Layout([Tensor("x", kind, (numbers,), scale_for(1.0, bits, SITES))])
    values = np.random.default_rng(1).uniform(-1, 1, numbers).astype(kind).view(np.uint8)
    window = np.zeros(FINGERPRINT_BLOCK_BYTES, np.uint8)
    extension = load()
    assert extension is not None
    both = {"python": python(layout), name: compiled(layout, Kernel(extension, name))}
    seconds: dict[str, list[float]] = {which: [] for which in both}
    answers = {which: (once(values, window), window.tobytes()) for which, once in both.items()}
    assert answers["python"] == answers[name]
    for _ in range(turns):
        for which, once in both.items():
            begun = time.process_time()
            once(values, window)
            seconds[which].append(time.process_time() - begun)
    ratios = [new / old for new, old in zip(seconds[name], seconds["python"], strict=True)]
    return {
        "kernel": name,
        "kind": kind,
        "numbers": numbers,
        "ratio": round(statistics.median(ratios), 3),
        "cpu_new_s": [round(min(seconds[name]), 4), round(statistics.median(seconds[name]), 4)],
        "cpu_old_s": [round(min(seconds["python"]), 4), round(statistics.median(seconds["python"]), 4)],
        "gigabytes_per_second": round(values.size / min(seconds[name]) / 1e9, 2),
        "openssl_hides": os.environ.get(HIDDEN_FROM_OPENSSL, ""),
        "cpu_flags": list(extension.FLAGS.split()),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=25)
    parser.add_argument("--turns", type=int, default=7)
    asked = parser.parse_args()
    extension = load()
    if extension is None or not extension.PATHS.split():
        raise SystemExit("no compiled path runs here")
    for name in extension.PATHS.split():
        for kind in ("float32", "float64"):
            print(json.dumps(measure(name, kind, int(asked.millions * 1e6), asked.turns)), flush=True)


if __name__ == "__main__":
    main()
