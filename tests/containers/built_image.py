"""A definition's image as a directory, built as `apptainer build --sandbox` does, on a base from debootstrap.

Beside what Apptainer puts into an image (/.singularity.d), it has /ch/environment, for Charliecloud's --set-env.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import root_fs
from definition import Copy, Definition, Stage
from harness import ROOT
from places import run

POST_ENVIRONMENT = "/.singularity.d/env/91-environment.sh"
# As Apptainer's own /.singularity.d/actions/exec and run begin.
_ACTION = """#!/bin/sh
for script in /.singularity.d/env/*.sh; do
    if [ -f "$script" ]; then
        . "$script"
    fi
done
exec {command}
"""
_ENVIRONMENT = r"""
before=$(env | cut -d= -f1 | sort)
for script in /.singularity.d/env/*.sh; do . "$script"; done
for name in $(env | cut -d= -f1 | sort -u); do
    eval "value=\${$name}"
    case "$name" in PWD|_|OLDPWD|SHLVL|HOME) continue ;; esac
    if [ "$name" = PATH ] || ! echo "$before" | grep -qx "$name"; then printf '%s=%s\n' "$name" "$value"; fi
done >/ch/environment
"""


@dataclass(frozen=True)
class BuiltImage:
    """`root`: the directory; `stage`: what it was made by."""

    root: Path
    stage: Stage


def base_of(stage: Stage) -> str:
    """The release of Debian that a stage is built on: debian:bookworm-slim, or debootstrap's OSVersion."""
    header = stage.header
    name = header.get("OSVersion") or header["From"].rpartition(":")[2]
    return name.partition("-")[0]


def build(
    definition: Definition,
    folder: Path,
    *,
    include: Sequence[str] = (),
    binds: Mapping[Path, str] | None = None,
    network: bool = True,
    source: Path = ROOT,
) -> BuiltImage:
    """Build every stage in `folder`, from the source tree `source`; AssertionError with the log's end if one fails.

    `include`: packages that the bases have already; `network`: whether %post has one. What was needed for the last
    stage only is removed.
    """
    made: dict[str, Path] = {}
    for number, stage in enumerate(definition.stages):
        root = folder / (stage.name or f"stage-{number}")
        root_fs.debian(root, base_of(stage), include)
        _put_scripts(root, stage)
        for copy in stage.files:
            _copy(copy, source if copy.stage is None else made[copy.stage], root)
        if stage.post:
            _post(stage, root, folder / f"{root.name}.log", binds or {}, network)
        made[stage.name] = root
    image = root
    for root in set(made.values()) - {image}:
        shutil.rmtree(root)
    words = ["/bin/sh", "-ec", _ENVIRONMENT]
    root_fs.run_within(image, words, env={}, log=folder / f"{image.name}.log", network=False)
    return BuiltImage(image, definition.image)


def _put_scripts(root: Path, stage: Stage) -> None:
    """What Apptainer keeps of a definition in the image. The scripts there have no -e, as Apptainer's."""
    env, actions = root / ".singularity.d/env", root / ".singularity.d/actions"
    for folder in (env, actions, root / "ch"):
        folder.mkdir(parents=True)
    files = {"env/90-environment.sh": stage.environment, "runscript": stage.runscript, "test": stage.test}
    for name, script in {**files, "startscript": stage.startscript}.items():
        if script:
            _write(root / ".singularity.d" / name, f"#!/bin/sh\n\n{script}\n")
    for name, command in (
        ("exec", '"$@"'),
        ("run", '/.singularity.d/runscript "$@"'),
        ("test", "/.singularity.d/test"),
    ):
        _write(actions / name, _ACTION.format(command=command))
    _write(root / POST_ENVIRONMENT.lstrip("/"), "#!/bin/sh\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _copy(copy: Copy, whence: Path, root: Path) -> None:
    """A line of %files, by cp as Apptainer does it: symbolic links of the builder's machine are followed."""
    source = whence / copy.source.lstrip("/") if copy.stage or not Path(copy.source).is_absolute() else copy.source
    target = root / copy.destination.lstrip("/")
    (target if copy.destination.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
    flags = "-fr" if copy.stage else "-fLr"
    found = sorted(Path(source).parent.glob(Path(source).name))
    assert found, f"%files: there is no {source}"
    run(["cp", flags, *map(str, found), str(target)], timeout=600)


def _post(stage: Stage, root: Path, log: Path, binds: Mapping[Path, str], network: bool) -> None:
    """Run %post, which has nothing in its environment but these two: `apptainer build` empties it."""
    file = root / ".post.script"
    file.write_text(stage.post)
    *shell, last = stage.post_shell
    # `%post -c SHELL` is one word for sh: SHELL, a blank, the script.
    command = [*shell, f"{last} /.post.script"] if shell[-1] == "-c" else [*shell, last, "/.post.script"]
    env = {"APPTAINER_LABELS": "/.build.labels", "APPTAINER_ENVIRONMENT": POST_ENVIRONMENT}
    root_fs.run_within(root, command, env=env, log=log, binds=binds, network=network)
    file.unlink()
