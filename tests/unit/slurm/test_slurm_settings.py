"""[slurm], profiles, and what is refused before the queue is asked."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest
from harness import ROOT
from slurm_fakes import PROFILES, plan_of, write_site

import fedhpc
from fedhpc.errors import ConfigError, StorageError
from fedhpc.slurm.exit_file import leave_exit_code
from fedhpc.slurm.extra import option_words
from fedhpc.slurm.plan import check, make_plan
from fedhpc.slurm.profile import jobs_folder, profile_names, read_profile
from fedhpc.slurm.settings import exchange_settings, overlay, walltime_s

FACT = re.compile(r"(?P<key>\w[\w-]*) += .*?(?:# (?P<word>source|unverified|choice): (?P<why>.+))?")
SITES = ROOT / "docs" / "sites.md"


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:00:01", 1), ("01:02:03", 3723), ("2-00:00:00", 172800), ("120:00:00", 432000)]
)
def test_walltimes(text: str, seconds: int) -> None:
    assert walltime_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "60", "1:00", "00:00:00", "1-00", "01:60:00", "01:00:00 ", "-1:00:00", "UNLIMITED"]
)
def test_what_is_no_walltime(text: str) -> None:
    with pytest.raises(ConfigError, match="not a walltime"):
        walltime_s(text)


SETS = {
    "account": ("--account=x", "--account x", "-A x", "-Ax", "--acc=x"),
    "partition": ("--partition=gpu", "-p gpu", "-pgpu", "-p  gpu", "--part gpu", '-p "gpu"'),
    "cpus_per_task": ("--cpus-per-task=4", "-c 4", "-c4", "--cpus-per-t=4"),
    "nodes": ("--nodes=2", "-N 2", "-N2", "--node=2"),
    "nodes and tasks_per_node": ("--ntasks=2", "-n 2", "-n2"),
    "tasks_per_node": ("--ntasks-per-node=2", "--ntasks-per-n=2", "--ntasks-per-node 2"),
    "qos": ("--qos=long", "-q long", "-qlong"),
    "constraint": ("--constraint=a", "-C a", "-Ca"),
    "reservation": ("--reservation=a", "--reserv=a"),
    "time": ("--time=00:05:00", "-t 5", "-t5", "--tim=5"),
    "signal_s": ("--signal=USR1@60", "--sig USR1@60"),
    "export": ("--export=NONE", "--exp=NONE"),
    "memory": ("--mem=4G", "--mem 4G", '--mem "4G"', "--mem=0"),
    "cluster": ("--clusters=a", "--clusters a", "-M a", "-Ma", "--cluster=a", "--clust=a"),
}


@pytest.mark.parametrize(("key", "option"), [(key, option) for key, options in SETS.items() for option in options])
def test_what_a_key_sets_is_refused_in_extra_with_the_keys_name(key: str, option: str) -> None:
    with pytest.raises(ConfigError) as refused:
        overlay({}, {"extra": [option]})
    assert "is set by fedhpc itself" in refused.value.what
    assert re.search(rf"\[slurm\] {key}( =|$)", refused.value.hint), refused.value.hint


OURS = (
    *("--job-name=x", "-J x", "-Jx", "--job=x", "--output=x", "-o x", "-ox", "--error=x", "-e x", "--open-mode=append"),
    *("--requeue", "--no-requeue", "--requ", "--dependency=afterok:1", "-d singleton", "--dep=singleton"),
    *("--array=0-3", "-a 0-3", "-a0-3", "--begin=now", "-b now", "--chdir=/x", "-D /x", "--wrap=true", "--parsable"),
    *("--wait", "-W", "--test-only", "--quiet", "-Q", "--help", "-h", "--usage", "--version", "-V"),
)


@pytest.mark.parametrize("option", OURS)
def test_what_a_batch_script_decides_is_refused_in_extra(option: str) -> None:
    with pytest.raises(ConfigError, match="is set by fedhpc itself"):
        overlay({}, {"extra": [option]})


OTHERS = (
    *("--exclusive", "--exclusive=user", "--hint=nomultithread", "--nodelist=n1", "-w n1", "--nodefile=x", "-F x"),
    *("--mem-bind=local", "--export-file=x", "--gres=nvme:1", "--gres-flags=enforce-binding", "--hold", "-H", "-k"),
    *("--no-kill", "-koff", "--exclude=n2", "-x n2", "--switches=1", "--mail-type=END", "-L matlab", "--time-min=5"),
    *("--comment=a b, c - d", '--comment "a b"', "-s", "--wait-all-nodes=1", "--cluster-constraint=x", "--bb=x"),
    *("--mem-per-cpu=4G", "--mem-per-gpu=4G", "--gres=gpu:a100:2", "-G 2", "--gpus=2", "--gpus-per-task=1"),
    *("--gpu-bind=none", "--my-plugin=x", "--threads-per-core=1", "--priority=1", "--nice"),
)


@pytest.mark.parametrize("option", OTHERS)
def test_other_options_are_sbatchs_own_matter(option: str) -> None:
    assert overlay({}, {"extra": [option]}).extra == (option,)


CONTRADICTIONS = [
    ({"memory": "16G"}, "--mem-per-cpu=4G"),
    ({"memory": "16G"}, "--mem-per-cpu 4G"),
    ({"memory": "16G"}, "--mem-per-c=4G"),
    ({"memory": "16G"}, "--mem-per-gpu=4G"),
    ({"memory": "0"}, "--mem-per-gpu=4G"),
    ({"gpus_per_node": 4}, "--gres=gpu:2"),
    ({"gpus_per_node": 4}, "--gres gpu:a100:2"),
    ({"gpus_per_node": 4}, "--tres-per-node=gres/gpu:2"),
    ({"gpus_per_node": 4}, "--gpus-per-node=2"),
    ({"gpus_per_node": 4}, "--gpus=2"),
    ({"gpus_per_node": 4}, "-G2"),
    ({"gpus_per_node": 4}, "--gpus-per-t=1"),
    ({"gpus_per_node": 4, "gpu_request": "gres"}, "--gres=nvme:1"),
]


@pytest.mark.parametrize(("keys", "option"), CONTRADICTIONS)
@pytest.mark.parametrize("where", ["site file", "profile"])
def test_options_that_contradict_a_key_are_refused(keys: dict[str, object], option: str, where: str) -> None:
    """sbatch would refuse the job, or the last one would win, whichever of the two comes from the profile."""
    profile, given = (keys, {"extra": [option]}) if where == "profile" else ({"extra": [option]}, keys)
    with pytest.raises(ConfigError, match=f"contradicts .slurm. {next(iter(keys))}"):
        overlay(profile, given)
    off: dict[str, object] = {k: type(v)() for k, v in keys.items() if k != "gpu_request"}
    assert overlay({"extra": [option], **keys}, off).extra == (option,), "the hint helps"


@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("--cpus-per-gpu=2", "cpus_per_task"),
        ("--ntasks-per-g 1", "tasks_per_node"),
        ("--tres-per-task=cpu:4", "cpus_per_task"),
        ("--tres-per-task=gres/gpu:1,cpu=4", "cpus_per_task"),
    ],
)
def test_what_sbatch_does_not_take_beside_our_options_is_refused(option: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"contradicts .slurm. {key}"):
        overlay({}, {"extra": [option]})


def test_the_older_name_of_tasks_for_a_node_is_that_of_a_key() -> None:
    with pytest.raises(ConfigError, match="set by fedhpc itself") as raised:
        overlay({}, {"extra": ["--tasks-per-node=4"]})
    assert raised.value.hint.endswith("[slurm] tasks_per_node")


def test_two_ways_to_ask_for_memory_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="contradict each other"):
        overlay({"extra": ["--mem-per-cpu=1G"]}, {"extra": ["--mem-per-gpu=1G"]})


def test_exchange_jobs_contradict_themselves_apart() -> None:
    """They have `memory` only from [slurm.exchange], and the options of `extra` unless they have their own."""
    given = {"extra": ["--mem-per-cpu=4G"], "exchange": {"memory": "8G"}}
    with pytest.raises(ConfigError, match="contradicts"):
        exchange_settings(overlay({}, given))
    given["exchange"] = {"memory": "8G", "extra": []}
    assert exchange_settings(overlay({}, given)).memory == "8G"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--exclusive --mem=4G", "more than one option"),
        ("--exclusive -p gpu", "more than one option"),
        ("-s -p gpu", "more than one option"),
        ("-sp gpu", "more than one option"),
        ("-Hpgpu", "more than one option"),
        ("-x n1 --mem=4G", "more than one option"),
        ("--comment=a --mem=4G", "more than one option"),
        ("--comment a b", "more than one option"),
        ("--switches=1 --requeue", "more than one option"),
        ("--no", "short for several"),
        ("--mem-per=4G", "short for several"),
        ('--"mem"=4G', "not an option"),
        ('"--mem=4G"', "not an option"),
        ("---mem=4G", "not an option"),
        ("--", "not an option"),
        ("-", "not an option"),
        ("", "not an option"),
        (" --mem=4G", "not an option"),
        ("#--mem=4G", "not an option"),
    ],
)
def test_an_entry_of_extra_is_one_option(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        overlay({}, {"extra": [text]})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("--exclusive", ["--exclusive"]),
        ("--comment=a b", ["--comment=a b"]),
        ('--comment "a b"', ["--comment", "a b"]),
        ("-x n1", ["-x", "n1"]),
        ("-xn1", ["-xn1"]),
    ],
)
def test_options_as_words_of_a_command_line(text: str, words: list[str]) -> None:
    assert option_words(text) == words


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"partitoin": "x"}, "unknown key 'partitoin'"),
        ({"nodes": 0}, "slurm.nodes = 0"),
        ({"gpus_per_node": -1}, "gpus_per_node"),
        ({"time": "00:04:00"}, "signal_s = 300 is not less"),
        ({"signal_s": 0}, "signal_s = 0"),
        ({"account": "a\nb"}, "slurm.account"),
        ({"partition": "p\x1b[0m"}, "slurm.partition"),
        ({"environment": {"A-B": "x"}}, "slurm.environment"),
        ({"environment": {"A": 1}}, "slurm.environment"),
        ({"extra": ["exclusive"]}, "not an option"),
        ({"extra": ["--job-name=x"]}, "set by fedhpc itself"),
        ({"extra": ["-t 5"]}, "set by fedhpc itself"),
        ({"extra": ["--wrap"]}, "set by fedhpc itself"),
        ({"extra": ["--x\n#SBATCH --y"]}, "not an option"),
        ({"launcher": "aprun"}, "launcher"),
        ({"exchange": {"nodes": 2}}, "slurm.exchange: unknown key 'nodes'"),
        ({"exchange": {"time": "x"}}, "not a walltime"),
        ({"ahead": 101}, "ahead"),
        ({"max_requeues": -1}, "max_requeues"),
        ({"max_links": 0}, "max_links"),
        ({"setup": ["a\0"]}, "NUL"),
    ],
)
def test_settings_that_are_refused(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        exchange_settings(overlay({}, given))
    assert words in refused.value.what
    assert refused.value.what.isprintable()


def test_the_site_file_goes_before_the_profile() -> None:
    profile = {"partition": "p", "nodes": 3, "setup": ["one"], "environment": {"A": "1", "B": "1"}}
    profile |= {"exchange": {"partition": "c", "time": "00:10:00", "signal_s": 30}}
    given = {"partition": "q", "setup": ["two"], "environment": {"B": "2"}, "exchange": {"partition": "d"}}
    both = overlay(profile, given | {"memory": "8G", "gpus_per_node": 2, "tasks_per_node": 2})
    assert (both.partition, both.nodes, both.setup) == ("q", 3, ("one", "two"))
    assert both.environment == {"A": "1", "B": "2"}
    small = exchange_settings(both)
    assert (small.partition, small.time, small.signal_s) == ("d", "00:10:00", 30)
    assert (small.nodes, small.tasks_per_node, small.gpus_per_node, small.memory) == (1, 1, 0, "")


# --- profiles


def test_all_profiles_are_tested() -> None:
    assert sorted(profile_names()) == sorted(PROFILES)
    assert profile_names()[0] == "generic"


def facts(name: str) -> list[tuple[str, str, str, str]]:
    """(section, key, source|unverified|choice, why) of every line of a profile that says something."""
    found, section, block = [], "", False
    for line in (ROOT / "jobs" / "profiles" / f"{name}.toml").read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif block and line == "]":
            block = False
        elif line.endswith("= ["):
            block = True
        elif line and not line.startswith("#"):
            text = f"setup = {line.strip()}" if block else line
            match = FACT.fullmatch(text)
            assert match is not None, f"{name}: {line}"
            assert match["word"], f"{name}: {line} has neither source, unverified nor choice"
            found.append((section, match["key"], match["word"], match["why"]))
    return found


@pytest.mark.parametrize("name", PROFILES)
def test_every_fact_has_a_source_or_says_that_it_has_none(name: str) -> None:
    text = (ROOT / "jobs" / "profiles" / f"{name}.toml").read_text()
    listed = set(re.findall(r"(?m)^# \[(\d+)\] \S", text))
    named = {number for *_, why in facts(name) for number in re.findall(r"\[(\d+)\]", why)}
    assert named <= listed
    assert listed <= named, "a source that nothing rests on"
    assert all("[" in why for _, _, word, why in facts(name) if word == "source")
    profile = read_profile(name)
    settings = overlay(profile.slurm, {})
    profile.check(settings)
    profile.check(exchange_settings(settings))


def site_table() -> str:
    """The table of docs/sites.md, from the profiles."""
    lines = [
        "| profile | machine | compute nodes dial out | read in public documents | not verified |",
        "|---|---|---|---|---|",
    ]
    for name in profile_names():
        about, rows = read_profile(name).about, facts(name)
        cells = []
        for word in ("source", "unverified"):
            keys = [
                key if section == "slurm" else f"{section.removeprefix('slurm.')}.{key}"
                for section, key, w, _ in rows
                if w == word
            ]
            shown = [k for k in dict.fromkeys(keys) if not k.startswith(("profile.title", "partitions."))]
            parts = [
                k.split(".")[1] for k in dict.fromkeys(keys) if k.startswith("partitions.") and k.endswith(".time")
            ]
            shown += [f"walltime of {', '.join(parts)}"] if parts else []
            cells.append(", ".join(f"`{k}`" if " " not in k else k for k in shown) or "nothing")
        lines.append(f"| `{name}` | {about.title} | {about.outbound} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def test_the_page_of_sites_is_that_of_the_profiles(request: pytest.FixtureRequest) -> None:
    text = SITES.read_text()
    found = re.search(r"(?ms)^\| profile \|.*?(?=\n\n)", text)
    assert found is not None
    if request.config.getoption("--regenerate"):
        SITES.write_text(text.replace(found[0], site_table()))
        return
    assert found[0] == site_table(), "pytest --regenerate tests/unit/slurm/test_slurm_settings.py"


def test_an_unknown_profile_is_refused_with_the_names() -> None:
    with pytest.raises(ConfigError) as refused:
        read_profile("snelius")
    assert "did you mean 'snellius'?" in refused.value.hint
    assert all(name in refused.value.hint for name in PROFILES)
    with pytest.raises(ConfigError, match="unknown profile"):
        read_profile("../generic")


def test_partitions_of_a_profile() -> None:
    profile = read_profile("lumi-g")
    with pytest.raises(ConfigError) as refused:
        profile.check(overlay(profile.slurm, {"partition": "smallg"}))
    assert "did you mean 'small-g'?" in refused.value.hint
    profile.check(overlay(profile.slurm, {"partition": "smallg", "any_partition": True}))
    profile.check(overlay(profile.slurm, {"partition": "small-g,standard-g", "time": "48:00:00"}))
    with pytest.raises(ConfigError, match=r"longer than partition 'standard-g' of lumi-g allows, 2-00:00:00"):
        profile.check(overlay(profile.slurm, {"partition": "small-g,standard-g", "time": "48:00:01"}))
    read_profile("generic").check(overlay({}, {"partition": "anything"}))


def test_the_example_is_a_site_file(tmp_path: Path) -> None:
    text = (ROOT / "jobs" / "examples" / "site.toml").read_text()
    table = tomllib.loads(text)
    site = write_site(tmp_path / "fed")
    site.write_text(text.replace('"leiden"', '"aa"'))
    plan = plan_of(site)
    assert plan.profile.name == "snellius"
    assert plan.life.kind == "chained"
    assert table["slurm"]["exchange"]["time"] == plan.exchange.time


# --- before submission


def test_where_federation_toml_is_looked_for(tmp_path: Path) -> None:
    site = write_site(tmp_path / "fed")
    assert plan_of(site).federation_path == tmp_path / "fed" / "federation.toml"
    assert plan_of(site).run == tmp_path / "fed" / "run"
    beside = site.parent / "federation.toml"
    beside.write_bytes((tmp_path / "fed" / "federation.toml").read_bytes())
    assert plan_of(site).federation_path == beside
    other = make_plan(site, profile=None, federation=tmp_path / "fed" / "federation.toml", out=tmp_path / "out")
    assert other.jobs == tmp_path / "out" / "aa" / "jobs"
    lone = tmp_path / "x" / "y" / "site.toml"
    lone.parent.mkdir(parents=True)
    lone.write_bytes(site.read_bytes())
    with pytest.raises(ConfigError, match=r"no federation\.toml"):
        plan_of(lone)


def test_a_site_of_another_federation(tmp_path: Path) -> None:
    site = write_site(tmp_path / "fed")
    site.write_text(site.read_text().replace("'aa'", "'zz'", 1))
    with pytest.raises(ConfigError, match="not in the roster"):
        plan_of(site)


def test_sites_in_jobs_of_their_own_need_a_relay(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="all sites in one job"):
        check(plan_of(write_site(tmp_path / "fed", sites=3)))
    check(plan_of(write_site(tmp_path / "fed", sites=3)), one_site=False)


def test_what_is_asked_of_the_queue_is_questioned(tmp_path: Path) -> None:
    site = write_site(tmp_path / "fed")
    plan = plan_of(site)
    plain = plan.settings
    snellius = read_profile("snellius")
    for task, gpus, account, profile, words in (
        ("logistic", 0, "", read_profile("generic"), []),
        ("logistic", 4, "p1", snellius, ["task logistic"]),
        ("mlp", 4, "p1", snellius, []),
        ("mlp", 4, "", snellius, ["slurm.account is empty"]),
        ("logistic", 4, "", snellius, ["slurm.account is empty", "asks for 4"]),
    ):
        asked = dataclasses.replace(
            plan,
            agreement=dataclasses.replace(plan.agreement, task={"name": task}),
            settings=dataclasses.replace(plain, gpus_per_node=gpus, account=account, any_partition=True),
            profile=profile,
        )
        notes = check(asked)
        assert len(notes) == len(words)
        assert all(word in note for word, note in zip(words, notes, strict=True)), notes


def write_rounds(site: Path, seconds: list[dict[str, float]]) -> None:
    path = site.parents[1] / "run" / "aa" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    records = [{"version": 1, "round": r, "seconds": s} for r, s in enumerate(seconds, start=1)]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.mark.parametrize(("time", "fits"), [("00:10:10", True), ("00:10:09", False)])
def test_a_walltime_that_is_shorter_than_a_round(tmp_path: Path, time: str, fits: bool) -> None:
    """Twice the 95th percentile of 20 rounds, 300 s, and a checkpoint of 10 s; the slowest of all does not count."""
    site = write_site(tmp_path / "fed", slurm={"time": time, "signal_s": 60})
    write_rounds(site, [{"total": 300.0, "checkpoint": 10.0}] * 19 + [{"total": 9000.0, "checkpoint": 10.0}])
    if fits:
        assert check(plan_of(site)) == []
        return
    with pytest.raises(ConfigError) as refused:
        check(plan_of(site))
    assert "(609 s) is too short for one round: rounds so far took up to 300 s, a checkpoint 10 s" in refused.value.what
    assert "610 s" in refused.value.hint


def test_a_detached_job_does_not_wait_so_waiting_does_not_count(tmp_path: Path) -> None:
    rounds = [{"total": 90000.0, "train": 100.0, "evaluate": 5.0, "checkpoint": 1.0}]
    site = write_site(tmp_path / "fed", life="detached", slurm={"time": "00:03:32", "signal_s": 60})
    write_rounds(site, rounds)
    assert check(plan_of(site)) == []
    site = write_site(tmp_path / "two", life="detached", slurm={"time": "00:03:30", "signal_s": 60})
    write_rounds(site, rounds)
    with pytest.raises(ConfigError, match="too short"):
        check(plan_of(site))


def test_a_run_directory_that_cannot_be_made(tmp_path: Path) -> None:
    site = write_site(tmp_path / "fed")
    (tmp_path / "fed" / "run").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot use .*run: Not a directory"):
        check(plan_of(site))


def test_notes_for_people(tmp_path: Path) -> None:
    site = write_site(tmp_path / "fed", life="detached", slurm={"gpus_per_node": 1})
    exchange, gpus = check(plan_of(site))
    assert "[slurm.exchange]" in exchange
    assert "logistic keeps no GPU busy" in gpus


# --- exit codes of ranks


def test_a_failure_goes_before_75(tmp_path: Path) -> None:
    path = tmp_path / "exit"
    rank = {"FEDHPC_EXIT_FILE": str(path), "SLURM_PROCID": "0"}
    leave_exit_code(0, environment=rank)
    assert not path.exists()
    leave_exit_code(75, environment=rank)
    assert path.read_text() == "75\n"
    path.unlink()
    leave_exit_code(75, untrained=True, environment=rank)
    assert path.read_text() == "75 train\n"
    leave_exit_code(70, environment=rank)
    leave_exit_code(75, environment=rank)
    assert path.read_text() == "70\n"
    leave_exit_code(64, environment={"FEDHPC_EXIT_FILE": str(tmp_path / "other")})
    assert not (tmp_path / "other").exists(), "commands of the batch script itself are no ranks"
    leave_exit_code(64, environment={"FEDHPC_EXIT_FILE": str(tmp_path / "no" / "folder"), "SLURM_PROCID": "0"})


def test_profiles_and_templates_are_those_of_the_package() -> None:
    """A wheel carries jobs/ inside the package; in a checkout fedhpc/jobs is a link, and ROOT/jobs would do too."""
    assert jobs_folder() == Path(fedhpc.__file__).parent / "jobs"
