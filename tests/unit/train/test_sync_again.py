"""`fed.sync` in a script that starts again from what it saved."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from federation_fakes import Meeting

from fedhpc.app.federation import Federation
from fedhpc.errors import ConfigError
from fedhpc.federation.session import Session
from fedhpc.rounds.global_model import GlobalModel
from fedhpc.secure.salt import NO_BLIND

torch = pytest.importorskip("torch")


def test_a_second_model_after_a_restart_is_as_hidden_as_without_one() -> None:
    """The second model begins from the first one, which nobody outside may try out from a state's hash."""

    def model() -> Any:
        made = torch.nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            made.weight.fill_(0.5)
        return made

    def trained(session: Session) -> tuple[dict[str, Any], bytes, bytes]:
        first = model()
        sync = Federation(session).sync(first, every=1, weight=1)
        with torch.no_grad():
            first.weight -= 0.25 * session.party.number
        assert sync.step()
        second = Federation(session).sync(first, every=1, weight=1)
        return sync.state_dict(), second._global.blind, session.state

    def again(session: Session) -> tuple[bytes, bytes]:
        first = model()
        sync = Federation(session).sync(first, every=1, weight=1)
        sync.load_state_dict(saved[session.party.number])
        second = Federation(session).sync(first, every=1, weight=1)
        return second._global.blind, session.state

    sections: Any = {"strategy": {"weights": "uniform"}, "secure": {"bound": 2.0}}
    found = Meeting(3, **sections).run(trained)
    saved = {u: one[0] for u, one in found.items()}
    for u, (blind, state) in Meeting(3, **sections).run(again).items():
        assert NO_BLIND != blind == found[u][1]
        assert state == found[u][2]


def test_one_site_alone_saves_and_loads() -> None:
    session = Meeting(1, strategy={"weights": "uniform"}).session(1)
    sync = Federation(session).sync(torch.nn.Linear(1, 1), every=1, weight=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # tensors and NumPy do not agree on `copy`
        sync.load_state_dict(sync.state_dict())
        sync.load_state_dict({n: np.asarray(v) for n, v in sync.state_dict().items()})
    assert isinstance(sync._global, GlobalModel)


def test_a_model_in_parts_is_refused() -> None:
    class DTensor(torch.Tensor):  # type: ignore[misc, name-defined]
        pass

    model = torch.nn.Linear(1, 1)
    model.register_buffer("part", torch.ones(2).as_subclass(DTensor))
    session = Meeting(1, strategy={"weights": "uniform"}).session(1)
    with pytest.raises(ConfigError, match="the model's part is a DTensor"):
        Federation(session).sync(model, every=1, weight=1)
