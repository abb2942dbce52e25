"""A site file to submit, and stand-ins for Slurm's commands that write down what they were asked."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, Job, Site, start, write_federation

from fedhpc.slurm.plan import Plan, make_plan
from fedhpc.slurm.queue import Queue
from fedhpc.slurm.scripts import Shape, job_script
from fedhpc.slurm.submit import Submitter

PROFILES = ("generic", "jupiter", "karolina", "leonardo", "lumi-g", "marenostrum5", "snellius")
HOSTILE = 'it\'s a "site" # $HOME `id` \\ 100% é'

_BATCH = r"""#!{python}
import json, os, signal, sys, time
here, name = os.environ["FAKES"], os.path.basename(sys.argv[0])
with open(here + "/calls", "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\n")
with open(here + "/seen", "a") as file:
    kept = {{k: v for k, v in os.environ.items() if k.startswith(("SLURM_", "SBATCH_"))}}
    file.write(json.dumps([name, kept]) + "\n")
def take(what, default):
    # The first line of a file of answers, which is then gone; the last one stays.
    try:
        lines = open(f"{{here}}/{{what}}.answers").read().split("\n")
    except FileNotFoundError:
        return default
    if len(lines) > 1:
        open(f"{{here}}/{{what}}.answers", "w").write("\n".join(lines[1:]))
    return lines[0]
def jobs():
    try:
        return json.load(open(here + "/jobs"))
    except FileNotFoundError:
        return []
def asked(env=True):
    # As Slurm's commands do: -M before SLURM_CLUSTERS, which sacct does not read; else this machine's own, HOME.
    words = sys.argv[1:]
    for i, word in enumerate(words):
        if word in ("-M", "--clusters"):
            name = words[i + 1]
            del sys.argv[i + 1 : i + 3]
            break
        if word.startswith("--clusters="):
            name = word.partition("=")[2]
            del sys.argv[i + 1]
            break
    else:
        name = os.environ.get("SLURM_CLUSTERS", "") if env else ""
    known = os.environ.get("CLUSTERS", "home").split()
    if name and name not in known:
        sys.exit(f"{{sys.argv[0]}}: error: '{{name}}' can't be reached now, or it is an invalid entry for --cluster.")
    return name or known[0]
def keep(kept):
    json.dump(kept, open(here + "/jobs.new", "w"))
    os.replace(here + "/jobs.new", here + "/jobs")
"""

_SBATCH = r"""
import re
mode = take("sbatch", "ok")
if mode == "refuse":
    sys.exit("sbatch: error: invalid account \x1b[31mzz\nsbatch: error: Batch job submission failed: Invalid account")
if mode == "lost":
    sys.exit("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
if mode == "hang":
    time.sleep(600)
text = open(sys.argv[-1]).read()
named = "-M" in sys.argv or bool(os.environ.get("SLURM_CLUSTERS"))
where = asked()
for other in re.findall("afterany:(.*)", text):
    if not [j for j in jobs() if str(j["job"]) == other and j["cluster"] == where]:
        sys.exit("sbatch: error: Batch job submission failed: Job dependency problem")
new = {{"job": 100 + len(jobs()), "name": re.search("--job-name=(.*)", text)[1], "state": "PENDING", "cluster": where}}
if mode == "gate":
    while not os.path.exists(here + "/go"):
        time.sleep(0.01)
keep([*jobs(), new])
if mode == "taken-slow":
    time.sleep(600)
if mode == "taken-killed":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "taken-lost":
    sys.exit("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
if mode == "banner":
    print("Welcome to Slurm\nSubmitted batch job", new["job"], *(["on cluster", where] if named else []))
else:
    print(f"{{new['job']}};{{where}}" if named else new["job"])
"""

_SQUEUE = r"""
if take("squeue", "ok") != "ok":
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
if "-M" in sys.argv:
    print("CLUSTER:", sys.argv[sys.argv.index("-M") + 1])  # --noheader leaves this line
where = asked()
names = [w for w in sys.argv if w.startswith("--name=")][0][7:].split(",")
for job in jobs():
    if job["name"] in names and job["state"] != "GONE" and job["cluster"] == where:
        print(f"{{job['job']}}|{{job['name']}}|{{job['state']}}|None")
"""

_SACCT = r"""
if take("sacct", "ok") != "ok":
    sys.exit("Slurm accounting storage is disabled")
where = asked(env=False)
names = [w for w in sys.argv if w.startswith("--name=")][0][7:].split(",")
for job in jobs():
    if job["name"] in names and job["cluster"] == where:
        print(f"{{job['job']}}|{{job['name']}}|CANCELLED by 0")
"""

_SCANCEL = r"""
where = asked()
keep([{{**j, "state": "CANCELLED"}} if str(j["job"]) in sys.argv and j["cluster"] == where else j for j in jobs()])
"""


@dataclass(frozen=True)
class Fakes:
    """A directory with stand-ins for sbatch, squeue, sacct and scancel."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Fakes:
        folder.mkdir()
        for name, body in (("sbatch", _SBATCH), ("squeue", _SQUEUE), ("sacct", _SACCT), ("scancel", _SCANCEL)):
            write_program(folder / name, (_BATCH + body).format(python=sys.executable))
        return cls(folder)

    def answers(self, command: str, *lines: str) -> None:
        """What `command` does, call after call; the last one for ever."""
        (self.folder / f"{command}.answers").write_text("\n".join(lines))

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "FAKES": str(self.folder)}

    def calls(self, command: str) -> list[list[str]]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == command]

    def seen(self, command: str) -> list[dict[str, str]]:
        """Slurm's variables as each call saw them."""
        path = self.folder / "seen"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call[1] for call in map(json.loads, lines) if call[0] == command]

    def jobs(self) -> list[dict[str, Any]]:
        path = self.folder / "jobs"
        return json.loads(path.read_text()) if path.exists() else []

    def set_state(self, job: int, state: str) -> None:
        kept = [{**j, "state": state} if j["job"] == job else j for j in self.jobs()]
        (self.folder / "jobs").write_text(json.dumps(kept))


