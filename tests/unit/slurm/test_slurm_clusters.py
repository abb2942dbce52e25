"""Several Slurm clusters behind one login node: every command asks the one that has the job.

The stand-ins do as Slurm does: -M goes before SLURM_CLUSTERS, sacct does not read that, and ids say nothing about the
cluster.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from doctor_fakes import complains, fails, passes, slurm, subject
from harness import FEDHPC, Completed, call, edit
from slurm_fakes import Fakes, submitter_of, write_site

from fedhpc.app.life.job_end import job_end
from fedhpc.errors import ConfigError, PeersError
from fedhpc.slurm.job_chain import Chains
from fedhpc.slurm.queue import DoubtError, Queue, at_cluster, named_cluster
from fedhpc.slurm.records import Record, Records

TOKEN = "eyJhbGciOiJIUzI1NiJ9.secret"


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """`home` is this machine's cluster; `slaking` and `joltik` are behind -M."""
    monkeypatch.setenv("CLUSTERS", "home slaking joltik")
    for name in ("SLURM_CLUSTERS", "SBATCH_CLUSTERS", "SLURM_JWT", "FEDHPC_JOB_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    return Fakes.make(tmp_path / "bin")


def fedhpc(fakes: Fakes, *words: str | Path, **env: str) -> Completed:
    plain = {k: fakes.environment[k] for k in ("PATH", "FAKES", "CLUSTERS")}
    return call([*FEDHPC, *words], env=plain | env)


def clusters(fakes: Fakes) -> list[str]:
    return [job["cluster"] for job in fakes.jobs()]


@pytest.mark.parametrize(
    ("by", "answer"), [("key", "ok"), ("SLURM_CLUSTERS", "banner"), ("SBATCH_CLUSTERS", "taken-lost")]
)
def test_from_submit_to_cancel(tmp_path: Path, fakes: Fakes, by: str, answer: str) -> None:
    fakes.answers("sbatch", answer)
    site = write_site(tmp_path / "fed", slurm={"cluster": "slaking"} if by == "key" else {})
    env = {"SLURM_JWT": TOKEN} | ({by: "slaking"} if by != "key" else {})
    done = fedhpc(fakes, "submit", site, **env).ok()
    assert "job 100 on cluster slaking" in done.out
    assert clusters(fakes) == ["slaking"]
    fedhpc(fakes, "submit", site, **env).refused(64, "already has the job", "100 on cluster slaking, pending")
    # Whatever the shell says meanwhile, the record knows where the job is.
    shown = json.loads(fedhpc(fakes, "jobs", "list", site, "--json", SLURM_CLUSTERS="home,joltik").ok().out)
    assert (shown["job"], shown["cluster"], shown["queue"], shown["alive"]) == ("100", "slaking", "PENDING", True)
    assert "100;slaking  PENDING" in fedhpc(fakes, "jobs", "list", site).ok().out
    fakes.set_state(100, "GONE")  # squeue has forgotten it: sacct is asked, with an option too
    shown = json.loads(fedhpc(fakes, "jobs", "list", site, "--json", **env).ok().out)
    assert (shown["queue"], shown["alive"]) == ("CANCELLED", False)
    fakes.set_state(100, "RUNNING")
    assert "job 100 on cluster slaking" in fedhpc(fakes, "jobs", "cancel", site, SLURM_CLUSTERS="joltik").ok().out
    assert [job["state"] for job in fakes.jobs()] == ["CANCELLED"]
    calls = [words for name in ("sbatch", "squeue", "sacct", "scancel") for words in fakes.calls(name)]
    assert calls
    assert all(words[:2] == ["-M", "slaking"] for words in calls)
    for path in (tmp_path / "fed").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_who_asks_is_told_to_slurm_and_to_nobody_else(tmp_path: Path, fakes: Fakes) -> None:
    site = write_site(tmp_path / "fed")
    env = {"SLURM_JWT": TOKEN, "SLURM_CLUSTERS": "slaking", "SBATCH_ACCOUNT": "habit", "SLURM_MEM_PER_CPU": "4G"}
    fakes.answers("sbatch", "refuse")
    done = fedhpc(fakes, "submit", site, **env).refused(64, "Invalid account")
    assert TOKEN not in done.text
    (seen,) = fakes.seen("sbatch")
    assert {k: seen.get(k) for k in env} == {
        "SLURM_JWT": TOKEN, "SLURM_CLUSTERS": "slaking", "SBATCH_ACCOUNT": None, "SLURM_MEM_PER_CPU": None,
    }  # fmt: skip


def test_a_job_that_was_taken_in_silence_is_looked_for_where_it_went(tmp_path: Path, fakes: Fakes) -> None:
    fakes.answers("sbatch", "taken-lost", "ok")
    site = write_site(tmp_path / "fed", slurm={"cluster": "slaking"})
    fedhpc(fakes, "submit", site, SLURM_CLUSTERS="joltik").ok()
    assert clusters(fakes) == ["slaking"]


def chains(tmp_path: Path, fakes: Fakes, life: str = "chained", **slurm: object) -> Chains:
    site = write_site(tmp_path / "fed", life=life, slurm=slurm)
    (tmp_path / "fed" / "run" / "aa" / "jobs").mkdir(parents=True, exist_ok=True)
    return Chains(submitter_of(site, fakes))


def test_a_chain_stays_in_its_cluster(tmp_path: Path, fakes: Fakes) -> None:
    made = chains(tmp_path, fakes, cluster="slaking").begin(2)
    assert [r.cluster for r in made] == ["slaking", "slaking"]
    # The key has changed meanwhile: the running link's successor can only wait within the same cluster.
    (third,) = chains(tmp_path, fakes, cluster="joltik").follow(made[1].name, 1)
    assert third.cluster == "slaking"
    assert clusters(fakes) == ["slaking"] * 3


def test_a_running_link_asks_its_own_cluster_without_the_accounting_database(
    tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = chains(tmp_path, fakes, cluster="slaking").begin(1)
    before = len(fakes.calls("squeue"))
    # On a node of slaking Slurm's commands find slaking by themselves; the shell's variable would lead them astray.
    monkeypatch.setenv("CLUSTERS", "slaking")
    monkeypatch.setenv("SLURM_CLUSTERS", "home")
    monkeypatch.setenv("FEDHPC_JOB_CLUSTER", "slaking")
    (second,) = chains(tmp_path, fakes, cluster="slaking").follow(first.name, 1)
    assert (second.job, second.cluster) == ("101", "slaking")
    assert all("-M" not in words for words in [*fakes.calls("squeue")[before:], *fakes.calls("sbatch")[1:]])
    assert "SLURM_CLUSTERS" not in fakes.seen("sbatch")[-1]


def test_jobs_in_two_clusters_are_shown_and_cancelled_each_where_it_is(tmp_path: Path, fakes: Fakes) -> None:
    (one,) = chains(tmp_path, fakes, "inline", cluster="slaking").begin(1)
    fakes.set_state(100, "FAILED")
    (two,) = chains(tmp_path, fakes, "inline").begin(1)
    fakes.set_state(100, "RUNNING")  # requeued by an operator
    both = chains(tmp_path, fakes, "inline")
    assert [(s.record.name, s.state) for s in both.shown()] == [(one.name, "RUNNING"), (two.name, "PENDING")]
    assert len(both.cancel()) == 2
    assert [job["state"] for job in fakes.jobs()] == ["CANCELLED", "CANCELLED"]
    assert fakes.calls("scancel") == [["-M", "slaking", "--quiet", "100"], ["--quiet", "101"]]


def test_records_of_version_0_1_are_read_and_their_jobs_found(tmp_path: Path, fakes: Fakes) -> None:
    """Then the cluster could only be said in `extra`, and no record kept it."""
    one = chains(tmp_path, fakes, "inline", cluster="slaking")
    (record,) = one.begin(1)
    path = one.submitter.records.folder / f"{record.name}.json"
    old = json.loads(path.read_text())
    del old["cluster"]
    path.write_text(json.dumps(old))
    assert one.submitter.records.all() == [Record(**{k: v for k, v in old.items() if k != "version"})]
    with pytest.raises(ConfigError, match=r"already has the job .* \(100 on cluster slaking"):
        one.begin(1)
    one.cancel()
    assert fakes.jobs()[0]["state"] == "CANCELLED"


def test_a_cluster_that_is_not_there(tmp_path: Path, fakes: Fakes) -> None:
    one = chains(tmp_path, fakes, "inline", cluster="slakking")
    with pytest.raises(ConfigError, match="'slakking' can't be reached now"):
        one.begin(1)
    edit(tmp_path / "fed" / "sites" / "aa.toml", "slakking", "slaking")
    (record,) = Chains(submitter_of(tmp_path / "fed" / "sites" / "aa.toml", fakes)).begin(1)
    assert record.cluster == "slaking", "what was refused is in no queue, and is not asked for"


def test_a_cluster_that_is_gone(tmp_path: Path, fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    one = chains(tmp_path, fakes, "inline", cluster="slaking")
    one.begin(1)
    monkeypatch.setenv("CLUSTERS", "home joltik")
    later = chains(tmp_path, fakes, "inline", cluster="joltik")
    with pytest.raises(PeersError, match="the queue on cluster slaking cannot be asked") as told:
        later.begin(1)
    assert "move its records out of" in told.value.hint


@pytest.mark.parametrize("several", ["home,slaking", "all", "ALL", "a b", "-x"])
def test_one_cluster_only(tmp_path: Path, fakes: Fakes, several: str) -> None:
    with pytest.raises(ConfigError, match="not the name of one cluster") as refused:
        named_cluster({"SLURM_CLUSTERS": several})
    assert "[slurm] cluster" in refused.value.hint
    with pytest.raises(ConfigError, match=r"slurm\.cluster = .* is not the name of one cluster"):
        chains(tmp_path, fakes, cluster=several)
    site = write_site(tmp_path / "other")
    fedhpc(fakes, "submit", site, SLURM_CLUSTERS=several).refused(64, "SLURM_CLUSTERS", "not the name of one cluster")
    assert fakes.calls("sbatch") == []
    settled = write_site(tmp_path / "settled", slurm={"cluster": "joltik"})
    fedhpc(fakes, "submit", settled, SLURM_CLUSTERS=several).ok()
    assert clusters(fakes) == ["joltik"]


def test_exchange_jobs_are_in_the_cluster_of_the_training_jobs(tmp_path: Path, fakes: Fakes) -> None:
    with pytest.raises(ConfigError, match=r"slurm\.exchange: unknown key 'cluster'"):
        chains(tmp_path, fakes, "detached", exchange={"cluster": "joltik"})
    made = chains(tmp_path, fakes, "detached", cluster="slaking").begin(2)
    assert [r.cluster for r in made] == ["slaking"] * 2


@pytest.mark.parametrize(
    ("answer", "taken"),
    [
        ("4243", ("4243", "asked")),
        ("4243;slaking\n", ("4243", "slaking")),
        ("Submitted batch job 4243", ("4243", "asked")),
        ("Submitted batch job 4243 on cluster slaking\n", ("4243", "slaking")),
        ("*** Maintenance on Monday, 7 ***\n\n4243;slaking\n", ("4243", "slaking")),
        ("quota: 12 of 20\n4243\n", ("4243", "asked")),
        ("4243;slaking;x", None),
        ("4243 of 20", None),
        ("Submitted batch job", None),
        ("", None),
    ],
)
def test_what_sbatch_answers(tmp_path: Path, answer: str, taken: tuple[str, str] | None) -> None:
    program = tmp_path / "sbatch"
    program.write_text(f"#!/bin/sh\ncat <<'X'\n{answer}\nX\n")
    program.chmod(0o755)
    queue = Queue(environment={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    if taken is None:
        with pytest.raises(DoubtError):
            queue.submit(tmp_path / "script", "asked")
    else:
        assert queue.submit(tmp_path / "script", "asked") == taken


@pytest.mark.parametrize(
    ("cluster", "environment", "options", "left"),
    [
        ("", {}, [], None),
        ("", {"SLURM_CLUSTERS": "a"}, [], None),  # a job of this machine's own cluster
        ("a", {}, ["-M", "a"], None),
        ("a", {"SLURM_CLUSTERS": "A"}, ["-M", "a"], "A"),
        ("a", {"SLURM_CLUSTERS": "b"}, ["-M", "a"], None),
        ("a", {"SLURM_CLUSTERS": "a", "FEDHPC_JOB_CLUSTER": "A"}, [], None),
        ("a", {"FEDHPC_JOB_CLUSTER": "b"}, ["-M", "a"], None),
        ("a", {"SLURM_CLUSTER_NAME": "a"}, ["-M", "a"], None),  # an salloc shell may still be on a login node of b
    ],
)
def test_how_a_cluster_is_named(
    cluster: str, environment: dict[str, str], options: list[str], left: str | None
) -> None:
    named, cleaned = at_cluster(cluster, environment)
    assert named == options
    assert cleaned.get("SLURM_CLUSTERS") == left


def test_doctor_asks_the_cluster_that_the_job_will_be_in(tmp_path: Path) -> None:
    scripts = slurm(sbatch='[ "$*" != "${*#-M slaking --test-only }" ] || exit 1\necho "Job 8 to start"')
    scripts["scontrol"] = '[ "$1 $2" = "-M slaking" ] || exit 1\nshift 2\n' + scripts["scontrol"]
    asked = 'partition = "gpu"\naccount = "abc"\ncluster = "slaking"\nextra = ["-x n1", "--comment=a b"]'
    site = subject(tmp_path, scripts, slurm=asked)
    for check in ("slurm-tools", "slurm-partition", "slurm-limits", "slurm-accepts", "slurm-requeue"):
        passes(check, site)
    asked = 'partition = "gpu"\naccount = "abc"'
    by_shell = subject(tmp_path / "2", scripts, slurm=asked, environment={"SLURM_CLUSTERS": "slaking"})
    passes("slurm-partition", by_shell)
    several = subject(tmp_path / "3", scripts, slurm=asked, environment={"SLURM_CLUSTERS": "a,b"})
    fails("slurm-tools", several, "not the name of one cluster", code=64)
    away = {**scripts, "scontrol": complains("scontrol: error: 'slaking' can't be reached now")}
    fails("slurm-tools", subject(tmp_path / "4", away, slurm='cluster = "slaking"'), "cluster slaking", code=64)
    on_node = subject(tmp_path / "5", slurm(), slurm=asked, environment={"SLURM_CLUSTERS": "a,b", "SLURM_JOB_ID": "7"})
    passes("slurm-partition", on_node)


def test_a_job_asks_its_own_cluster_when_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "squeue"
    program.write_text('#!/bin/sh\n[ -z "$SLURM_CLUSTERS" ] && echo 2000000000\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_CLUSTERS", "another")
    assert job_end({"SLURM_JOB_ID": "7"}) == 2000000000.0


def test_no_cluster_in_the_run_directory_of_a_site_without_any(tmp_path: Path, fakes: Fakes) -> None:
    chains(tmp_path, fakes).begin(1)
    (record,) = Records(tmp_path / "fed" / "run" / "aa" / "jobs").all()
    assert record.cluster == ""
    assert fakes.calls("sbatch")[0][0] == "--parsable"
