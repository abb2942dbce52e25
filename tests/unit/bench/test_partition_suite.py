"""The ReFrame suite: what it leaves out, what it asks a site for, and that it passes nothing that was lost."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness import PATIENCE, ROOT, Completed, call, environment
from rooted_apptainer import needs_roots, write_apptainer
from slurm_fakes import needs, write_program

from benchmarks.partition.arrived import faults
from benchmarks.partition.layout import Layout, Place, obstacles, over_nodes, place_of, rank_mib

TAGS = ["--tag", "smoke", "--tag", "SumOverNodes"]
GOOD: dict[str, Any] = {"wall_s": 1.0, "cpu_s": 2.0, "peak_bytes": 1 << 28, "verified": True, "repeat": 1, "repeats": 1}

# In place of `python -m mpi4py -m fedhpc bench …`: records that another program left, and an exit code.
STAND_IN = """#!{python}
import json, sys
with open(sys.argv[sys.argv.index("--lines") + 1], "a") as file:
    for record in {records}:
        file.write(json.dumps(record) + "\\n")
sys.exit({code})
"""
# The first measurement is done. The second has a process in a session of its own, which nothing but a kill ends.
STAYS = """#!{python}
import json, pathlib, subprocess, sys, time
folder = pathlib.Path({folder})
if not (folder / "done").exists():
    (folder / "done").touch()
    with open(sys.argv[sys.argv.index("--lines") + 1], "a") as file:
        file.write(json.dumps({record}) + "\\n")
    sys.exit(0)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
