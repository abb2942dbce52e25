"""Log records that say which round, site, rank and host they come from, and JSON lines that survive a kill.

People read stderr: WARNING and up from every rank, INFO too from the showing rank when asked. Programs
read RUN/<site>/log.jsonl, written by the site's leader. `FEDHPC_LOG_RANKS=all` makes every rank write down
everything, each to a file of its own, because appends from several nodes tear each other on Lustre and NFS.

Model updates and keys must not reach a log, which is copied into tickets and mails: `Redact` replaces every
bytes object and array among the arguments. It cannot see into text that was formatted before the call, so log
with arguments (`log.info("sum %s", x)`), never with f-strings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.errors import ConfigError, StorageError

REDACTED = "<redacted>"
RANKS_VARIABLE = "FEDHPC_LOG_RANKS"

# The round that log records carry. A thread starts with an empty context, so give helper threads a copy of
# it: Thread(target=contextvars.copy_context().run, args=(work,)).
current_round: ContextVar[int | None] = ContextVar("fedhpc_round", default=None)


class JsonLines:
    """A file of one JSON object per line, appended by one process.

    Each line is one os.write, so a kill tears at most the last one. A torn tail that an earlier job left is
    cut off when the file is opened, and a short write (full disk) is taken back: only the last line can ever
    be torn. Mode 0600: it shows losses and numbers of rows, and on clusters the group is often the whole project.
    """

    def __init__(self, path: Path) -> None:
        """Open or create `path`. Raises StorageError."""
        self.path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            if os.fstat(self._file).st_mode & 0o077:  # of an older version, which let the group read
                os.fchmod(self._file, 0o600)
            _cut_torn_tail(self._file)
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror}", "is the run directory writable?") from None

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one line. Raises StorageError and leaves no half line; TypeError or ValueError if not JSON."""
        line = json.dumps(record, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"
        try:
            before = os.fstat(self._file).st_size
            if os.write(self._file, line) != len(line):
                os.ftruncate(self._file, before)
                raise OSError(None, "short write, the disk may be full")
        except OSError as error:
            raise StorageError(f"cannot write {self.path}: {error.strerror}", "check the disk and the quota") from None

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _cut_torn_tail(file: int, block_bytes: int = 1 << 16) -> None:
    """Shorten `file` to the end of its last whole line."""
    end = size = os.fstat(file).st_size
    while end > 0:
        start = max(0, end - block_bytes)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(file, end)


class Redact(logging.Filter):
    """Replaces bytes and arrays in a record by "<redacted>", and formats it so that nothing later can fail.

    It sits on handlers: the filters of a logger do not see what its children pass up.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record, changed in place."""
        message = record.msg if isinstance(record.msg, str) else str(_redacted(record.msg))
        if record.args:
            args = _redacted(record.args)
            try:
                message = message % args
            except (TypeError, ValueError, KeyError):  # "%d" of something redacted, or a wrong call
                message = f"{message} {args}"
        record.msg, record.args = message, None
        return True


def _redacted(value: Any, depth: int = 0) -> Any:
    """`value` without bytes and arrays."""
    if isinstance(value, bytes | bytearray | memoryview):
        return REDACTED
    if isinstance(value, str | np.number | np.bool_):
        return value
    if hasattr(type(value), "__array__"):  # NumPy arrays and torch tensors
        return REDACTED
    if depth > 8:
        return REDACTED
    if isinstance(value, Mapping):
        return {_redacted(k, depth + 1): _redacted(v, depth + 1) for k, v in value.items()}
    if isinstance(value, tuple):  # a plain tuple, also for named ones: only their values matter in a log
        return tuple(_redacted(v, depth + 1) for v in value)
    if isinstance(value, list | set | frozenset):
        return [_redacted(v, depth + 1) for v in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _redacted(getattr(value, f.name), depth + 1) for f in dataclasses.fields(value)}
        return f"{type(value).__name__}({', '.join(f'{k}={v}' for k, v in fields.items())})"
    if isinstance(value, BaseException) and any(_redacted(a, depth + 1) is not a for a in value.args):
        return f"{type(value).__name__}({REDACTED})"
    return value


def printable(text: str) -> str:
    """`text` on one line, without characters that move a terminal's cursor or hide what follows.

    Site names and messages of other parties end up on terminals; an escape sequence in them must not.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class _Where(logging.Filter):
    """Adds round, site, rank and host to a record."""

    def __init__(self, site: str, rank: int) -> None:
        super().__init__()
        self.site, self.rank, self.host = site, rank, socket.gethostname().partition(".")[0]

    def filter(self, record: logging.LogRecord) -> bool:
        record.round, record.site = current_round.get(), self.site
        record.rank, record.host = self.rank, self.host
        return True


class _Line(logging.Formatter):
    """`12 charite:0 node17 WARNING fedhpc.relay: message`, a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = record.__dict__
        round_ = "-" if fields["round"] is None else fields["round"]
        where = f"{round_} {fields['site']}:{fields['rank']} {fields['host']}"
        text = printable(f"{where} {record.levelname} {record.name}: {record.getMessage()}")
        if record.exc_info:
            text += "\n" + "\n".join(printable(s) for s in self.formatException(record.exc_info).splitlines())
        return text


class _Stderr(logging.StreamHandler[Any]):
    """Follows sys.stderr where it points now, and leaves out what the terminal already shows."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "shown", False):
            self.stream = sys.stderr
            super().emit(record)


class _JsonHandler(logging.Handler):
    """One JSON object per record."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.lines = JsonLines(path)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = record.__dict__
            entry = {
                "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
                "level": record.levelname,
                **{name: fields[name] for name in ("round", "site", "rank", "host")},
                "logger": record.name,
                "message": record.getMessage(),
            }
            if record.exc_info:
                entry["exception"] = logging.Formatter().formatException(record.exc_info)
            self.lines.append(entry)
        except Exception:  # a log that cannot be written must not stop a round that can
            self.handleError(record)

    def close(self) -> None:
        self.lines.close()
        super().close()


@contextlib.contextmanager
def rank_logs(
    site_directory: Path, *, site: str, rank: int, show: bool = False, verbose: bool = False
) -> Iterator[None]:
    """Set up the root logger of this process for a run, and put it back as it was at the end.

    `rank` counts within the site, 0 leads it; `show` marks the one rank that talks to people. Raises
    ConfigError for an unknown value of FEDHPC_LOG_RANKS, StorageError if the log file cannot be opened.
    """
    choice = os.environ.get(RANKS_VARIABLE, "leaders")
    if choice not in ("leaders", "all"):
        raise ConfigError(f"{RANKS_VARIABLE}={choice!r} is not known", "valid values: leaders, all")
    everything = choice == "all"
    handlers: list[logging.Handler] = [_Stderr()]
    handlers[0].setLevel(logging.INFO if show and verbose else logging.WARNING)
    handlers[0].setFormatter(_Line())
    if rank == 0 or everything:
        name = "log.jsonl" if rank == 0 else f"log.rank-{rank}.jsonl"
        handlers.append(_JsonHandler(site_directory / name))
        handlers[1].setLevel(logging.DEBUG if everything else logging.INFO)

    root, ours = logging.getLogger(), logging.getLogger("fedhpc")
    before = (root.handlers[:], root.level, ours.level)
    root.handlers[:] = handlers
    root.setLevel(logging.WARNING)  # other libraries: only what matters; ours: the handlers choose
    ours.setLevel(logging.DEBUG if everything else logging.INFO)
    for handler in handlers:
        handler.addFilter(_Where(site, rank))
        handler.addFilter(Redact())
    try:
        yield
    finally:
        root.handlers[:] = before[0]
        root.setLevel(before[1])
        ours.setLevel(before[2])
        for handler in handlers:
            handler.close()
