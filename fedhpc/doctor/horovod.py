"""The check of Horovod, where a site trains with it: it is there, built with MPI, and its libmpi is mpi4py's."""

from __future__ import annotations

from fedhpc.doctor.check import Check, Finding, ok, skipped
from fedhpc.doctor.subject import Subject
from fedhpc.horovod.installed import look, require_fit

GROUP = "MPI"
_IMPORT_S = 80.0


def fits(subject: Subject) -> Finding:
    """What `hvd.init` would meet, without starting MPI; `require_fit` raises the errors of the training itself."""
    if subject.compute.backend != "horovod":
        return skipped(f'[compute] backend is "{subject.compute.backend}"')
    found = require_fit(look(subject.environment, _IMPORT_S), gpus=subject.wants_gpus)
    where = ", ".join(found.libraries) or "the libmpi that mpi4py loads"
    return ok(f"Horovod {found.version} with MPI, which is mpi4py's: {where}")


CHECKS = (
    Check(
        "horovod",
        GROUP,
        "a Horovod of another MPI, or of another torch, ends the job at its first step",
        fits,
        quick=False,
        of_ranks=True,
    ),
)