stays = subprocess.Popen([sys.executable, "-c", code, folder], start_new_session=True, stdout=subprocess.PIPE)
stays.stdout.readline()
(folder / "begun").touch()
time.sleep(600)
"""

# A site configuration in the form of EESSI's test suite: whole nodes among the features, MiB of a node in extras.
SITE = """
site_configuration = {
    "systems": [{
        "name": "somewhere", "descr": "", "hostnames": ["login*"], "prefix": PREFIX,
        "partitions": [
            {"name": "cpu", "scheduler": "slurm", "launcher": "mpirun", "access": ["-p cpu", "--export=None"],
             "prepare_cmds": ["export SLURM_EXPORT_ENV=ALL"], "environs": ["default"], "max_jobs": 4,
             "processor": {"num_cpus": 128},
             "resources": [{"name": "memory", "options": ["--mem={size}"]}],
             "features": ["cpu", "1_core", "1_node", "2_nodes"], "extras": {"mem_per_node": 219 * 1024}},
            {"name": "gpu", "scheduler": "slurm", "launcher": "srun", "access": ["-p gpu"], "environs": ["default"],
             "processor": {"num_cpus": 72}, "devices": [{"type": "gpu", "num_devices": 4}],
             "resources": [{"name": "_rfm_gpu", "options": ["--gpus-per-node={num_gpus_per_node}"]}],
             "features": ["gpu", "always_request_gpus", "1_node"],
             "extras": {"GPU_VENDOR": "nvidia", "mem_per_node": 457 * 1024}},
        ],
    }],
    "environments": [{"name": "default", "cc": "cc", "cxx": "", "ftn": ""}],
    "general": [{"check_search_recursive": True}],
}
"""


def suite(folder: Path, *words: str, timeout: float = 120, **env: str) -> Completed:
    """`python -m benchmarks.partition` into folder/out."""
    line = [sys.executable, "-m", "benchmarks.partition", "--out", folder / "out", *words]
    return call(line, cwd=ROOT, env=env, timeout=timeout)


def judged(folder: Path, *records: dict[str, Any], code: int = 0, words: tuple[str, ...] = ()) -> Completed:
    """The suite with a program that leaves these records and this exit code."""
    text = STAND_IN.format(python=sys.executable, records=list(records), code=code)
    program = write_program(folder / "it's python", text)
    return suite(folder, *TAGS, *words, FEDHPC_SUITE_PYTHON=shlex.quote(str(program)))


def whole_record() -> dict[str, Any]:
    """One that `benchmarks.report --check` takes."""
    times = {"plain_s": 1.0, "unmasked_s": 1.0, "masked_s": 1.0, "unmasked_cpu_s": 1.0, "stages_s": {"encode": 1.0}}
    where = {"processor": "x", "cores": 2, "memory_gib": 4, "kernel": "Linux"}
    origin = {"run_id": "1", "date": "2026-11-30T12:00:00+00:00", "command": "fedhpc bench sum", "machine": where}
    what = {"work": "masked sum", "params": 9, "sites": 2, "ranks": [1, 1], "system": "fedhpc", "version": "0.1.0"}
    return {**GOOD, **what, **origin, "settings": {}, "measured": times}


def test_a_program_that_measured_passes(tmp_path: Path) -> None:
    done = judged(tmp_path, whole_record()).ok()
    assert "2 checks: 1 lines, 1 left out, 0 errors" in done.out
    assert "it needs 2 nodes, and there is one" in (tmp_path / "out" / "skipped.txt").read_text()
    lines = (tmp_path / "out" / "results" / "partition.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [whole_record()]


@pytest.mark.parametrize("lost", ["wall_s", "cpu_s", "peak_bytes", "verified"])
def test_a_lost_figure_fails(tmp_path: Path, lost: str) -> None:
    done = judged(tmp_path, {name: value for name, value in whole_record().items() if name != lost})
    assert done.code == 1
    assert ("the result is not verified" if lost == "verified" else f"{lost} is missing") in done.err


@pytest.mark.parametrize(("records", "code", "said"), [([], 0, "0 lines"), ([whole_record()], 3, "exit status: 3")])
def test_a_program_that_says_nothing_or_fails_fails(
    tmp_path: Path, records: list[dict[str, Any]], code: int, said: str
) -> None:
    done = judged(tmp_path, *records, code=code)
    assert done.code == 1
    assert said in done.err
    assert "nothing was measured" in done.err


def test_our_own_check_decides_at_last(tmp_path: Path) -> None:
    """A figure that ReFrame does not know of."""
    record = whole_record()
    del record["measured"]["masked_s"]
    done = judged(tmp_path, record)
    assert "1 lines, 1 left out, 0 errors" in done.out
    assert done.code == 1
    assert "masked_s is missing" in done.err


def test_ranks_on_other_nodes_than_they_were_laid_out_on_fail(tmp_path: Path) -> None:
    done = judged(tmp_path, whole_record() | {"settings": {"nodes": 2}})
    assert done.code == 1
    assert "its ranks were on 2 nodes, and were to be on 1" in done.err


def test_repeats_are_counted_as_they_were_asked_for(tmp_path: Path) -> None:
    """--repeat, or a variable of ReFrame's: each record says it."""
    two = [whole_record() | {"repeat": number, "repeats": 2} for number in (1, 2)]
    (tmp_path / "both").mkdir()
    done = judged(tmp_path / "both", *two, words=("--", "--setvar", "repeat=2")).ok()
    assert "2 checks: 2 lines, 1 left out, 0 errors" in done.out
    done = judged(tmp_path, two[0], words=("--repeat", "2"))
    assert done.code == 1
    assert "1 lines, of the repeats 1, where 2 were asked for" in done.err


