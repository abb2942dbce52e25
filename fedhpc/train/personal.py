"""Personal tensors: parts of the model that each site trains for itself and never sends.

Layers that suit a site's own scanner or population, such as a last layer (FedPer, Arivazhagan et al. 2019,
arXiv:1912.00818) or the batch norms (FedBN, Li et al. 2021, arXiv:2102.07623). They begin alike at all sites, lie in
the site's checkpoints beside its optimiser, and are in no sum and no hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fedhpc.errors import ConfigError
from fedhpc.train.state import PERSONAL, floating

BATCH_NORM = "batchnorm"
"""In place of a pattern: whatever a batch norm has."""
_SHOWN = 8


def mark_personal(model: torch.nn.Module, patterns: Sequence[str]) -> None:
    """From now on the floating tensors of `model` that match `patterns` count as this site's own.

    A pattern is a tensor's name, in which `*` stands for anything and `?` for a character, or BATCH_NORM. Raises
    ConfigError if one matches nothing, or if nothing would be left to share.
    """
    names = list(floating(model))
    norms = [f"{place}." for place, module in model.named_modules() if isinstance(module, _BatchNorm) and place]
    found: set[str] = set()
    for pattern in patterns:
        if pattern == BATCH_NORM:
            matching = {name for name in names if name.startswith(tuple(norms))}
        else:
            matching = {name for name in names if fnmatchcase(name, pattern)}
        if not matching:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise ConfigError(
                f"train.personal: nothing in the model is called {pattern!r}",
                f"it has {', '.join(names[:_SHOWN])}{more}; * stands for any characters",
            )
        found |= matching
    if found == set(names):
        raise ConfigError("train.personal leaves nothing to share between the sites", "name fewer tensors")
    setattr(model, PERSONAL, frozenset(found))
