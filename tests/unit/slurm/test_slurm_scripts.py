"""Batch scripts: the words in them, and what they do when they are run."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from harness import ROOT, Completed, start, until
from slurm_fakes import HOSTILE, Node, needs, plan_of, script, write_site

from fedhpc.errors import ConfigError
from fedhpc.slurm.render import fill, header, sbatch_word, template
from fedhpc.slurm.scripts import Shape


def write(folder: Path, *, life: str = "inline", sites: int = 1, **slurm: object) -> Path:
    return write_site(folder, life=life, slurm=slurm, sites=sites)


# --- words


@pytest.mark.parametrize("word", ["a\nb", "a\tb", "a\0b", "\x1b[31m", "a\u2028b"])
def test_what_an_sbatch_line_cannot_hold_is_refused(word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sbatch_word(word)
    assert refused.value.what.isprintable()


@pytest.mark.parametrize(
    ("word", "line"),
    [("plain-1.2:3", "plain-1.2:3"), ("a b", '"a b"'), ('a"b\\c', '"a\\"b\\\\c"'), ("#x", '"#x"'), ("it's", '"it\'s"')],
)
def test_words_are_quoted_as_sbatch_reads_them(word: str, line: str) -> None:
    assert sbatch_word(word) == line


def test_the_real_sbatch_reads_the_words_back(tmp_path: Path) -> None:
    """Without a controller: sbatch -vv tells the options that it read, before it looks for one."""
    needs("sbatch")
    (tmp_path / "slurm.conf").write_text(
        "ClusterName=x\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort=1\nAuthType=auth/none\nNodeName=n\n"
    )
    lines = header([("job-name", HOSTILE), ("account", "a b"), ("output", "/x/%%d 'q' \"r\" \\s #h")])
    (tmp_path / "job").write_text(f"#!/bin/bash\n{lines}\n")
    told = tmp_path / "told"
    words = ["bash", "-c", 'exec sbatch -vv job 2> "$0"', told]
    with start(words, env={"SLURM_CONF": str(tmp_path / "slurm.conf")}, cwd=tmp_path):
        until(lambda: told.exists() and "end of defined options" in told.read_text(), 60, "sbatch")
    read = dict(re.findall(r"(?m)^sbatch: (\S+) +: (.*)$", told.read_text()))
    assert read["job-name"] == HOSTILE
    assert read["account"] == "a b"
    assert read["output"] == "/x/%%d 'q' \"r\" \\s #h"


def test_a_newline_in_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot stand in a batch script"):
        script(write(tmp_path / "a\nb"))


def test_values_that_look_like_fields_stay() -> None:
    assert fill("x=@@a@@ @@b@@", {"a": "@@b@@", "b": "1"}) == "x=@@b@@ 1"
    assert fill("@@a@@\n@@b@@\ny\n", {"a": "", "b": "1"}) == "1\ny\n"
    with pytest.raises(AssertionError):
        fill("@@a@@", {"a": "1", "b": "2"})


def test_templates_hold_no_site() -> None:
    for path in (ROOT / "jobs" / "templates").glob("*"):
        assert not re.search(r"/home|/scratch|/work\b", template(path.name))


# --- running them


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node.make(tmp_path / "node")


def prepared(tmp_path: Path, node: Node, stage: str = "all", *, folder: str = "fed", **kw: object) -> str:
    site = write(tmp_path / folder, python=str(node.folder / "python"), **kw)
    plan_of(site).jobs.mkdir(parents=True, exist_ok=True)
    return script(site, stage)


def ends(node: Node, text: str, **env: str) -> Completed:
    with node.start(text, **env) as job:
        return job.finish(60)


def up(node: Node) -> bool:
    return (node.folder / "up").exists()


def signalled(node: Node, text: str, number: int, **env: str) -> Completed:
    """Run the script until its ranks are up, then signal the batch shell."""
    with node.start(text, **env) as job:
        until(lambda: up(node), 30, "the ranks")
        os.kill(job.process.pid, number)
        return job.finish(60)


def requeues(node: Node) -> list[list[str]]:
    return [words for words in node.calls("scontrol") if words[0] == "requeue"]


def test_75_is_requeued(tmp_path: Path, node: Node) -> None:
    node.answer("run", 75)
    assert ends(node, prepared(tmp_path, node)).code == 0
    assert requeues(node) == [["requeue", "77"]]


@pytest.mark.parametrize("code", [0, 1, 64, 65, 69, 70, 74, 77, 137])
@pytest.mark.parametrize("life", ["inline", "chained"])
def test_other_codes_are_not(tmp_path: Path, node: Node, code: int, life: str) -> None:
    node.answer("run", code)
    assert ends(node, prepared(tmp_path, node, life=life)).code == code
    assert requeues(node) == []
    assert len(node.calls("cancel")) == (life == "chained"), "successors leave the queue"


def test_usr1_reaches_the_ranks_as_usr2_and_the_job_comes_back(tmp_path: Path, node: Node) -> None:
    done = signalled(node, prepared(tmp_path, node), signal.SIGUSR1)
    assert done.code == 0, done.text
    assert node.calls("told") == [["USR2"]]
    assert requeues(node) == [["requeue", "77"]]


@pytest.mark.parametrize("life", ["inline", "chained"])
def test_term_is_no_requeue(tmp_path: Path, node: Node, life: str) -> None:
    done = signalled(node, prepared(tmp_path, node, life=life), signal.SIGTERM)
    assert done.code == 75, done.text
    assert node.calls("told") == [["USR2"]], "the ranks keep a checkpoint"
    assert requeues(node) == []


def test_term_at_the_walltime_is_a_requeue(tmp_path: Path, node: Node) -> None:
    done = signalled(node, prepared(tmp_path, node), signal.SIGTERM, SLURM_JOB_END_TIME="1000000000")
    assert done.code == 0, done.text
    assert len(requeues(node)) == 1


def test_a_signal_before_the_ranks_start_costs_nothing(tmp_path: Path, node: Node) -> None:
    text = prepared(tmp_path, node, setup=["kill -USR1 $$"])
    assert ends(node, text).code == 0
    assert node.calls("run") == []
    assert len(requeues(node)) == 1


def test_ranks_that_were_killed_by_the_signal_come_back(tmp_path: Path, node: Node) -> None:
    """SIGUSR2 before a rank listens kills it: 140, and no code of its own."""
    done = signalled(node, prepared(tmp_path, node), signal.SIGUSR1, TOLD="140")
    assert done.code == 0, done.text
    assert len(requeues(node)) == 1


def test_the_ranks_own_code_stands_against_the_launchers(tmp_path: Path, node: Node) -> None:
    node.answer("run", "file")
    assert ends(node, prepared(tmp_path, node)).code == 0
    assert len(requeues(node)) == 1


def test_a_failure_stands_against_the_signal(tmp_path: Path, node: Node) -> None:
    done = signalled(node, prepared(tmp_path, node), signal.SIGUSR1, TOLD="143", LEAVE="74")
    assert done.code == 74, done.text
    assert requeues(node) == []


@pytest.mark.parametrize("left", ["", "75"])
@pytest.mark.parametrize("life", ["inline", "chained"])
def test_mpirun_that_was_ended_reports_1_and_the_chain_goes_on(
    tmp_path: Path, node: Node, life: str, left: str
) -> None:
    """Open MPI's mpirun ends its ranks half a second after TERM, and exits with 1 whatever they were about to say."""
    leave = {"LEAVE": left} if left else {}
    done = signalled(node, prepared(tmp_path, node, life=life), signal.SIGTERM, TOLD="1", **leave)
    assert done.code == 75, done.text
    assert node.calls("cancel") == [], "what waits in the queue goes on"
    # At the walltime the job itself comes back.
    end = {"SLURM_JOB_END_TIME": "1000000000", "TOLD": "1"}
    (node.folder / "up").unlink()
    assert signalled(node, prepared(tmp_path, node), signal.SIGTERM, **end, **leave).code == 0
    assert len(requeues(node)) == 1


