"""Podman with a store, volumes and a network of its own: what a test makes ends with them, and it touches nothing else.

It runs as root where podman itself would not: without systemd (cgroupfs; probes are then run by hand), with cgroups v1 and
v2 side by side (runc, since crun refuses them), and without CAP_SYS_RESOURCE, where podman's own limits cannot be set.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOOLS = ("podman", "conmon", "runc", "iptables")
_SETTINGS = """\
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
infra_image = ""
lock_type = "file"
runtime = "runc"
static_dir = "{folder}/static"
tmp_dir = "{folder}/tmp"
[network]
network_config_dir = "{folder}/networks"
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]
log_driver = "k8s-file"
"""


def why_not() -> str:
    """Why this machine cannot run pods; '' if it can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: podman runc catatonit containernetworking-plugins iptables)"
    return "" if os.geteuid() == 0 else "pods are run by root here"


class PodmanStore:
    """`run` is a podman command. `close` ends and removes everything that was made by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "networks").mkdir(parents=True)
        files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 16384)
        settings = folder / "containers.conf"
        settings.write_text(_SETTINGS.format(folder=folder, files=files))
        self._env = {**os.environ, "CONTAINERS_CONF": str(settings), "LC_ALL": "C.UTF-8"}
        self._env["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        self.network = f"fedhpc-{os.getpid()}"
        self.run("network", "create", self.network)

    def call(self, *words: str | Path, text: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a podman command to its end, `text` its input, whatever its exit code."""
        store = ("--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run"))
        return subprocess.run(
            ["podman", *store, *(str(word) for word in words)],
            input=text, env=self._env, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def run(self, *words: str | Path, text: str = "", timeout: float = 120) -> str:
        """What a podman command printed; AssertionError with its messages if it failed."""
        done = self.call(*words, text=text, timeout=timeout)
        assert done.returncode == 0, f"podman {' '.join(map(str, words))}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def inspect(self, container: str) -> dict[str, Any]:
        """What podman knows of a container."""
        (found,) = json.loads(self.run("container", "inspect", container))
        return dict(found)

    def import_root(self, root: Path, image: str) -> None:
        """Make an image of one layer out of a root file system."""
        words = ["tar", "-C", str(root), "--numeric-owner", "--one-file-system", "-c", "."]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as tar:
            done = subprocess.run(
                ["podman", "--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run"), "import",
                 "-", image], stdin=tar.stdout, env=self._env, capture_output=True, text=True,
            )  # fmt: skip
        assert (tar.returncode, done.returncode) == (0, 0), done.stderr

    def build(self, file: Path, context: Path, image: str, arguments: Sequence[str], binds: Sequence[str]) -> None:
        """Build an image out of a Containerfile; `arguments`: NAME=value, `binds`: folder here:folder there."""
        words = [word for argument in arguments for word in ("--build-arg", argument)]
        words += [word for bind in binds for word in ("--volume", f"{bind}:ro")]
        self.run("build", "--network", "host", "--format", "docker", "--file", file, "--tag", image, *words, context,
                 timeout=1800)  # fmt: skip

    def close(self) -> None:
        """End and remove everything."""
        for words in (("pod", "rm", "--all", "--force", "--time", "5"), ("volume", "rm", "--all", "--force"),
                      ("network", "rm", "--force", self.network), ("rmi", "--all", "--force")):  # fmt: skip
            self.call(*words)
        shutil.rmtree(self.folder, ignore_errors=True)
