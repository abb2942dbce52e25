"""A site of several ranks takes a model from another site: each rank gets its part, and a lie costs another try."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from thread_ranks import run_ranks

from fedhpc.errors import PeersError, PolicyError
from fedhpc.federation import held_stream
from fedhpc.federation.held_stream import HeldStream, joined
from fedhpc.federation.ranges import Held, forms_of
from fedhpc.secure.settings import SecureSettings
from fedhpc.secure.suite import SHA256
from fedhpc.sums.over_relay import recovery
from fedhpc.sums.over_relay.recovery import RelayRecovery

TENSORS = {"a": np.arange(40, dtype=np.float32), "b": np.arange(9.0)}
DATA = b"".join(t.tobytes() for t in TENSORS.values())


def party_of(site: Any) -> Any:
    agreement = SimpleNamespace(hash=b"c" * 32, cohort=SimpleNamespace(deadline_s=1.0), secure=SecureSettings())
    return SimpleNamespace(site=site, agreement=agreement, members=(1, 2, 3), identity="key")


def lead() -> Any:
    """Of which the recovery asks little here."""
    done = SimpleNamespace(keep_proof=lambda *a: None, reached=lambda *a: None)
    return SimpleNamespace(exchange=None, thresholds=None, finished=done, states=done, files=None)


def test_each_rank_gets_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_stream, "WINDOW_BYTES", 48)
    monkeypatch.setattr(recovery, "StandingAside", lambda *a: SimpleNamespace(look=lambda: False))
    monkeypatch.setattr(recovery, "release_input", lambda *a: None)
    tries: list[Any] = []

    def take(known: Any, exchange: Any, key: Any, state: bytes, round_: int, s: float, receive: Any, look: Any) -> Any:
        assert known.nbytes == len(DATA)

        def lies(start: int, stop: int, into: Any) -> None:
            into[:] = 7
            if start >= 96:
                raise PolicyError("site 1 did not give block 2")

        with pytest.raises(PolicyError, match="block 2"):
            receive(lies)
        tries.append(receive(joined(list(TENSORS.values())).read))
        return SimpleNamespace(round_=8, state=b"", settled=SimpleNamespace(proof=(), u3=(1, 2, 3)))

    monkeypatch.setattr(recovery, "take", take)

    def work(site: Any) -> tuple[Any, dict[str, Any]]:
        held = Held(site, forms_of(TENSORS), [(0, 17), (17, 17), (17, 49)])
        into = held.empty()
        found = RelayRecovery(party_of(site), lead() if site.rank == 0 else None)
        caught = found.catch_up(b"", 4, HeldStream(held, list(into.items())))
        for name, piece in held.pieces(TENSORS).items():
            assert into[name].tobytes() == piece.tobytes()
        return caught.round_, caught.whole

    assert run_ranks(3, work) == [(8, True)] * 3
    assert tries == [SHA256.tree(DATA)]


def test_nobody_gives_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "StandingAside", lambda *a: SimpleNamespace(look=lambda: False))

    def take(*arguments: Any) -> Any:
        raise PeersError("no other site gave its model")

    monkeypatch.setattr(recovery, "take", take)

    def work(site: Any) -> None:
        held = Held(site, forms_of(TENSORS))
        stream = HeldStream(held, list(held.empty().items()))
        with pytest.raises(PeersError, match="no other site"):
            RelayRecovery(party_of(site), lead()).catch_up(b"", 4, stream)

    run_ranks(1, work)
