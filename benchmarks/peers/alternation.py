"""A case: ours and its peers in turn, each checked, and a record of every warm round, failure and what was left out.

A record is one of fedhpc/bench/record.py, for ours and peers alike, with these besides:

| key      | meaning                                                                                                |
|----------|--------------------------------------------------------------------------------------------------------|
| `case`   | its name; all of one case and one call have the same `run_id`                                          |
| `row`    | of the peer in benchmarks/peers/cases.py; empty for ours                                               |
| `turn`   | from 1 on: in odd turns ours runs first, in even ones last                                             |
| `failed` | in place of the figures: why the peer gave none                                                        |
| `skipped`| in place of the figures: why it was not started                                                        |

`peak_bytes` is the most that all processes of the turn held in one sample, shared pages counted in each of them; of
ours the larger one of this and of what its processes held at most, added up. `measured` has `fall_bytes`, by how much
MemAvailable fell in the turn, and `server_bytes`, what the server's processes, or our relay, held.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import secrets
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import Case, Ours, Peer
from benchmarks.peers.environments import BUILD, HERE, ROOT, EnvironmentFailedError, pinned, python_of
from benchmarks.peers.meter import TICK_S, Limits, Measured, available_bytes, measure
from fedhpc import __version__
from fedhpc.bench.hardware import machine
from fedhpc.bench.record import lines_of

Record = dict[str, Any]
_SETTLE_S = 1.0  # between two programs: the kernel takes memory back


class _FailedError(Exception):
    """A program gave no figures; why, in a sentence."""


class _LimitError(_FailedError):
    """It reached a limit, as it would in the next turn."""


class _SkippedError(Exception):
    """A program was not started; why, in a sentence."""


@dataclass
class Alternation:
    """One case as it runs."""

    case: Case
    small: bool = False
    scripts: Path = HERE
    pins: Path = HERE
    build: Path = BUILD
    run_id: str = field(default_factory=lambda: secrets.token_hex(8))
    given_up: set[str] = field(default_factory=set)  # rows that need not be tried again
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 1))

    def run(self, keep: Callable[[Sequence[Record]], None] = lambda _: None) -> list[Record]:
        """All records of the case; `keep` is given those so far whenever one side has had its turn."""
        found = list[Record]()
        sides: list[Ours | Peer] = [self.case.ours, *self.case.peers]
        for turn, warm in enumerate(self.case.warm, 1):
            for side in sides if turn % 2 else reversed(sides):
                if _row(side) not in self.given_up:
                    found += self._turn(side, turn, warm)
                    _count(found)
                    keep(found)
        return found

    def _turn(self, side: Ours | Peer, turn: int, warm: int) -> list[Record]:
        name = _row(side) or "ours"
        _say(f"{self.case.name}, turn {turn}: {name} …")
        try:
            self._must_fit(side)
            with tempfile.TemporaryDirectory(prefix="fp-") as folder:  # short: sockets lie in it
                said, measured = self._measure(side, warm, Path(folder))
            rounds = self._of_ours(side, said, measured) if isinstance(side, Ours) else []
            rounds = rounds or _of_contract(said, measured, warm)
        except (_FailedError, EnvironmentFailedError) as error:
            _say(f"  failed: {error}")
            if isinstance(error, _LimitError | EnvironmentFailedError):
                self.given_up.add(_row(side))
            return [self._shared(side, turn) | {"failed": str(error)}]
        except _SkippedError as error:
            _say(f"  skipped: {error}")
            self.given_up.add(_row(side))
            return [self._shared(side, turn) | {"skipped": str(error)}]
        median = statistics.median(r["wall_s"] for r in rounds)
        _say(f"  {median:.3f} s, {rounds[0]['peak_bytes'] / 2**30:.2f} GiB, {measured.seconds:.0f} s in all")
        time.sleep(_SETTLE_S)
        shared = self._shared(side, turn)
        return [_merged(shared, more) for more in rounds]

    def _shared(self, side: Ours | Peer, turn: int) -> Record:
        """What all records of a side have."""
        peer = side if isinstance(side, Peer) else None
        return {
            "case": self.case.name,
            "row": _row(side),
            "turn": turn,
            "work": side.work,
            "params": self.case.params,
            "sites": self.case.sites,
            "ranks": [1] * self.case.sites,
            "system": peer.system if peer else "fedhpc",
            "version": pinned(peer.environment, peer.package, self.pins) if peer else __version__,
            "run_id": self.run_id,
            "machine": machine(),
            "load": self.load,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": f"python -m benchmarks.peers {self.case.name}" + (" --small" if self.small else ""),
            "settings": {"case": self.case.name, "program": _program(side)},
        }

    def _must_fit(self, side: Ours | Peer) -> None:
        free, takes = available_bytes(), side.cost.bytes_of(self.case.params)
        share = _share(side)
        if takes > share * free:
            raise _SkippedError(
                f"it takes about {takes / 2**30:.1f} GiB, more than {share:.0%} of the {free / 2**30:.1f} GiB free"
            )

    def _measure(self, side: Ours | Peer, warm: int, folder: Path) -> tuple[Record, Measured]:
        """The object that a program printed last, and what it took."""
        python = Path(sys.executable)
        if isinstance(side, Peer):
            python = python_of(side.environment, self.pins, self.build)
        words = [str(python), *self._words(side, warm, folder)]
        (folder / "home").mkdir()
        (folder / "work").mkdir()
        environment = {
            **os.environ,
            "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "HOME": str(folder / "home"),  # peers keep things there
            "PYTHONUNBUFFERED": "1",
        }
        if isinstance(side, Ours):
            environment["PYTHONPATH"] = str(ROOT)
        expected = side.cost.start_s + (warm + 1) * side.cost.round_s
        limits = Limits(120 + 3 * expected, int(_share(side) * available_bytes()))
        measured = measure(words, environment, folder, limits)
        if measured.ended:
            raise _LimitError(measured.ended)
        if measured.code:
            raise _FailedError(f"exit code {measured.code}: {_why(measured.stderr) or _why(measured.stdout)}")
        try:
            said = json.loads(_last(measured.stdout))
            assert isinstance(said, dict)
        except (ValueError, AssertionError):
            raise _FailedError(f"its last line is no JSON object: {_last(measured.stdout)[:300]}") from None
        return said, measured

    def _words(self, side: Ours | Peer, warm: int, folder: Path) -> list[str]:
        sizes = ["--sites", str(self.case.sites), "--params", str(self.case.params)]
        if isinstance(side, Ours) and side.bench:
            return ["-m", "fedhpc", "bench", *side.bench, *sizes, "--repeat", str(warm + 1), "--json"]
        script = self.scripts / side.script
        if not script.exists():
            raise _FailedError(f"there is no {side.script}")
        return [str(script), *sizes, "--rounds", str(warm + 1), "--work", str(folder / "work"), *side.flags]

    def _of_ours(self, side: Ours, said: Record, measured: Measured) -> list[Record]:
        """Of `fedhpc bench`, whose first repeat is the cold one; it measures its own time, with the sum's hash."""
        if not side.bench:
            return []
        held = measured.resident_bytes()
        more = {"fall_bytes": measured.fall_bytes(), "server_bytes": said.get("relay_peak_rss_bytes")}
        found = []
        for line in lines_of(said)[1:]:
            if line["verified"] is not True:
                raise _FailedError("the result is not verified")
            line["measured"] |= {"sampled_bytes": held, **{k: v for k, v in more.items() if v is not None}}
            line["peak_bytes"] = max(line["peak_bytes"], held)
            kept = ("wall_s", "cpu_s", "peak_bytes", "verified", "settings", "measured", "versions")
            found.append({name: line[name] for name in kept})
        return found


