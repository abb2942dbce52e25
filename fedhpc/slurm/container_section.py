"""[slurm.container] of a site file: the image that a site's jobs run in, and how it is entered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fedhpc.config import read_section
from fedhpc.errors import ConfigError

PYTHON = "/opt/fedhpc/bin/python"
"""Where our images have their interpreter."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SETS = ("--bind", "-B", "--home", "-H", "--no-home", "--pwd", "--cwd", "--nv", "--rocm", "--cd", "-b")
# They would keep out the variables of Slurm and PMI, or what the ranks of a node share.
_CLOSES = (
    "--cleanenv",
    "-e",
    "--containall",
    "-C",
    "--contain",
    "-c",
    "--ipc",
    "-i",
    "--pid",
    "-p",
    "--private-tmp",
    "-t",
)

_VALUED = "BHSWobgm"  # short options whose value may follow in the same word


@dataclass(frozen=True)
class ContainerSection:
    """[slurm.container]"""

    image: str = ""
    """The image's file, relative to the site file; empty: no container. charliecloud: a folder, or SquashFS."""
    runtime: Literal["apptainer", "charliecloud"] = "apptainer"
    command: str = ""
    """The runtime's command, such as "singularity"; empty: apptainer, or ch-run."""
    python: str = PYTHON
    """The interpreter in the image."""
    mpi: Literal["hybrid", "bind"] = "hybrid"
    """hybrid: the image's own MPI, started by the host's launcher. bind: the host's MPI in place of it."""
    mpi_library: tuple[str, ...] = ()
    """bind: folders of the host with libmpi and with what it loads, in the order in which they are searched."""
    gpu: Literal["", "none", "nv", "rocm"] = ""
    """The flag that brings the GPU driver in; empty: --nv where the job asks for GPUs."""
    binds: tuple[str, ...] = ()
    """What else of the host is seen inside: "SOURCE", "SOURCE:TARGET", and ":ro" after either."""
    options: tuple[str, ...] = ()
    """Further words for the runtime, before the image."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables inside, also against those that the image sets."""
    certificate: str = ""
    """The certificate (PEM) whose key must have signed the image, relative to the site file; empty: signatures are not
    looked at."""
    certificate_roots: str = ""
    """The authorities (PEM) that it is judged by; empty: those of the machine."""

    def __post_init__(self) -> None:
        if "://" in self.image:
            raise ConfigError(
                f"slurm.container.image = {self.image!r} is an address, and not a file",
                "pull or build it first: only a file has a SHA-256 that all sites can agree on",
            )
        for name in ("image", "command", "python", "certificate", "certificate_roots"):
            if not getattr(self, name).isprintable():
                raise ConfigError(
                    f"slurm.container.{name} = {getattr(self, name)!r}", "one line of printable characters"
                )
        if not self.python.startswith("/"):
            raise ConfigError(f"slurm.container.python = {self.python!r}", "a whole path in the image")
        for text in self.binds:
            read_bind(text)
        for text in self.mpi_library:
            check_bound(text, "slurm.container.mpi_library")
        if self.mpi == "bind" and not self.mpi_library:
            raise ConfigError(
                'slurm.container: mpi = "bind" needs mpi_library',
                "the folder of the host's libmpi.so.40 (Open MPI) or libmpi.so.12 (MPICH, Cray, Intel), and then those "
                "of the libraries that it loads",
            )
        if self.mpi == "hybrid" and self.mpi_library:
            raise ConfigError('slurm.container: mpi_library belongs to mpi = "bind"', "leave one of them out")
        if self.certificate_roots and not self.certificate:
            raise ConfigError("slurm.container: certificate_roots belongs to certificate", "name the certificate too")
        self._check_options()
        for name, value in self.environment.items():
            if not _VARIABLE.fullmatch(name) or not value.isprintable():
                raise ConfigError(
                    f"slurm.container.environment: {name!r} = {value!r}",
                    "names as a shell takes them, one line of text",
                )
        if "HOME" in self.environment:
            raise ConfigError("slurm.container.environment: HOME is a folder of the run", "leave it out")
        if self.runtime == "charliecloud":
            self._check_charliecloud()

    @property
    def words(self) -> str:
        """The runtime's command."""
        return self.command or {"apptainer": "apptainer", "charliecloud": "ch-run"}[self.runtime]

    def _check_options(self) -> None:
        for text in self.options:
            name = text.partition("=")[0]
            if not text.isprintable():
                raise ConfigError(f"slurm.container.options: {text!r}", "one word for each entry")
            if name in _SETS or _glued(text, _SETS):
                raise ConfigError(
                    f"slurm.container.options: {text!r} is set by fedhpc itself", "binds and gpu are keys of their own"
                )
            if name in _CLOSES or _glued(text, _CLOSES):
                raise ConfigError(
                    f"slurm.container.options: {text!r} would keep out what the ranks need",
                    "the variables of Slurm and PMI, /dev/shm and /tmp are shared by the ranks of a node",
                )

    def _check_charliecloud(self) -> None:
        if self.gpu in ("nv", "rocm"):
            raise ConfigError(
                f"slurm.container: charliecloud has no flag for gpu = {self.gpu!r}",
                "`ch-fromhost` puts the driver's libraries into the image",
            )
        if self.certificate:
            raise ConfigError(
                "slurm.container: only a SIF file can be signed", 'certificate belongs to runtime = "apptainer"'
            )
        if any(bind.endswith(":ro") for bind in self.binds):
            raise ConfigError("slurm.container.binds: charliecloud has no :ro", "leave it out: file modes still hold")


