"""Images, built once for a session, and the Slurm clusters that run them. Nothing is skipped: what is missing fails."""

from __future__ import annotations

import fcntl
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "slurm"))

import charliecloud
import clusters as pair
import pip_settings
import root_fs
from built_image import BuiltImage, build
from clusters import Cluster, Clusters
from definition import read_definition
from harness import FEDHPC, ROOT, call

_PREFIX = "fedhpc-containers-"


@pytest.fixture(scope="session")
def workshop() -> Iterator[Path]:
    """Where images are built; removed at the end. What sessions that were killed have left goes, too."""
    reasons = [why for why in (root_fs.why_not(), charliecloud.why_not()) if why]
    assert not reasons, "; ".join(reasons)
    for left in Path("/tmp").glob(f"{_PREFIX}*"):
        with (left / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
    folder.chmod(0o755)  # others start the images, too
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


Build = Callable[..., BuiltImage]


@pytest.fixture(scope="session")
def pip(workshop: Path) -> pip_settings.Settings:
    """Where packages come from here; what is downloaded is kept in the user's cache."""
    return pip_settings.here(workshop / "pip.conf", root_fs.cache_folder() / "pip")


@pytest.fixture(scope="session")
def image_of(workshop: Path, pip: pip_settings.Settings) -> Build:
    """Builds a definition of containers/ with arguments, as `apptainer build --build-arg` takes them."""

    def make(
        name: str,
        folder: str,
        *,
        binds: Mapping[Path, str] | None = None,
        include: Sequence[str] = (),
        network: bool = True,
        **arguments: str,
    ) -> BuiltImage:
        # Behind an air gap a build knows nothing of this machine's indexes, which may be folders.
        given, whole = ({"PIP_CONF": str(pip.file)}, pip.binds) if network else ({}, {})
        definition = read_definition((ROOT / "containers" / name).read_text(), {**given, **arguments})
        whole = {**whole, **(binds or {})}
        return build(definition, workshop / folder, binds=whole, include=include, network=network)

    return make


@pytest.fixture(scope="session")
def cpu(image_of: Build) -> BuiltImage:
    """containers/cpu.def as it is, with Open MPI inside."""
    return image_of("cpu.def", "cpu")


@pytest.fixture(scope="session")
def demo_hash(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the model that `make demo` ends with on this machine, outside of any image."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    done = call([*FEDHPC, "demo", "heart", "--splits", "1", "--out", out, "--json"], timeout=300).ok()
    return str(json.loads(done.out.splitlines()[-1])["final_model_sha256"])


@pytest.fixture(scope="session")
def clusters() -> Iterator[Clusters]:
    """Two Slurm clusters (tests/slurm)."""
    reason = pair.why_not()
    assert not reason, reason
    both = Clusters()
    yield both
    both.close()


@pytest.fixture
def alpha(clusters: Clusters) -> Iterator[Cluster]:
    """One of them, idle again after the test."""
    yield clusters.alpha
    clusters.alpha.clear()
