"""Root file systems of Debian, and commands within one, as `apptainer build` has them: for a definition's %post.

A command has mounts and processes of its own, which the kernel takes back when it ends, however it ends: nothing has to
be unmounted by name, and this machine's own mounts are never touched.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from places import PATH, run

TOOLS = ("debootstrap", "unshare", "setpriv", "chroot", "mount", "tar", "apt-get", "ip")
IMAGE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DAY_S = 86400.0
_BUILD_S = 3600.0
# What is in the environment of a machine that builds behind a proxy; `apptainer build` hands these on, too.
PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")

_ENTER = """
set -e
root=$1
scratch=$2
shift 2
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount --bind "$scratch" "$root/tmp"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then
        mkdir -p "$root$2"
    else
        mkdir -p "$(dirname "$root$2")"
        [ -e "$root$2" ] || : >"$root$2"
    fi
    mount --bind "$1" "$root$2"
    shift 2
done
shift
exec chroot "$root" env -i "$@"
"""


def why_not() -> str:
    """Why this machine cannot build; '' if it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: apt-get install debootstrap util-linux iproute2)"
    return "" if os.geteuid() == 0 else "root file systems of Debian are made by root"


def cache_folder() -> Path:
    """What is kept from one session to the next: Debian's base and pip's downloads."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (given if given.is_absolute() else Path.home() / ".cache") / "fedhpc" / "containers"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)  # what lies here is executed as root
    return folder


def sources() -> list[tuple[str, str, str]]:
    """(mirror, suite, component) of the Debian that this machine's own apt takes packages from; its release first."""
    form = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    lines = run(["apt-get", "indextargets", "--format", form, "Created-By: Packages"]).split("\n")
    found = [tuple(line.split("|")[1:]) for line in lines if line.startswith("Debian|")]
    assert found, "apt knows no mirror of Debian: apt-get update"
    return [(mirror, suite, component) for mirror, suite, component in sorted(found, key=lambda one: len(one[1]))]


def debian(root: Path, release: str, include: Sequence[str] = ()) -> None:
    """Make `root` a minimal Debian, with the packages `include`, from this machine's mirror.

    One that was made within the last day is taken from the cache.
    """
    known = [(mirror, suite, part) for mirror, suite, part in sources() if suite.partition("-")[0] == release]
    assert known, f"this machine's apt has no mirror of {release}"
    key = hashlib.sha256(repr((known, sorted(include))).encode()).hexdigest()[:16]
    kept = cache_folder() / f"{release}-{key}.tar"
    root.mkdir(parents=True)
    if not kept.exists() or time.time() - kept.stat().st_mtime > DAY_S:
        with tempfile.TemporaryDirectory(prefix=f".{release}-", dir=cache_folder()) as work:
            fresh = Path(work, "root")
            extra = [f"--include={','.join(sorted(include))}"] if include else []
            words = ["debootstrap", "--variant=minbase", *extra, release, str(fresh), known[0][0]]
            run(words, timeout=_BUILD_S)
            text = "".join(f"deb {mirror} {suite} {part}\n" for mirror, suite, part in known)
            (fresh / "etc/apt/sources.list").write_text(text)
            # debootstrap leaves this machine's; a base image that is handed around has none.
            for name, text in (("resolv.conf", ""), ("hosts", ""), ("hostname", "localhost\n")):
                (fresh / "etc" / name).write_text(text)
            made = Path(work, "tar")
            run(["tar", "-C", str(fresh), "--one-file-system", "--numeric-owner", "-cf", str(made), "."], timeout=600)
            made.rename(kept)
    run(["tar", "-C", str(root), "--numeric-owner", "-xpf", str(kept)], timeout=600)


def run_within(
    root: Path,
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    binds: Mapping[Path, str] | None = None,
    network: bool = True,
) -> None:
    """Run `command` as root in `root`, in nothing but `env`; AssertionError with its last lines if it fails.

    `network=False`: there is none but the loopback, as behind an air gap.
    """
    bound = {Path("/etc/resolv.conf"): "/etc/resolv.conf", Path("/etc/hosts"): "/etc/hosts"} if network else {}
    bound |= binds or {}
    mounts = [word for source, target in bound.items() for word in (str(source), target)]
    proxies = {k: v for k, v in os.environ.items() if k.lower() in PROXIES} if network else {}
    whole = {"PATH": IMAGE_PATH, "HOME": "/root", **proxies, **env}
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=root.parent) as scratch, log.open("ab") as file:
        os.chmod(scratch, 0o1777)
        # What was begun ends with this process, too.
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child=SIGKILL"]
        words += [] if network else ["--net"]
        words += ["sh", "-c", _ENTER if network else f"ip link set lo up\n{_ENTER}", "sh", str(root), scratch]
        done = subprocess.run(
            [*words, *mounts, "--", *(f"{name}={value}" for name, value in whole.items()), *command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=root,
            env={**os.environ, "PATH": PATH},
            timeout=_BUILD_S,
        )
    assert done.returncode == 0, f"{command} in {root}: exit code {done.returncode}\n{last_lines(log)}"


def last_lines(log: Path, lines: int = 60) -> str:
    """The end of a log, for the message of a failed test."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
