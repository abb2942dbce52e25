"""containers/cpu.def behind an air gap: no network in %post, wheels from a folder, Debian packages in the base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import root_fs
from built_image import BuiltImage
from charliecloud import NOBODY, TEST, run_image

Build = Callable[..., BuiltImage]
WHEELHOUSE = "/wheelhouse"
PACKAGES = ("python3", "python3-venv")


@pytest.fixture(scope="module")
def wheelhouse(image_of: Build, workshop: Path) -> Path:
    """Filled on a machine with a network, by the line of containers/README.md."""
    folder = workshop / "wheelhouse"
    folder.mkdir()
    return folder


def test_it_is_built_without_a_network(image_of: Build, wheelhouse: Path) -> None:
    image = image_of(
        "cpu.def",
        "air-gap",
        binds={wheelhouse: WHEELHOUSE},
        include=PACKAGES,
        network=False,
        WHEELHOUSE=WHEELHOUSE,
    )
    run_image(image.root, TEST, user=NOBODY, timeout=300).ok()


def test_there_is_no_network_in_that_build(workshop: Path) -> None:
    """What the test above is worth."""
    root = workshop / "no-network"
    root_fs.debian(root, root_fs.sources()[0][1], PACKAGES)
    dial = "import socket; socket.create_connection(('10.0.0.1', 80), 5)"
    with pytest.raises(AssertionError, match="Network is unreachable"):
        root_fs.run_within(root, ["python3", "-c", dial], env={}, log=workshop / "no-network.log", network=False)