@pytest.mark.parametrize("count", ["0", "-1", "x"])
def test_a_number_of_repeats_that_is_none(tmp_path: Path, count: str) -> None:
    done = suite(tmp_path, f"--repeat={count}")
    assert done.code == 2
    assert f"{count} is not 1 or more" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_leaves_no_process_and_keeps_what_was_done(tmp_path: Path, number: signal.Signals) -> None:
    text = STAYS.format(python=sys.executable, folder=repr(str(tmp_path)), record=whole_record())
    program = write_program(tmp_path / "stays", text)
    line = [sys.executable, "-m", "benchmarks.partition", "--out", tmp_path / "out", "--tag", "smoke"]
    surroundings = environment({"FEDHPC_SUITE_PYTHON": shlex.quote(str(program))})
    running = subprocess.Popen(line, cwd=ROOT, env=surroundings, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60 * PATIENCE
        while not (tmp_path / "begun").exists() and time.monotonic() < until:
            time.sleep(0.1)
        assert of_this_test(tmp_path), "a process is there to be ended"
        running.send_signal(number)
        _, error = running.communicate(timeout=60 * PATIENCE)
    finally:
        running.kill()
    assert of_this_test(tmp_path) == []
    assert running.returncode == 75
    assert "told to end; 1 checks were done" in error
    assert json.loads((tmp_path / "out" / "results" / "partition.jsonl").read_text()) == whole_record()
    assert (tmp_path / "out" / "skipped.txt").is_file()


def of_this_test(folder: Path) -> list[str]:
    """Command lines with its folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        if str(folder) in words:
            found.append(words)
    return found


def test_no_check_is_an_error_and_so_is_a_used_folder(tmp_path: Path) -> None:
    done = suite(tmp_path, "--tag", "nosuch")
    assert done.code == 1
    assert "ReFrame wrote no report; exit code 0" in done.err
    (tmp_path / "out" / "reframe").mkdir(exist_ok=True)
    assert suite(tmp_path).code == 64


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (GOOD | {"wall_s": None}, "wall_s is missing"),
        (GOOD | {"cpu_s": float("inf")}, "cpu_s is inf"),
        (GOOD | {"peak_bytes": 0}, "peak_bytes is 0"),
        (GOOD | {"wall_s": True}, "wall_s is missing"),
        (GOOD | {"verified": False}, "not verified"),
    ],
)
def test_faults(record: dict[str, Any], said: str) -> None:
    assert [said in text for text in faults([record])] == [True]


def test_which_repeats_are_there() -> None:
    first, second = ({**GOOD, "repeat": number, "repeats": 2} for number in (1, 2))
    assert list(faults([first, second])) == []
    assert list(faults([first, second, first, second], 1)) == [], "of two works"
    for some in ([first], [first, first], [first, second, second]):
        assert "where 2 were asked for" in next(faults(some))
    assert list(faults([first, {**second, "repeats": 3}])) == ["the lines do not say how many repeats were asked for"]
    assert list(faults([])) == ["0 lines"]
    assert list(faults([GOOD | {"settings": {"nodes": 1}}], 2)) == ["its ranks were on 1 nodes, and were to be on 2"]


# --- where ranks go


def test_ranks_go_to_as_few_nodes_as_hold_them() -> None:
    place = Place(cores=8, memory_mib=4096)
    assert over_nodes(place, 64, 128.0) == Layout(8, 8, 1024.0)
    assert over_nodes(place, 4, 1800.0) == Layout(2, 2, 3600.0)
    assert over_nodes(Place(cores=2, memory_mib=99.0, one_machine=True), 64, 128.0).nodes == 1


def test_what_does_not_fit_is_said() -> None:
    place = Place(cores=8, memory_mib=4096, nodes=2)
    billion = over_nodes(place, 4, rank_mib(1_000_000_000))
    assert billion == Layout(4, 1, rank_mib(1_000_000_000))
    told = list(obstacles(place, billion))
    assert told == [
        "its ranks need 4.0 GiB on each node, and a node has 4.0 GiB, of which a tenth stays free",
        "it needs 4 nodes, and there are 2",
    ]
    assert list(obstacles(Place(scales=frozenset({1, 4})), Layout(2, 1, 1.0))) == [
        "it needs 2 whole nodes, and the partition's features list 1, 4"
    ]
    assert list(obstacles(Place(), billion)) == []


def test_a_place_in_eessis_words() -> None:
    features = ["cpu", "1_core", "1_2_node", "1cpn_2nodes", "1_node", "16_nodes"]
    place = place_of(features, {"mem_per_node": 219.345 * 1024}, 128)
    assert (place.scales, place.cores, place.nodes) == (frozenset({1, 16}), 128, None)
    assert place.memory_mib == pytest.approx(224609.28)


def test_a_site_configuration_of_eessis_form(tmp_path: Path) -> None:
    """Which scripts would be submitted, and what is left out; nothing is run."""
    needs("sbatch")
    (tmp_path / "site.py").write_text(SITE.replace("PREFIX", repr(str(tmp_path))))
    words = ["-C", tmp_path / "site.py", "--system", "somewhere", "-c", ROOT / "benchmarks/partition/checks.py"]
    words += ["--report-file", tmp_path / "report.json", "-t", "SumOverNodes$", "-t", "own$", "--dry-run"]
    program = [sys.executable, "-c", "from reframe.frontend.cli import main; main()"]
    call([*program, *words], cwd=tmp_path, timeout=120).ok()
    cases = [case for run in json.loads((tmp_path / "report.json").read_text())["runs"] for case in run["testcases"]]
    left_out = {case["partition"]: case["left_out"] for case in cases if case["result"] == "skip"}
    assert left_out == {"gpu": "it needs 2 whole nodes, and the partition's features list 1"}
    scripts = {
        case["partition"]: (Path(case["stagedir"]) / "rfm_job.sh").read_text()
        for case in cases
        if (case["scaling"], case["params"]) == ("strong", 1_000_000) and case["result"] == "pass"
    }
    asked = ["#SBATCH --ntasks=128", "#SBATCH --ntasks-per-node=64", "#SBATCH -p cpu", "#SBATCH --mem="]
    assert [text for text in asked if text not in scripts["cpu"]] == []
    assert "\nexport SLURM_EXPORT_ENV=ALL\nmpirun -np 128 " in scripts["cpu"]
    assert " -m mpi4py -m fedhpc bench sum --sites 2 --params 1000000 --ranks-per-site 64 " in scripts["cpu"]
    assert "#SBATCH --gpus-per-node=4" in scripts["gpu"]
    assert "\nsrun --cpus-per-task=1 " in scripts["gpu"]


@pytest.mark.parametrize(
    ("launcher", "words"),
    [
        ("mpirun", "mpirun -np 4 --map-by ppr:2:node "),
        ("srun", "--nodes=2 --ntasks=4 --ntasks-per-node=2 --kill-on-bad-exit=1 --export=ALL "),
    ],
)
def test_a_launcher_in_a_job_is_told_the_layout(tmp_path: Path, launcher: str, words: str) -> None:
    """Which script would run; nothing is run."""
    job = {"SLURM_JOB_NUM_NODES": "2", "SLURM_TASKS_PER_NODE": "2(x2)", "SLURM_MEM_PER_NODE": "4096"}
    given = ["-C", ROOT / "benchmarks/partition/places.py", "--system", "allocation", "--prefix", tmp_path / "stage"]
    given += ["-c", ROOT / "benchmarks/partition/checks.py", "--report-file", tmp_path / "report.json"]
    given += ["-t", "SumOverNodes$", "-t", "smoke$", "--dry-run"]
    program = [sys.executable, "-c", "from reframe.frontend.cli import main; main()"]
    env = job | {"FEDHPC_SUITE_LAUNCHER": launcher, "PYTHONPATH": str(ROOT)}
    call([*program, *given], cwd=tmp_path, timeout=120, env=env).ok()
    cases = [case for run in json.loads((tmp_path / "report.json").read_text())["runs"] for case in run["testcases"]]
    (over_two,) = [case for case in cases if case["nodes"] == 2]
    assert words in (Path(over_two["stagedir"]) / "rfm_job.sh").read_text()


@pytest.mark.mpi
def test_in_an_image(tmp_path: Path) -> None:
    """ReFrame's own container platform, with a stand-in that shows nothing but what was bound; the sum is real."""
    needs_roots()
    write_apptainer(tmp_path / "real" / "apptainer", tmp_path / "calls")
    wrapper = f"""#!/bin/bash
words=(exec --home /tmp)
shift
for word; do
  case $word in -B*) words+=(--bind "${{word#-B}}") ;; *) words+=("$word") ;; esac
done
exec {shlex.quote(str(tmp_path / "real" / "apptainer"))} "${{words[@]}}"
"""
    (tmp_path / "bin").mkdir()
    write_program(tmp_path / "bin" / "apptainer", wrapper)
    (tmp_path / "cpu.sif").write_bytes(b"sif")
    words = ["--", "--setvar", f"image={tmp_path / 'cpu.sif'}", "--setvar", f"image_python={sys.executable}"]
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = suite(tmp_path, *TAGS, *words, timeout=180, PATH=path).ok()
    assert "2 checks: 1 lines, 1 left out, 0 errors" in done.out
    record = json.loads((tmp_path / "out" / "results" / "partition.jsonl").read_text())
    assert record["verified"] is True
    assert f"{tmp_path / 'cpu.sif'} {sys.executable} -m mpi4py -m fedhpc bench sum" in (tmp_path / "calls").read_text()
