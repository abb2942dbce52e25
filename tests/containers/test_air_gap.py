"""containers/cpu.def behind an air gap: no network in %post, wheels from a folder, Debian packages in the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import root_fs
from built_image import BuiltImage
from charliecloud import NOBODY, TEST, run_image
from clusters import Cluster
from harness import ROOT
from jobs_inside import PYTHON, job
from pip_settings import Settings

Build = Callable[..., BuiltImage]
PACKAGES = ("python3", "python3-venv")


@pytest.fixture(scope="module")
def wheelhouse(pip: Settings, workshop: Path) -> Path:
    """Filled where there is a network, by the line of containers/README.md."""
    line = "-m pip download --dest wheelhouse --extra-index-url URL -r containers/pins.txt"
    assert line in (ROOT / "containers" / "README.md").read_text()
    words = (
        line.replace("--extra-index-url URL ", "")
        .replace("--dest wheelhouse", "--dest /wheelhouse")
        .replace(" containers/", " /source/containers/")
        .split()
    )
    folder, root, log = workshop / "wheelhouse", workshop / "with-network", workshop / "wheelhouse.log"
    folder.mkdir()
    root_fs.debian(root, root_fs.sources()[0][1], PACKAGES)
    binds = {**pip.binds, pip.file: "/run/pip.conf", folder: "/wheelhouse", ROOT: "/source"}
    root_fs.run_within(root, ["python3", "-m", "venv", "/opt/pip"], env={}, log=log)
    env = {"PIP_CONFIG_FILE": "/run/pip.conf"}
    root_fs.run_within(root, ["/opt/pip/bin/python", *words], env=env, log=log, binds=binds)
    return folder


def test_it_is_built_without_a_network(
    image_of: Build, wheelhouse: Path, alpha: Cluster, tmp_path: Path, record_property: Any
) -> None:
    """With MPICH, of the other ABI family: it starts by its own launcher, and not under an srun that speaks PMIx."""
    given = {"WHEELHOUSE": "/mnt", "MPI": "mpich"}
    how = {"binds": {wheelhouse: "/mnt"}, "include": PACKAGES, "network": False}
    image = image_of("cpu.def", "air-gap", **how, **given)
    tested = run_image(image.root, TEST, user=NOBODY, timeout=300).ok()
    assert "MPICH Version" in tested.out
    log = tmp_path / "pmix.out"
    ended = job(
        alpha, log, image.root, PYTHON, "-c", "from mpi4py import MPI; print(MPI.COMM_WORLD.Get_size())", tasks=2
    )
    assert ended.state == "FAILED", log.read_text()
    assert "unsupported PMI version PMIx" in log.read_text()
    record_property("air gap", {"wheels": len(list(wheelhouse.iterdir())), "mpi": "mpich"})


def test_there_is_no_network_in_that_build(workshop: Path) -> None:
    """What the test above is worth."""
    root = workshop / "no-network"
    root_fs.debian(root, root_fs.sources()[0][1], PACKAGES)
    dial = "import socket; socket.create_connection(('10.0.0.1', 80), 5)"
    with pytest.raises(AssertionError, match="Network is unreachable"):
        root_fs.run_within(root, ["python3", "-c", dial], env={}, log=workshop / "no-network.log", network=False)
