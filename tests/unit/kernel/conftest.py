"""Every compiled path that can run here: those of this CPU, and armv8 in an emulator."""

from collections.abc import Iterator

import pytest
from other_cpu import OtherCpu, other_cpu

from fedhpc.kernel.calls import Kernel
from fedhpc.kernel.extension import load

BUILT = load()
HERE = [] if BUILT is None else BUILT.PATHS.split()


@pytest.fixture(scope="session")
def armv8(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherCpu]:
    found = other_cpu(tmp_path_factory.mktemp("armv8"))
    yield found
    found.close()


@pytest.fixture(scope="session", params=[*HERE, "armv8"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    extension = request.getfixturevalue("armv8") if request.param == "armv8" else BUILT
    return Kernel(extension, request.param)
