"""What `fedhpc bench sum` may be asked for, looked at as a whole before any process starts or any job waits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.errors import ConfigError
from fedhpc.secure.thresholds import check_degree, choose_thresholds

_OF_A_RELAY = ("latency_ms", "mbit_s", "lost", "patience_s", "folder", "durable")


def ranks_of_sites(given: Mapping[str, Any]) -> list[int]:
    """Of each site, by the values of the command's options. Raises ConfigError."""
    text = given["ranks"]
    if text is None:
        return [given["ranks_per_site"]] * given["sites"]
    words = text.split(",")
    if not (len(words) >= 2 and all(word.isascii() and word.isdigit() and int(word) for word in words)):
        raise ConfigError(f"--ranks {text}", "the number of ranks of each of two or more sites, such as 2,3")
    return [int(word) for word in words]


def check_sum(given: Mapping[str, Any]) -> list[int]:
    """The ranks of each site, where all that the options say goes together. Raises ConfigError, PolicyError."""
    ranks = ranks_of_sites(given)
    rails, chunk_bytes, degree = given["rails"], given["chunk_bytes"], given["degree"]
    if rails != "auto" and not (rails.isascii() and rails.isdigit() and 1 <= int(rails) <= min(ranks)):
        raise ConfigError(f"--rails {rails}", f"auto, or 1 to {min(ranks)}")
    if chunk_bytes % 16:
        raise ConfigError(f"--chunk-bytes {chunk_bytes}", "a multiple of 16")
    thresholds = choose_thresholds(len(ranks), given["colluders"], given["threshold"], accept_two_sites=True)
    if degree:
        check_degree(degree, thresholds)
    if given["exchange"] == "https":
        _check_losses(given, ranks, thresholds.losses)
    elif any(given[name] for name in _OF_A_RELAY):
        raise ConfigError(f"{', '.join(map(_option, _OF_A_RELAY))} are of a relay", "add --exchange https")
    return ranks


def _check_losses(given: Mapping[str, Any], ranks: Sequence[int], allowed: int) -> None:
    lost = given["lost"]
    if lost > allowed:
        raise ConfigError(f"--lost {lost}", f"of {len(ranks)} sites at most {allowed} may be lost")
    if lost and set(ranks) != {1}:
        raise ConfigError("--lost with several ranks at a site", "one rank at each site")
    if given["patience_s"] is not None and not lost:
        raise ConfigError("--patience-s is how long lost sites are waited for", "add --lost 1")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
