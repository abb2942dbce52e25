"""A site that missed the end of a round over everyone: what it says it has measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from federation_fakes import FakeSums, Meeting, session_of

from fedhpc.federation.checkpoint import Checkpoint, Tensors
from fedhpc.federation.held_stream import HeldStream
from fedhpc.federation.other_sites import CaughtUp
from fedhpc.federation.party import RoundOverError
from fedhpc.federation.state_tensors import state_arrays
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.rounds.measuring import Measuring
from fedhpc.rounds.null_objects import Silence
from fedhpc.rounds.progress import Progress
from fedhpc.sums.unconnected import NeverAway


class Given(NeverAway):
    """Another site gives its model after five rounds, whose last sum was over all sites."""

    def catch_up(self, state: bytes, round_: int, into: HeldStream) -> CaughtUp:
        arrays = state_arrays({"w": np.ones(3, np.float32)}, {}, None, 5, bytes(32))
        data = np.frombuffer(b"".join(a.tobytes() for a in arrays), np.uint8)
        assert data.size == into.nbytes
        into.mine.write(0, data.size, data)
        return CaughtUp(10, whole=True)


def test_it_counts_its_rows_however_late_its_update_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the sums of other rounds, one without its rows would show how many they are."""
    meeting = Meeting(3, strategy={"weights": "uniform"}, secure={"bound": 8.0})
    party = meeting.session(2).party
    session = session_of(party, FakeSums(meeting, party), Given())
    model = GlobalModel(session, {"w": np.zeros(3, np.float32)})
    summed: list[Tensors] = []
    saved: list[Checkpoint] = []
    monkeypatch.setattr(Measuring, "report_again", lambda self, pending: summed.append(pending))
    trainer: Any = type("Trainer", (), {"private_in_parts": lambda self: ({}, {})})()
    store: Any = type("Store", (), {"save": lambda self, checkpoint: saved.append(checkpoint)})()
    counts = {"n": np.array(26), "positives": np.array(19)}
    # Its update began from the model after three rounds, and was in the sum of the fifth.
    Progress(session, trainer, store, Silence(), model).catch_up(RoundOverError(10, "over"), counts)
    assert model.rounds == 5
    for tensors in (summed[0], saved[0].pending):
        assert {name: int(array) for name, array in tensors.items()} == {"n": 26, "positives": 19}
    assert saved[0].whole
