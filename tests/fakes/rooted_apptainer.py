"""A stand-in for Apptainer, which cannot be had here: its words, and a root directory of the command's own.

Nothing of the host is in that root but its programs and libraries, and what is bound, in the order in which it is
bound: what nobody bound is not there, and what came later covers what came before.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from harness import ROOT
from slurm_fakes import write_program

_APPTAINER = r"""#!/bin/bash
set -eu
if [[ $1 == --version ]]; then echo "apptainer version 1.3.4"; exit; fi
[[ $1 == exec ]] || { echo "apptainer: $1?" >&2; exit 64; }
printf '%q ' "$@" >> CALLS
echo >> CALLS
shift
binds=()
while [[ $1 == -* ]]; do
  case $1 in
    --home) export HOME=$2; binds+=("$2") ;;
    --pwd) pwd=$2 ;;
    --bind) binds+=("$2") ;;
    *) echo "apptainer: $1?" >&2; exit 64 ;;
  esac
  shift 2
done
[[ -f $1 ]] || { echo "apptainer: no image $1" >&2; exit 255; }
shift
export APPTAINER_CONTAINER=image
exec unshare --mount USER --propagation private bash -c '
  set -e
  pwd=$1 count=$2
  shift 2
  root=PLACE
  mount -t tmpfs root "$root"
  mkdir "$root/tmp" "$root/run" "$root/.singularity.d"
  mount -t tmpfs tmp "$root/tmp"
  fatal() { echo "apptainer: $*" >&2; exit 255; }
  put() {
    local source=$1 target=${2:-$1} above=$root part
    [[ -e $source ]] || fatal "mount source $source does not exist"
    IFS=/ read -ra parts <<< "${target#/}"
    for part in "${parts[@]}"; do
      above=$above/$part
      [[ ! -L $above ]] || fatal "the destination $target leads through a link"
    done
    if [[ ! -e $root$target ]]; then
      if [[ -d $source ]]; then mkdir -p "$root$target"; else
        mkdir -p "$(dirname "$root$target")" && : > "$root$target"
      fi 2>/dev/null || fatal "the destination $target does not exist in the container"
    fi
    mount --rbind "$source" "$root$target"
    [[ ${3:-} != ro ]] || mount -o remount,bind,ro "$root$target"
  }
  for folder in bin sbin lib lib32 lib64; do
    if [[ -L /$folder ]]; then ln -s "$(readlink "/$folder")" "$root/$folder"; continue; fi
    [[ ! -e /$folder ]] || put "/$folder"
  done
  for folder in SHOWN; do put "$folder"; done
  for ((; count; count--)); do
    IFS=: read -r source target rights <<< "$1"
    [[ $target != ro ]] || { rights=ro; target=; }
    put "$source" "$target" "$rights"
    shift
  done
  mount -o remount,ro "$root"
  exec chroot "$root" /usr/bin/env --chdir="$pwd" "$@"' apptainer "$pwd" "${#binds[@]}" "${binds[@]}" "$@"
"""


def write_apptainer(path: Path, calls: Path, shown: Sequence[Path] = ()) -> Path:
    """The command at `path`; it writes what it was asked to `calls`. `shown`: what else an image would have."""
    place = path.with_name("root")
    place.mkdir(parents=True, exist_ok=True)
    own = [Path(p) for p in ("/usr", "/etc", "/dev", "/proc", "/sys")]
    own += [ROOT, Path(sys.base_prefix), Path(sys.prefix), *shown]
    outer = [p for p in dict.fromkeys(own) if not any(o in p.parents for o in own)]
    text = _APPTAINER.replace("CALLS", shlex.quote(str(calls))).replace("PLACE", str(place))
    text = text.replace("USER", "" if os.geteuid() == 0 else "--map-root-user")
    return write_program(path, text.replace("SHOWN", " ".join(map(str, outer))))


def needs_roots() -> None:
    """Skip where no root directory of one's own can be had."""
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    words = ["unshare", "--mount", *own, "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(words, capture_output=True).returncode:
        assert os.environ.get("FEDHPC_NO_SKIP") != "1", "no mount namespaces here"
        pytest.skip("no mount namespaces here")