def needs(program: str) -> None:
    """Skip without it; `make test` installs it, and lets nothing be skipped."""
    if shutil.which(program) is None:
        assert os.environ.get("FEDHPC_NO_SKIP") != "1", f"{program} is missing; as root `make tools` installs it"
        pytest.skip(f"{program} is missing; as root `make tools` installs it")


def write_program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def write_site(folder: Path, *, life: str = "inline", slurm: Mapping[str, Any] | None = None, sites: int = 1) -> Path:
    """A federation below `folder`; the path of its first site file, with [life] and [slurm]."""
    write_federation(folder, {chr(ord("a") + i) * 2: Site() for i in range(sites)}, stores=False)
    path = folder / "sites" / "aa.toml"
    lines = [path.read_text(), "[life]", f'kind = "{life}"', "[slurm]"]
    lines += [f"{key} = {_toml(value)}" for key, value in (slurm or {}).items()]
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)


def plan_of(site: Path, profile: str | None = None) -> Plan:
    return make_plan(site, profile=profile, federation=None, out=None)


def script(site: Path, stage: str = "all", *, profile: str | None = None, shape: Shape | None = None, **kw: Any) -> str:
    """The batch script of one link of a site's chain."""
    plan = plan_of(site, profile)
    return job_script(plan, shape or Shape(), "fedhpc-test-aa-0badcafe-1", stage, python="/env/bin/python", **kw)


def submitter_of(site: Path, fakes: Fakes, *, submit_s: float = 60.0, shape: Shape | None = None) -> Submitter:
    """A submitter that asks the stand-ins and never waits between tries."""
    queue = Queue(submit_s=submit_s, ask_s=30.0, environment=fakes.environment)
    return Submitter(plan_of(site), shape or Shape(), queue, pause=lambda _: None, python="/env/bin/python")


# --- the batch script itself, with stand-ins for what it calls

_SRUN = r"""#!/bin/bash
log srun "$@"
while [[ $1 == --* && $1 != --multi-prog ]]; do shift; done
if [[ $1 == --multi-prog ]]; then cp "$2" "$FAKES/programs"; exit 0; fi
export SLURM_PROCID=0
exec "$@"
"""

_PYTHON = r"""#!/bin/bash
case "$*" in
  "-m fedhpc doctor "*) log doctor "$@"; exit "$(answer doctor 0)";;
  "-m fedhpc submit "*) log submit "$@"; exit "$(answer submit 0)";;
  "-m fedhpc jobs cancel "*) log cancel "$@"; exit 0;;
  "-m fedhpc spool carry "*) log carry "$@"; exec sleep 600;;
  "-m fedhpc relay serve "*)
    trap 'log relay-told; exit 0' TERM
    log relay "$@"
    while :; do sleep 0.02; done;;
esac
trap 'log told USR2; if [[ -n ${LEAVE:-} ]]; then echo "$LEAVE" > "$FEDHPC_EXIT_FILE"; fi; exit "${TOLD:-75}"' USR2
log run "$@"
log end "${FEDHPC_JOB_END:-none}"
log odd "${ODD:-none}"
touch "$FAKES/up"
code=$(answer run wait)
if [[ $code == train ]]; then echo 75 train > "$FEDHPC_EXIT_FILE"; exit 75; fi
if [[ $code == file ]]; then echo 75 > "$FEDHPC_EXIT_FILE"; exit 143; fi
[[ $code == wait ]] || exit "$code"
while :; do sleep 0.02; done
"""

_LOG = r"""
log() { "$REAL_PYTHON" -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >> "$FAKES/calls"; }
answer() { if [[ -e $FAKES/$1.answer ]]; then cat "$FAKES/$1.answer"; else echo "$2"; fi; }
"""

_SCONTROL = r"""#!/bin/bash
log scontrol "$@"
if [[ $1 == show ]]; then echo "JobId=77 StartTime=2030-01-01T00:00:00 EndTime=2033-05-18T03:33:20 Deadline=N/A"; fi
exit "$(answer "scontrol-$1" 0)"
"""


@dataclass(frozen=True)
class Node:
    """What a batch script finds on its node."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Node:
        folder.mkdir()
        for name, body in (("srun", _SRUN), ("python", _PYTHON), ("scontrol", _SCONTROL)):
            first, _, rest = body.partition("\n")
            write_program(folder / name, f"{first}\n{_LOG}\n{rest}")
        return cls(folder)

    def answer(self, command: str, value: str | int) -> None:
        (self.folder / f"{command}.answer").write_text(str(value))

    def calls(self, command: str) -> list[list[str]]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [call[1:] for call in map(json.loads, lines) if call[0] == command]

    def start(self, script: str, **env: str) -> Job:
        """The batch script as Slurm starts it: bash, and variables of the job."""
        path = self.folder / "script.sbatch"
        path.write_text(script)
        slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]", "TZ": "UTC"}
        fakes = {"FAKES": str(self.folder), "REAL_PYTHON": sys.executable}
        plain = {"PATH": f"{self.folder}:{os.environ['PATH']}"}
        return start(["bash", path], env={**slurm, **fakes, **plain, **env}, cwd=ROOT)
