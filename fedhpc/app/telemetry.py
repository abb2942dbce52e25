"""What a run tells: one line per round for people, one JSON line per round for programs.

RUN/<site>/metrics.jsonl holds one record per finished round, written by the site's leader:

| key | value |
|---|---|
| `version` | 1 |
| `round`, `rounds` | int: this round (from 1) and how many are planned |
| `time`, `site` | ISO 8601 in UTC; the writing site |
| `metrics` | {name: float or null}: public metrics of the global model at the start of the round, or {} |
| | all null: no site has held-out rows. `NAME_half_width`: how far NAME can be from what the scores themselves give |
| `no_metrics` | why metrics are {}: not all sites were in the round, or in the sum of what they had measured |
| `final` | true in the one record whose metrics are those of the final model |
| `again` | true where a later job summed a round's metrics once more: other keys are those of the record before |
| `best_metric`, `best_round`, `best_value` | with `[train] keep`: the best round so far, which the next one measured |
| `test_metrics` | in the final record, with `[task] test`: of the final model over all sites' test rows |
| `own_metrics` | {name: float or null}: of the same model, over this site's held-out rows alone |
| `train_loss`, `samples`, `own_metrics` | this site's own: they never leave the site |
| `seconds` | {part: float} for the parts in `PARTS`, and `total` |
| `bytes_up`, `bytes_down` | int, at this site |
| `sites` | names of the sites that took part |
| `model_sha256` | hex: SHA-256 of the global model after the round, the hash that all commands show |
| `state` | hex: hash of all that the sites share after the round; what they sign, and nothing to compare models by |

Other keys are kept. It is strict JSON: what is not a finite number is null.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fedhpc.app.logs import REDACTED, JsonLines, current_round, printable
from fedhpc.errors import DataError, StorageError
from fedhpc.train.evaluate import HALF_WIDTH

VERSION = 1
METRICS_FILE = "metrics.jsonl"
PARTS = ("train", "encode", "masks", "wire", "decode", "agree", "ledger", "checkpoint", "evaluate")

SHOWN_METRICS = ("loss", "accuracy", "auc")
TOLD_FROM = 0.001  # a half-width that is no larger is not shown
_CLEAR_LINE = "\r\x1b[2K"
_log = logging.getLogger(__name__)


class Telemetry:
    """The Reporter of one rank. Rank 0 of each site writes records; the rank with `show` talks to people.

    A record that cannot be written is a warning, not an error: the model does not depend on it, and a leader that
    stopped here would keep the other ranks waiting in a collective.
    """

    def __init__(
        self, site_directory: Path, *, site: str, site_number: int, rank: int, show: bool, rounds: int
    ) -> None:
        """`rank` counts within the site; `rounds` is how many the federation plans. Raises StorageError."""
        self._defaults = {"version": VERSION, "site": site, "site_number": site_number, "rounds": rounds}
        self._lines = JsonLines(site_directory / METRICS_FILE) if rank == 0 else None
        self._show = show
        self._bar = _Bar(rounds) if show and _interactive() else None

    def round_done(self, record: Mapping[str, Any]) -> None:
        """Write and show one finished round; missing keys of the table above are filled in where known."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        full = strict({**self._defaults, "time": now, **record})
        if self._lines is not None:
            try:
                self._lines.append(full)
            except StorageError as error:
                _log.warning("%s; this round is missing from the report", error.what)
        round_ = full.get("round")
        if isinstance(round_, int):
            current_round.set(None if full.get("final") else round_ + 1)
        if self._show:
            self._say(round_line(full))
            if self._bar is not None and isinstance(round_, int):
                self._bar.move(round_)

    def note(self, text: str) -> None:
        """One line for people: on the terminal of the showing rank, and in the leaders' logs."""
        _log.info("%s", text, extra={"shown": self._show})
        if self._show:
            self._say(printable(text))

    def close(self) -> None:
        """Remove the bar and close the file; a second call does nothing."""
        if self._bar is not None:
            self._bar.clear()
            self._bar = None
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        print(line, flush=True)
        if self._bar is not None:
            self._bar.draw()


def _interactive() -> bool:
    """Whether a person is watching. Under mpirun stdout is a terminal even where it goes into a file; stderr is not."""
    return sys.stdout.isatty() and sys.stderr.isatty()


class _Bar:
    """A progress bar below the last line, redrawn only when a round ends.

    It is drawn without rich's Live display: no refresh thread beside NCCL and forked data loaders, no hidden
    cursor after a kill, and text that others print below it is never erased.
    """

    def __init__(self, rounds: int) -> None:
        from rich.console import Console
        from rich.progress_bar import ProgressBar

        self._console = Console(file=sys.stdout, highlight=False)
        self._bar = ProgressBar(total=max(1, rounds), width=40)
        self._rounds = rounds

    def move(self, done: int) -> None:
        self._bar.update(min(done, self._rounds))
        self.clear()
        self.draw()

    def draw(self) -> None:
        self._console.print(self._bar, f" {int(self._bar.completed)}/{self._rounds}", sep="", end="")
        sys.stdout.flush()

    def clear(self) -> None:
        sys.stdout.write(_CLEAR_LINE)
        sys.stdout.flush()


