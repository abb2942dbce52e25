"""fedhpc: federated training of PyTorch models across supercomputers, with masked sums.

    import fedhpc
    with fedhpc.join("federation.toml", sites="sites/") as fed:
        total = fed.sum({"n": counts, "xtx": gram})

Importing this package imports neither MPI nor torch; `join` initialises MPI, and sums never import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Federation", "FedhpcError", "Sums", "__version__", "join", "site_backend"]

if TYPE_CHECKING:
    from fedhpc.app.federation import Federation, site_backend
    from fedhpc.app.join import join
    from fedhpc.errors import FedhpcError
    from fedhpc.federation.sum_result import Sums

_HOMES = {
    "Federation": "fedhpc.app.federation",
    "FedhpcError": "fedhpc.errors",
    "Sums": "fedhpc.federation.sum_result",
    "join": "fedhpc.app.join",
    "site_backend": "fedhpc.app.federation",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fedhpc' has no attribute '{name}'")
