"""What people see of ranks that a command has started itself, and how it ends them."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest
from harness import start, until

from fedhpc.mpi import above
from fedhpc.mpi.launcher_words import Voices, Words
from fedhpc.mpi.one_voice import OneVoice
from fedhpc.mpi.own_ranks import RanksFailedError, run_ranks

BAR = "-" * 74
ABORT = f"""\
{BAR}
MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD
  Proc: [[58389,1],1]
  Errorcode: 65

NOTE: invoking MPI_ABORT causes Open MPI to kill all MPI processes.
You may or may not see output from other processes, depending on
exactly when Open MPI kills them.
{BAR}
"""
EXITED = f"""\
{BAR}
prterun has exited due to process rank 1 with PID 0 on node vm calling
"abort". This may have caused other processes in the application to be
terminated by signals sent by prterun (as reported here).
{BAR}
"""
NOT_ZERO = f"""\
{BAR}
prterun detected that one or more processes exited with non-zero status,
thus causing the job to be terminated. The first process to do so was:

   Process name: [prterun-vm-19283@1,1]
   Exit code:    65
{BAR}
"""
OPEN_MPI_4 = f"""\
{BAR}
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
{BAR}
{BAR}
mpirun detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[1,1],0]
  Exit code:    3
{BAR}
"""
MPICH = f"""\
application called MPI_Abort(MPI_COMM_WORLD, 65) - process 1
{"=" * 83}
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID 12 RUNNING AT host
=   EXIT CODE: 65
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
{"=" * 83}
"""
KILLED = f"""\
{BAR}
prterun noticed that process rank 0 with PID 12 on node vm exited on
signal 9 (Killed).
{BAR}
"""
SLOTS = f"""\
{BAR}
There are not enough slots available in the system to satisfy the 8
slots that were requested by the application:

  python
{BAR}
"""


def shown(text: str, voices: Voices | None = None) -> str:
    words = Words(voices or Voices())
    return "".join([words.hear(line) for line in text.splitlines(keepends=True)] + [words.end()])


@pytest.mark.parametrize("added", [ABORT, EXITED, NOT_ZERO, OPEN_MPI_4, MPICH, ABORT + EXITED, ABORT + NOT_ZERO])
def test_what_a_launcher_adds_to_a_failure_is_left_out(added: str) -> None:
    told = "round 1\nerror: no data\nhint: look\n"
    assert shown(told + added) == told
    assert shown(added + told) == told
    assert shown(told + added.replace(BAR, "\0" + BAR) + "\0") == told


@pytest.mark.parametrize(
    ("text", "code"),
    [(ABORT, 65), (NOT_ZERO, 65), (OPEN_MPI_4, 3), (MPICH, 65), (ABORT + NOT_ZERO.replace("65", "69"), 65)]
    + [(text, 0) for text in (EXITED, KILLED, SLOTS, "error: no data\n", "")],
)
def test_a_launcher_says_how_a_rank_has_ended(text: str, code: int) -> None:
    words = Words(Voices())
    for line in text.replace(BAR, "\0" + BAR).splitlines(keepends=True):
        words.hear(line)
    assert words.code == code


@pytest.mark.parametrize(("said", "code"), [(NOT_ZERO, 65), ("error: no data\n", 128 + signal.SIGSEGV)])
def test_a_launcher_that_crashes_when_all_is_said(tmp_path: Path, said: str, code: int) -> None:
    (tmp_path / "said").write_text(said)
    crash = f"cat {tmp_path / 'said'} >&2; kill -SEGV $$"
    with pytest.raises(RanksFailedError) as failed:
        run_ranks([["bash", "-c", crash]], os.environ)
    assert failed.value.exit_code == code


@pytest.mark.parametrize(
    "text",
    [
        KILLED,
        SLOTS,
        f"{BAR}\na table\n{BAR}\n1 2\n{BAR}\n",
        f"{BAR}\n",
        f"{BAR}\nMPI_ABORT was invoked on rank 1 and then nothing more came",
        BAR + "\n" + ABORT.splitlines()[1] + "\n" + "many lines\n" * 60,
        f"{BAR}\n{BAR}\n\n{BAR}\n",
        "no newline",
        "",
    ],
)
def test_anything_else_is_shown_whole(text: str) -> None:
    assert shown(text) == text
    assert shown(ABORT + text) == text


def test_lines_are_shown_as_they_come() -> None:
    words = Words(Voices())
    assert words.hear("a\n") == "a\n"
    assert words.hear(f"{BAR}\n") == ""
    assert words.hear("no block of a launcher\n") == f"{BAR}\nno block of a launcher\n"
    assert words.hear("b\n") == "b\n"


def test_of_several_groups_the_first_error_is_heard() -> None:
    voices = Voices()
    one, other = Words(voices), Words(voices)
    assert other.hear("note: from the other\n") == "note: from the other\n"
    assert not voices.heard
    assert one.hear("error: no data\n") == "error: no data\n"
    assert voices.heard
    assert other.hear("Traceback (most recent call last):\n") == ""
    assert other.hear("error: site a has left\n") == ""
    assert one.hear("hint: look\n") == "hint: look\n"
    assert one.hear("error: and more\n") == "error: and more\n"


# --- run_ranks, with shells in the place of launchers


def shell(text: str) -> list[str]:
    return ["bash", "-c", text]


def test_output_and_what_a_failure_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_ranks([shell("echo one"), shell("echo two; echo note >&2")], os.environ, keep_output=True) == [
        "one\n", "two\n",
    ]  # fmt: skip
    assert capfd.readouterr() == ("", "note\n")
    (tmp_path / "words").write_text("error: mine\n" + ABORT)
    with pytest.raises(RanksFailedError) as failed:
        run_ranks([shell(f"cat {tmp_path}/words >&2; exit 65")], os.environ)
    assert capfd.readouterr().err == "error: mine\n"
    assert failed.value.exit_code == 65
    assert failed.value.lines() == "", "it is told already"


@pytest.mark.parametrize(("how", "code", "words"), [("exit 137", 137, "code 137"), ("kill -9 $$", 137, "signal 9")])
def test_ranks_that_end_without_a_word(how: str, code: int, words: str) -> None:
    with pytest.raises(RanksFailedError) as failed:
        run_ranks([shell(how)], os.environ)
    assert failed.value.exit_code == code
    assert words in failed.value.lines()
    assert "hint: " in failed.value.lines()


def test_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    ends = f"trap 'touch {tmp_path}/told; exit 1' TERM; touch {tmp_path}/up; while :; do sleep 0.02; done"
    fails = f"until [ -e {tmp_path}/up ]; do sleep 0.02; done; exit 77"
    with pytest.raises(RanksFailedError) as failed:
        run_ranks([shell(ends), shell(fails)], os.environ)
    assert failed.value.exit_code == 77
    assert (tmp_path / "told").exists()


RUN = """
import os, signal, sys
from fedhpc.mpi.own_ranks import run_ranks
if sys.argv[1] == "ignored":  # as in the background of a shell
    signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    run_ranks([["bash", "-c", sys.argv[2]]], os.environ)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("background", ["", "ignored"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_what_ends_the_command_is_handed_on_and_waited_for(
    tmp_path: Path, background: str, number: int, code: int
) -> None:
    """The launcher is asked to end, and never killed: that would leave its shared memory behind."""
    name = signal.Signals(number).name
    ranks = f"trap 'sleep 0.2; echo {name} >> {tmp_path}/told; exit 1' {name}; touch {tmp_path}/up; "
    ranks += "while :; do sleep 0.02; done"
    with start([sys.executable, "-c", RUN, background, ranks]) as job:
        until((tmp_path / "up").exists, 60, "the ranks")
        job.process.send_signal(number)
        assert job.finish(60).code == code
    assert (tmp_path / "told").read_text() == f"{name}\n", "once, and the command has waited for it"


# --- one voice


class Folder:
    """The environment of ranks under a launcher with a folder of its own."""

    def __init__(self, folder: str, job: str, **more: str) -> None:
        self.environment = {"PMIX_SERVER_TMPDIR": folder, "PMIX_NAMESPACE": job, **more}
        self.pauses: list[float] = []

    def voice(self) -> OneVoice:
        return OneVoice(self.environment, self.pauses.append)


@pytest.mark.parametrize("folder", ["there", "missing", "none"])
def test_the_first_rank_of_a_job_speaks(tmp_path: Path, folder: str) -> None:
    path = {"there": str(tmp_path), "missing": str(tmp_path / "x"), "none": ""}[folder]
    job = Folder(path, f"job-{tmp_path}")
    first, second = job.voice(), job.voice()
    assert [v.speaks("failed", in_mpi=True) for v in (first, second, first, second)] == [True, False, True, False]
    assert second.speaks("stopped", in_mpi=True), "an order to stop hides no error, nor the other way round"
    assert Folder(path, f"another-{tmp_path}").voice().speaks("failed", in_mpi=True)
    first.linger()
    assert job.pauses == ([] if folder == "there" else [0.5])


def test_before_mpi_a_later_command_of_the_same_shell_speaks_again(tmp_path: Path) -> None:
    """`srun --pty bash` gives its folder to every command that is typed there."""
    job = Folder(str(tmp_path), f"job-{tmp_path}")
    voice = job.voice()
    assert voice.speaks("failed", in_mpi=False)
    assert not job.voice().speaks("failed", in_mpi=False)
    del voice  # its process has ended
    assert job.voice().speaks("failed", in_mpi=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variables", "waits"),
    [
        ({}, False),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3"}, False),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}, True),
        ({"SLURM_NODEID": "0"}, False),
        ({"SLURM_NODEID": "1"}, True),
    ],
)
def test_the_node_of_the_first_rank_goes_first(tmp_path: Path, variables: dict[str, str], waits: bool) -> None:
    job = Folder(str(tmp_path), "job", **variables)
    assert job.voice().speaks("failed", in_mpi=True)
    assert job.pauses == ([1.0] if waits else [])


def test_without_names_that_the_kernel_forgets_everybody_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused(socket.socket):
        def bind(self, address: object) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(socket, "socket", Refused)
    job = Folder("", f"job-{tmp_path}")
    assert job.voice().speaks("failed", in_mpi=True)
    assert job.voice().speaks("failed", in_mpi=True)


# --- the launcher above


def test_the_launcher_is_found_behind_wrappers_and_told_where_it_speaks(tmp_path: Path) -> None:
    program = tmp_path / "prterun"  # a shell by the name of a launcher
    program.symlink_to("/bin/bash")
    look = tmp_path / "look.py"
    look.write_text(
        "from fedhpc.mpi import above\n"
        "process, name = above.launcher()\n"
        "print(name, above.is_parent(), above.tell(process, 'told\\n'))\n"
    )
    plain = f"{sys.executable} {look}; :"
    for text, parent in ((plain, True), (f"bash -c '{plain}'; :", False)):
        with start([program, "-c", text]) as job:
            done = job.finish(60).ok()
        assert done.out == f"mpirun {parent} True\n", done.text
        assert done.err == "told\n"


def test_no_launcher_here() -> None:
    assert above.launcher() is None
    assert not above.is_parent()
    assert not above.tell(2**22 + 1, "x")
