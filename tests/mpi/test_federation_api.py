"""fed.sum, fed.mean and fed.sync as a user meets them, and what happens when the sites do not call them alike."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness import Completed, Site, call, launcher_command, mpirun, write_federation

HERE = Path(__file__).parent
UNEVEN = {"aa": Site(ranks=2), "bb": Site(ranks=2), "cc": Site(ranks=3)}


def sum_case(tmp_path: Path, case: str, ranks: tuple[int, int, int] = (1, 1, 1), **settings: object) -> Completed:
    sites = {name: Site(ranks=n) for name, n in zip(("aa", "bb", "cc"), ranks, strict=True)}
    federation = write_federation(tmp_path, sites, stores=False, **settings)  # type: ignore[arg-type]
    # Plain `python script.py`: fedhpc's own hook must end the job.
    words = [HERE / "sum_ranks.py", federation, "sites", tmp_path / "sites", case]
    return mpirun(sum(ranks), words, timeout=40, guarded=False, warm=True)


@pytest.mark.mpi
def test_sums_and_means(tmp_path: Path) -> None:
    write_federation(tmp_path, UNEVEN, stores=False)
    done = mpirun(7, [HERE / "federation_api_ranks.py", tmp_path], timeout=90).ok()
    assert done.out.count("rank done") == 7


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("case", "code", "words"),
    [
        ("beyond", 65, ["'dose'", "site bb", "beyond the bound 2.5"]),
        ("integer beyond", 65, ["'rows'", "site bb", "beyond the bound 3074457345618258602"]),
        ("nan", 65, ["'dose'", "site bb", "holds NaN"]),
        ("nan with bound", 65, ["'dose'", "site bb", "holds NaN"]),
        ("infinity", 65, ["'dose'", "site bb", "holds infinity"]),
        ("another bound", 77, ["another layout"]),
        ("another name", 77, ["another layout"]),
        ("another shape", 77, ["another layout"]),
        ("another kind", 77, ["proposes another"]),
        ("same name, other vector", 77, ["'cases'", "another vector"]),
        ("same name, other shape", 77, ["'cases'", "another vector"]),
    ],
)
def test_what_one_site_gives_differently_ends_the_job(tmp_path: Path, case: str, code: int, words: list[str]) -> None:
    done = sum_case(tmp_path, case).refused(code, *words)
    assert "at: site " in done.err, "the message names the site and rank"
    assert ": [" not in done.out, f"a sum came out\n{done.text}"


@pytest.mark.mpi
def test_ranks_of_one_site_that_give_different_shapes_are_told(tmp_path: Path) -> None:
    sum_case(tmp_path, "ranks differ", (1, 3, 1)).refused(65, "the ranks of site bb")


@pytest.mark.mpi
def test_without_masks_disagreement_is_found_too(tmp_path: Path) -> None:
    sum_case(tmp_path, "another name", secure={"mode": "off"}).refused(77, "another layout")


@pytest.mark.mpi
def test_site_settings_that_must_fit_together_are_agreed_on(tmp_path: Path) -> None:
    """Chunks, rails and overlap are in each site's private file; sums must not hang or break when they differ.

    Chunks are the smallest of all sites; a site's rails are its own matter.
    """
    sites = {
        "aa": Site(ranks=2, exchange={"chunk_bytes": 4096, "overlap": "on", "rails": 2}),
        "bb": Site(ranks=2, exchange={"chunk_bytes": 8192, "overlap": "auto", "rails": 1}),
        "cc": Site(ranks=2, exchange={"overlap": "off"}),
    }
    federation = write_federation(tmp_path, sites, stores=False)
    script = tmp_path / "long.py"
    script.write_text(
        "import sys, numpy as np, fedhpc\n"
        "with fedhpc.join(sys.argv[1], sites=sys.argv[2]) as fed:\n"
        "    assert fed.session.sums.rails == {'aa': 2, 'bb': 1, 'cc': 2}[fed.site], fed.session.sums.rails\n"
        "    me = fed.sites.index(fed.site) + 1\n"
        "    got = fed.sum(np.arange(150_000) * me)\n"
        "    assert (got == np.arange(150_000) * 6).all()\n"
        "    print('equal')\n"
    )
    done = mpirun(6, [script, federation, tmp_path / "sites"], timeout=40, warm=True).ok()
    assert done.out.count("equal") == 6


@pytest.mark.mpi
def test_join_with_one_site_file_per_command_line(tmp_path: Path) -> None:
    """mpirun -n 1 python s.py a.toml : -n 2 python s.py b.toml : …, with ranks that the site files do not know."""
    federation = write_federation(tmp_path, 3, stores=False)
    # Not in roster order, and the first site twice: ranks of a site need not be neighbours.
    contexts: list[str | Path] = []
    for name, ranks in (("bb", 2), ("aa", 1), ("cc", 1), ("aa", 1)):
        contexts += [":", "-n", str(ranks), sys.executable, HERE / "sum_ranks.py", federation]
        contexts += ["site", tmp_path / "sites" / f"{name}.toml", "plain"]
    launcher, _, _, *options = launcher_command(1)  # mpirun -n 1 …; its options stand once, before the contexts
    done = call([launcher, *options, *contexts[1:]], timeout=40).ok()
    lines = sorted(line for line in done.out.splitlines() if ": [" in line)
    sums = "[3, 6] [1.5, 3.0]"
    assert lines == [f"aa 0/2: {sums}", f"aa 1/2: {sums}", f"bb 0/2: {sums}", f"bb 1/2: {sums}", f"cc 0/1: {sums}"]


@pytest.mark.mpi
def test_a_site_without_ranks_is_named(tmp_path: Path) -> None:
    federation = write_federation(tmp_path, 3, stores=False)
    words = [HERE / "sum_ranks.py", federation, "site", tmp_path / "sites" / "bb.toml", "plain"]
    mpirun(2, words, timeout=30).refused(64, "no rank of this job belongs to site aa, cc")


def test_one_site_needs_no_mpi(tmp_path: Path) -> None:
    federation = write_federation(tmp_path, 1, stores=False)
    script = tmp_path / "no_exchange.py"
    script.write_text(
        "import sys, numpy as np, fedhpc\n"
        "with fedhpc.join(sys.argv[1], site=sys.argv[2]) as fed:\n"
        "    x = np.array([0.1, -1e300, 3e-320])\n"
        "    got = fed.sum({'x': x, 'n': 7, 'empty': np.zeros(0)})\n"
        "    assert got['x'].tobytes() == x.tobytes() and got['n'] == 7 and got.quantum['x'] == 0.0\n"
        "    assert fed.mean(0.1, weight=3) == 0.1\n"
        "    assert 'mpi4py' not in sys.modules and 'torch' not in sys.modules\n"
        "    print(fed.rank, fed.ranks, fed.sites)\n"
    )
    done = call([sys.executable, script, federation, tmp_path / "sites" / "aa.toml"], timeout=30).ok()
    assert done.out == "0 1 ['aa']\n"


def test_importing_fedhpc_imports_neither_mpi_nor_torch() -> None:
    code = (
        "import sys, fedhpc, fedhpc.cli; fedhpc.join; fedhpc.Federation\n"
        "print([m for m in ('torch', 'mpi4py.MPI', 'h5py') if m in sys.modules])"
    )
    assert call([sys.executable, "-c", code]).ok().out == "[]\n"


@pytest.mark.mpi
def test_sync_in_a_users_own_loop(tmp_path: Path) -> None:
    write_federation(tmp_path, {"aa": Site(), "bb": Site(), "cc": Site(ranks=2)}, stores=False)
    words = [HERE / "sync_ranks.py", tmp_path]
    path = {"PYTHONPATH": f"{HERE.parent}:{HERE.parents[1]}"}
    done = mpirun(4, words, timeout=120, env=path, warm=True).ok()
    for wrapped in ("True", "False"):
        prints = [line.split()[1] for line in done.out.splitlines() if line.startswith(wrapped)]
        assert len(prints) == 3
        assert len(set(prints)) == 1
