"""The words that start a program inside an image, for every shape of job."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from fedhpc.errors import ConfigError
from fedhpc.federation.life import Stage
from fedhpc.mpi.library import SONAMES, libraries_in
from fedhpc.slurm.bound import Bind, Bound, arranged
from fedhpc.slurm.container_section import ContainerSection, check_bound, read_bind
from fedhpc.slurm.image import Image
from fedhpc.slurm.plan import Plan
from fedhpc.slurm.render import part
from fedhpc.slurm.settings import SlurmSettings

OUTSIDE = '"$python"'
INSIDE = '"${inside[@]}"'
"""In place of the interpreter: the runtime, its options, the image and the image's interpreter."""
DataDirectory = Literal["ledger", "notes", "nothing"]
"""notes: with which ledgers data were used (ledger/stores.py), which a job can do without."""
# Charliecloud shares these with the host, and cannot bind below them.
_SHARED = tuple(map(Path, ("/tmp", "/dev", "/proc", "/sys")))  # noqa: S108 - seen inside, not written here


def entrance(
    plan: Plan,
    settings: SlurmSettings,
    stage: Stage,
    image: Image,
    found: list[Bound],
    *,
    folder: Path,
    gpu: bool,
    data: DataDirectory,
) -> str:
    """Lines of a batch script that check the image and set the array `inside`. `gpu`: for what trains. ConfigError.

    `folder`: where it starts. `data`: what of fedhpc is in the user's data directory.
    """
    section = settings.inside
    charliecloud = section.runtime == "charliecloud"
    first, needed, last = _binds(section, arranged(found, flat=charliecloud))
    made = [shlex.quote(str(path)) for path in dict.fromkeys(b.path for b in found if b.made)]
    made += ['"$XDG_DATA_HOME/fedhpc"'] * (data != "nothing")
    seen = data == "ledger" or (data == "notes" and not charliecloud)
    words = _gpu(plan, section, settings) if gpu and stage != "exchange" else []
    words += [shlex.quote(option) for option in section.options]
    values = {
        "first": "\n".join(f"  {bind}" for bind in first),
        "needed": "\n".join(needed),
        "last": f"binds+=({' '.join(last)})" if last else "",
        "command": shlex.quote(section.words),
        "folder": shlex.quote(str(folder)),
        "python": shlex.quote(section.python),
        "unset": " -u MPI4PY_LIBMPI -u OPAL_PREFIX" if section.mpi == "hybrid" else "",
    }
    check_bound(str(folder), "the folder of the site file, or of relay.toml,")
    check_bound(str(plan.jobs), "the folder of jobs")
    if charliecloud:
        words = [f"--set-env={shlex.quote(f'{n}={v}')}" for n, v in _variables(section).items()] + words
        path = f"{Path(section.python).parent}:/usr/local/bin:/usr/bin:/bin"
        values |= {"path": shlex.quote(path), "ledger": part("charliecloud_ledger") if seen else ""}
        notes = "export XDG_DATA_HOME=$home/.local/share"
    else:
        name = "SINGULARITY" if "singularity" in Path(section.words).name else "APPTAINER"
        exports = [f"export {name}_NO_EVAL=1"]  # a $ in a value stays one
        exports += [f"export {name}ENV_{n}={shlex.quote(v)}" for n, v in _variables(section).items()]
        values |= {"exports": "\n".join(exports)}
        values |= {"ledger": 'binds+=(--bind "$XDG_DATA_HOME/fedhpc")' if seen else ""}
        notes = part("notes")
    values |= {"words": "\n".join(f"  {word}" for word in words)}
    home = {"made": "".join(f" {path}" for path in made), "data": notes if data == "notes" else ""}
    values |= {"own_home": part("own_home", home)}
    return f"{_check(plan, section, image)}\n\n{part(section.runtime, values)}\n"


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


def _binds(section: ContainerSection, binds: list[Bind]) -> tuple[list[str], list[str], list[str]]:
    """In the order in which they lie over one another: the user's, those that a job needs, the user's within those."""
    charliecloud = section.runtime == "charliecloud"
    extra = [read_bind(text) for text in section.binds]
    targets = [bind.target for bind in binds]
    within = [
        one.source != one.target and any(Path(one.target).is_relative_to(t) and one.target != str(t) for t in targets)
        for one in extra
    ]
    words: dict[bool, list[str]] = {False: [], True: []}
    for one, late in zip(extra, within, strict=True):
        rights = "" if one.writable else ":ro"
        words[late].append(_word(f"{one.source}:{one.target}{rights}", charliecloud))
    for folder in section.mpi_library:
        words[False].append(_word(folder if charliecloud else f"{folder}:{folder}:ro", charliecloud))
    needed = []
    for bind in binds:
        if charliecloud and any(bind.target.is_relative_to(shared) for shared in _SHARED):
            continue
        rights = "" if bind.writable or charliecloud else " :ro"
        needed.append(f"sees {shlex.quote(str(bind.source))} {shlex.quote(str(bind.target))}{rights}")
    return words[False], needed, words[True]


def _word(text: str, charliecloud: bool) -> str:
    return f"--bind={shlex.quote(text)}" if charliecloud else f"--bind {shlex.quote(text)}"


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
    library = next(iter(libraries_in(map(Path, section.mpi_library))), None)
    if library is None:
        raise ConfigError(
            f"slurm.container.mpi_library: there is no {' or '.join(SONAMES)} in {', '.join(section.mpi_library)}",
            "name first the folder of the host's libmpi, as compute nodes see it; MPICH's ABI is libmpi.so.12",
        )
    path = ":".join([*section.mpi_library, *filter(None, [section.environment.get("LD_LIBRARY_PATH", "")])])
    return {"MPI4PY_LIBMPI": str(library)} | section.environment | {"LD_LIBRARY_PATH": path}
