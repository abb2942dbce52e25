"""What tests of whole jobs share: launchers with a timeout, small federations on disk, and an honest kill.

Nothing here imports torch or MPI: a test starts processes and looks at what they leave behind. A job that does not
end in time is a failure, and its processes are killed before the test goes on.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.data.schema import Feature, FeatureSet, Label
from fedhpc.data.store import write_store
from fedhpc.mpi.launch import launcher_command, launcher_environment
from fedhpc.mpi.launcher_words import reported_code
from fedhpc.secure.keys import identity_public

ROOT = Path(__file__).parents[1]
FEDHPC = [sys.executable, "-m", "fedhpc"]
# A wait that ends in a failure is as many times as long where tests run side by side.
PATIENCE = 10 if "PYTEST_XDIST_WORKER" in os.environ else 2


# --- processes


@dataclass(frozen=True)
class Completed:
    """A job that has ended."""

    code: int
    out: str
    err: str
    ended: float  # time.time()

    @property
    def text(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    def ok(self) -> Completed:
        """Itself, if the job succeeded."""
        assert self.code == 0, self.text
        return self

    def refused(self, code: int, *words: str) -> Completed:
        """Itself, if the job ended with `code` and all `words` stand in its message, and no traceback."""
        assert self.code == code, f"expected exit code {code}\n{self.text}"
        for word in words:
            assert word in self.err, f"'{word}' is not in the message\n{self.text}"
        assert "error: " in self.err, self.text
        assert "Traceback" not in self.err, self.text
        return self


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a job: one thread a rank, root allowed, no trace of a launcher or of Slurm."""
    plain, _ = launcher_environment()
    drop = ("SLURM_", "OMPI_COMM_", "PMI", "MPI_LOCAL")
    plain = {k: v for k, v in plain.items() if not k.startswith(drop)}
    plain["PYTHONPATH"] = os.pathsep.join(p for p in (str(ROOT), plain.get("PYTHONPATH", "")) if p)
    plain |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "100", "NO_COLOR": "1"}
    plain |= {"PYTHONFAULTHANDLER": "1"}
    return plain | dict(extra or {})


class Job:
    """A running command with its own session and scratch directory; `finish` waits, `kill` is SIGKILL for all of it."""

    def __init__(self, command: Sequence[str | Path], env: Mapping[str, str] | None, cwd: Path | None) -> None:
        # A short path: Open MPI puts a socket there, and a socket's path has at most 107 bytes.
        self._scratch = tempfile.TemporaryDirectory(prefix="fj", dir="/tmp", ignore_cleanup_errors=True)
        self._files = [tempfile.TemporaryFile("w+", errors="replace") for _ in range(2)]  # noqa: SIM115
        self.process = subprocess.Popen(
            [str(word) for word in command],
            env=environment({"TMPDIR": self._scratch.name, **(env or {})}),
            cwd=cwd, stdin=subprocess.DEVNULL, stdout=self._files[0], stderr=self._files[1], start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()
        for file in self._files:
            file.close()
        self._scratch.cleanup()

    def finish(self, timeout: float) -> Completed:
        """Wait for the end. AssertionError, with all output and where each process stood, if it does not come within
        `timeout` seconds."""
        timeout *= PATIENCE
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._say_where()
            self.kill()
            raise AssertionError(f"the job hung for {timeout} s\n{self._completed(-1).text}") from None
        return self._completed(code)

    def kill(self) -> None:
        """SIGKILL every process of the job by its id: the launcher, its helpers and all ranks."""
        if self.process.poll() is None:
            # Stopped first, so that none of them sees another one die and reacts to it.
            tree = [self.process.pid, *_descendants(self.process.pid)]
            for sign in (signal.SIGSTOP, signal.SIGKILL):
                for pid in tree:
                    try:
                        os.kill(pid, sign)
                    except ProcessLookupError:
                        continue
            self.process.wait()
            deadline = time.monotonic() + 10
            while any(alive(pid) for pid in tree[1:]) and time.monotonic() < deadline:
                time.sleep(0.01)

    def _say_where(self) -> None:
        """Have every Python process print the stacks of its threads (PYTHONFAULTHANDLER) and end."""
        tree = [self.process.pid, *_descendants(self.process.pid)]
        for pid in tree:
            with contextlib.suppress(OSError):
                if "python" in Path(f"/proc/{pid}/exe").readlink().name:
                    os.kill(pid, signal.SIGABRT)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and any(alive(pid) for pid in tree[1:]):
            time.sleep(0.1)

    def _completed(self, code: int) -> Completed:
        ended = time.time()
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read())
        return Completed(code, texts[0], texts[1], ended)


