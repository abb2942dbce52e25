"""[slurm] extra: further options of sbatch, and what may not be among them.

What fedhpc writes itself is refused in every spelling that sbatch takes, since of two options the last one would win
silently, or sbatch would refuse the job. A key's option is refused with the key's name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedhpc.errors import ConfigError

_LONG = re.compile(r"--([A-Za-z][A-Za-z0-9_-]*)(?:=(.*)|\s+(\S.*))?")
_SHORT = re.compile(r"-([A-Za-z])\s*(.*)")
_WITHOUT_VALUE = "HOQsvkIXZ"  # short options that need no value, so that more of them may follow

# Long name -> short name, and the key of [slurm] that writes it.
_KEYS = {
    "account": ("A", "account"),
    "clusters": ("M", "cluster"),
    "constraint": ("C", "constraint"),
    "cpus-per-task": ("c", "cpus_per_task"),
    "export": ("", "export"),
    "mem": ("", "memory"),
    "nodes": ("N", "nodes"),
    "ntasks": ("n", "nodes and tasks_per_node"),
    "ntasks-per-node": ("", "tasks_per_node"),
    "partition": ("p", "partition"),
    "qos": ("q", "qos"),
    "reservation": ("", "reservation"),
    "signal": ("", "signal_s"),
    "tasks-per-node": ("", "tasks_per_node"),  # an older name
    "time": ("t", "time"),
}
# What a batch script of ours decides, or what would make sbatch do something else than submit and tell the id.
_OURS = dict.fromkeys(("no-requeue", "open-mode", "parsable", "requeue", "test-only", "usage", "wrap"), "") | {
    "array": "a",
    "begin": "b",
    "chdir": "D",
    "dependency": "d",
    "error": "e",
    "help": "h",
    "job-name": "J",
    "output": "o",
    "quiet": "Q",
    "version": "V",
    "wait": "W",
}
# Options that sbatch refuses beside one that every script has, and that one's key.
_AGAINST = {"cpus-per-gpu": "cpus_per_task", "ntasks-per-gpu": "tasks_per_node"}
# Other options that ask for the same as a key.
_MEMORY = {"mem-per-cpu": "", "mem-per-gpu": ""}
_GPUS = {"gpus": "G", "gpus-per-node": "", "gpus-per-socket": "", "gpus-per-task": ""}
_GRES = {"gres": "", "tres-per-job": "", "tres-per-node": "", "tres-per-socket": "", "tres-per-task": ""}
_WATCHED = {name: short for name, (short, _) in _KEYS.items()} | _OURS | _MEMORY | _GPUS | _GRES
_WATCHED |= dict.fromkeys(_AGAINST, "")


@dataclass(frozen=True)
class Option:
    """One option of `extra`: its long name if it is one of those that are watched, else as it is written."""

    name: str
    value: str


def check_extra(extra: Sequence[str], *, memory: str, gpus_per_node: int, gpu_request: str) -> None:
    """Refuse options of `extra` that fedhpc sets itself, and those that contradict these keys. Raises ConfigError."""
    seen: dict[str, str] = {}
    for text in extra:
        option = read_option(text)
        name = option.name
        if name in _KEYS:
            raise ConfigError(f"slurm.extra: {text!r} is set by fedhpc itself", f"the key for it: {_key_hint(name)}")
        if name in _OURS:
            raise ConfigError(
                f"slurm.extra: {text!r} is set by fedhpc itself",
                "the batch script and the chain rest on it; nodes, tasks, time and others have keys of their own",
            )
        cores = name == "tres-per-task" and "cpu" in option.value.lower()
        if key := "cpus_per_task" if cores else _AGAINST.get(name):
            raise ConfigError(
                f"slurm.extra: {text!r} contradicts [slurm] {key}, which every job has", f"say it with {key}"
            )
        if name in _MEMORY and memory:
            raise ConfigError(
                f"slurm.extra: {text!r} contradicts [slurm] memory = {memory!r}, and sbatch would refuse both",
                'leave one of them out; memory = "" takes away what a profile says',
            )
        asks_for_gpus = name in _GPUS or (name in _GRES and "gpu" in option.value.lower())
        replaced = name == "gres" and gpu_request == "gres"
        if gpus_per_node and (asks_for_gpus or replaced):
            raise ConfigError(
                f"slurm.extra: {text!r} contradicts [slurm] gpus_per_node = {gpus_per_node}",
                "leave one of them out; gpus_per_node = 0 asks for none, and then extra may"
                if asks_for_gpus
                else 'gpu_request = "gpus-per-node" leaves --gres to extra',
            )
        if name in _MEMORY:
            seen[name] = text
    if len(seen) > 1:
        raise ConfigError(
            f"slurm.extra: {' and '.join(map(repr, seen.values()))} contradict each other", "leave one of them out"
        )


def read_option(text: str) -> Option:
    """The one option in `text`. Raises ConfigError for another form, for several, and for an unclear abbreviation."""
    long, short = _LONG.fullmatch(text), _SHORT.fullmatch(text)
    if not text.isprintable() or (long is None and short is None):
        raise ConfigError(
            f"slurm.extra: {text!r} is not an option", 'one for each entry, such as "--exclusive" or "--switches=1"'
        )
    if long is not None:
        value = long[2] if long[2] is not None else long[3] or ""
        if re.search(r"\s--[A-Za-z]", value):
            raise _many(text)
        if long[2] is None:
            _refuse_second(text, value)
        return Option(_whole_name(text, long[1]), value)
    assert short is not None
    letter, value = short[1], short[2]
    if letter in _WITHOUT_VALUE and value and not (letter == "k" and value == "off"):
        raise _many(text)
    _refuse_second(text, value)
    return Option({s: name for name, s in _WATCHED.items() if s}.get(letter, letter), value)


def option_words(text: str) -> list[str]:
    """An option of `extra` as words of a command line; in a batch script sbatch itself splits it."""
    name, gap, value = text.partition(" ")
    return [text] if "=" in name or not gap else [name, *shlex.split(value)]


def _refuse_second(text: str, value: str) -> None:
    """`--exclusive --mem=4G` is two options to sbatch, and so is `-p gpu --mem=4G`; a value in quotes is one word."""
    word = r"\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s\"'#-][^\s\"'#]*"
    if value and not re.fullmatch(word, value):
        raise _many(text)


def _many(text: str) -> ConfigError:
    return ConfigError(
        f"slurm.extra: {text!r} is more than one option", 'one for each entry; a value as "--name=value"'
    )


def _whole_name(text: str, name: str) -> str:
    """The watched option that sbatch would take `name` for: it takes the beginnings of names, too."""
    near = [known for known in _WATCHED if known.startswith(name)]
    if name in _WATCHED or not near:
        return name
    if len(near) > 1:
        raise ConfigError(
            f"slurm.extra: {text!r} is short for several options of sbatch, {', '.join(f'--{n}' for n in near)}",
            "write the whole name",
        )
    return near[0]


def _key_hint(name: str) -> str:
    key: Mapping[str, str] = {n: k for n, (_, k) in _KEYS.items()}
    examples = {
        "clusters": 'cluster = "…"', "mem": 'memory = "…"', "time": 'time = "HH:MM:SS"', "signal": "signal_s = …",
    }  # fmt: skip
    return f"[slurm] {examples.get(name, key[name])}"