def _glued(text: str, names: tuple[str, ...]) -> bool:
    """Whether one of these short options is in a word such as -B/x or -ec."""
    if not re.match(r"-[A-Za-z]", text):
        return False
    letters = re.split(f"[^A-Za-z]|(?<=[{_VALUED}])", text[1:])[0]
    return any(f"-{letter}" in names for letter in letters)


@dataclass(frozen=True)
class ExtraBind:
    """One entry of `binds`."""

    source: str
    target: str
    writable: bool


def read_bind(text: str) -> ExtraBind:
    """The bind in `text`. Raises ConfigError for relative paths, and for what a runtime would split."""
    parts = text.split(":")
    writable = parts[-1] != "ro"
    if parts[-1] in ("ro", "rw"):
        parts.pop()
    if not 1 <= len(parts) <= 2 or "," in text:
        raise ConfigError(
            f"slurm.container.binds: {text!r} is no bind",
            '"SOURCE", "SOURCE:TARGET", and ":ro" after either, one for each entry; the runtime splits at : and ,',
        )
    for part in parts:
        check_bound(part, "slurm.container.binds")
    return ExtraBind(parts[0], parts[-1], writable)


def check_bound(path: str, what: str) -> str:
    """`path`, if a runtime takes it whole. Raises ConfigError."""
    if not path.startswith("/"):
        raise ConfigError(f"{what}: {path!r} is not a whole path", "whole paths, from / on")
    if not path.isprintable() or any(c in path for c in ':,"\\'):
        raise ConfigError(
            f"{what}: {path!r} cannot be bound into a container",
            "the runtime splits paths at : and ,; a symbolic link without them leads to the same place",
        )
    return path


def read_container(table: Mapping[str, Any]) -> ContainerSection:
    """[slurm.container]. Raises ConfigError."""
    return read_section(ContainerSection, table, "slurm.container")


def join_containers(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, with a profile's `defaults` where it says nothing; lists and variables of both."""
    if "runtime" in given and given["runtime"] != defaults.get("runtime", "apptainer"):
        defaults = {}  # a profile speaks of one runtime
    joined: dict[str, Any] = {**defaults, **given}
    for name, value in defaults.items():
        other = given.get(name)
        if name in ("binds", "options") and isinstance(other, list):
            joined[name] = [*value, *other]
        if name == "environment" and isinstance(other, Mapping):
            joined[name] = {**value, **other}
    return joined
