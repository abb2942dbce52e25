"""What the serial backend keeps of a model."""

from __future__ import annotations

import gc
import weakref

import torch

from fedhpc.train.backends.serial import SerialBackend


def test_a_model_that_nobody_uses_any_more_is_not_kept() -> None:
    backend = SerialBackend(torch.device("cpu"))
    first, second = torch.nn.Linear(3, 1), torch.nn.Linear(2, 1)
    for model in (first, second):
        assert backend.wrap(model) is model
        model.weight.grad = torch.zeros_like(model.weight)
    assert backend.unreached(first) == backend.unreached(second) == ["bias"], "two at a time, too"
    gone = weakref.ref(first)
    del first, model
    gc.collect()
    assert gone() is None
    assert backend.unreached(second) == ["bias"]
