"""A site's test rows: a store of its own that neither training nor the choice of a round ever looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.data.recipe import ROW_NUMBER
from fedhpc.data.store import SiteStore
from fedhpc.errors import ConfigError, DataError
from fedhpc.train.settings import TaskSettings


def require_agreed(task: TaskSettings, test: Path | None, site: str) -> None:
    """Raises ConfigError where the federation tests the final model and the site has no test rows, or the reverse."""
    if task.test and test is None:
        raise ConfigError(
            f"site {site}: the federation measures the final model on test rows, and the site file names none",
            "set test in [data], a store beside that of training",
        )
    if test is not None and not task.test:
        raise ConfigError(
            f"site {site}: [data] test is given, and federation.toml does not say that the sites test",
            "set test = true in [task], at all sites, or remove the key",
        )


def refuse_shared_rows(store: Any, test: Any, site: str) -> None:
    """DataError if a row is in both stores, by the identifiers that both have of their source's rows."""
    if not isinstance(store, SiteStore) or not isinstance(test, SiteStore):
        return  # a task's own data sets, which say nothing of where a row comes from
    if any(one.facts["row_ids_from"] == ROW_NUMBER for one in (store, test)):
        return  # of rows that are counted in their file nobody knows whether they are the same
    ids, tested = (np.ascontiguousarray(one.row_ids()).view("V32")[:, 0] for one in (store, test))
    both = np.intersect1d(ids, tested).size
    if both:
        raise DataError(
            f"site {site}: {both} rows of the test store are rows of the store of training too",
            "a model is tested on rows that it has never seen: ingest them apart",
        )
