"""Fails at one rank in the way CASE says, after writing the time to STAMP. Used by test_abort.py.

abort_ranks.py FEDERATION SITES STAMP RANK CASE
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

import fedhpc

federation, sites, stamp, rank, case = sys.argv[1:]
here = os.environ["OMPI_COMM_WORLD_RANK"] == rank


def fail(error: BaseException) -> None:
    Path(stamp).write_text(str(time.time()))
    raise error


if case == "before join" and here:
    fail(RuntimeError("the fault before join"))
if case == "configuration before join" and here:
    Path(stamp).write_text(str(time.time()))
    fedhpc.join(federation)

with fedhpc.join(federation, sites=sites) as fed:
    if case == "in a helper thread" and here:
        from fedhpc.secure import masks

        add = masks.Masks.add

        def broken(self: masks.Masks, lanes: np.ndarray, offset: int) -> None:
            if offset > 1 << 20:  # far into a long vector: small sums need no helper
                assert threading.current_thread() is not threading.main_thread()
                fail(OSError("the fault in a helper thread"))
            add(self, lanes, offset)

        masks.Masks.add = broken  # type: ignore[method-assign, assignment]
    for step in range(10_000):
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
                # What torch.distributed does to sys.excepthook in every script that uses DDP.
                import io

                old = sys.excepthook

                def hook(*args: object) -> None:
                    kept, sys.stderr = sys.stderr, io.StringIO()
                    try:
                        old(*args)  # type: ignore[arg-type]
                    finally:
                        sys.stderr = kept

                sys.excepthook = hook
                fail(RuntimeError("the fault under torch's hook"))
        fed.sum(np.zeros(400_000 if case == "in a helper thread" else 10))
