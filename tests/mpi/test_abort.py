"""An error on any one rank ends the whole job within seconds, with that rank's message and its exit code."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest
from harness import FEDHPC, PATIENCE, Completed, Site, call, launcher_command, mpirun, write_federation

from fedhpc.errors import ConfigError
from fedhpc.mpi.world import check_size, expected_size, launched

HERE = Path(__file__).parent
PLAIN, GUARDED = False, True


def fail(tmp_path: Path, case: str, rank: int, guarded: bool) -> Completed:
    exchange = {"overlap": "on", "chunk_bytes": 65536}
    # A helper masks a rail, and there are as many of them as every site has ranks.
    ranks = {"aa": 2, "bb": 2, "cc": 2} if case == "in a helper thread" else {"aa": 1, "bb": 2, "cc": 1}
    federation = write_federation(tmp_path, {n: Site(ranks=r, exchange=exchange) for n, r in ranks.items()})
    stamp = tmp_path / "stamp"
    done = mpirun(
        sum(ranks.values()), [HERE / "abort_ranks.py", federation, tmp_path / "sites", stamp, str(rank), case],
        timeout=40, guarded=guarded,
    )  # fmt: skip
    assert stamp.exists(), f"the fault did not happen\n{done.text}"
    assert done.ended - float(stamp.read_text()) < 5 * PATIENCE, f"the job ended too late\n{done.text}"
    return done


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("case", "rank", "guarded", "code", "words"),
    [
        ("before join", 0, PLAIN, None, ["the fault before join"]),
        ("before join", 3, GUARDED, None, ["the fault before join"]),
        ("configuration before join", 1, PLAIN, None, ["give either sites= (a directory) or site= (a file)"]),
        ("in the loop", 0, PLAIN, 70, ["RuntimeError: the fault in the loop", "at: site aa, rank 0", "Traceback"]),
        ("in the loop", 2, GUARDED, 70, ["RuntimeError: the fault in the loop", "at: site bb, rank 1", "Traceback"]),
        ("in a helper thread", 2, PLAIN, 70, ["OSError: the fault in a helper thread", "at: site bb, rank 0"]),
        ("in a helper thread", 3, GUARDED, 70, ["OSError: the fault in a helper thread", "at: site bb, rank 1"]),
        ("exit 3", 3, PLAIN, 3, ["sys.exit(3)", "at: site cc, rank 0"]),
        ("exit 3", 2, GUARDED, 3, ["sys.exit(3)", "at: site bb, rank 1"]),
        ("exit with text", 3, PLAIN, 1, ["the fault as a text"]),
        ("keyboard interrupt", 2, PLAIN, 130, ["KeyboardInterrupt", "at: site bb, rank 1"]),
        ("fedhpc error", 1, GUARDED, 65, ["error: tensor 'value' of site bb holds NaN", "hint: ", "at: site bb"]),
        ("a shorter loop", 2, PLAIN, 69, ["site bb has left the federation", "hint: every site makes the same calls"]),
        ("a refused input", 1, PLAIN, 69, ["site bb refused what it was to put into a sum", "hint: its own output"]),
        ("torch's own hook", 2, PLAIN, 70, ["the fault under torch's hook", "at: site bb, rank 1"]),
    ],
)  # fmt: skip
def test_one_rank_fails(
    tmp_path: Path, case: str, rank: int, guarded: bool, code: int | None, words: list[str]
) -> None:
    done = fail(tmp_path, case, rank, guarded)
    assert done.code == code if code is not None else done.code != 0, done.text
    for word in words:
        assert word in done.err, done.text
    assert "4711" not in done.text


TASK = """
import torch
{top}
def model(options): return torch.nn.Linear(4, 1)
def dataset(path, options): return torch.utils.data.TensorDataset(torch.zeros(8, 4), torch.zeros(8))
def loss(model, batch):
    {loss}
    return model(batch[0]).mean()