def test_an_error_stands_against_the_end_of_mpirun(tmp_path: Path, node: Node) -> None:
    done = signalled(node, prepared(tmp_path, node), signal.SIGTERM, TOLD="1", LEAVE="74")
    assert done.code == 74, done.text
    (node.folder / "up").unlink()
    assert signalled(node, prepared(tmp_path, node), signal.SIGUSR1, TOLD="1").code == 1, "no launcher was ended here"


def test_a_job_asks_its_own_cluster_whatever_a_module_says(tmp_path: Path, node: Node) -> None:
    node.answer("run", 75)
    asks = 'scontrol() { echo "asked ${SLURM_CLUSTERS-} ${SBATCH_CLUSTERS-} for $FEDHPC_JOB_CLUSTER"; }'
    text = prepared(tmp_path, node, setup=["export SLURM_CLUSTERS=another SBATCH_CLUSTERS=another", asks])
    done = ends(node, text, SLURM_CLUSTERS="login", SLURM_CLUSTER_NAME="here")
    assert done.code == 0, done.text
    assert "asked   for here" in done.out


@pytest.mark.parametrize(("count", "code"), [("20", 0), ("21", 64)])
def test_the_cap_on_requeues(tmp_path: Path, node: Node, count: str, code: int) -> None:
    node.answer("run", 75)
    done = ends(node, prepared(tmp_path, node), SLURM_RESTART_COUNT=count)
    assert done.code == code
    assert len(node.calls("run")) == (code == 0)
    assert ("given up" in done.out) == (code == 64)


