"""The ways that this machine can hide vectors: Python's, and every compiled kernel that was built and its CPU runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fedhpc.kernel.calls import Kernel
from fedhpc.kernel.choice import PYTHON
from fedhpc.kernel.extension import load
from fedhpc.secure import one_pass

_extension = load()
PATHS: tuple[str, ...] = (PYTHON, *([] if _extension is None else _extension.PATHS.split()))


@contextmanager
def hiding_by(path: str) -> Iterator[None]:
    """All of this process, one of PATHS."""
    made = None if path == PYTHON or _extension is None else Kernel(_extension, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_pass, "kernel", lambda: made)
        yield
