"""`fedhpc bench backends`: what each backend of a site takes, in memory, seconds and processor time."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.bench.given_ranks import require_alone
from fedhpc.bench.start import measure_ranks
from fedhpc.data.tokens import write_tokens

BACKENDS = ("serial", "ddp", "fsdp", "mpi", "horovod")
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Of glibc: what a process has given back is not counted as its memory."""
_CONTEXT = 128
_VOCABULARY = 4096
_WIDTH = 1024
_WIDE_FROM = 10_000_000  # parameters; the first measurements were of such models
_UNEVEN = [2, 3]
_SMALL = {"width": 256, "layers": 4, "heads": 8}  # steps of a tenth of a second and more


def measure(backends: Sequence[str], ranks: int, params: int, steps: int, alternations: int) -> dict[str, Any]:
    """The result for --json: a row for each backend. `params`: about the numbers of the model that is measured.

    `alternations`: of fedhpc's loop and a plain one.
    """
    require_alone()
    tokenizer = hashlib.sha256(b"the benchmark has no tokenizer").hexdigest()
    width, heads = (_WIDTH, 16) if params >= _WIDE_FROM else (_SMALL["width"], _SMALL["heads"])
    layers = max(1, round((params - _VOCABULARY * width) / (12 * width * width)))
    options = {"vocabulary": _VOCABULARY, "tokenizer_sha256": tokenizer, "context": _CONTEXT}
    large = options | {"width": width, "layers": layers, "heads": heads}
    rows = []
    with tempfile.TemporaryDirectory(prefix="fedhpc-bench-") as folder:
        store = Path(folder) / "tokens.h5"
        write_tokens(store, _texts(), vocabulary=_VOCABULARY, tokenizer_sha256=tokenizer)
        summed = _uneven_sum(min(10_000_000, params), min(9, 2 * alternations - 1))
        uneven, versions = summed["sum_uneven_over_even"], summed["versions"]
        for backend in backends:
            count = 1 if backend == "serial" else ranks
            case = {"backend": backend, "ranks": count, "store": str(store), "steps": steps}
            # A round is one step of a window at each rank: memory does not depend on how many.
            memory = {**case, "options": large, "windows": 1, "steps": 1, "alternations": 0}
            speed = {**case, "options": options | _SMALL, "windows": 4, "alternations": alternations}
            found = measure_ranks("fedhpc.bench.backend_ranks", count + 1, memory, MALLOC)
            right = found["verified"]
            found |= measure_ranks("fedhpc.bench.backend_ranks", count, speed, MALLOC)
            for turn in found["repeats"]:
                turn["verified"] = turn["verified"] and right
            row = {"backend": backend, "ranks": count, "sum_uneven_over_even": uneven} | found
            rows.append(row | {"sites": 1, "versions": versions})
    versions["torch"] = version("torch")
    return {"backends": rows, "alternations": alternations, "malloc": MALLOC, "versions": versions}


def _texts() -> Iterator[NDArray[np.int64]]:
    """Documents of random tokens."""
    generator = np.random.Generator(np.random.SFC64(1))
    for _ in range(256):
        yield generator.integers(0, _VOCABULARY, _CONTEXT + 1)


def _uneven_sum(params: int, repeat: int) -> dict[str, Any]:
    case = {"ranks": _UNEVEN, "params": params, "lane_bits": 32, "repeat": repeat, "degree": 0}
    case |= {"chunk_bytes": 16 << 20, "overlap": "auto", "rails": "auto"}
    return measure_ranks("fedhpc.bench.sum_ranks", sum(_UNEVEN), case)