def test_a_requeue_that_fails_is_told(tmp_path: Path, node: Node) -> None:
    node.answer("run", 75)
    node.answer("scontrol-requeue", 1)
    done = ends(node, prepared(tmp_path, node))
    assert done.code == 75
    assert "could not requeue" in done.out


def test_checks_before_the_start(tmp_path: Path, node: Node) -> None:
    node.answer("doctor", 69)
    done = ends(node, prepared(tmp_path, node, life="chained"))
    assert done.code == 69
    assert node.calls("run") == []
    assert node.calls("submit") == []
    assert requeues(node) == []


def test_the_end_of_the_job_is_read_once(tmp_path: Path, node: Node) -> None:
    node.answer("run", 0)
    ends(node, prepared(tmp_path, node)).ok()
    assert node.calls("end") == [["2000000000"]]  # from scontrol; 2033-05-18T03:33:20
    ends(node, prepared(tmp_path, node), SLURM_JOB_END_TIME="1999999999").ok()
    assert node.calls("end")[1:] == [["1999999999"]]
    assert len(node.calls("scontrol")) == 1


def test_a_successor_is_in_the_queue_before_the_ranks_start(tmp_path: Path, node: Node) -> None:
    node.answer("run", 75)
    assert ends(node, prepared(tmp_path, node, life="chained")).code == 0
    names = [
        name for line in (node.folder / "calls").read_text().splitlines() for name in re.findall(r'^\["(\w+)', line)
    ]
    assert names.index("submit") < names.index("run")
    (words,) = node.calls("submit")
    assert words[words.index("--successor") + 1 :] == ["fedhpc-test-aa-0badcafe-1", "--links", "1"]
    assert requeues(node) == []


def test_without_a_successor_the_job_itself_comes_back(tmp_path: Path, node: Node) -> None:
    node.answer("run", 75)
    node.answer("submit", 69)
    assert ends(node, prepared(tmp_path, node, life="chained")).code == 0
    assert len(node.calls("submit")) == 2, "tried again at the end"
    assert len(requeues(node)) == 1


def test_a_chain_that_was_cancelled_does_not_come_back(tmp_path: Path, node: Node) -> None:
    node.answer("run", 75)
    node.answer("submit", 77)
    assert ends(node, prepared(tmp_path, node, life="chained")).code == 75
    assert requeues(node) == []


def test_ahead_0_submits_at_the_end(tmp_path: Path, node: Node) -> None:
    node.answer("run", 75)
    assert ends(node, prepared(tmp_path, node, life="chained", ahead=0)).code == 0
    assert len(node.calls("submit")) == 1
    assert requeues(node) == []


def test_an_exchange_that_waited_in_vain_comes_back_later(tmp_path: Path, node: Node) -> None:
    text = prepared(tmp_path, node, "exchange", life="detached", requeue_s=120)
    node.answer("run", 75)
    assert ends(node, text).code == 0
    assert node.calls("scontrol")[-2:] == [["requeue", "77"], ["update", "JobId=77", "StartTime=now+120"]]
    node.answer("run", "train")
    assert ends(node, text).code == 0
    assert len(requeues(node)) == 1, "what has to be trained first is the next job's"


def test_waiting_for_others_does_not_use_up_the_requeues(tmp_path: Path, node: Node) -> None:
    text = prepared(tmp_path, node, "exchange", life="detached", max_requeues=1)
    node.answer("run", 75)
    for count in range(4):
        assert ends(node, text, SLURM_RESTART_COUNT=str(count)).code == 0
    assert len(node.calls("run")) == 4
    assert ends(node, text, SLURM_RESTART_COUNT="6").code == 64, "two restarts more than pauses"


def test_only_the_first_job_of_a_name_works(tmp_path: Path, node: Node) -> None:
    text = prepared(tmp_path, node)
    node.answer("run", 75)
    ends(node, text, SLURM_JOB_ID="76")
    done = ends(node, text, SLURM_JOB_ID="77")
    assert done.code == 0
    assert "job 76 already has the name" in done.out
    assert len(node.calls("run")) == 1
    ends(node, text, SLURM_JOB_ID="76", SLURM_RESTART_COUNT="1")
    assert len(node.calls("run")) == 2, "the first one may come back"


