"""Classes of sums, as the ledger counts them."""

from __future__ import annotations

from fedhpc.secure import labels

_CLASSES = frozenset(value for name, value in vars(labels).items() if name.startswith("CLASS_"))
_STANDARDISE = "standardise."


def class_of(name: str | None) -> str:
    """The ledger's class of a statistic that is called `name`; None or empty: it has no name."""
    if not name:
        return labels.CLASS_UNNAMED
    if name == labels.PURPOSE_WEIGHTS or name.startswith(("weights of ", "weights ")):
        return labels.CLASS_WEIGHTS
    if name.startswith(_STANDARDISE):
        return labels.CLASS_STANDARDISE
    return f"statistic {name}" if name in _CLASSES else name
