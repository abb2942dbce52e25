"""Podman with a store of its own, and pods in a place of their own (tests/slurm/places.py).

What was begun in the place ends with it: processes, links, rules of the firewall, mounts. So nothing of this machine is
touched, and nothing is undone by name but control groups.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from places import PATH, Place

TOOLS = ("podman", "conmon", "crun", "catatonit", "iptables", "mount", "umount", "unshare")
# Without CAP_SYS_RESOURCE podman's own limits cannot be set; without systemd there are no timers, so no probe runs.
_SETTINGS = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
infra_image = ""
lock_type = "file"
runtime = "crun"
static_dir = "{folder}/static"
tmp_dir = "{folder}/tmp"
[network]
network_config_dir = "{folder}/networks"
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]
log_driver = "k8s-file"
"""
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
# State that podman and its network's plugins keep beside its store.
_OWN = (Path("/run"), Path("/var/lib/cni"))


def why_not() -> str:
    """Why this machine cannot run pods; '' if it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if missing:
        packages = "podman crun catatonit containernetworking-plugins iptables"
        return f"{', '.join(missing)} not installed (Debian: apt-get install {packages})"
    return "" if os.geteuid() == 0 else "pods are run by root here"


class PodmanStore:
    """`build` and `import_root` make images with this machine's network; `run` is any podman command in the place."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._groups = folder, _groups()
        (folder / "networks").mkdir(parents=True)
        settings = folder / "containers.conf"
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 16384)
        settings.write_text(_SETTINGS.format(folder=folder, files=files))
        store = ("--root", str(folder / "storage"), "--runroot", str(folder / "run"))
        self._podman = ["env", f"CONTAINERS_CONF={settings}", "podman", *store]
        binds = {}
        for number, path in enumerate(_OWN):
            path.mkdir(parents=True, exist_ok=True)
            own = folder / f"own{number}"
            own.mkdir()
            binds[own] = path
        self.place = Place("pods", binds, machine=True)
        self.place.do("ip", "link", "set", "lo", "up")
        if (_CONTROL_GROUPS / "unified").is_mount():
            # crun takes control groups of one version or the other.
            self.place.do("umount", str(_CONTROL_GROUPS / "unified"))

    def call(self, *words: str | Path, text: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a podman command to its end, `text` its input, whatever its exit code."""
        command = self.place.inside(*self._podman, *words, cwd=Path("/"))
        env = {**os.environ, "PATH": PATH}
        return subprocess.run(command, input=text, env=env, capture_output=True, text=True, timeout=timeout)

    def run(self, *words: str | Path, text: str = "", timeout: float = 120) -> str:
        """What a podman command printed; AssertionError with its messages if it failed."""
        done = self.call(*words, text=text, timeout=timeout)
        assert done.returncode == 0, (
            f"podman {' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        return done.stdout

    def inspect(self, container: str) -> dict[str, Any]:
        """What podman knows of a container."""
        (found,) = json.loads(self.run("container", "inspect", container))
        return dict(found)

    def import_root(self, root: Path, image: str) -> None:
        """Make an image of one layer out of a root file system."""
        words = ["tar", "-C", str(root), "--numeric-owner", "--one-file-system", "-c", "."]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as tar:
            self._outside("import", "-", image, stdin=tar.stdout)
        assert tar.returncode == 0

    def build(self, file: Path, context: Path, image: str, arguments: Sequence[str], binds: Sequence[str]) -> None:
        """Build an image out of a Containerfile; `arguments`: NAME=value, `binds`: folder here:folder there."""
        # In a chroot: what runs pods here (crun) takes no control groups of both versions, as many machines have them.
        words = ["--network=host", "--isolation=chroot", "--format=docker", f"--file={file}", f"--tag={image}"]
        words += [f"--build-arg={argument}" for argument in arguments]
        words += [f"--volume={bind}:ro" for bind in binds]
        self._outside("build", *words, context)

    def _outside(self, *words: str | Path, stdin: Any = subprocess.DEVNULL) -> None:
        done = subprocess.run(
            ["unshare", "--mount", *self._podman, *map(str, words)],  # a build that fails leaves its mounts
            stdin=stdin, env={**os.environ, "PATH": PATH}, capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        assert done.returncode == 0, f"podman {words[0]}: {done.returncode}\n{done.stdout[-5000:]}{done.stderr[-5000:]}"

    def close(self) -> None:
        """End and remove everything."""
        self.call("pod", "rm", "--all", "--force", "--time", "5")
        self.place.end()
        for group in sorted(_groups() - self._groups, reverse=True):
            with contextlib.suppress(OSError):  # one with processes stays
                group.rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)


def _groups() -> set[Path]:
    """The control groups of this machine's pods."""
    return {path for pattern in ("libpod_parent/**", "*/libpod_parent/**") for path in _CONTROL_GROUPS.glob(pattern)}
