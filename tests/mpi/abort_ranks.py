"""Fails at one rank in the way CASE says, after writing the time to STAMP. Used by test_abort.py.

abort_ranks.py FEDERATION SITES STAMP RANK CASE
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

import fedhpc
from fedhpc.errors import DataError
from fedhpc.sums.blocks import BlockEngine

federation, sites, stamp, rank, case = sys.argv[1:]
here = os.environ["OMPI_COMM_WORLD_RANK"] == rank


def fail(error: BaseException) -> None:
    Path(stamp).write_text(str(time.time()))
    raise error


def holding_hook(hook: Callable[..., None], *error: object) -> None:
    """What torch.distributed puts around sys.excepthook in every script that uses DDP."""
    kept, sys.stderr = sys.stderr, io.StringIO()
    try:
        hook(*error)
    finally:
        sys.stderr = kept


if case == "before join" and here:
    fail(RuntimeError("the fault before join"))
if case == "configuration before join" and here:
    Path(stamp).write_text(str(time.time()))
    fedhpc.join(federation)

with fedhpc.join(federation, sites=sites) as fed:
    if case == "in a helper thread" and here:
        hide = BlockEngine.hide

        def broken(self: BlockEngine, low: int, high: int) -> np.ndarray:
            if low > 1 << 20:  # far into a long vector: small sums need no helper
                assert threading.current_thread() is not threading.main_thread()
                fail(OSError("the fault in a helper thread"))
            return hide(self, low, high)

        BlockEngine.hide = broken  # type: ignore[method-assign]
    for step in range(10_000):
        if case == "a shorter loop" and fed.site == "bb" and step == 3:
            Path(stamp).write_text(str(time.time()))
            break
        if case == "a refused input" and fed.site == "bb" and step == 3:
            Path(stamp).write_text(str(time.time()))
            if fed.rank == 0:
                with contextlib.suppress(DataError):
                    fed.sum(np.array([np.nan, 4711.0]))
            break
        if here and step == 3:
            if case == "in the loop":
                fail(RuntimeError("the fault in the loop"))
            if case == "keyboard interrupt":
                fail(KeyboardInterrupt())
            if case == "exit 3":
                fail(SystemExit(3))
            if case == "exit with text":
                fail(SystemExit("the fault as a text"))
            if case == "fedhpc error":
                Path(stamp).write_text(str(time.time()))
                fed.sum(np.array([np.nan]))
            if case == "torch's own hook":
                sys.excepthook = partial(holding_hook, sys.excepthook)
                fail(RuntimeError("the fault under torch's hook"))
        fed.sum(np.zeros(400_000 if case == "in a helper thread" else 10))