def sums(model, batch): return {{"n": torch.tensor(len(batch[0]))}}
"""
ON_ONE = "import os, sys\nif os.environ['OMPI_COMM_WORLD_RANK'] == '1': "


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("top", "loss", "guarded", "code", "words"),
    [
        (ON_ONE + "raise ValueError('broken task')", "", GUARDED, 64, ["site bb", "ValueError: broken task"]),
        ("import os, sys", ON_ONE.split("\n")[1] + "sys.exit(4)", PLAIN, 4, ["sys.exit(4)", "at: site bb, rank 0"]),
    ],
)
def test_a_task_fails_on_one_rank(
    tmp_path: Path, top: str, loss: str, guarded: bool, code: int, words: list[str]
) -> None:
    source = tmp_path / "task.py"
    source.write_text(TASK.format(top=top, loss=loss))
    task = {"name": "module", "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    federation = write_federation(tmp_path, 3, task=task)
    for site in (tmp_path / "sites").glob("*.toml"):
        site.write_text(site.read_text().replace("[data]\n", "[data]\ntask_source = '../task.py'\n"))
    words_ = ["-m", "fedhpc", "run", federation, "--sites", tmp_path / "sites"]
    done = mpirun(3, words_, timeout=60, guarded=guarded, warm=True)
    assert done.code == code, done.text
    for word in words:
        assert word in done.err, done.text


def spoil(folder: Path, case: str) -> None:
    """What every rank, or the one of a site, will find wrong."""
    if case in ("data of one site", "data of all sites"):
        for store in sorted((folder / "data").glob("*.h5"))[: 1 if case == "data of one site" else None]:
            store.unlink()
    if case == "the same site files everywhere":
        for site in (folder / "sites").glob("*.toml"):
            site.write_text(site.read_text().replace("threads = 1", "threads = 1\ndevise = 'cpu'"))
    if case == "a task that breaks on all ranks":
        (folder / "task.py").write_text(TASK.format(top="import os, sys", loss="raise KeyError('the broken loss')"))


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        ("data of one site", 65, "at: site aa, rank 0"),
        ("data of all sites", 65, "at: site "),
        ("the same site files everywhere", 64, "unknown key 'devise'"),
        ("a task that breaks on all ranks", 65, "the broken loss"),
        ("usage", 64, "No such option"),
        ("before MPI starts", 64, "--stage is for one site"),
    ],
)
def test_one_error_is_told_once(tmp_path: Path, case: str, code: int, words: str) -> None:
    """And what the launcher adds is one block at most: nothing of MPI_Abort."""
    task: dict[str, object] | None = None
    if case.startswith("a task"):
        spoil(tmp_path, case)
        digest = hashlib.sha256((tmp_path / "task.py").read_bytes()).hexdigest()
        task = {"name": "module", "source_sha256": digest}
    federation = write_federation(tmp_path, 3, task=task)
    if task is not None:
        for site in (tmp_path / "sites").glob("*.toml"):
            site.write_text(site.read_text().replace("[data]\n", "[data]\ntask_source = '../task.py'\n"))
    else:
        spoil(tmp_path, case)
    more = {"usage": ["--sitez"], "before MPI starts": ["--stage", "train"]}.get(case, [])
    done = mpirun(3, ["-m", "fedhpc", "run", federation, "--sites", tmp_path / "sites", *more], timeout=60)
    assert done.code == code, done.text
    told = [line for line in done.err.splitlines() if line.lower().startswith("error: ")]
    assert len(told) == 1, done.text
    assert words in done.err, done.text
    assert "MPI_ABORT" not in done.err
    assert done.err.count("prterun ") <= 1, done.text


@pytest.mark.mpi
def test_the_code_arrives_through_a_wrapper_that_forgets_it(tmp_path: Path) -> None:
    """Then only MPI_Abort can tell mpirun."""
    federation = write_federation(tmp_path, 3)
    words = [
        sys.executable,
        "-m",
        "mpi4py",
        HERE / "abort_ranks.py",
        federation,
        tmp_path / "sites",
        tmp_path / "stamp",
    ]
    wrapper = ["bash", "-c", '"$@"; true', "wrapper"]
    done = call([*launcher_command(3), *wrapper, *words, "1", "fedhpc error"], timeout=60)
    assert done.code == 65, done.text
    assert done.err.count("error: tensor 'value' of site bb holds NaN") == 1


# --- a world that is not the one the launcher promised


@pytest.mark.parametrize("variable", ["SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"])
def test_one_process_where_slurm_started_four(tmp_path: Path, variable: str) -> None:
    """The wrong process-management interface gives four worlds of one rank, each of which would train alone."""
    federation = write_federation(tmp_path, 1, stores=False)
    words = [sys.executable, HERE / "sum_ranks.py", federation, "sites", tmp_path / "sites", "plain"]
    slurm = {variable: "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}
    call(words, env=slurm, timeout=30).refused(64, variable, "4 ranks", "--mpi=")
    run = [*FEDHPC, "run", federation, "--sites", tmp_path / "sites"]
    call(run, env=slurm, timeout=30).refused(64, variable, "4 ranks", "--mpi=")


def test_one_process_where_mpirun_started_four(tmp_path: Path) -> None:
    federation = write_federation(tmp_path, 1, stores=False)
    words = [sys.executable, HERE / "sum_ranks.py", federation, "sites", tmp_path / "sites", "plain"]
    call(words, env={"PMI_SIZE": "4"}, timeout=30).refused(64, "PMI_SIZE", "4 ranks", "different installations")


@pytest.mark.parametrize(
    ("variables", "size", "refused"),
    [
        ({}, 1, ""),
        ({"SLURM_NTASKS": "4"}, 4, ""),
        ({"SLURM_NTASKS": "4"}, 1, "--mpi=pmix"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "4"}, 2, ""),  # a step smaller than the allocation
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "4"}, 4, "SLURM_STEP_NUM_TASKS"),
        ({"OMPI_COMM_WORLD_SIZE": "8", "SLURM_STEP_NUM_TASKS": "2"}, 8, ""),  # mpirun started by one srun task a node
        ({"OMPI_COMM_WORLD_SIZE": "8"}, 1, "OMPI_COMM_WORLD_SIZE says 8"),
        ({"PMI_SIZE": "3", "SLURM_NTASKS": "1"}, 1, "PMI_SIZE says 3"),
        ({"SLURM_NTASKS": "four"}, 1, ""),
        ({"SLURM_NTASKS": "0", "PMI_SIZE": ""}, 1, ""),
    ],
)
def test_check_size(variables: dict[str, str], size: int, refused: str) -> None:
    if not refused:
        check_size(size, variables)
        return
    with pytest.raises(ConfigError) as caught:
        check_size(size, variables)
    assert refused in caught.value.lines()
    assert f"has {size}" in caught.value.what
    assert expected_size(variables) is not None


def test_launched() -> None:
    assert not launched({"PATH": "/bin", "SLURM_JOB_ID": "1"})
    for mark in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "SLURM_PROCID"):
        assert launched({mark: "0"})