def _of_contract(said: Record, measured: Measured, warm: int) -> list[Record]:
    """Of a script with the contract of peers (README.md); what it says of itself is not believed where it can be."""
    try:
        rounds = [(float(start), float(end)) for start, end in said["rounds"]]
        error, tolerance = float(said["error"]), float(said["tolerance"])
        shared = {
            "version": str(said["version"]),
            "versions": dict(said["versions"]),
            "settings": dict(said["settings"]),
        }
        server = [int(pid) for pid in said.get("server_pids", [])]
    except (KeyError, TypeError, ValueError) as wrong:
        raise _FailedError(f"its JSON object is not as agreed: {type(wrong).__name__} {wrong}") from None
    if said.get("verified") is not True or not error <= tolerance:
        raise _FailedError(f"the result is not verified: it is off by {error:g}, and {tolerance:g} is allowed")
    if len(rounds) != warm:
        raise _FailedError(f"it gave {len(rounds)} warm rounds in place of {warm}")
    if not all(start < end for start, end in rounds):
        raise _FailedError("a round ends before it starts")
    first, last = measured.samples[0].at, measured.samples[-1].at
    if not all(first <= start and end <= last + 1 for start, end in rounds):
        raise _FailedError("a round lies outside the time that it ran")
    more = {"error": error, "tolerance": tolerance, "fall_bytes": measured.fall_bytes()}
    if "first" in said:
        more["first_s"] = said["first"][1] - said["first"][0]
    if server:
        more["server_bytes"] = measured.resident_bytes(server)
        if not more["server_bytes"]:
            raise _FailedError("none of its server_pids was one of its processes")
    if measured.left:
        more["left_behind"] = measured.left
    return [
        {
            **shared,
            "wall_s": end - start,
            "cpu_s": max(measured.cpu_between(start, end), TICK_S),
            "peak_bytes": measured.resident_bytes(),
            "verified": True,
            "measured": dict(more),
        }
        for start, end in rounds
    ]


