"""Jobs in an image: a stand-in for Apptainer, on whose word nothing but what was bound to write can be written."""

from __future__ import annotations

import hashlib
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from clusters import Clusters
from federation import SlurmFederation

from fedhpc.agreement.images import SHA256_VARIABLE
from fedhpc.demo.heart import federation as heart

pytestmark = pytest.mark.slurm

# Apptainer cannot be had here. This takes the words that it would take, makes all of the federation's folder read-only
# in a mount namespace of its own except what is bound without :ro, and goes on with the host's files.
APPTAINER = r"""#!/bin/bash
set -eu
if [[ $1 == --version ]]; then echo "apptainer version 1.3.4"; exit; fi
[[ $1 == exec ]] || { echo "apptainer: $1?" >&2; exit 64; }
printf '%q ' "$@" >> FOLDER.calls
echo >> FOLDER.calls
shift
writable=()
while [[ $1 == --* ]]; do
  case $1 in
    --home) export HOME=$2; writable+=("$2") ;;
    --pwd) cd "$2" ;;
    --bind)
      [[ -e ${2%%:*} ]] || { echo "apptainer: $2 is not there" >&2; exit 255; }
      [[ $2 == *:ro ]] || writable+=("${2%%:*}") ;;
    *) echo "apptainer: $1?" >&2; exit 64 ;;
  esac
  shift 2
done
[[ -f $1 ]] || { echo "apptainer: no image $1" >&2; exit 255; }
shift
export APPTAINER_CONTAINER=image
exec unshare --mount --propagation private bash -c '
  set -e
  mount --bind FOLDER FOLDER
  mount -o remount,bind,ro FOLDER
  for folder in "${@:2:$1}"; do
    mount --bind "$folder" "$folder"
    mount -o remount,bind,rw "$folder"
  done
  cd "$PWD"
  shift $(($1 + 1))
  exec "$@"' apptainer "${#writable[@]}" "${writable[@]}" "$@"
"""
SLURM = """[slurm]
profile = "generic"
mpi = "pmix"
time = "00:30:00"
setup = ["export PATH={bin}:$PATH"]

[slurm.container]
image = "{image}"
python = "{python}"
"""


def test_two_lives_in_an_image_give_the_same_model(
    idle: Clusters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four sites run in the one image that federation.toml lists; the last one through a spool.

    The first is told of its walltime in between. Its links are submitted from outside the image.
    """
    folder = tmp_path / "heart"
    image = tmp_path / "cpu.sif"
    image.write_bytes(b"an image")
    sha256 = hashlib.sha256(b"an image").hexdigest()
    command = tmp_path / "bin" / "apptainer"
    command.parent.mkdir()
    command.write_text(APPTAINER.replace("FOLDER", str(folder)))
    command.chmod(0o755)
    listed = f'\n[container]\ncpu = "sha256:{sha256}"\n'
    made = SlurmFederation(idle, folder, rounds=4, train=heart.TRAIN + listed)
    chained = made.sites[0]
    for site in made.sites:
        kind = "chained" if site == chained else "inline"
        slurm = SLURM.format(bin=command.parent, image=image, python=sys.executable)
        made.settings(site, f'[life]\nkind = "{kind}"\nwait_s = 600\n\n{slurm}')
    made.spool(made.sites[-1])
    idle.open_beta()
    alpha = idle.alpha
    with ExitStack() as running:
        running.callback(idle.close_beta)
        running.enter_context(made.relay())
        running.enter_context(made.carrier(made.sites[-1]))
        jobs = {site: str(made.submit(site)["job"]) for site in made.sites}
        made.until(lambda: made.rounds_done(chained) > 0, "the first round")
        alpha.cancel("--batch", "--signal=USR1", jobs[chained])
        assert alpha.wait(jobs[chained], 60).code == 0, made.logs()
        made.wait()

    first, second, *_ = made.listed(chained)
    assert (first["queue"], second["queue"]) == ("COMPLETED", "COMPLETED")
    assert (first["container"], second["container"]) == (sha256, sha256)
    for one in (first, second):
        assert f"container {image}, sha256 {sha256}" in made.log(chained, one["job"])
    assert "the next job goes on" in made.log(chained, first["job"])
    assert "cpu of federation.toml" in (made.run / chained / "log.jsonl").read_text()
    calls = (tmp_path / "heart.calls").read_text().splitlines()
    assert len(calls) == 2 * (len(made.sites) + 1), "checks and a rank of each job"

    # The same federation.toml in one job on this machine, which is believed to be in the image.
    monkeypatch.setenv(SHA256_VARIABLE, sha256)
    assert {made.finished(site) for site in made.sites} == {made.rehearsal()}


def test_an_image_that_changed_in_the_queue_is_not_run(idle: Clusters, tmp_path: Path) -> None:
    made = SlurmFederation(idle, tmp_path / "heart")
    site = made.sites[0]
    image = tmp_path / "cpu.sif"
    image.write_bytes(b"an image")
    made.settings(site, SLURM.format(bin=tmp_path, image=image, python=sys.executable))
    alpha = idle.alpha
    alpha.run("scontrol", "update", "PartitionName=gpu", "State=DOWN")
    try:
        job = str(made.submit(site)["job"])
        image.write_bytes(b"another image")
    finally:
        alpha.run("scontrol", "update", "PartitionName=gpu", "State=UP")
    ended = alpha.wait(job, 60)
    assert ended.code == 77, made.logs()
    assert "is not the one that was submitted" in made.log(site, job)
    assert made.rounds_done(site) == 0
