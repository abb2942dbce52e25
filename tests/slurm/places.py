"""A place: network, process, mount and host-name namespaces of its own, as one machine of a cluster has them.

A place is held by its process 1, which waits for the end of a pipe. When the pipe is closed, or the process that made
the place is gone for whatever reason, the kernel kills all that runs inside and takes back links and mounts. So nothing
has to be undone by name, and this machine's own network and mounts are never touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TOOLS = ("ip", "nft", "unshare", "nsenter", "mount", "hostname")
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))

# Process 1 of a place: orphans of the place are its children and are not kept as zombies; it ends when the pipe does.
_HOLD = "import os, signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.write(1, b'ready\\n'); os.read(0, 1)"


def why_not() -> str:
    """Why this machine cannot make places; '' if it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: apt-get install iproute2 nftables util-linux)"
    if os.geteuid() != 0:
        return "clusters of namespaces need root"
    try:
        Place("try").end()
    except OSError as error:
        return f"no namespaces here: {error}"
    return ""


class Place:
    """`binds`: file or directory -> the path at which this place sees it instead of what others see there.

    `machine`: whether the place has processes of its own, which end with it. Without, commands in it are the caller's
    own processes, with this machine's ids, and the caller ends them.
    """

    def __init__(self, name: str, binds: Mapping[Path, Path] | None = None, *, machine: bool = False) -> None:
        self.name, self._machine = name, machine
        mounts = [word for source, target in (binds or {}).items() for word in (str(source), str(target))]
        script = (
            'set -e; hostname "$1"; hold="$2"; python="$3"; shift 3; mount -t tmpfs shm /dev/shm; '
            'while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done; exec "$python" -ISc "$hold"'
        )
        processes = ["--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"] if machine else []
        python = shutil.which("python3", path=PATH) or sys.executable
        self._holder = subprocess.Popen(
            [
                "unshare",
                "--net",
                "--uts",
                "--mount",
                *processes,
                "sh",
                "-c",
                script,
                "sh",
                name,
                _HOLD,
                python,
                *mounts,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": PATH},
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise OSError(self._holder.communicate()[1].strip() or "unshare failed")
        children = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children")
        self.pid = int(children.read_text().split()[0]) if machine else self._holder.pid
        self._network = os.readlink(f"/proc/{self.pid}/ns/net")

    def inside(self, *command: str | Path, cwd: Path | None = None) -> list[str]:
        """`command` in this place. In a machine it is not the caller's child: between them is one of nsenter's."""
        namespaces = ["--net", "--uts", "--mount", *(["--pid"] if self._machine else [])]
        # Who enters a mount namespace stands at its root.
        return ["nsenter", f"--target={self.pid}", *namespaces, "env", "-C", str(cwd or Path.cwd()), *map(str, command)]

    def do(self, *command: str | Path, stdin: str = "") -> str:
        """Run a short command in this place; what it printed. AssertionError if it fails."""
        return run(self.inside(*command), stdin=stdin)

    @property
    def ended(self) -> bool:
        """Whether `end` was called, or its first process was killed."""
        return self._holder.poll() is not None

    def processes(self) -> list[int]:
        """This machine's ids of the processes that are in this place's network, without the one that holds it."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "ns" / "net") == self._network and int(process.name) != self.pid:
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    def end(self) -> None:
        """Kill what runs here, as a machine that loses its power, and take the place away. May be called twice."""
        if self._holder.stdin and not self._holder.stdin.closed:
            self._holder.kill()
            self._holder.communicate()


def run(command: Sequence[str], stdin: str = "", env: Mapping[str, str] | None = None, timeout: float = 60) -> str:
    """What `command` printed; AssertionError with its words if it fails."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        env={**(env or os.environ), "PATH": (env or {}).get("PATH", PATH)},
        timeout=timeout,
    )
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout
