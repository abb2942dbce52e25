"""Reads the logs that jobs leave beside their records."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fedhpc.app.logs import printable
from fedhpc.errors import ConfigError, PeersError, StorageError
from fedhpc.slurm.job_chain import Chains
from fedhpc.slurm.records import Record, Records

_BLOCK = 1 << 16
_PAUSE_S = 1.0
_ASK_EVERY = 10  # pauses between questions to the queue, which many users share


def newest_log(records: Records, name: str | None) -> tuple[Path, Record]:
    """The log of the job `name`, or of the newest job that has one. ConfigError if there is none."""
    known = records.all()
    if name is not None and name not in [r.name for r in known]:
        raise ConfigError(f"no job {name} was submitted from {records.folder}", "see `fedhpc jobs list`")
    for record in reversed(known):
        path = records.folder / f"{record.name}-{record.job}.out"
        if (name is None or record.name == name) and record.job and path.exists():
            return path, record
    raise ConfigError("no log yet" if name is None else f"job {name} has no log yet", "a job writes one when it starts")


def follow_log(
    path: Path, record: Record, chains: Chains, *, follow: bool, pause: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """The log's text, harmless for a terminal; with `follow` also what is written until the job has ended."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        with path.open("rb") as file:
            turn = 0
            alive = True
            while True:
                while block := file.read(_BLOCK):
                    yield "\n".join(map(printable, decoder.decode(block).replace("\r", "\n").split("\n")))
                if not follow or not alive:
                    return
                turn += 1
                pause(_PAUSE_S)
                if turn % _ASK_EVERY == 0:
                    alive = _alive(record, chains)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from None


def _alive(record: Record, chains: Chains) -> bool:
    try:
        return any(s.alive for s in chains.shown() if s.record.name == record.name)
    except PeersError:
        return True
