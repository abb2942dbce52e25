"""`fedhpc submit --shape bench`: what its script launches, and what is refused before a job waits."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from harness import FEDHPC, Completed, call
from slurm_fakes import HOSTILE, script, write_site

from fedhpc.bench.given_ranks import given_ranks, launcher_words
from fedhpc.cli.bench_words import measured_command
from fedhpc.slurm.measured import Measured
from fedhpc.slurm.scripts import Shape


def submitted(site: Path, *words: str) -> Completed:
    return call([*FEDHPC, "submit", site, "--dry-run", *words])


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return write_site(tmp_path / "fed", slurm={"nodes": 2, "tasks_per_node": 2, "mpi": "pmix"})


def test_a_dry_run_of_one_command(site: Path) -> None:
    done = submitted(site, "--shape", "bench", "--", "sum", "--sites", "2", "--ranks-per-site", "2").ok()
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=2\n" in done.out
    assert "launch srun --ntasks=4 " in done.out
    bench = '-m mpi4py -m fedhpc bench sum --sites 2 --ranks-per-site 2 --lines "$measured.jsonl"\n'
    assert f'--mpi=pmix \\\n  "$python" {bench}' in done.out


def test_a_command_with_processes_of_its_own_is_one_task(site: Path) -> None:
    done = submitted(site, "--shape", "bench", "--", "masks", "--sites", "2,4").ok()
    assert 'launch "$python" -m fedhpc bench masks --sites 2,4 --lines "$measured.jsonl"\n' in done.out


def test_the_suite_of_this_tree(site: Path) -> None:
    done = submitted(site, "--shape", "bench", "--tag", "smoke", "--tag", "Round").ok()
    assert '"$python" -m benchmarks.partition --allocation --out "$measured" --tag smoke --tag Round\n' in done.out
    assert "export SLURM_MPI_TYPE=pmix\n" in done.out


def test_words_are_quoted(site: Path) -> None:
    text = script(site, shape=Shape("bench", measured=Measured(("data", "--store", HOSTILE))))
    assert f"-m fedhpc bench data --store {shlex.quote(HOSTILE)} --lines" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shape", "bench", "--", "sum", "--sites", "3"], "has 3 ranks, but [slurm] nodes x tasks_per_node is 4"),
        (["--shape", "bench", "--", "sums"], "fedhpc bench has no 'sums'"),
        (["--shape", "bench", "--", "sum", "--site", "4"], "No such option"),
        (["--shape", "bench", "--", "sum", "--sites", "1000"], "--sites"),
        (["--shape", "bench", "--", "sum", "--ranks", "4"], "--ranks 4"),
        (["--shape", "bench", "--", "sum", "--lines", "x"], "--lines is the job's own"),
        (["--shape", "bench", "--suite", "/nowhere"], "there is no ReFrame suite in /nowhere"),
        (["--shape", "bench", "--tag", "own", "--", "sum"], "the suite, or one command"),
        (["--", "sum"], "belong to a benchmark"),
        (["--shape", "rehearsal", "--tag", "own"], "belong to a benchmark"),
        (["--shape", "bench", "--links", "2"], "--links needs a chain"),
        # A forgotten --: they are submit's own options.
        (["--shape", "bench", "sum", "--sites", "8"], "words of `fedhpc bench` come after --, such as -- sum --sites"),
        (["--shape", "bench", "--relay", "relay.toml"], "--relay: of other shapes than bench"),
        (["--shape", "bench", "--at-once", "2"], "--at-once: of other shapes than bench"),
        (["--shape", "bench", "--federation", "a", "--federation", "b"], "only an array has more than one"),
        # The job begins in another folder.
        (["--shape", "bench", "--", "sum", "--exchange", "https", "--folder", "x"], "--folder x is relative"),
        (["--shape", "bench", "--", "masks", "--sites", "1"], "--sites 1"),
        (["--shape", "bench", "--", "backends", "--backends", "gloo"], "there is no 'gloo'"),
        (["--shape", "bench", "--", "sum", "--rails", "2"], "--rails 2"),
        (["--shape", "bench", "--", "sum", "--chunk-bytes", "5000"], "a multiple of 16"),
        (["--shape", "bench", "--", "sum", "--lost", "1"], "add --exchange https"),
    ],
)
def test_what_is_refused(site: Path, words: list[str], said: str) -> None:
    done = submitted(site, *words)
    assert done.code == 64
    assert said in done.err


def test_a_sparse_graph_that_could_be_cut_is_refused_before_the_job_waits(site: Path) -> None:
    words = ["--shape", "bench", "--", "sum", "--sites", "4", "--degree", "2"]
    submitted(site, *words).refused(77, "degree = 2 is not safe", "at least t + d + 1 = 3")


def test_a_store_of_a_job(site: Path, tmp_path: Path) -> None:
    """It must be there now, and a relay's folder need not: it may be a node's own disk."""
    words = ["--shape", "bench", "--", "data", "--store"]
    assert submitted(site, *words, str(tmp_path / "none.h5")).code == 64
    (tmp_path / "a.h5").write_bytes(b"")
    assert f"bench data --store {tmp_path}/a.h5 --lines" in submitted(site, *words, str(tmp_path / "a.h5")).ok().out
    relayed = ["--shape", "bench", "--", "sum", "--exchange", "https", "--folder", "/nowhere/local"]
    submitted(site, *relayed).ok()
    assert measured_command(["data", "--store", f"{tmp_path}/a.h5"]).reads == tmp_path / "a.h5"
    assert measured_command(relayed[3:]).writes == Path("/nowhere/local")


@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        ("sum", 4),
        ("sum --ranks 2,3", 5),
        ("sum --sites 3 --ranks-per-site 2", 6),
        ("sum --exchange https", 0),
        ("latency --sites 2", 2),
        ("round --sites 2 --ranks-per-site 3", 6),
        ("masks", 0),
        ("backends", 0),
    ],
)
def test_how_many_ranks_a_command_has(words: str, ranks: int) -> None:
    assert measured_command(words.split()).ranks == ranks


@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({}, 1),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4"}, 1),  # a batch script
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "1"}, 2),  # mpirun in a job
        ({"PMI_SIZE": "3"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "1"}, 1),  # salloc's shell
    ],
)
def test_which_processes_are_ranks(environment: dict[str, str], ranks: int) -> None:
    assert given_ranks(environment, typed=False) == ranks


@pytest.mark.parametrize("more", [{}, {"PMIX_RANK": "0"}, {"PMI_RANK": "0", "PMI_SIZE": "4"}])
def test_what_is_typed_in_a_shell_of_srun_has_no_other_ranks(more: dict[str, str]) -> None:
    """`srun -n 4 --pty bash`: three shells are gone, and nobody answers."""
    assert given_ranks({"SLURM_STEP_NUM_TASKS": "4"} | more, typed=True) == 1
    assert given_ranks({"OMPI_COMM_WORLD_SIZE": "4"} | more, typed=True) == 4


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4", "PMIX_RANK": "0"}, "srun --nodes=2 --ntasks=4 --ntasks-per-node=2 --mpi=pmix"),
        ({"SLURM_STEP_NUM_TASKS": "4", "PMI_RANK": "0"}, "srun --nodes=2 --ntasks=4 --ntasks-per-node=2 --mpi=pmi2"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun --nodes=2 --ntasks=4 --ntasks-per-node=2"),
        ({"OMPI_COMM_WORLD_SIZE": "4", "SLURM_STEP_NUM_TASKS": "2"}, "mpirun -n 4 --map-by ppr:2:node"),
    ],
)
def test_the_command_of_a_record_has_the_layout(environment: dict[str, str], words: str) -> None:
    assert launcher_words([b"a", b"b", b"a", b"b"], environment) == words.split()
    assert launcher_words([b"a", b"a", b"a", b"b"], environment)[:2] == words.split()[:2]
    assert not [w for w in launcher_words([b"a", b"a", b"a", b"b"], environment) if "per-node" in w or "ppr" in w]
