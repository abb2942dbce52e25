"""Pieces of batch scripts from jobs/templates: @@NAME@@ is filled in once, quoted for the shell or for sbatch."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedhpc.errors import ConfigError
from fedhpc.slurm.profile import jobs_folder
from fedhpc.slurm.settings import SlurmSettings

_FIELD = re.compile(r"@@(\w+)@@")
_LINE = re.compile(r"(?m)^@@(\w+)@@\n")
_SAFE = re.compile(r"[\w./:=,+@%^-]+", re.ASCII)


def template(name: str) -> str:
    """The text of jobs/templates/NAME."""
    return (jobs_folder() / "templates" / name).read_text(encoding="utf-8")


def fill(text: str, values: Mapping[str, str]) -> str:
    """`text` with every @@NAME@@ replaced, once: a value that looks like a field stays as it is.

    A line with only a field without a value is left out.
    """
    found = set(_FIELD.findall(text))
    assert found == values.keys(), found ^ values.keys()
    text = _LINE.sub(lambda match: match[0] if values[match[1]] else "", text)
    return _FIELD.sub(lambda match: values[match[1]], text)


def part(name: str, values: Mapping[str, str] | None = None) -> str:
    """The template NAME.sh, filled in, as a piece of a script."""
    return fill(template(f"{name}.sh"), values or {}).rstrip()


def sbatch_word(value: str) -> str:
    """`value` as sbatch reads it from an #SBATCH line. Raises ConfigError for what a line cannot hold.

    sbatch splits at spaces and begins a comment at #; it knows both quotes, and a backslash also within them.
    """
    if not value.isprintable():
        raise ConfigError(
            f"{value!r} cannot stand in a batch script", "paths and names on one line, of printable characters"
        )
    if _SAFE.fullmatch(value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def header(options: Sequence[tuple[str, str]], extra: Sequence[str] = ()) -> str:
    """#SBATCH lines of (option, value); options without a value have an empty one."""
    lines = [f"#SBATCH --{name}" + (f"={sbatch_word(value)}" if value else "") for name, value in options]
    for option in extra:
        name, equals, value = option.partition("=")
        lines.append(f"#SBATCH {name}={sbatch_word(value)}" if equals else f"#SBATCH {option}")
    return "\n".join(lines)


def log_pattern(path: Path) -> str:
    """A log's path as --output takes it: sbatch fills in %j and its like, and %% is a percent sign."""
    return str(path).replace("%", "%%")


def resources(settings: SlurmSettings) -> list[tuple[str, str]]:
    """What a job asks for, as options of sbatch."""
    options = [
        ("account", settings.account),
        ("partition", settings.partition),
        ("qos", settings.qos),
        ("nodes", str(settings.nodes)),
        ("ntasks-per-node", str(settings.tasks_per_node)),
        ("cpus-per-task", str(settings.cpus_per_task)),
        ("mem", settings.memory),
        ("constraint", settings.constraint),
        ("reservation", settings.reservation),
        ("time", settings.time),
    ]
    if settings.gpus_per_node:
        gres = settings.gpu_request == "gres"
        options.append(
            ("gres", f"gpu:{settings.gpus_per_node}") if gres else ("gpus-per-node", str(settings.gpus_per_node))
        )
    return [(name, value) for name, value in options if value]


def launcher(settings: SlurmSettings) -> str:
    """The words that start all ranks, in bash: one task for each rank."""
    tasks = settings.nodes * settings.tasks_per_node
    if settings.launcher == "mpirun":
        return f"mpirun -n {tasks}"
    words = [
        *("srun", f"--ntasks={tasks}", f'--cpus-per-task="${{SLURM_CPUS_PER_TASK:-{settings.cpus_per_task}}}"'),
        *("--kill-on-bad-exit=1", "--wait=60", "--unbuffered", "--export=ALL"),
    ]
    if settings.mpi:
        words.append(f"--mpi={shlex.quote(settings.mpi)}")
    text = " ".join(words)
    if settings.rank_wrapper:
        text += f' \\\n  "${{{settings.rank_wrapper}[@]}}"'
    return text


def one_task(settings: SlurmSettings) -> str:
    """The words that start one process as the ranks will be started, in bash."""
    if settings.launcher == "mpirun":
        return "mpirun -n 1"
    mpi = f" --mpi={shlex.quote(settings.mpi)}" if settings.mpi else ""
    return f"srun --nodes=1 --ntasks=1 --export=ALL{mpi}"
