"""The words that start a program inside an image, for every shape of job."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from fedhpc.errors import ConfigError
from fedhpc.federation.life import Stage
from fedhpc.slurm.bound import Bound, arranged
from fedhpc.slurm.container_section import ContainerSection, check_bound, read_bind
from fedhpc.slurm.image import Image
from fedhpc.slurm.plan import Plan
from fedhpc.slurm.render import part
from fedhpc.slurm.settings import SlurmSettings

OUTSIDE = '"$python"'
INSIDE = '"${inside[@]}"'
"""In place of the interpreter: the runtime, its options, the image and the image's interpreter."""
LIBRARIES = ("libmpi.so.40", "libmpi.so.12")
# Charliecloud shares these with the host, and cannot bind below them.
_SHARED = tuple(map(Path, ("/tmp", "/dev", "/proc", "/sys")))  # noqa: S108 - seen inside, not written here


def entrance(plan: Plan, settings: SlurmSettings, stage: Stage, image: Image, found: list[Bound], *, gpu: bool) -> str:
    """Lines of a batch script that check the image and set the array `inside`. `gpu`: for what trains. ConfigError."""
    section = settings.inside
    charliecloud = section.runtime == "charliecloud"
    binds = arranged(found, flat=charliecloud)
    made = [shlex.quote(str(path)) for path in dict.fromkeys(b.path for b in found if b.made)]
    words = list(_binds(section, binds))
    if gpu and stage != "exchange":
        words += _gpu(plan, section, settings)
    words += [shlex.quote(option) for option in section.options]
    if charliecloud:
        variables = _variables(section)
        words = [f"--set-env={shlex.quote(f'{n}={v}')}" for n, v in variables.items()] + words
        exports: list[str] = []
    else:
        prefix = "SINGULARITYENV" if "singularity" in Path(section.words).name else "APPTAINERENV"
        exports = [f"export {prefix}_{n}={shlex.quote(v)}" for n, v in _variables(section).items()]
    check_bound(str(plan.site_file.base), "the site file's folder")
    check_bound(str(plan.jobs), "the folder of jobs")
    values = {
        "made": "".join(f" {path}" for path in made),
        "command": shlex.quote(section.words),
        "folder": shlex.quote(str(plan.site_file.base)),
        "words": "\n".join(f"  {word}" for word in words),
        "python": shlex.quote(section.python),
    }
    if charliecloud:
        path = f"{Path(section.python).parent}:/usr/local/bin:/usr/bin:/bin"
        entering = part("charliecloud", values | {"path": shlex.quote(path)})
    else:
        entering = part("apptainer", values | {"exports": "\n".join(exports)})
    return f"{_check(plan, section, image)}\n\n{entering}\n"


def _check(plan: Plan, section: ContainerSection, image: Image) -> str:
    path = shlex.quote(str(image.path))
    if not image.sha256:
        return part("image_folder", {"image": path})
    verify = ""
    if section.certificate:
        options = [("--certificate", section.certificate), ("--certificate-roots", section.certificate_roots)]
        named = [
            word for name, file in options if file for word in (name, shlex.quote(str(plan.site_file.path(Path(file)))))
        ]
        verify = part("signature", {"command": shlex.quote(section.words), "certificate": " ".join(named)})
    return part("image", {"image": path, "sha256": image.sha256, "verify": verify})


def _binds(section: ContainerSection, binds: list[Bound]) -> Iterator[str]:
    extra = [read_bind(text) for text in section.binds]
    if section.runtime == "charliecloud":
        for bound in binds:
            if not any(bound.path.is_relative_to(shared) for shared in _SHARED):
                yield f"--bind={shlex.quote(str(bound.path))}"
        for one in extra:
            yield f"--bind={shlex.quote(f'{one.source}:{one.target}')}"
        for folder in section.mpi_library:
            yield f"--bind={shlex.quote(folder)}"
        return
    for bound in binds:
        yield f"--bind {shlex.quote(f'{bound.path}' if bound.writable else f'{bound.path}:{bound.path}:ro')}"
    for one in extra:
        yield f"--bind {shlex.quote(f'{one.source}:{one.target}' + ('' if one.writable else ':ro'))}"
    for folder in section.mpi_library:
        yield f"--bind {shlex.quote(f'{folder}:{folder}:ro')}"


def _gpu(plan: Plan, section: ContainerSection, settings: SlurmSettings) -> list[str]:
    """The flag that brings the GPU driver in. Without one of its own, a site with GPUs is taken to have NVIDIA's."""
    if section.runtime == "charliecloud" or section.gpu == "none" or plan.site_file.compute.get("device") == "cpu":
        return []
    if section.gpu:
        return [f"--{section.gpu}"]
    return ["--nv"] if settings.gpus_per_node else []


def _variables(section: ContainerSection) -> dict[str, str]:
    """What is set inside, also against the image: the user's, and the way to the host's MPI."""
    if section.mpi == "hybrid":
        return section.environment
    library = next(
        (
            f"{folder}/{name}"
            for folder in section.mpi_library
            for name in LIBRARIES
            if os.path.exists(f"{folder}/{name}")
        ),
        "",
    )
    if not library:
        raise ConfigError(
            f"slurm.container.mpi_library: there is no {' or '.join(LIBRARIES)} in {', '.join(section.mpi_library)}",
            "name first the folder of the host's libmpi, as compute nodes see it; MPICH's ABI is libmpi.so.12",
        )
    path = ":".join([*section.mpi_library, *filter(None, [section.environment.get("LD_LIBRARY_PATH", "")])])
    return {"MPI4PY_LIBMPI": library} | section.environment | {"LD_LIBRARY_PATH": path}
