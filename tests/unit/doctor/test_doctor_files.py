"""Checks of keys, the run directory, the walltime and this machine."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from doctor_fakes import complains, fails, found, passes, says, skips, slurm, subject, warns
from federation_fakes import journal_in, known
from harness import edit
from secure_fakes import key_of

from fedhpc.agreement.site_file import ExchangeSection
from fedhpc.doctor import file_system, node, storage
from fedhpc.doctor.check import Finding
from fedhpc.doctor.file_system import Mount, mount_of
from fedhpc.doctor.subject import Subject, open_subject
from fedhpc.kernel import choice
from fedhpc.kernel.choice import VARIABLE
from fedhpc.ledger.home import LedgerHome, home_of
from fedhpc.ledger.stores import remember_home
from fedhpc.secure.ledger import LedgerEntry

IN_JOB = {"SLURM_JOB_ID": "7"}


# --- keys


def test_keys_of_their_owner(tmp_path: Path) -> None:
    site = subject(tmp_path)
    passes("keys-private", site, "aa.key")
    passes("keys-roster", site, "sign")
    skips("keys-approved", site, "one MPI job")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_key_that_others_can_read(tmp_path: Path, mode: int) -> None:
    site = subject(tmp_path)
    (tmp_path / "keys" / "aa.key").chmod(mode)
    fails("keys-private", site, f"mode {mode:04o}", "chmod 600", code=77)


def test_row_keys_beside_the_site_file_are_looked_at(tmp_path: Path) -> None:
    site = subject(tmp_path)
    (tmp_path / "sites" / "row.key").write_text("00" * 32)
    (tmp_path / "sites" / "row.key").chmod(0o644)
    fails("keys-private", site, "row.key can be read", code=77)


def test_a_folder_where_others_can_replace_keys(tmp_path: Path) -> None:
    site = subject(tmp_path)
    (tmp_path / "keys").chmod(0o777)
    fails("keys-private", site, "others can replace files", "chmod go-w", code=77)
    (tmp_path / "keys").chmod(0o1777)
    passes("keys-private", site)
    (tmp_path / "keys").chmod(0o775)
    warns("keys-private", site, "others can replace files", "chmod g-w")
    (tmp_path / "sites" / "row.key").touch(0o644)
    (tmp_path / "sites" / "row.key").chmod(0o644)
    fails("keys-private", site, "row.key", code=77)


def test_a_key_that_is_missing_or_no_file(tmp_path: Path) -> None:
    site = subject(tmp_path)
    (tmp_path / "keys" / "aa.key").unlink()
    fails("keys-private", site, "No such file", code=77)
    (tmp_path / "keys" / "aa.key").mkdir()
    fails("keys-private", site, "is not a file", code=77)


def test_a_key_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = subject(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    fails("keys-private", site, "belongs to another user", code=77)


def test_a_key_that_is_not_the_rosters(tmp_path: Path) -> None:
    site = subject(tmp_path)
    (tmp_path / "keys" / "aa.key").write_text("11" * 32 + "\n")
    fails("keys-roster", site, "not the key of the roster", code=77)
    (tmp_path / "keys" / "aa.key").write_text("nonsense")
    fails("keys-roster", site, "not a key file", code=77)


# --- the run directory


def test_a_good_run_directory(tmp_path: Path) -> None:
    site = subject(tmp_path)
    assert site.directory == tmp_path / "run" / "aa"
    passes("run-space", site, str(tmp_path))
    passes("run-files", site, str(tmp_path))
    passes("run-locks", site, str(tmp_path))
    passes("run-clock", site)
    assert [p.name for p in tmp_path.iterdir() if "doctor" in p.name] == []
    assert not (tmp_path / "run").exists()


def test_without_files_there_is_no_run_directory() -> None:
    site = open_subject(None, {})
    for name in ("run-space", "run-files", "run-locks", "run-clock", "run-shared"):
        skips(name, site, "not known")


def checkpoint(site: Subject, bytes_: int) -> None:
    assert site.directory is not None
    path = site.directory / "checkpoints" / "round-000003.h5"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(bytes_)


def free(monkeypatch: pytest.MonkeyPatch, bytes_: int, files: int = 1 << 20) -> None:
    answer = os.statvfs_result((4096, 4096, 1 << 40, 1 << 30, bytes_ // 4096, 1 << 22, files, files, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: answer)


def test_space_for_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = subject(tmp_path)
    checkpoint(site, 1 << 30)
    free(monkeypatch, 5 << 30)
    passes("run-space", site, "5.4 GB free", "4.3 GB wanted")
    free(monkeypatch, 3 << 30)
    warns("run-space", site, "4 checkpoints of 1.1 GB")
    free(monkeypatch, 1 << 30)
    fails("run-space", site, "too little", code=74)
    free(monkeypatch, 5 << 30, files=10)
    fails("run-space", site, "10 files may still be made", code=74)


def test_space_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = subject(tmp_path)
    free(monkeypatch, 100 << 20)
    warns("run-space", site, "no checkpoint yet")
    free(monkeypatch, 0)
    fails("run-space", site, code=74)


def test_a_quota_on_lustre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_mount", lambda path: Mount("/scratch", "lustre", frozenset()))
    quota = "/scratch 900000 0 1000000 - 10 0 0 -\n"
    site = subject(tmp_path, {"lfs": f'[ "$5" = /scratch ] || exit 2\n{says(quota)}'})
    warns("run-space", site, "102 MB free")
    roomy = {"lfs": says("/scratch 900000 0 2000000 - 10 0 0 -\n")}
    passes("run-space", subject(tmp_path / "3", roomy), "1.1 GB free", "quota included")
    checkpoint(site, 90 << 20)
    fails("run-space", site, "too little", code=74)
    passes("run-space", subject(tmp_path / "2", {"lfs": complains("no quota")}))
    assert "quota included" not in found("run-space", subject(tmp_path / "2")).what


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("/s 900 0 1000 - 1 0 0 -", 100 << 10),
        ("/s 1100* 1000 2000 6d 1 0 0 -", 900 << 10),
        ("/s 900 0 0 - 1 0 0 -", None),
        ("nonsense", None),
    ],
)
def test_quotas_as_lfs_prints_them(text: str, left: int | None) -> None:
    assert storage.left_of_quota(text) == left


def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(file_system, "_write", refuse)
    site = subject(tmp_path)
    fails("run-files", site, "Read-only file system", code=74)
    fails("run-clock", site, "Read-only file system", code=74)


def test_a_run_that_others_can_look_into(tmp_path: Path) -> None:
    """Of an older version, or loosened since."""
    site = subject(tmp_path)
    assert site.directory is not None
    site.directory.mkdir(parents=True)
    for folder in (site.directory.parent, site.directory):
        folder.chmod(0o700)
    passes("run-files", site, "renames whole files")
    site.directory.chmod(0o750)
    warns("run-files", site, f"others can look into {site.directory} (mode 0750)")
    site.directory.parent.chmod(0o755)
    warns("run-files", site, f"others can look into {site.directory.parent} (mode 0755)")


def test_a_file_system_whose_renames_are_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "replace", lambda old, new: new.write_bytes(old.read_bytes()[:100]))
    fails("run-files", subject(tmp_path), "does not read back", code=74)
    assert [p.name for p in tmp_path.iterdir() if "doctor" in p.name] == []


def test_a_file_system_that_makes_a_file_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, mode=0o777: real(path, flags & ~os.O_EXCL, mode))
    fails("run-files", subject(tmp_path), "O_EXCL", code=74)


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    fails("run-files", subject(tmp_path), "Operation not permitted", code=74)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    fails("run-locks", subject(tmp_path), "Function not implemented", "-o flock", code=74)


def test_a_lock_that_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)
    fails("run-locks", subject(tmp_path), "another process got a lock", code=74)


@pytest.mark.parametrize("option", ["localflock", "nolock", "local_lock=flock", "local_lock=all"])
def test_locks_of_one_node_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    monkeypatch.setattr(storage, "_mount", lambda path: Mount("/s", "lustre", frozenset({"rw", option})))
    fails("run-locks", subject(tmp_path), option, "one node only", "[ledger] path", code=74)
    monkeypatch.setattr(storage, "_mount", lambda path: Mount("/s", "lustre", frozenset({"rw", "flock"})))
    passes("run-locks", subject(tmp_path))


def test_the_ledger(tmp_path: Path) -> None:
    site = subject(tmp_path)
    assert site.site is not None
    home = home_of(site.site)
    passes("ledger", site, "no sum yet")
    journal = journal_in(home.folder)
    journal.admit(LedgerEntry(1, "train", key_of("i"), key_of("f"), (1, 2, 3)))
    passes("ledger", site, "1 configurations, 1 rounds")
    home.ledger.chmod(0o644)
    fails("ledger", site, "can be read by others", code=74)
    home.ledger.chmod(0o600)
    key, whole = home.folder / "ledger.key", home.ledger.read_bytes()
    home.ledger.write_bytes(whole.replace(b'"train"', b'"drain"'))
    fails("ledger", site, "line 2: the chain of hashes is broken", code=77)
    home.ledger.write_bytes(whole)
    kept = key.read_bytes()
    key.unlink()
    fails("ledger", site, "ledger.key is missing", code=77)
    key.write_bytes(kept)
    home.ledger.unlink()
    fails("ledger", site, "missing beside its key", code=77)
    key.unlink()
    checkpoint(site, 1)
    fails("ledger", site, "the run has checkpoints", "[ledger] path", code=77)
    skips("ledger", open_subject(None, {}), "no site file")


def test_two_homes_for_one_store(tmp_path: Path) -> None:
    site = subject(tmp_path)
    skips("ledger-homes", site, "rehearsal")
    assert site.site is not None
    relayed = dataclasses.replace(
        site, site=dataclasses.replace(site.site, exchange=ExchangeSection("spool", spool=Path("spool")))
    )
    store = tmp_path / "data" / "aa.h5"
    store.parent.mkdir(exist_ok=True)
    store.touch()
    passes("ledger-homes", relayed)
    for number, folder in enumerate([home_of(site.site).folder, tmp_path / "other"]):
        journal_in(folder, known(str(number))).close()
        remember_home(LedgerHome(folder), store)
    fails("ledger-homes", relayed, "two ledgers", str(tmp_path / "other"), "[ledger] path", code=77)
    (tmp_path / "other" / "ledger.jsonl").unlink()
    passes("ledger-homes", relayed)


@pytest.mark.parametrize(("ahead", "words"), [(60.0, "1 min ahead of"), (-7.0, "7 s behind")])
def test_a_file_server_with_another_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float, words: str
) -> None:
    real = time.time
    monkeypatch.setattr(file_system.time, "time", lambda: real() - ahead)
    warns("run-clock", subject(tmp_path), words)


@pytest.mark.parametrize(
    ("kind", "cluster", "state"),
    [
        *[("lustre", True, "ok"), ("nfs4", True, "ok"), ("gpfs", True, "ok"), ("ext4", False, "ok")],
        *[("ext4", True, "warn"), ("xfs", True, "warn"), ("tmpfs", False, "warn"), ("overlay", True, "warn")],
    ],
)
def test_disks_that_only_one_node_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, cluster: bool, state: str
) -> None:
    monkeypatch.setattr(storage, "_mount", lambda path: Mount("/", kind, frozenset()))
    monkeypatch.setattr(storage, "_temporary", lambda subject: [])
    site = subject(tmp_path, slurm() if cluster else {})
    passes("run-shared", site, kind) if state == "ok" else warns("run-shared", site, kind, "--out")


def test_a_run_in_the_jobs_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_mount", lambda path: Mount("/", "lustre", frozenset()))
    site = subject(tmp_path, {}, environment=IN_JOB | {"TMPDIR": str(tmp_path)})
    warns("run-shared", site, f"is in {tmp_path}")


def test_mounts_as_the_kernel_lists_them() -> None:
    table = [
        "rootfs / ext4 rw 0 0",
        "srv:/a /scratch nfs4 rw,noexec 0 0",
        "x /scratch/my\\040own lustre rw,flock 0 0",
        "y /scratchpad xfs rw 0 0",
        "broken",
    ]
    places = {"/scratch/run": "nfs4", "/scratch/my own/run": "lustre", "/scratchy": "ext4", "/scratchpad": "xfs"}
    for place, kind in places.items():
        mount = mount_of(Path(place), table)
        assert mount is not None
        assert mount.kind == kind
    assert mount_of(Path("/x"), []) is None


def test_data_that_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = subject(tmp_path)
    fails("data", site, "aa.h5 is not there", code=65)
    (tmp_path / "data" / "aa.h5").touch()
    passes("data", site, "aa.h5")
    monkeypatch.setattr(os, "access", lambda path, how: False)
    fails("data", site, "may not be read", code=65)


def test_temporary_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes("tmpdir", subject(tmp_path / "1", environment={"TMPDIR": "/tmp"}), "/tmp")
    fails("tmpdir", subject(tmp_path / "2", environment={"TMPDIR": "/nowhere"}), "cannot be written", code=74)
    long = tmp_path / ("x" * 100)
    long.mkdir()
    warns("tmpdir", subject(tmp_path / "3", environment={"TMPDIR": str(long)}), "107 bytes")
    monkeypatch.setattr(storage, "_LEAST_TEMPORARY", 1 << 60)
    warns("tmpdir", subject(tmp_path / "5", environment={"TMPDIR": "/tmp"}), "free in /tmp", "without --contain")
    monkeypatch.setattr(storage, "_mount", lambda path: Mount("/tmp", "ext4", frozenset({"noexec"})))
    warns("tmpdir", subject(tmp_path / "4", environment={"TMPDIR": "/tmp"}), "noexec")


# --- the walltime


def rounds(site: Subject, *seconds: dict[str, float]) -> None:
    assert site.directory is not None
    site.directory.mkdir(parents=True)
    lines = [json.dumps({"version": 1, "round": n, "seconds": s}) for n, s in enumerate(seconds, start=1)]
    (site.directory / "metrics.jsonl").write_text("\n".join(lines) + "\n")


ROUND = {"total": 100.0, "wire": 30.0, "agree": 40.0, "checkpoint": 5.0}  # 60 s of this site's own


@pytest.mark.parametrize(
    ("time_", "life", "state"),
    [
        ("00:04:30", "", "ok"),  # 2 * 100 + 5 + 60 = 265 s
        ("00:04:20", "", "warn"),  # the wait for others does not fit
        ("00:04:20", 'kind = "detached"', "ok"),
        ("00:03:00", "", "fail"),  # 2 * 60 + 5 + 60 = 185 s
        ("00:03:00", 'kind = "detached"', "fail"),
    ],
)
def test_rounds_and_the_walltime(tmp_path: Path, time_: str, life: str, state: str) -> None:
    site = subject(tmp_path, slurm=f'time = "{time_}"\nsignal_s = 60', life=life)
    rounds(site, ROUND, ROUND, ROUND)
    if state == "ok":
        passes("walltime", site, "3 rounds fit into" if life else "2 rounds fit into")
    elif state == "warn":
        warns("walltime", site, "with the wait for others", "detached")
    else:
        fails("walltime", site, "ask for more time", code=64)


def test_a_walltime_that_cannot_be_judged(tmp_path: Path) -> None:
    site = subject(tmp_path, slurm='time = "00:10:00"')
    warns("walltime", site, "no round was measured yet")
    rounds(site, {})
    warns("walltime", site, "no round has its time")
    skips("walltime", subject(tmp_path / "2"), "no [slurm]")


def test_a_short_walltime_does_not_end_a_chain(tmp_path: Path) -> None:
    site = subject(tmp_path, slurm='time = "00:03:00"\nsignal_s = 60', quick=True)
    rounds(site, ROUND)
    warns("walltime", site, "ask for more time")


def test_metrics_that_somebody_changed(tmp_path: Path) -> None:
    site = subject(tmp_path, slurm='time = "00:10:00"')
    rounds(site, ROUND)
    assert site.directory is not None
    (site.directory / "metrics.jsonl").write_text("nonsense\n")
    fails("walltime", site, "not strict JSON", code=65)


# --- this machine


@pytest.mark.parametrize(
    ("wanted", "asked", "given", "cores", "words"),
    [
        (8, 4, None, None, "cpus_per_task = 4"),
        (8, None, 4, None, "each task has 4 cores"),
        (4, 4, 4, 1, "may use 1 cores of the 4"),
        (64, None, None, 2, "this machine has 2 cores"),
        (1, 18, None, None, "idle"),
    ],
)
def test_threads_without_cores(
    wanted: int, asked: int | None, given: int | None, cores: int | None, words: str
) -> None:
    finding = node.threads_fit(wanted, asked, given, cores)
    assert finding.state == "warn"
    assert words in finding.what
    assert finding.fix


def test_threads_and_what_the_site_asks_for(tmp_path: Path) -> None:
    usable = f"threads a rank: 1, cores asked for: 1, usable here: {len(os.sched_getaffinity(0))}"
    passes("threads", subject(tmp_path / "1", {}, slurm="cpus_per_task = 1"), usable)
    assert "usable" not in found("threads", subject(tmp_path / "6", slurm())).what
    edited = [("threads = 1", "threads = 8")]
    warns("threads", subject(tmp_path / "2", {}, slurm="cpus_per_task = 4", site=edited), "threads = 8")
    job = IN_JOB | {"SLURM_CPUS_PER_TASK": "2"}
    warns("threads", subject(tmp_path / "3", {}, site=edited, environment=job), "each task has 2")
    step = IN_JOB | {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_CPUS_PER_TASK": "4096"}
    warns("threads", subject(tmp_path / "4", {}, environment=step), "of the 4096")
    passes("threads", subject(tmp_path / "5", {}, environment=step | {"SLURM_STEP_NUM_TASKS": "1"}))


class Built:
    """What `choose` asks of the extension, on some CPU."""

    def __init__(self, paths: str) -> None:
        self.PATHS, self.FLAGS = paths, "aes avx2"


def test_the_kernel_that_runs_and_why_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    site = subject(tmp_path)
    assert found("kernel", site).what.startswith(choice.running().name)
    with monkeypatch.context() as patched:  # whatever this machine has
        patched.setattr(node, "running", lambda: choice.Running("vaes", "", ("aes", "vaes")))
        passes("kernel", site, "vaes; of this CPU's instructions: aes vaes")

    def given(wish: str, paths: str | None, wrong: str = "") -> Finding:
        monkeypatch.setattr(choice, "failure", lambda kernel: wrong)
        built: Any = None if paths is None else Built(paths)
        return node.kernel_fits(choice.choose(wish, built)[0], wish)

    assert given("", "vaes aesni") == Finding("ok", "vaes; of this CPU's instructions: aes avx2")
    assert given("aesni", "vaes aesni").what == "aesni, by FEDHPC_KERNEL; of this CPU's instructions: aes avx2"
    for wish, paths, said, fix in (
        ("", None, "was not built", "C compiler"),
        ("", "", "this CPU cannot run", "AES instructions"),
        ("vaes", "aesni", "this CPU cannot run vaes", ""),
        ("python", "vaes aesni", "by FEDHPC_KERNEL", "without FEDHPC_KERNEL"),
    ):
        warned = given(wish, paths)
        assert (warned.state, warned.exit_code) == ("warn", 0)
        assert said in warned.what
        assert fix in warned.fix
    broken = given("", "vaes", "AES-256")
    assert (broken.state, broken.exit_code) == ("fail", 64)
    assert "AES-256" in broken.what
    assert "FEDHPC_KERNEL=python" in broken.fix
    monkeypatch.setenv(VARIABLE, "magic")
    fails("kernel", site, "FEDHPC_KERNEL is 'magic'", code=64)


def test_limits_of_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ample = dict.fromkeys((resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK, resource.RLIMIT_STACK), -1)
    assert resource.RLIM_INFINITY == -1

    def given(**changes: int) -> Subject:
        limits = ample | {getattr(resource, f"RLIMIT_{name}"): value for name, value in changes.items()}
        monkeypatch.setattr(resource, "getrlimit", lambda which: (limits[which], -1))
        return subject(tmp_path)

    passes("limits", given(), "any number of open files")
    passes("limits", given(NOFILE=1024), "1024 open files")
    warns("limits", given(NOFILE=256), "256 files", "ulimit -n")
    warns("limits", given(STACK=1 << 20), "stack", "ulimit -s")
    assert (
        node.limits_fit(lambda which: 1 << 16 if which == resource.RLIMIT_MEMLOCK else -1, infiniband=False).state
        == "ok"
    )
    locked = node.limits_fit(lambda which: 1 << 16 if which == resource.RLIMIT_MEMLOCK else -1, infiniband=True)
    assert (locked.state, "ulimit -l" in locked.fix) == ("warn", True)


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = subject(tmp_path)
    free(monkeypatch, 1 << 30)
    passes("shared-memory", site, "1.1 GB free")
    free(monkeypatch, 64 << 20)
    warns("shared-memory", site, "--shm-size")
    monkeypatch.undo()
    assert node.shared_memory_at(tmp_path / "nowhere").state == "fail"


def test_a_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = subject(tmp_path)
    assert made.site is not None
    assert made.agreement is not None
    skips("spool", made, "not")
    exchange = made.site.exchange
    object.__setattr__(exchange, "kind", "spool")
    object.__setattr__(exchange, "spool", None)
    fails("spool", made, "names no spool", code=64)
    object.__setattr__(exchange, "spool", tmp_path / "spool")
    fails("spool", made, "is not there", code=64)
    (tmp_path / "spool").mkdir()
    for mode, words in ((0o777, "everybody can write"), (0o2777, "everybody"), (0o770, "does not hand its group on")):
        (tmp_path / "spool").chmod(mode)
        warns("spool", made, words)
    (tmp_path / "spool").chmod(0o700)
    warns("spool", made, "no carrier was here yet")
    beat = tmp_path / "spool" / made.agreement.hash.hex() / "1" / "in" / "carrier.json"
    beat.parent.mkdir(parents=True)
    beat.write_text("{}")
    passes("spool", made, "this account's only; carrier here")
    (tmp_path / "spool").chmod(0o2770)
    passes("spool", made, "its group's; carrier here")
    for text, words in (('{"trouble": "403\\u001b[2J"}', "in trouble: 403"), ("nonsense", "not a note of a carrier")):
        beat.write_text(text)
        warns("spool", made, words)
        assert "\x1b" not in found("spool", made).what
    beat.write_text('{"trouble": ""}')
    hour = time.time() - 3600
    os.utime(beat, (hour, hour))
    warns("spool", made, "last here 1 h ago")
    monkeypatch.setattr(Path, "replace", lambda old, new: new.write_bytes(b""))
    fails("spool", made, "does not read back", code=74)
    assert "spool" in found("relay-name", made).what


def test_files_beside_each_other_are_found(tmp_path: Path) -> None:
    subject(tmp_path)
    (tmp_path / "federation.toml").rename(tmp_path / "sites" / "federation.toml")
    edit(tmp_path / "sites" / "aa.toml", "../keys", str(tmp_path / "keys"))
    beside = open_subject(tmp_path / "sites" / "aa.toml", {})
    assert beside.run == tmp_path / "sites" / "run"
