"""Compares the features of a site's store with those that the federation agreed on."""

from __future__ import annotations

from pathlib import Path

from fedhpc.data.schema import FeatureSet
from fedhpc.errors import ConfigError, DataError
from fedhpc.train.settings import TaskSettings


def require_features(task: TaskSettings, features: FeatureSet | None, data: Path, site: str) -> None:
    """Raises DataError if the `features` of the store `data` are not those of task.features_sha256, where it is given.

    Raises ConfigError if it is given and the task's dataset does not say what its columns are.
    """
    if not task.features_sha256:
        return
    if features is None:
        raise ConfigError(
            "task.features_sha256 is given, and the task's dataset has no `store` to compare it with",
            "a task of your own checks its features itself: remove the key",
        )
    if features.sha256 != task.features_sha256:
        raise DataError(
            f"site {site}: {data} holds other features than the federation agreed on "
            f"({features.sha256[:16]}…, not {task.features_sha256[:16]}…)",
            "names, units, codings and their order must be equal; ingest the source again with the agreed list",
        )


def require_same_features(features: FeatureSet | None, others: FeatureSet | None, place: Path, site: str) -> None:
    """Raises DataError if the store at `place` has other features than the site's store of training."""
    if features is not None and others is not None and features.sha256 != others.sha256:
        raise DataError(
            f"site {site}: {place} holds other features than the site's store of training",
            "ingest both with the same recipe",
        )
