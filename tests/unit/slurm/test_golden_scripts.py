"""Every profile and shape of batch script, byte for byte, and both checkers of shell over all of them."""

from __future__ import annotations

from pathlib import Path

import golden_scripts
import pytest
from golden_scripts import CASES, CONTAINED, SHAPES
from harness import ROOT, call, edit
from slurm_fakes import needs, script, write_site

from fedhpc.slurm import entrance
from fedhpc.slurm.image import Image
from fedhpc.slurm.measured import Measured
from fedhpc.slurm.scripts import KINDS, Shape


def case_text(case: str, folder: Path) -> str:
    """A script of a profile; the folder that differs from test to test is written as /home/site."""
    profile, life, stage = case.rsplit("-", 2)
    slurm = {"account": "acc 1", "time": "08:00:00", "setup": ["module load x"], "extra": ["--exclusive"]}
    site = write_site(folder, life=life, slurm=slurm)
    after = "41" if stage == "exchange" else None
    return script(site, stage, profile=profile, after=after).replace(str(folder.parent), "/home/site")


def shape_text(kind: str, folder: Path) -> str:
    site = write_site(folder, slurm={"tasks_per_node": 3, "mpi": "pmix"}, sites=3)
    federation = folder / "federation.toml"
    shape = Shape(kind, folder / "sites", (federation, federation), folder / "relay.toml", 1, suite(folder))
    return script(site, shape=shape).replace(str(folder.parent), "/home/site")


def suite(folder: Path) -> Measured:
    return Measured(suite=folder / "tree" / "benchmarks" / "partition")


def contained_text(name: str, folder: Path) -> str:
    """A script whose ranks run in an image: of every shape, with the host's MPI, and of the other runtime."""
    kind = name.removeprefix("contained-")
    library = folder / "host's lib"
    library.mkdir(parents=True)
    (library / "libmpi.so.12").touch()
    container: dict[str, object] = {
        "site": {
            "certificate": "lab.pem",
            "certificate_roots": "roots.pem",
            "binds": ["/opt/models:/models:ro", "/scratch"],
        },
        "bind": {"mpi": "bind", "mpi_library": [str(library), "/opt/fabric"], "gpu": "rocm", "command": "singularity"},
        "charliecloud": {"runtime": "charliecloud", "options": ["--set-env"], "binds": ["/opt/models:/mnt/0"]},
        "folder": {"runtime": "charliecloud", "command": "/opt/bin/ch-run"},
    }.get(kind, {"environment": {"UCX_TLS": "sysv,ib,self"}})
    slurm = {
        "tasks_per_node": 3,
        "mpi": "pmix",
        "gpus_per_node": 3,
        "container": container | {"image": "fedhpc cpu.sif"},
    }
    shape = kind if kind in KINDS else "site"
    site = write_site(folder, life="chained" if shape in ("site", "hetjob") else "inline", slurm=slurm, sites=3)
    edit(site, "device = 'cpu'", "device = 'auto'")
    if kind in ("bind", "folder"):  # their ledgers are in the user's data directory
        edit(site, site.read_text().partition("[ledger]")[2].splitlines()[1], "")
    image = Image(folder / "sites" / "fedhpc cpu.sif", "" if kind == "folder" else "0123456789abcdef" * 4)
    federation = folder / "federation.toml"
    held = Shape(shape, folder / "sites", (federation, federation), folder / "relay" / "relay.toml", 1, suite(folder))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(entrance, "_SHARED", ())  # pytest's folders lie in /tmp or not
        return script(site, shape=held, image=image).replace(str(folder.parent), "/home/site")


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if request.config.getoption("--regenerate"):
        folder = tmp_path_factory.mktemp("scripts")
        texts = {case: case_text(case, folder / case / "a b's") for case in CASES}
        texts |= {kind: shape_text(kind, folder / kind / "a b's") for kind in SHAPES}
        golden_scripts.write(texts | {name: contained_text(name, folder / name / "a b's") for name in CONTAINED})
    return golden_scripts.read()


@pytest.fixture(scope="module")
def files(golden: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The golden scripts as files."""
    folder = tmp_path_factory.mktemp("golden")
    for name, text in golden.items():
        (folder / f"{name}.sbatch").write_text(text)
    return sorted(folder.glob("*"))


@pytest.mark.parametrize("case", CASES)
def test_golden_of_every_profile_and_life(case: str, tmp_path: Path, golden: dict[str, str]) -> None:
    assert case_text(case, tmp_path / "a b's") == golden[case]


@pytest.mark.parametrize("kind", SHAPES)
def test_golden_of_every_shape(kind: str, tmp_path: Path, golden: dict[str, str]) -> None:
    assert shape_text(kind, tmp_path / "a b's") == golden[kind]


@pytest.mark.parametrize("name", CONTAINED)
def test_golden_of_every_shape_in_a_container(name: str, tmp_path: Path, golden: dict[str, str]) -> None:
    assert contained_text(name, tmp_path / "a b's") == golden[name]


def test_no_golden_is_left_over(golden: dict[str, str]) -> None:
    assert golden.keys() == {*CASES, *SHAPES, *CONTAINED}


def test_every_template_is_in_a_golden(golden: dict[str, str]) -> None:
    texts = "\n".join(golden.values())
    for path in (ROOT / "jobs" / "templates").glob("*"):
        longest = max((line for line in path.read_text().splitlines() if "@@" not in line), key=len)
        assert longest in texts, path


def test_bash_takes_every_golden(files: list[Path]) -> None:
    for path in files:
        call(["bash", "-n", path]).ok()


def test_shellcheck_takes_every_golden(files: list[Path]) -> None:
    needs("shellcheck")
    call(["shellcheck", *files], timeout=120).ok()


def test_a_hunk_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="do not follow"):
        golden_scripts.apply("a\nb\n", "@@\n a\n-c\n+d\n")
    assert golden_scripts.apply("a\nb\n", "@@\n a\n-c\n+d\n", where_it_fits=True) == "a\nb\n"