def round_line(record: Mapping[str, Any]) -> str:
    """One line of text for a record: round, metrics, seconds, traffic and where the time went."""
    seconds = table(record, "seconds")
    metrics = table(record, "metrics")
    name = "final" if record.get("final") is True else "round"
    planned = str(record.get("rounds", "?"))
    words = [f"{name} {record.get('round', '?')!s:>{len(planned)}}/{planned}"]
    words += result_words(metrics, record.get("train_loss"))
    if record.get("no_metrics"):
        words.append(f"no metrics: {record['no_metrics']}")
    total = number(seconds.get("total"))
    if total is not None:
        words.append(f"{_three_digits(total)} s")
    for key, direction in (("bytes_up", "up"), ("bytes_down", "down")):
        count = number(record.get(key))
        if count is not None:
            words.append(f"{_three_digits(count / 1e6)} MB {direction}")
    if total:
        shares = [(part, 100 * (number(seconds.get(part)) or 0.0) / total) for part in PARTS]
        words.append(" ".join(f"{part} {share:.0f}%" for part, share in shares if share >= 1))
    return printable("  ".join(w for w in words if w))


def result_words(metrics: Mapping[str, Any], train_loss: object) -> list[str]:
    """A line's metrics as words; the site's own training loss where no site has held-out rows."""
    if not nothing_held_out(metrics):
        words = metric_words(metrics)
        return [words[name] for name in SHOWN_METRICS if name in words]
    return [f"training loss {short(train_loss)}" if number(train_loss) is not None else "no held-out rows"]


def nothing_held_out(metrics: Mapping[str, Any]) -> bool:
    """Whether no site had rows to measure on: there is no number in `metrics`, which are not empty."""
    return bool(metrics) and all(number(value) is None for value in metrics.values())


def metric_words(metrics: Mapping[str, Any]) -> dict[str, str]:
    """By metric "name value", with its half-width where that is above 0.001: "auc 0.7436 ± 0.0042"."""
    names = [m for m in metrics if not is_half_width(m, metrics)]
    return {m: f"{m} {short(metrics[m])}{within(metrics, m)}" for m in names}


def is_half_width(name: str, metrics: Mapping[str, Any]) -> bool:
    """Whether `name` says how exact another one of `metrics` is."""
    return name.endswith(HALF_WIDTH) and name.removesuffix(HALF_WIDTH) in metrics


def within(metrics: Mapping[str, Any], name: str) -> str:
    """ " ± half-width" of a metric in four digits, "" where it is small or not known.

    It is rounded up, so that it holds for the rounded value too.
    """
    middle, half = number(metrics.get(name)), number(metrics.get(name + HALF_WIDTH))
    if middle is None or half is None or half <= TOLD_FROM:
        return ""
    return f" ± {math.ceil(1e4 * (half + abs(middle - round(middle, 4)))) / 1e4:.4f}"


def short(value: object) -> str:
    """A number in four digits, "n/a" for what is none."""
    finite = number(value)
    return "n/a" if finite is None else f"{finite:.4f}" if abs(finite) < 1000 else f"{finite:.4g}"


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def number(value: object) -> float | None:
    """`value` as a finite float, or None: records come from files that anyone may have edited."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            finite = float(value)
        except OverflowError:
            return None
        return finite if math.isfinite(finite) else None
    return None


def table(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under `key`, empty where it is missing or something else."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def strict(value: Any) -> Any:
    """`value` as strict JSON: NaN and infinities become null, NumPy numbers plain, arrays "<redacted>"."""
    if isinstance(value, np.bool_ | np.integer | np.floating):
        value = value.item()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [strict(v) for v in value]
    return REDACTED


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, rounds rising, each round once.

    A record of round r takes the place of all earlier ones of round r and later: the run was resumed from an
    older checkpoint, and those records tell of a future that was given up. A record that is `again` keeps what the one
    of the same round before it says besides. A record that is `final` comes after the round of the same number. A torn
    last line (a kill, or a writer at work) is skipped. Raises StorageError if the file cannot be read, DataError for
    any other line that is not a record.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "") from None
    kept: list[tuple[tuple[int, bool], dict[str, Any]]] = []
    whole = data.split(b"\n")[:-1]  # what follows the last newline is torn, or empty
    for count, line in enumerate(whole, 1):
        record = _parse(line, f"{path}, line {count}")
        key = (record["round"], record.get("final") is True)
        while kept and kept[-1][0] >= key:
            before, older = kept.pop()
            if before == key and record.get("again") is True:
                record = {name: older[name] for name in older if name != "no_metrics"} | record
        kept.append((key, record))
    return [record for _, record in kept]


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise DataError(
            f"{where} is not strict JSON", "the file was changed after it was written; move it away"
        ) from None
    if not isinstance(record, dict) or type(record.get("round")) is not int:
        raise DataError(f"{where} is not the record of a round", "each line has a whole number 'round'")
    if record.get("version", VERSION) != VERSION:
        raise DataError(f"{where} has version {record['version']!r}", "read it with the fedhpc that wrote it")
    return record


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)
