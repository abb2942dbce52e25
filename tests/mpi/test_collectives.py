"""The one checked door to MPI: what passes arrives whole, what MPI would add wrongly is refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from harness import mpirun

from fedhpc.errors import DataError, InternalError
from fedhpc.mpi.collectives import SerialGroup


@pytest.mark.mpi
def test_door_on_three_ranks() -> None:
    done = mpirun(3, [Path(__file__).with_name("collectives_ranks.py")], timeout=90).ok()
    assert done.out.count("rank done") == 3


def test_the_serial_group_checks_as_mpi_does() -> None:
    group = SerialGroup("site a")
    array = np.arange(6.0).reshape(2, 3)
    group.sum(array)
    group.broadcast(array)
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert group.gather_bytes(b"x") == [b"x"]
    assert group.broadcast_bytes(b"") == b""
    for bad in (np.ones(2, np.float16), array.T, np.ones(2, ">f4"), [1.0]):
        with pytest.raises(DataError, match="site a, rank 0 of 1"):
            group.sum(bad)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="read-only"):
        group.gather_parts(np.frombuffer(b"abc", np.uint8), [(0, 3)])
    with pytest.raises(InternalError):
        group.broadcast_bytes(None)