def _merged(shared: Mapping[str, Any], more: Mapping[str, Any]) -> Record:
    return {**shared, **more, "settings": {**more["settings"], **shared["settings"]}}


def _program(side: Ours | Peer) -> str:
    """What runs, without sizes."""
    if isinstance(side, Ours) and side.bench:
        return " ".join(["fedhpc bench", *side.bench])
    return " ".join([side.script, *side.flags])


def _count(records: Sequence[Record]) -> None:
    """Number those of each side."""
    for row in {record["row"] for record in records}:
        of_row = [record for record in records if record["row"] == row]
        for number, record in enumerate(of_row, 1):
            record |= {"repeat": number, "repeats": len(of_row)}


def _row(side: Ours | Peer) -> str:
    return side.row if isinstance(side, Peer) else ""


def _share(side: Ours | Peer) -> float:
    return side.memory_share if isinstance(side, Peer) else 0.85


def _last(text: str) -> str:
    """The last line that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def _why(text: str) -> str:
    """The line that says most likely why a program failed: of its last exception, else the last one with a word."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"[A-Za-z]", line)]
    said = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (said or lines or [""])[-1][:300]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def store(path: Path, records: Sequence[Mapping[str, Any]], *, whole: bool = True) -> None:
    """Put the records of a case's run into `path`, in place of older ones of the same case once the run is `whole`.

    Until then, and for ever if it is interrupted, the older ones stay beside them: the page takes of every row the
    newest run that has it. At every moment the file is one that can be read.

    Raises OSError, and ValueError where a line that is there is no record.
    """
    cases, runs = {record["case"] for record in records}, {record.get("run_id") for record in records}
    kept = list[str]()
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        try:
            old = dict(json.loads(line))
        except (ValueError, TypeError):
            raise ValueError(f"line {number} is no record") from None
        if old.get("case") not in cases or (not whole and old.get("run_id") not in runs):
            kept.append(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.write_text("".join(f"{line}\n" for line in [*kept, *(json.dumps(record) for record in records)]))
    shutil.move(fresh, path)
