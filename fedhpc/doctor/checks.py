"""All checks, in the order in which they are done and shown."""

from __future__ import annotations

from fedhpc.doctor import (
    backend,
    container,
    container_fit,
    gpus,
    horovod,
    keys,
    ledger,
    mpi,
    node,
    relay,
    slurm,
    software,
    storage,
    walltime,
)
from fedhpc.doctor.check import Check

CHECKS: tuple[Check, ...] = (
    *software.CHECKS,
    *backend.CHECKS,
    *mpi.CHECKS,
    *horovod.CHECKS,
    *gpus.CHECKS,
    *slurm.CHECKS,
    *walltime.CHECKS,
    *keys.CHECKS,
    *ledger.CHECKS,
    *relay.CHECKS,
    *storage.CHECKS,
    *node.CHECKS,
    *container.CHECKS,
    *container_fit.CHECKS,
)
