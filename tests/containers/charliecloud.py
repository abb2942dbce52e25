"""Starts an image's directory with Charliecloud, as a site does: without root, in a user namespace, read-only.

What Charliecloud 0.31 does unlike Apptainer: it asks for USER, gives no variable of the image without --set-env, and
mounts at paths only that the image has. The folder of TMPDIR, else the machine's /tmp, is the image's /tmp; here it is
/tmp, where tests have their files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import Completed, call
from places import PATH
from root_fs import IMAGE_PATH

EXEC, RUN, TEST = (f"/.singularity.d/actions/{name}" for name in ("exec", "run", "test"))
NOBODY = 65534
# Of the machine's own Python and MPI: in the image they would lead to what is not there, or is another.
FOREIGN = ("PYTHON*", "LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "OPAL_PREFIX")


def why_not() -> str:
    """Why this machine cannot start images; '' if it can."""
    if shutil.which("ch-run", path=PATH) is None:
        return "ch-run not installed (Debian: apt-get install charliecloud)"
    limit = Path("/proc/sys/user/max_user_namespaces")
    if limit.exists() and int(limit.read_text()) == 0:
        return "user namespaces are switched off (user.max_user_namespaces is 0)"
    return ""


def words(
    image: Path,
    *command: str | Path,
    binds: Mapping[Path, str] | None = None,
    env: Mapping[str, str] | None = None,
    keep: bool = True,
) -> list[str]:
    """`command` in the image, in its environment. `keep`: with what is in the caller's, too, but for FOREIGN.

    `env`: on top of both.
    """
    bound = [word for source, target in (binds or {}).items() for word in ("--bind", f"{source}:{target}")]
    unset = [f"--unset-env={glob}" for glob in (FOREIGN if keep else ("*",))]
    extra = [f"--set-env={name}={value}" for name, value in {"PATH": IMAGE_PATH, **(env or {})}.items()]
    return ["env", "--unset=TMPDIR", "ch-run", *bound, *unset, *extra, str(image), "--", EXEC, *map(str, command)]


def run_image(
    image: Path,
    *command: str | Path,
    user: int = 0,
    timeout: float = 120,
    **how: Any,
) -> Completed:
    """Run `command` in the image to its end, as `user`, with nothing of this machine's environment, and no home."""
    how["env"] = {"HOME": "/nowhere", "USER": "site", **how.get("env", {})}  # Apptainer sets both
    line: Sequence[str] = words(image, *command, keep=False, **how)
    if user:
        line = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *line]
    return call(line, timeout=timeout, env={"USER": "site", "PATH": f"{os.environ['PATH']}:{PATH}"})
