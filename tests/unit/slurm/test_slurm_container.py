"""[slurm.container]: what is refused, what is bound, which words start a job's programs, and what the script does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from harness import Completed, edit
from slurm_fakes import Fakes, Node, plan_of, script, submitter_of, write_program, write_site

from fedhpc.cli.submit import submit
from fedhpc.errors import ConfigError, PeersError, PolicyError, StorageError
from fedhpc.slurm import entrance
from fedhpc.slurm.bound import Bind, Bound, arranged
from fedhpc.slurm.container_section import ExtraBind, check_bound, read_bind, read_container
from fedhpc.slurm.image import Image, image_of, require_agreed, sha256_of
from fedhpc.slurm.job_chain import Chains
from fedhpc.slurm.measured import Measured
from fedhpc.slurm.plan import check, make_plan
from fedhpc.slurm.queue import clean
from fedhpc.slurm.scripts import Shape
from fedhpc.slurm.settings import exchange_settings, overlay

SHA256 = "ab" * 32


def site_in(
    folder: Path, *, life: str = "inline", sites: int = 1, slurm: dict[str, Any] | None = None, **section: Any
) -> Path:
    return write_site(
        folder, life=life, sites=sites, slurm={**(slurm or {}), "container": {"image": "cpu.sif", **section}}
    )


def words(text: str) -> list[str]:
    """The array `inside` of a script, as bash reads it, with its variables left as they are."""
    (array,) = re.findall(r"(?ms)^inside=\(\n(.*?)^\)$", text)
    return shlex.split(array)


def bound_in(text: str) -> list[str]:
    """What a script binds, in order, as SOURCE:TARGET and :ro for what is only read."""
    (first, rest) = re.findall(r"(?ms)^binds=\(\n(.*?)^\)\n(.*?)^inside=", text)[0]
    found = []
    for line in [*first.splitlines(), *rest.splitlines()]:
        if line.startswith("sees "):
            source, target, *rights = shlex.split(line)[1:]
            found.append(":".join([source, target]) + "".join(rights))
        elif not line.startswith("sees()"):
            words_ = shlex.split(line.removeprefix("binds+=(").removesuffix(")"))
            found += [word.removeprefix("--bind=") for word in words_ if word != "--bind"]
    return found


def text_of(site: Path, stage: str = "all", shape: Shape | None = None) -> str:
    return script(site, stage, shape=shape, image=Image(site.parent / "cpu.sif", SHA256))


# --- settings


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"image": "docker://x"}, "is an address, and not a file"),
        ({"image": "a\nb"}, "one line"),
        ({"python": "python3"}, "a whole path in the image"),
        ({"runtime": "podman"}, "is not one of 'apptainer', 'charliecloud'"),
        ({"gpus": "nv"}, "unknown key 'gpus'"),
        ({"mpi": "bind"}, "needs mpi_library"),
        ({"mpi_library": ["/opt/mpi"]}, "belongs to mpi"),
        ({"mpi": "bind", "mpi_library": ["lib"]}, "is not a whole path"),
        ({"binds": ["data"]}, "is not a whole path"),
        ({"binds": ["/a,/b"]}, "is no bind"),
        ({"binds": ["/a:/b:/c"]}, "is no bind"),
        ({"binds": [":ro"]}, "is not a whole path"),
        ({"options": ["--x\n"]}, "one word for each entry"),
        ({"options": ["--nv"]}, "is set by fedhpc itself"),
        ({"options": ["--bind=/x"]}, "is set by fedhpc itself"),
        ({"options": ["--containall"]}, "would keep out"),
        ({"options": ["--cleanenv"]}, "would keep out"),
        ({"options": ["-B/x"]}, "is set by fedhpc itself"),
        ({"options": ["-ec"]}, "would keep out"),
        ({"options": ["-wC"]}, "would keep out"),
        ({"binds": "/a"}, "should be a list"),
        ({"environment": {"A B": "1"}}, "names as a shell takes them"),
        ({"environment": {"A": "1\n2"}}, "one line of text"),
        ({"environment": {"HOME": "/x"}}, "HOME is a folder of the run"),
        ({"certificate_roots": "r.pem"}, "belongs to certificate"),
        ({"runtime": "charliecloud", "gpu": "nv"}, "has no flag"),
        ({"runtime": "charliecloud", "certificate": "c.pem"}, "only a SIF file can be signed"),
        ({"runtime": "charliecloud", "binds": ["/a:ro"]}, "has no :ro"),
    ],
)
def test_what_a_container_section_cannot_say(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        overlay({}, {"container": section})
    assert said in f"{refused.value.what}, {refused.value.hint}"
    assert refused.value.what.isprintable()


def test_binds_are_read() -> None:
    assert read_bind("/a") == ExtraBind("/a", "/a", True)
    assert read_bind("/a:ro") == ExtraBind("/a", "/a", False)
    assert read_bind("/a b:/c") == ExtraBind("/a b", "/c", True)
    assert read_bind("/a:/c:rw") == ExtraBind("/a", "/c", True)


def test_profiles_are_joined_where_they_speak_of_the_same_runtime() -> None:
    profile = {
        "container": {"command": "singularity", "gpu": "rocm", "binds": ["/p"], "environment": {"A": "1", "B": "1"}}
    }
    site = {"container": {"image": "x.sif", "binds": ["/s"], "environment": {"B": "2"}}}
    joined = overlay(profile, site).inside
    assert (joined.words, joined.gpu, joined.binds) == ("singularity", "rocm", ("/p", "/s"))
    assert joined.environment == {"A": "1", "B": "2"}
    both = overlay({"container": {"runtime": "charliecloud"}}, {"container": {"image": "x", "binds": ["/s"]}}).inside
    assert (both.runtime, both.binds) == ("charliecloud", ("/s",))
    host = overlay({"container": {"mpi": "bind", "mpi_library": ["/p"]}}, {"container": {"mpi_library": ["/m"]}}).inside
    assert (host.mpi, host.mpi_library) == ("bind", ("/m",)), "judged together"
    other = overlay(profile, {"container": {"runtime": "charliecloud"}}).inside
    assert (other.words, other.gpu, other.binds) == ("ch-run", "", ())
    assert exchange_settings(overlay(profile, site)).inside == joined


def test_options_whose_value_is_in_the_same_word_are_taken() -> None:
    given = ["-S/scratch", "-W/ec", "-u", "--env=A=-e", "-o", "/x"]
    assert read_container({"options": given}).options == tuple(given)


def test_exchange_jobs_have_no_other_image() -> None:
    with pytest.raises(ConfigError, match=r"slurm\.exchange: unknown key 'container'"):
        overlay({}, {"exchange": {"container": {}}})


# --- the image


def test_the_image_is_looked_for_beside_the_site_file(tmp_path: Path) -> None:
    site = site_in(tmp_path / "fed")
    with pytest.raises(ConfigError, match=r"cpu\.sif is not there"):
        image_of(plan_of(site))
    (site.parent / "cpu.sif").write_bytes(b"sif")
    assert image_of(plan_of(site)) == Image(site.parent / "cpu.sif", hashlib.sha256(b"sif").hexdigest())
    assert image_of(plan_of(site), SHA256) == Image(site.parent / "cpu.sif", SHA256), "the chain's, not read again"
    named = tmp_path / "other.sif"
    named.write_bytes(b"other")
    plan = make_plan(site, profile=None, federation=None, out=None, container=named)
    assert image_of(plan) == Image(named, sha256_of(named))
    assert image_of(plan_of(write_site(tmp_path / "bare"))) is None


def test_a_folder_is_an_image_of_charliecloud_only(tmp_path: Path) -> None:
    site = site_in(tmp_path / "one")
    (site.parent / "cpu.sif").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        image_of(plan_of(site))
    site = site_in(tmp_path / "two", runtime="charliecloud")
    (site.parent / "cpu.sif").mkdir()
    found = image_of(plan_of(site))
    assert found == Image(site.parent / "cpu.sif", "")
    assert "a folder without a digest" in script(site, image=found)


def test_an_image_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        sha256_of(tmp_path)


def test_only_listed_images_make_a_script(tmp_path: Path) -> None:
    site = site_in(tmp_path / "fed", sites=3, slurm={"tasks_per_node": 3})
    federation, other = tmp_path / "fed" / "federation.toml", tmp_path / "fed" / "other.toml"
    other.write_bytes(federation.read_bytes())
    federation.write_text(federation.read_text() + f'\n[container]\ncpu = "sha256:{SHA256}"\n')
    assert "FEDHPC_CONTAINER_SHA256" in text_of(site)
    for image, said in (
        (None, "in none of them"),
        (Image(site, "1" * 64), "does not list"),
        (Image(site, ""), "folders"),
    ):
        with pytest.raises(PolicyError, match=said) as refused:
            script(site, image=image)
        assert SHA256 in refused.value.hint
    # Every federation.toml of an array counts.
    other.write_text(other.read_text() + f'\n[container]\ncpu = "sha256:{"1" * 64}"\n')
    with pytest.raises(PolicyError, match="does not list"):
        text_of(site, shape=Shape("array", site.parent, (federation, other)))
    require_agreed(None, [])
    # A relay is no site.
    other.write_bytes(federation.read_bytes())
    assert script(site, shape=Shape("relay", relay=tmp_path / "relay.toml"), image=Image(site, "1" * 64))


# --- what is bound


def test_a_job_sees_what_it_needs_and_writes_only_where_it_must(tmp_path: Path) -> None:
    folder = tmp_path / "fed"
    site = site_in(folder, binds=["/models:ro", "/a:/b"])
    found = words(text_of(site))
    assert bound_in(text_of(site)) == [
        *("/models:/models:ro", "/a:/b"),
        f"{folder}/federation.toml:{folder}/federation.toml:ro",
        f"{folder}/run:{folder}/run",
        f"{folder}/sites:{folder}/sites:ro",
        f"{folder}/data/aa.h5:{folder}/data/aa.h5:ro",
        f"{folder}/keys/aa.key:{folder}/keys/aa.key:ro",
        f"{folder}/ledger/aa:{folder}/ledger/aa",
        "$XDG_DATA_HOME/fedhpc",
    ]
    edit(site, site.read_text().partition("[ledger]")[2].splitlines()[1], "")
    assert bound_in(text_of(site))[-1] == "$XDG_DATA_HOME/fedhpc", "over all others"
    assert found[: found.index("exec")] == [
        *("env", "-u", "PYTHONPATH", "-u", "PYTHONHOME", "-u", "PYTHONSTARTUP", "-u", "VIRTUAL_ENV"),
        *("-u", "LD_PRELOAD", "-u", "TMPDIR", "-u", "MPI4PY_LIBMPI", "-u", "OPAL_PREFIX", "apptainer"),
    ]
    assert found[-2:] == ["$image", "/opt/fedhpc/bin/python"]
    assert "--nv" not in found


def test_sites_elsewhere_and_a_spool_are_bound(tmp_path: Path) -> None:
    site = site_in(tmp_path / "fed")
    edit(site, "name = 'aa'", f'name = "aa"\ndirectory = "{tmp_path}/place/aa"')
    with site.open("a") as file:
        file.write('\n[exchange]\nkind = "spool"\nspool = "spool"\n')
    bound = [target for _, _, target in (b.partition(":") for b in bound_in(text_of(site)))]
    assert f"{tmp_path}/place" in bound, "the copy of federation.toml lies above RUN/SITE"
    assert f"{tmp_path}/fed/sites/spool" in bound
    assert f"{tmp_path}/place" in text_of(site).split("if ! (umask 077 && mkdir -p", 1)[1].splitlines()[0]


def test_a_relay_sees_its_own_folder_only(tmp_path: Path) -> None:
    site = site_in(tmp_path / "fed", slurm={"gpus_per_node": 1})
    text = text_of(site, shape=Shape("relay", relay=tmp_path / "relay" / "relay.toml"))
    seen = [tmp_path / "relay", tmp_path / "fed" / "run" / "aa" / "jobs"]
    assert bound_in(text) == [f"{path}:{path}" for path in seen]
    assert words(text)[words(text).index("--pwd") + 1] == f"{tmp_path}/relay"


def test_a_benchmark_sees_the_store_that_it_reads_and_the_folder_that_it_fills(tmp_path: Path) -> None:
    site = site_in(tmp_path / "fed")
    measured = Measured(("data",), reads=tmp_path / "mine.h5", writes=tmp_path / "scratch")
    bound = bound_in(text_of(site, shape=Shape("bench", measured=measured)))
    assert f"{tmp_path}/mine.h5:{tmp_path}/mine.h5:ro" in bound
    assert f"{tmp_path}/scratch:{tmp_path}/scratch" in bound


def test_links_are_bound_under_both_names_and_inner_folders_once(tmp_path: Path) -> None:
    real = tmp_path / "pfs" / "scratch"
    real.mkdir(parents=True)
    (tmp_path / "scratch").symlink_to(real)
    found = arranged([Bound(tmp_path / "scratch" / "run", writable=True), Bound(tmp_path / "scratch" / "run" / "x")])
    assert found == [Bind(real / "run", name, True) for name in (tmp_path / "scratch" / "run", real / "run")]
    nested = [Bound(tmp_path / "a"), Bound(tmp_path / "a" / "run", writable=True), Bound(tmp_path / "a" / "key")]
    inner = tmp_path / "a" / "run"
    assert arranged(nested) == [Bind(tmp_path / "a", tmp_path / "a"), Bind(inner, inner, True)]
    (tmp_path / "a").mkdir()
    assert arranged(nested, flat=True) == [Bind(tmp_path / "a", tmp_path / "a")]


def test_a_runtime_with_folders_only_gets_those_of_a_link_and_of_its_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "two" / "file").touch()
    (tmp_path / "one" / "link").symlink_to("../two/file")
    seen = [Bind(tmp_path / name, tmp_path / name) for name in ("one", "two")]
    assert arranged([Bound(tmp_path / "one" / "link")], flat=True) == seen


def test_many_links_into_one_folder_are_one_bind(tmp_path: Path) -> None:
    for name in ("blobs", "snapshot"):
        (tmp_path / name).mkdir()
    for number in range(1000):
        (tmp_path / "snapshot" / f"{number}").symlink_to(f"../blobs/{number}")
    seen = [Bind(tmp_path / name, tmp_path / name) for name in ("blobs", "snapshot")]
    assert arranged([Bound(tmp_path / "snapshot")]) == seen


@pytest.mark.parametrize("name", ["a,b", "a:b", 'a"b', "a\\b"])
def test_a_path_that_the_runtime_would_split_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be bound") as refused:
        text_of(site_in(tmp_path / name))
    assert "symbolic link" in refused.value.hint
    assert check_bound("/a b's", "x") == "/a b's"


# --- flags and variables


@pytest.mark.parametrize(
    ("device", "gpus", "gpu", "stage", "flag"),
    [
        ("auto", 2, "", "all", "--nv"),
        ("cuda", 2, "", "train", "--nv"),
        ("auto", 2, "rocm", "all", "--rocm"),
        ("auto", 0, "nv", "all", "--nv"),
        ("auto", 2, "none", "all", None),
        ("auto", 0, "", "all", None),
        ("cpu", 2, "nv", "all", None),
        ("auto", 2, "rocm", "exchange", None),
    ],
)
def test_the_gpu_comes_in_for_what_trains_on_it(
    tmp_path: Path, device: str, gpus: int, gpu: str, stage: str, flag: str | None
) -> None:
    site = site_in(tmp_path / "fed", life="detached", slurm={"gpus_per_node": gpus}, gpu=gpu)
    edit(site, "device = 'cpu'", f"device = '{device}'")
    assert [w for w in words(text_of(site, stage)) if w in ("--nv", "--rocm")] == ([flag] if flag else [])


def test_bind_mode_puts_the_hosts_mpi_first(tmp_path: Path) -> None:
    library = tmp_path / "mpi"
    library.mkdir()
    site = site_in(
        tmp_path / "fed",
        mpi="bind",
        mpi_library=[str(library), "/opt/x"],
        environment={"LD_LIBRARY_PATH": "/y", "A": "1"},
    )
    with pytest.raises(ConfigError, match=r"no libmpi\.so\.40 or libmpi\.so\.12"):
        text_of(site)
    (library / "libmpi.so.40").touch()
    text = text_of(site)
    assert f"export APPTAINERENV_LD_LIBRARY_PATH={library}:/opt/x:/y\n" in text
    assert f"export APPTAINERENV_MPI4PY_LIBMPI={library}/libmpi.so.40\n" in text
    assert "export APPTAINERENV_A=1\n" in text
    found = words(text)
    assert bound_in(text)[:2] == [f"{library}:{library}:ro", "/opt/x:/opt/x:ro"]
    assert "OPAL_PREFIX" not in found, "the host's own may need it"


def test_singularity_reads_variables_of_its_own(tmp_path: Path) -> None:
    site = site_in(tmp_path / "fed", command="/opt/bin/singularity", environment={"A": "it's"})
    text = text_of(site)
    assert "export SINGULARITYENV_A='it'\"'\"'s'\n" in text
    assert "APPTAINERENV" not in text
    assert "/opt/bin/singularity" in words(text)


# --- running the script

_APPTAINER = r"""#!/bin/bash
log apptainer "$@"
if [[ $1 == verify ]]; then exit "$(answer verify 0)"; fi
python=(${PYTHONPATH-none} ${TMPDIR-none})
log came "${FEDHPC_CONTAINER_SHA256:-}" "${python[@]}" "${SLURM_JOB_ID:-}" "${PMIX_RANK:-}"
while [[ $1 != *.sif ]]; do shift; done
shift
exec "$@"
"""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node.make(tmp_path / "node")
    first, _, rest = _APPTAINER.partition("\n")
    log = (made.folder / "srun").read_text().split("\n", 1)[1].split("\nlog srun", 1)[0]
    write_program(made.folder / "apptainer", f"{first}\n{log}\n{rest}")
    return made


def ready(tmp_path: Path, node: Node, *, life: str = "inline", folder: str = "fed", **section: Any) -> tuple[str, Path]:
    """A script whose image is there, and the image."""
    outside = tmp_path / "outside"
    outside.mkdir(exist_ok=True)
    write_program(outside / "python", (node.folder / "python").read_text())
    slurm = {"python": str(outside / "python")}
    site = site_in(tmp_path / folder, life=life, slurm=slurm, python=str(node.folder / "python"), **section)
    plan = plan_of(site)
    plan.jobs.mkdir(parents=True)
    image = site.parent / "cpu.sif"
    image.write_bytes(b"sif")
    return script(site, image=image_of(plan)), image


def ends(node: Node, text: str, **env: str) -> Completed:
    with node.start(text, **env) as job:
        return job.finish(60)


def test_ranks_and_checks_start_inside_and_the_chain_outside(tmp_path: Path, node: Node) -> None:
    node.answer("run", 75)
    text, image = ready(tmp_path, node, life="chained", folder="a b's")
    done = ends(node, text, PYTHONPATH="/host", TMPDIR="/host/tmp", PMIX_RANK="0")
    assert done.code == 0, done.text
    entered = node.calls("apptainer")
    assert [words[words.index(str(image)) + 2 :][:4] for words in entered] == [
        ["-m", "fedhpc", "doctor", "--quick"],
        ["-m", "mpi4py", "-m", "fedhpc"],
    ]
    sha256 = hashlib.sha256(b"sif").hexdigest()
    assert node.calls("came")[-1] == [sha256, "none", "none", "77", "0"], "PMI and Slurm come in, Python does not"
    assert f"container {image}, sha256 {sha256}" in done.out
    (submitted,) = node.calls("submit")
    assert submitted[submitted.index("--container") + 1] == str(image)
    home = tmp_path / "a b's" / "run" / "aa" / "jobs" / "own-home"
    assert (entered[0][entered[0].index("--home") + 1], home.stat().st_mode & 0o777) == (str(home), 0o700)


def test_an_image_that_was_changed_ends_the_chain(tmp_path: Path, node: Node) -> None:
    text, image = ready(tmp_path, node, life="chained")
    image.write_bytes(b"another")
    done = ends(node, text)
    assert done.code == 77, done.text
    assert "is not the one that was submitted" in done.out
    assert (node.calls("run"), node.calls("submit"), len(node.calls("cancel"))) == ([], [], 1)
    image.unlink()
    done = ends(node, text)
    assert done.code == 74, done.text
    assert "cannot be read on this node" in done.out


def test_a_signature_that_does_not_hold_ends_the_chain(tmp_path: Path, node: Node) -> None:
    text, image = ready(tmp_path, node, life="chained", certificate="lab.pem", certificate_roots="/etc/roots.pem")
    node.answer("run", 0)
    ends(node, text).ok()
    assert node.calls("apptainer")[0] == [
        *(
            "verify",
            "--certificate",
            str(image.parent / "lab.pem"),
            "--certificate-roots",
            "/etc/roots.pem",
            str(image),
        ),
    ]
    ran = len(node.calls("run"))
    node.answer("verify", 1)
    done = ends(node, text)
    assert done.code == 77, done.text
    assert "the signature of" in done.out
    assert len(node.calls("run")) == ran
    (node.folder / "apptainer").unlink()
    assert ends(node, text).code == 77, "also where it cannot be looked at"


def test_each_program_of_a_multiprog_step_starts_inside(tmp_path: Path, node: Node) -> None:
    site = site_in(
        tmp_path / "a b's", sites=3, slurm={"tasks_per_node": 3, "preflight": False}, python=str(node.folder / "python")
    )
    plan_of(site).jobs.mkdir(parents=True)
    (site.parent / "cpu.sif").write_bytes(b"sif")
    text = script(site, shape=Shape("multiprog", site.parent), image=image_of(plan_of(site)))
    ends(node, text).ok()
    first = (node.folder / "programs").read_text().splitlines()[0]
    assert first.startswith('0 bash -c \'exec bash "$FEDHPC_PROGRAM_PYTHON" -m mpi4py -m fedhpc run')
    script_ = next(plan_of(site).jobs.glob("*.inside"))
    node.answer("run", 0)
    with node.start(f'bash "{script_}" -m mpi4py "a  b"') as job:
        job.finish(60).ok()
    assert node.calls("run") == [["-m", "mpi4py", "a  b"]]


# --- records


def test_a_chain_keeps_the_image_that_it_began_with(tmp_path: Path) -> None:
    site = site_in(tmp_path / "fed", life="chained")
    fakes = Fakes.make(tmp_path / "fakes")
    made = submitter_of(site, fakes)
    made = type(made)(
        made.plan, made.shape, made.queue, made.pause, made.python, Image(site.parent / "cpu.sif", SHA256)
    )
    made.plan.jobs.mkdir(parents=True)
    (first,) = Chains(made).begin(1)
    assert first.container == SHA256
    assert made.records.get(first.name) == first
    (second,) = Chains(made).follow(first.name, 1)
    assert second.container == SHA256
    assert SHA256 in (made.plan.jobs / f"{second.name}.sbatch").read_text()
    older = (made.plan.jobs / f"{first.name}.json").read_text().replace(f' "container": "{SHA256}",\n', "")
    (made.plan.jobs / f"{first.name}.json").write_text(older)
    kept = made.records.get(first.name)
    assert kept is not None
    assert kept.container == ""


def test_the_record_of_a_link_that_was_cut_short_is_that_of_its_script(tmp_path: Path) -> None:
    fakes = Fakes.make(tmp_path / "fakes")
    made = submitter_of(site_in(tmp_path / "fed"), fakes)
    made.plan.jobs.mkdir(parents=True)
    image = made.plan.site_file.base / "cpu.sif"
    fakes.answers("sbatch", "lost")
    with pytest.raises(PeersError):
        Chains(dataclasses.replace(made, image=Image(image, SHA256))).begin(1)
    fakes.answers("sbatch", "ok")
    (record,) = Chains(dataclasses.replace(made, image=Image(image, "1" * 64))).begin(1)
    assert record.container == "1" * 64
    assert "1" * 64 in (made.plan.jobs / f"{record.name}.sbatch").read_text()


def test_a_chain_outside_stays_outside_when_the_site_file_gets_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one in an image stays in it, by the word of its script."""
    fakes = Fakes.make(tmp_path / "fakes")
    for name, value in fakes.environment.items():
        monkeypatch.setenv(name, value)
    site = write_site(tmp_path / "fed", life="chained")
    edit(site, "[life]", "[exchange]\nkind = 'spool'\nspool = 'spool'\n[life]")
    (site.parent / "spool").mkdir()
    (site.parent / "cpu.sif").write_bytes(b"sif")
    sha256 = hashlib.sha256(b"sif").hexdigest()

    def submitted(*words: str) -> dict[str, str]:
        done = CliRunner().invoke(submit, [str(site), "--json", *words], catch_exceptions=False)
        return dict(json.loads(done.stdout.splitlines()[-1]))

    first = submitted()
    with site.open("a") as file:
        file.write("[slurm.container]\nimage = 'cpu.sif'\n")
    second = submitted("--successor", first["name"])
    assert (first["container"], second["container"]) == ("", "")
    text = (plan_of(site).jobs / f"{second['name']}.sbatch").read_text()
    assert 'env FEDHPC_CONTAINER_SHA256= "$python" -m fedhpc doctor' in text, "so that the checks look at no image"
    for job in fakes.jobs():
        fakes.set_state(job["job"], "GONE")
    third = submitted()
    assert third["container"] == sha256
    edit(site, "image = 'cpu.sif'", "")
    fourth = submitted("--successor", third["name"], "--container", str(site.parent / "cpu.sif"))
    assert fourth["container"] == sha256