def test_hostile_names_arrive_whole(tmp_path: Path, node: Node) -> None:
    node.answer("run", 0)
    hostile = tmp_path / HOSTILE
    text = prepared(tmp_path, node, folder=HOSTILE, environment={"ODD": HOSTILE}, life="chained")
    ends(node, text).ok()
    words = ["-m", "mpi4py", "-m", "fedhpc", "run", str(hostile / "federation.toml")]
    words += ["--site", str(hostile / "sites" / "aa.toml"), "--out", str(hostile / "run"), "--stage", "all"]
    assert node.calls("run") == [words]
    assert node.calls("odd") == [[HOSTILE]]
    (doctor,) = node.calls("doctor")
    assert doctor[3:5] == ["--quick", str(hostile / "sites" / "aa.toml")]
    assert str(hostile / "sites" / "aa.toml") in node.calls("submit")[0]


def test_the_variables_of_a_profile_reach_the_ranks(tmp_path: Path, node: Node) -> None:
    node.answer("run", 0)
    site = write(tmp_path / "fed", python=str(node.folder / "python"))
    plan_of(site).jobs.mkdir(parents=True)
    text = script(site, profile="lumi-g")
    with node.start(text, SLURM_LOCALID="3") as job:
        done = job.finish(60)
    assert done.code == 0, done.text
    (start, *_) = [words for words in node.calls("srun") if "mpi4py" in words]
    assert "--ntasks=8" in start
    assert any("ROCR_VISIBLE_DEVICES=$SLURM_LOCALID" in word for word in start)
    assert len(node.calls("run")) == 1, "through the wrapper"
    assert "NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3" in text.replace("'", "")


def test_multiprog_gives_each_rank_its_site(tmp_path: Path, node: Node) -> None:
    site = write(tmp_path / "fed", sites=3, tasks_per_node=3, python=str(node.folder / "python"))
    plan_of(site).jobs.mkdir(parents=True)
    ends(node, script(site, shape=Shape("multiprog", tmp_path / "fed" / "sites"))).ok()
    first, second, _ = (node.folder / "programs").read_text().splitlines()
    assert first.startswith("0 bash -c 'exec ")
    assert '--site "$FEDHPC_PROGRAM_SITE_1"' in first
    assert second.startswith("1 bash -c 'exec ")
    assert '--site "$FEDHPC_PROGRAM_SITE_2"' in second


def test_each_task_of_an_array_has_its_federation(tmp_path: Path, node: Node) -> None:
    node.answer("run", 0)
    site = write(tmp_path / "fed", python=str(node.folder / "python"))
    plan_of(site).jobs.mkdir(parents=True)
    files = (tmp_path / "fed" / "federation.toml", tmp_path / "fed" / "two.toml")
    files[1].write_text(files[0].read_text().replace("seed = 0", "seed = 1"))
    text = script(site, shape=Shape("array", tmp_path / "fed" / "sites", files, None, 2))
    assert "#SBATCH --array=0-1%2" in text
    ends(node, text, SLURM_ARRAY_TASK_ID="1").ok()
    (words,) = node.calls("run")
    assert words[5] == str(files[1])
    assert words[-1] == str(tmp_path / "fed" / "run" / "1")


def test_ranks_and_tasks_must_fit(tmp_path: Path) -> None:
    site = write(tmp_path / "fed", sites=3)
    with pytest.raises(ConfigError, match=r"ask for 3 ranks .*tasks_per_node is 1"):
        script(site, shape=Shape("rehearsal", tmp_path / "fed" / "sites"))


@pytest.mark.parametrize("kind", ["rehearsal", "multiprog", "array", "relay"])
def test_shapes_say_what_they_need(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigError, match="needs"):
        script(write(tmp_path / "fed"), shape=Shape(kind))


def test_the_relay_is_told_and_comes_back(tmp_path: Path, node: Node) -> None:
    site = write(tmp_path / "fed", python=str(node.folder / "python"))
    plan_of(site).jobs.mkdir(parents=True)
    text = script(site, shape=Shape("relay", relay=tmp_path / "relay.toml"))
    for number in (signal.SIGUSR1, signal.SIGTERM):  # scancel is the end
        (node.folder / "calls").unlink(missing_ok=True)
        with node.start(text) as job:
            until(lambda: bool(node.calls("relay")), 30, "the relay")
            os.kill(job.process.pid, number)
            done = job.finish(60)
        assert done.code == 0, done.text
        assert node.calls("relay-told") == [[]]
        assert len(requeues(node)) == (number == signal.SIGUSR1)
