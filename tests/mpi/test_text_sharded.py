"""A transformer with rows of each parameter at each rank: the same first bits, training and metrics as on one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from harness import mpirun

from fedhpc.data.tokens import write_tokens

pytestmark = pytest.mark.mpi


def test_a_sharded_transformer_is_the_same_model(tmp_path: Path) -> None:
    documents = (np.arange(i, i + 3 + i % 5) % 9 for i in range(40))
    write_tokens(tmp_path / "a.h5", documents, vocabulary=9, tokenizer_sha256="ef" * 32)
    mpirun(2, [Path(__file__).with_name("text_ranks.py"), tmp_path / "a.h5"], timeout=240, warm=True).ok()