def test_a_folder_is_in_the_record(tmp_path: Path) -> None:
    assert Image(tmp_path, "").recorded == "folder"
    site = site_in(tmp_path / "fed", runtime="charliecloud")
    (site.parent / "cpu.sif").mkdir()
    assert image_of(plan_of(site), "folder") == Image(site.parent / "cpu.sif", "")


def test_an_address_is_no_image(tmp_path: Path) -> None:
    site = write_site(tmp_path / "fed")
    with pytest.raises(ConfigError, match="is an address"):
        make_plan(site, profile=None, federation=None, out=None, container=Path("docker://x"))


def test_charliecloud_makes_no_folder_for_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_in(tmp_path / "fed", runtime="charliecloud")
    assert check(plan_of(site)) == []
    edit(site, site.read_text().partition("[ledger]")[2].splitlines()[1], "")
    monkeypatch.setenv("XDG_DATA_HOME", "/home/me/share")
    assert "[ledger] path" in check(plan_of(site))[0]
    (site.parent / "cpu.sif" / "home" / "me" / "share" / "fedhpc").mkdir(parents=True)
    assert check(plan_of(site)) == [], "this image has it"


def test_values_of_variables_are_not_evaluated(tmp_path: Path) -> None:
    assert "export APPTAINER_NO_EVAL=1\n" in text_of(site_in(tmp_path / "a"))
    assert "export SINGULARITY_NO_EVAL=1\n" in text_of(site_in(tmp_path / "b", command="singularity"))


