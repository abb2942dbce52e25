"""Checks of the site's container: its runtime, user namespaces, and that its image is one that was agreed on."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from fedhpc.agreement.images import SHA256_VARIABLE
from fedhpc.doctor.check import Check, Finding, fail, ok, skipped, warn
from fedhpc.doctor.commands import call
from fedhpc.doctor.inside import first_line
from fedhpc.doctor.slurm_facts import major_minor
from fedhpc.doctor.subject import Subject
from fedhpc.errors import PolicyError, StorageError
from fedhpc.slurm.image import sha256_of

GROUP = "Container"
_NONE = "[slurm.container] names no image, and this is no container"
_LATER = "the jobs of this chain began outside of images, and stay outside"
_SIGNATURES = (1, 2)  # the Apptainer that verifies certificates
_SYSCTL = "proc/sys/"
_FORBIDS = {  # file -> the value that forbids user namespaces
    "user/max_user_namespaces": "0",
    "kernel/unprivileged_userns_clone": "0",
    "kernel/apparmor_restrict_unprivileged_userns": "1",
}
_ALLOW = "the operators switch them on (sysctl), or install apptainer with its setuid helper (apptainer-suid)"


def runtime(subject: Subject) -> Finding:
    """The runtime of the site's image is here; within a container, which one this is."""
    if subject.container is not None:
        return ok(subject.container.words)
    section = subject.asked.inside
    if not section.image:
        return skipped(_NONE)
    if subject.stays_outside:
        return skipped(_LATER)
    name = section.words
    # ch-run does not even tell its version without USER, which the job's script sets.
    answer = call([name, "--version"], {"USER": "nobody", **subject.environment}, 5.0)
    if answer.code == 127:
        return fail(
            f"no {name} on PATH",
            'load its module in [slurm] setup (module load apptainer); [slurm.container] command = "singularity" is '
            "another name for it",
        )
    if answer.code != 0:
        return fail(f"{name} --version fails: {answer.words}", "ask the operators: this node's installation is broken")
    version = (answer.out or answer.err).strip().splitlines()[0] if (answer.out or answer.err).strip() else name
    said = major_minor(version)
    if section.certificate and "apptainer" in version and said and said < _SIGNATURES:
        return fail(
            f"{version} verifies no certificates", "Apptainer 1.2 or newer, or no [slurm.container] certificate"
        )
    return ok(version)


def namespaces(subject: Subject) -> Finding:
    """The kernel lets users make the namespaces that a container is made of, or the runtime has a setuid helper."""
    section = subject.asked.inside
    if subject.container is not None:
        return skipped(f"{subject.container.words}: they were made")
    if not section.image:
        return skipped(_NONE)
    if subject.stays_outside:
        return skipped(_LATER)
    forbidding = [n for n, value in _FORBIDS.items() if first_line(subject.root / _SYSCTL / n) == value]
    if not forbidding:
        return ok("user namespaces are allowed")
    name = forbidding[0].rpartition("/")[2]
    what = f"user namespaces are restricted: {name} = {_FORBIDS[forbidding[0]]}"
    if section.runtime == "apptainer" and setuid_helper(
        shutil.which(section.words, path=subject.environment.get("PATH"))
    ):
        return ok(f"{what}; {section.words} has its setuid helper")
    if forbidding == ["kernel/apparmor_restrict_unprivileged_userns"]:
        return warn(
            what, f"a runtime from the distribution's packages has an AppArmor profile that allows it; else {_ALLOW}"
        )
    return fail(what, _ALLOW if section.runtime == "apptainer" else "the operators switch them on (sysctl)")


def setuid_helper(command: str | None) -> bool:
    """Whether the runtime at this path was installed with its setuid helper."""
    if command is None:
        return False
    prefix = Path(os.path.realpath(command)).parents[1]
    helpers = (prefix / "libexec" / name / "bin" / "starter-suid" for name in ("apptainer", "singularity"))
    return any(path.exists() and bool(path.stat().st_mode & stat.S_ISUID) for path in helpers)


def image(subject: Subject) -> Finding:
    """The image is there, and federation.toml lists it; within a container by what the job says of it."""
    section = subject.asked.inside
    agreed = None if subject.agreement is None else subject.agreement.images
    said = subject.environment.get(SHA256_VARIABLE, "")
    if subject.container is not None or (subject.in_job and (said or not section.image)):
        if not agreed:
            return skipped("federation.toml lists no images" if section.image or subject.container else _NONE)
        try:
            agreed.require_here(subject.environment)
        except PolicyError as error:
            return fail(error.what, error.hint, error.exit_code)
        return ok(f"{agreed.name_of(said)}, sha256 {said[:16]}, as the job says")
    if not section.image:
        if agreed:
            return warn(
                f"federation.toml lists images ({', '.join(agreed.names)}), and the site file names none",
                "[slurm.container] image, or `fedhpc submit --container`: a run outside of them is refused",
            )
        return skipped(_NONE)
    if subject.stays_outside:
        return skipped(_LATER)
    assert subject.site is not None
    path = subject.site.path(Path(section.image))
    if not path.exists():
        return fail(
            f"the image {path} is not there", "build or copy it; paths start at the site file", StorageError.exit_code
        )
    if not os.access(path, os.R_OK):
        return fail(f"the image {path} may not be read", "check its owner and mode", StorageError.exit_code)
    if path.is_dir():
        if agreed:
            return fail(
                f"the image {path} is a folder, which has no SHA-256", "build a SIF file", PolicyError.exit_code
            )
        return ok(f"{path}, a folder without a digest")
    if subject.quick:
        return skipped(f"{path} is there; to read all of it takes longer than --quick allows")
    sha256 = sha256_of(path)
    try:
        if agreed:
            agreed.require(sha256, f"the image {path}")
    except PolicyError as error:
        return fail(error.what, error.hint, error.exit_code)
    listed = f"{agreed.name_of(sha256)} of federation.toml, " if agreed else ""
    return ok(f"{path}: {listed}sha256 {sha256[:16]}")


CHECKS = (
    Check("container", GROUP, "a job in a container needs its runtime on the compute node", runtime),
    Check("container-userns", GROUP, "without user namespaces no user can start a container", namespaces),
    Check("container-image", GROUP, "a site runs only in the images that all sites have signed", image),
)
