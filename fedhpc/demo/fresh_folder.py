"""Where a demo writes."""

from __future__ import annotations

import itertools
from pathlib import Path

from fedhpc.errors import ConfigError


def fresh_folder(out: Path | None, name: str) -> Path:
    """The directory to write to: `out`, or the first free runs/NAME-N. Raises ConfigError if `out` has a federation."""
    if out is not None:
        if (out / "federation.toml").exists():
            raise ConfigError(f"{out} holds a federation already", "choose another --out")
        return out
    return next(path for n in itertools.count(1) if not (path := Path(f"runs/{name}-{n}")).exists())