def test_the_next_job_does_not_inherit_the_image_of_this_one() -> None:
    assert clean({"FEDHPC_CONTAINER_SHA256": "x", "A": "1"}) == {"A": "1"}


def test_read_container_gives_the_defaults() -> None:
    assert read_container({}).words == "apptainer"
    assert read_container({"runtime": "charliecloud"}).words == "ch-run"


def test_charliecloud_shares_tmp_and_binds_outer_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only folders: an image can have those ready, but not the files of a site."""
    site = site_in(tmp_path / "fed", runtime="charliecloud", binds=["/opt/models:/mnt/0"], environment={"A": "$x"})
    monkeypatch.setattr(entrance, "_SHARED", ())
    found = words(text_of(site))
    assert found[found.index("ch-run") :] == [
        *("ch-run", "--env-no-expand", f"--cd={tmp_path}/fed/sites", "--set-env=HOME=$home"),
        *("--set-env=PATH=/opt/fedhpc/bin:/usr/local/bin:/usr/bin:/bin", "${binds[@]}", "--set-env=A=$x"),
        *("$image", "--", "/opt/fedhpc/bin/python"),
    ]
    assert bound_in(text_of(site)) == ["/opt/models:/mnt/0", f"{tmp_path}/fed:{tmp_path}/fed"]
    monkeypatch.setattr(entrance, "_SHARED", (tmp_path,))
    assert bound_in(text_of(site)) == ["/opt/models:/mnt/0"]


def test_charliecloud_takes_the_hosts_mpi_too(tmp_path: Path) -> None:
    (tmp_path / "libmpi.so.40").touch()
    site = site_in(tmp_path / "fed", runtime="charliecloud", mpi="bind", mpi_library=[str(tmp_path)])
    found = words(text_of(site))
    assert f"--set-env=LD_LIBRARY_PATH={tmp_path}" in found
    assert bound_in(text_of(site))[0] == str(tmp_path)
    assert f"--set-env=MPI4PY_LIBMPI={tmp_path}/libmpi.so.40" in found
