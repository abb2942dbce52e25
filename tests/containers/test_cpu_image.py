"""containers/cpu.def, built here: its own %test, one MPI library in a process, a federation in a Slurm job."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import charliecloud
import pytest
from built_image import BuiltImage
from charliecloud import NOBODY, TEST, run_image
from clusters import Cluster
from harness import FEDHPC, call
from host_mpi import WITHIN, find
from jobs_inside import PYTHON, libraries, trained

from fedhpc.demo.heart.federation import write_heart_federation

Build = Callable[..., BuiltImage]
LIMIT = "/proc/sys/user/max_user_namespaces"
VERSIONS = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in ('numpy', 'torch')}))"


@pytest.mark.parametrize("user", [0, NOBODY])
def test_its_own_test_passes_on_a_read_only_root(cpu: BuiltImage, user: int) -> None:
    assert cpu.stage.test
    run_image(cpu.root, TEST, user=user, timeout=300).ok()
    wrote = run_image(cpu.root, "touch", "/opt/fedhpc/x", user=user)
    assert wrote.code == 1, wrote.text
    assert "Read-only file system" in wrote.err


def test_anybody_runs_the_demo_in_it_without_a_home(cpu: BuiltImage, workshop: Path, demo_hash: str) -> None:
    """With the image's own mpirun; pictures, too, whose library asks for a cache in HOME."""
    out = workshop / "anybody"
    out.mkdir()
    out.chmod(0o777)
    words = ["fedhpc", "demo", "heart", "--splits", "1", "--out", out / "demo", "--json"]
    done = run_image(cpu.root, *words, user=NOBODY, timeout=300).ok()
    assert json.loads(done.out.splitlines()[-1])["final_model_sha256"] == demo_hash
    run_image(cpu.root, "fedhpc", "report", out / "demo" / "run", user=NOBODY, timeout=300).ok()


def test_without_user_namespaces_nothing_starts_and_doctor_says_why(cpu: BuiltImage, tmp_path: Path) -> None:
    """They are switched off in a namespace of the test's own, of which this machine notices nothing."""
    forbid = ["unshare", "--user", "--map-root-user", "sh", "-c", f'echo 0 >{LIMIT}; exec "$@"', "sh"]
    started = call([*forbid, *charliecloud.words(cpu.root, "true")], env={"USER": "site"})
    assert started.code != 0
    assert "namespace" in started.err, started.text
    federation = write_heart_federation(tmp_path / "heart")
    site = next((federation.parent / "sites").glob("*.toml"))
    with site.open("a") as file:
        file.write(f'\n[slurm.container]\nimage = "{cpu.root}"\nruntime = "charliecloud"\n')
    words = [*FEDHPC, "doctor", site, "--federation", federation, "--quick", "--json"]
    for before, expected in (([], "ok"), (forbid, "fail")):
        done = call([*before, *words], timeout=300)
        found = json.loads(done.out.splitlines()[-1])
        (check,) = [check for check in found["checks"] if check["name"] == "container-userns"]
        assert check["state"] == expected, done.text


def test_eight_ranks_in_a_slurm_job_end_with_the_model_of_outside(
    cpu: BuiltImage, alpha: Cluster, tmp_path: Path, demo_hash: str, record_property: Any
) -> None:
    """Four sites of two ranks over two nodes."""
    versions = json.loads(run_image(cpu.root, PYTHON, "-c", VERSIONS).ok().out)
    assert versions == {name: importlib.metadata.version(name) for name in ("numpy", "torch")}
    federation = write_heart_federation(tmp_path / "heart")
    assert trained(alpha, tmp_path, cpu.root, federation) == demo_hash
    record_property("hybrid", {"final_model_sha256": demo_hash, "versions": versions})


def test_the_compiled_kernel_is_in_it_and_no_compiler(cpu: BuiltImage) -> None:
    run_image(cpu.root, PYTHON, "-c", "import fedhpc.kernel._core").ok()
    assert not list(cpu.root.glob("usr/bin/*gcc*")), "the compiler stayed in the image"


def test_a_rank_has_one_libmpi_the_image_s(cpu: BuiltImage, alpha: Cluster, tmp_path: Path) -> None:
    found = libraries(alpha, tmp_path, cpu.root)
    assert len(found) == 2
    for rank in found:
        assert len(rank["loaded"]) == 1, rank
        assert rank["loaded"][0].startswith("/opt/fedhpc/lib/"), rank
        assert rank["version"].startswith("Open MPI v5"), rank


def test_a_rank_has_one_libmpi_the_host_s_and_the_same_model(
    image_of: Build, workshop: Path, alpha: Cluster, tmp_path: Path, demo_hash: str, record_property: Any
) -> None:
    """The bind model: an image without MPI, and Debian's Open MPI of this machine bound in."""
    image = image_of("cpu.def", "bound", MPI="host")
    assert not list(image.root.glob("**/libmpi*.so*"))
    host = find(workshop / "host-mpi")
    host.make_mount_points(image.root)
    found = libraries(alpha, tmp_path, image.root, binds=host.binds, env=host.env)
    assert len(found) == 2
    for rank in found:
        assert rank["loaded"] == [f"{WITHIN}/lib/libmpi.so.40"], rank
        assert rank["version"].startswith("Open MPI v4"), rank
    federation = write_heart_federation(tmp_path / "heart")
    assert trained(alpha, tmp_path, image.root, federation, binds=host.binds, env=host.env) == demo_hash
    record_property("bind", {"final_model_sha256": demo_hash, "library": found[0]["version"].split(",")[0]})