def start(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Job:
    """Start a command; use as a context manager."""
    return Job(command, env, cwd)


class Warm:
    """The parent of tests/warm.py, started when it is first needed."""

    _socket = ""

    @classmethod
    def words(cls) -> list[str]:
        """What to put in place of `python -m`, or of `python` before a script, for a process that has imported all."""
        if not cls._socket:
            folder = tempfile.TemporaryDirectory(prefix="fw", dir="/tmp")
            path = f"{folder.name}/s"
            parent = subprocess.Popen(
                [sys.executable, str(ROOT / "tests" / "warm.py"), path],
                env=environment(), cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip

            def end() -> None:
                parent.kill()
                parent.wait()
                folder.cleanup()

            atexit.register(end)
            assert parent.stdout is not None
            assert parent.stdout.readline() == "ready\n"
            cls._socket = path
        # Without site packages: the sender itself needs nothing.
        return [sys.executable, "-S", "-E", str(ROOT / "tests" / "warm.py"), cls._socket]


def call(
    command: Sequence[str | Path], *, timeout: float = 60, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Completed:
    """Run a command to its end. One that begins with FEDHPC is run by a process that has imported everything."""
    if list(command[: len(FEDHPC)]) == FEDHPC:
        command = [*Warm.words(), "fedhpc", *command[len(FEDHPC) :]]
    with start(command, env=env, cwd=cwd) as job:
        return job.finish(timeout)


def mpi_words(ranks: int, words: Sequence[str | Path], *, guarded: bool = True, warm: bool = False) -> list[str | Path]:
    """The command line of `ranks` ranks of `python [-m mpi4py] words…`; `guarded` is `-m mpi4py`.

    `warm`: ranks that have imported everything already, torch too. They are no children of mpirun, so an error ends
    them through MPI_Abort.
    """
    words = ["-m", "mpi4py", *words] if guarded else list(words)
    if not warm:
        return [*launcher_command(ranks), sys.executable, *words]
    return [*launcher_command(ranks), *Warm.words(), *words[words[0] == "-m" :]]


def mpirun(
    ranks: int,
    words: Sequence[str | Path],
    *,
    timeout: float = 120,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    guarded: bool = True,
    warm: bool = False,
) -> Completed:
    """Run `ranks` ranks of a Python command line to its end; see mpi_words.

    Where the launcher crashes while it ends the other ranks, the code is the one it had said before.
    """
    done = call(mpi_words(ranks, words, guarded=guarded, warm=warm), timeout=timeout, env=env, cwd=cwd)
    said = next((code for line in done.err.splitlines() if (code := reported_code(line))), 0)
    return dataclasses.replace(done, code=said) if done.code < 0 and said else done


def matches(expected: Sequence[str], actual: Sequence[str]) -> bool:
    """Whether `actual` lines are `expected`: `...` stands for anything in a line, and alone for any lines."""
    pattern = ""
    for line in expected:
        if line == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += r"[^\n]*?".join(re.escape(part) for part in line.split("...")) + r"\n"
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in actual)) is not None


def until(true: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait until `true()`; AssertionError after `timeout` seconds."""
    timeout *= PATIENCE
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.005)


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in map(int, children):
            found += [child, *_descendants(child)]
    return found


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- files of older versions


def without_blind(path: Path) -> None:
    """Make a checkpoint one of fedhpc 0.1.0: schema 1, no blind, its digest as it was made then."""
    import h5py

    with h5py.File(path, "r+") as file:
        index = json.loads(bytes(file["index"][:]))
        old = {n: index[n] for n in ("round", "sums", "config", "ledger", "tensors", "outer", "private")}
        text = json.dumps(old, separators=(",", ":")).encode()
        digest = hashlib.sha256(b"fedhpc checkpoint v1\0" + len(text).to_bytes(8, "little") + text)
        for group in ("tensors", "outer", "private"):
            for number in range(len(old[group])):
                data = np.asarray(file[f"{group}/{number:06d}"]).tobytes()
                digest.update(len(data).to_bytes(8, "little") + data)
        del file["index"]
        file.create_dataset("index", data=np.frombuffer(text, np.uint8))
        file.attrs["schema_version"] = np.int64(1)
        file.attrs.create("sha256", digest.hexdigest().encode(), dtype=h5py.string_dtype("utf-8", 64))


# --- small federations


@dataclass
class Site:
    """One site of a test federation."""

    rows: int = 24
    ranks: int = 1
    exchange: dict[str, Any] = field(default_factory=dict)  # [exchange] of its file
    compute: dict[str, Any] = field(default_factory=dict)
    samples: int = 0  # in the roster
    names: tuple[str, ...] = ()  # its features; those of the federation if empty


LOGISTIC = {"name": "logistic", "held_out": 0.25, "options": {"features": 4}}
SGD = {"optimizer": "sgd", "lr": 0.2, "batch_size": 8, "local_steps": 3}


def write_federation(
    directory: Path,
    sites: Mapping[str, Site] | int = 3,
    *,
    rounds: int = 3,
    seed: int = 0,
    secure: Mapping[str, Any] | None = None,
    strategy: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    stores: bool = True,
) -> Path:
    """A federation in `directory`: federation.toml (its path is the result), sites/, keys/ and data/.

    Keys and rows follow from the sites' names alone, so two directories with the same settings train the same model.
    """
    if isinstance(sites, int):
        sites = {chr(ord("a") + i) * 2: Site() for i in range(sites)}
    task = LOGISTIC if task is None else task
    for folder in ("sites", "keys", "data"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    roster = []
    for name, site in sites.items():
        private = name.encode().ljust(32, b"\0")[:32]
        key = directory / "keys" / f"{name}.key"
        key.write_text(private.hex() + "\n")
        key.chmod(0o600)
        roster.append({"name": name, "sign": identity_public(private).hex(), "samples": site.samples})
        write_toml(
            directory / "sites" / f"{name}.toml",
            {
                "site": {"name": name, "ranks": site.ranks, "key": f"../keys/{name}.key"},
                "data": {"path": f"../data/{name}.h5"},
                "compute": {"device": "cpu", "threads": 1} | site.compute,
                "ledger": {"path": f"../ledger/{name}"},
                "exchange": site.exchange,
            },
        )
        if stores:
            write_rows(directory / "data" / f"{name}.h5", name, site.rows, names=site.names)
    return write_toml(
        directory / "federation.toml",
        {
            "federation": {"name": "test", "rounds": rounds, "seed": seed, "protocol": "fedhpc-secagg/3"},
            "secure": dict(secure or {}),
            "strategy": dict(strategy or {}),
            "task": dict(task),
            "train": dict(SGD if train is None else train),
            "site": roster,
        },
    )


def ledger_of(directory: Path, name: str) -> Path:
    """The ledger of a site of `write_federation`."""
    return directory / "ledger" / name / "ledger.jsonl"


def ledger_entries(path: Path) -> list[dict[str, Any]]:
    """The entries in a ledger's file, as they were added; none where there is no file."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [line["entry"] for line in lines if "entry" in line]


def table(name: str, rows: int, features: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The rows of site `name`: x float32 [rows, features], y int64 [rows] of 0 and 1, both classes present."""
    draw = np.random.default_rng([*name.encode(), rows, features])
    x = draw.standard_normal((rows, features)).astype(np.float32)
    y = (x.sum(axis=1) + draw.standard_normal(rows) > 0).astype(np.int64)
    y[: min(2, rows)] = (0, 1)[: min(2, rows)]
    return x, y


def write_rows(path: Path, name: str, rows: int, *, names: Sequence[str] = ()) -> None:
    """A store of `table(name, rows)`."""
    names = names or tuple(f"f{i}" for i in range(4))
    x, y = table(name, rows, len(names))
    feature_set = FeatureSet(tuple(Feature(n) for n in names), Label("sick"), (len(names),))
    ids = np.zeros((rows, 32), dtype=np.uint8)
    path.unlink(missing_ok=True)
    write_store(path, site=name, feature_set=feature_set, features=x, labels=y, row_ids=ids, created="2026-01-01")


def write_toml(path: Path, table_: Mapping[str, Any]) -> Path:
    """Write one level of tables (and lists of tables) as TOML."""
    lines: list[str] = []
    for name, value in table_.items():
        if isinstance(value, list):
            for entry in value:
                lines += [f"[[{name}]]", *(f"{k} = {_value(v)}" for k, v in entry.items()), ""]
        elif value:
            lines += [f"[{name}]", *(f"{k} = {_value(v)}" for k, v in value.items()), ""]
    path.write_text("\n".join(lines))
    return path


def edit(path: Path, old: str, new: str) -> Path:
    """Replace the one occurrence of `old` in a file."""
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {path}:\n{text}"
    path.write_text(text.replace(old, new))
    return path


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if isinstance(value, str | Path):
        return "'" + str(value) + "'"
    return repr(value)
