"""How long a site's rounds took in earlier jobs, and whether it has finished: both read from its run directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedhpc.app.telemetry import METRICS_FILE
from fedhpc.files import write_whole

FINISHED_FILE = "finished.json"
_MOST_BYTES = 1 << 20  # of the end of the metrics


@dataclass(frozen=True)
class Finished:
    """What a site ended with."""

    config: str  # SHA-256 of federation.toml, hex
    model_sha256: str
    round: int  # training rounds done
    metrics: Mapping[str, float | None]


def round_seconds(site_directory: Path) -> list[float]:
    """Seconds of the newest rounds, each without the time spent waiting for others; [] if nothing is known."""
    try:
        with open(site_directory / METRICS_FILE, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - _MOST_BYTES))
            lines = file.read(_MOST_BYTES).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            seconds = json.loads(line)["seconds"]
            found.append(max(0.0, float(seconds["total"]) - float(seconds.get("agree", 0.0))))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # the final metrics, or a line that a kill has cut off
    return found


def keep_finished(site_directory: Path, finished: Finished) -> None:
    """Remember that the federation's rounds are done. Raises StorageError."""
    write_whole(site_directory / FINISHED_FILE, json.dumps(vars(finished), sort_keys=True).encode() + b"\n", mode=0o600)


def finished(site_directory: Path, config: bytes) -> Finished | None:
    """What this site ended with, if it has finished the federation of hash `config` [32]."""
    try:
        with open(site_directory / FINISHED_FILE, "rb") as file:
            value = json.loads(file.read(_MOST_BYTES))
        found = Finished(str(value["config"]), str(value["model_sha256"]), int(value["round"]), dict(value["metrics"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if found.config == config.hex() else None
