from __future__ import annotations

from collections.abc import Iterator

import clusters as pair
import pytest
from clusters import Cluster, Clusters


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """Both clusters, for all tests of the session; skips where they cannot be."""
    reason = pair.why_not()
    if reason:
        pytest.skip(reason)
    both = Clusters()
    yield both
    both.close()


@pytest.fixture
def idle(clusters: Clusters) -> Iterator[Clusters]:
    """Both clusters; what the test leaves in their queues is cancelled, and nodes that it took down are started."""
    yield clusters
    for cluster in clusters:
        cluster.clear()


@pytest.fixture
def alpha(idle: Clusters) -> Cluster:
    """Cluster alpha, with `idle`'s promise."""
    return idle.alpha
