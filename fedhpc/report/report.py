"""What a run directory tells about a run, and the report made of it: one HTML page and its figures.

RUN/federation.toml is the agreed file, RUN/<site>/metrics.jsonl the records of each site (app/telemetry.py). In a
rehearsal all sites are there; in a real federation each institution has only its own folder, and its report is its
own. The same files give the same report, byte for byte (with the same matplotlib).
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhpc.app.telemetry import METRICS_FILE, number, read_metrics, table
from fedhpc.errors import ConfigError, DataError, StorageError

FEDERATION_FILE = "federation.toml"
PAGE_FILE = "report.html"
Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The files of one run, read."""

    path: Path
    config: bytes | None  # federation.toml, None where it is missing
    sites: dict[str, list[Record]] = field(default_factory=dict)  # by folder name, which sorts them

    @property
    def config_sha256(self) -> str | None:
        """Hex SHA-256 of federation.toml: what every site signed."""
        return None if self.config is None else hashlib.sha256(self.config).hexdigest()

    @property
    def public(self) -> list[Record]:
        """One record per round, rising, from any site that has it: public metrics are equal at all of them."""
        merged: dict[tuple[int, bool], Record] = {}
        for records in self.sites.values():
            for record in records:
                merged.setdefault((record["round"], is_final(record)), record)
        return [merged[key] for key in sorted(merged)]

    @property
    def planned(self) -> int | None:
        """Rounds planned, as the newest record says."""
        rounds = self.public[-1].get("rounds") if self.sites else None
        return rounds if type(rounds) is int else None

    @property
    def finished(self) -> int:
        """Rounds finished at the site that is furthest."""
        done: int = self.public[-1]["round"]
        return done if self.planned is None else min(done, self.planned)

    def setting(self, key: str) -> str | None:
        """A text setting of federation.toml: at the top level, or in the first section that has it."""
        try:
            document = tomllib.loads((self.config or b"").decode("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            return None
        for place in (document, *(document[name] for name in sorted(document))):
            if isinstance(place, dict) and isinstance(place.get(key), str):
                return str(place[key])
        return None

    def table(self, name: str) -> dict[str, Any]:
        """A section of federation.toml; {} where it cannot be read."""
        try:
            found = tomllib.loads((self.config or b"").decode("utf-8")).get(name)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError):
            return {}
        return found if isinstance(found, dict) else {}

    def models(self, round_: int) -> dict[str, str]:
        """{site: model_sha256 after `round_`}, of the sites that recorded one."""
        return {
            site: record["model_sha256"]
            for site, records in self.sites.items()
            for record in records
            if record["round"] == round_ and isinstance(record.get("model_sha256"), str)
        }


def is_final(record: Record) -> bool:
    """Whether the record's metrics are those of the final model."""
    return record.get("final") is True


def finished_rounds(record: Record) -> int:
    """After how many rounds the model was that the record's metrics describe."""
    round_: int = record["round"]
    if not is_final(record):
        return round_ - 1
    planned = record.get("rounds")
    return min(round_, planned) if type(planned) is int else round_


def mean_by_round(run: Run, *keys: str) -> dict[int, float]:
    """{round: mean over the sites of the number at `keys`} for the sites and rounds that have it.

    A final record that repeats the number of a training round is left out: it only measured the model.
    """
    values: dict[int, list[float]] = {}
    for records in run.sites.values():
        trained = {r["round"] for r in records if not is_final(r)}
        for record in records:
            if is_final(record) and record["round"] in trained:
                continue
            place: Record = record
            for key in keys[:-1]:
                place = table(place, key)
            value = number(place.get(keys[-1]))
            if value is not None:
                values.setdefault(record["round"], []).append(value)
    return {round_: sum(v) / len(v) for round_, v in sorted(values.items())}


def is_run(path: Path) -> bool:
    """Whether `path` looks like a run directory: it holds federation.toml, or a site's folder."""
    patterns = (FEDERATION_FILE, f"*/{METRICS_FILE}", "*/checkpoints")
    return any(True for pattern in patterns for _ in path.glob(pattern))


def read_run(path: Path) -> Run:
    """Read a run directory. Raises ConfigError if it is none, DataError if no site has a record."""
    if not path.is_dir() or not is_run(path):
        raise ConfigError(
            f"{path} is not a run directory",
            f"looked for {FEDERATION_FILE} and */{METRICS_FILE} in it; give the directory that `fedhpc run` wrote",
        )
    sites = {}
    for folder in sorted(path.iterdir()):
        if (folder / METRICS_FILE).is_file():
            records = read_metrics(folder / METRICS_FILE)
            if records:
                sites[folder.name] = records
    if not sites:
        raise DataError(
            f"{path} has no finished round yet",
            f"looked for records in {path}/*/{METRICS_FILE}; a site's leader writes one after each round",
        )
    try:
        file = path / FEDERATION_FILE
        config = file.read_bytes() if file.is_file() else None
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror}") from None
    return Run(path, config, sites)


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of the run directory `run` into the directory `out` (default RUN/report).

    Gives the path of the page, which holds all figures itself; the figures lie beside it as PNG files too. Raises
    ConfigError if `run` is not a run directory or matplotlib is missing, DataError if there is nothing to report,
    StorageError if `out` cannot be written.
    """
    from fedhpc.report.figures import figures
    from fedhpc.report.page import page

    told = read_run(run)
    drawn = figures(told)
    out = run / "report" if out is None else out
    try:
        out.mkdir(parents=True, exist_ok=True)
        for figure in drawn:
            _replace(out / figure.file, figure.png)
        _replace(out / PAGE_FILE, page(told, drawn).encode("utf-8"))
    except OSError as error:
        raise StorageError(f"cannot write the report to {out}: {error.strerror}", "choose another --out") from None
    return out / PAGE_FILE


def _replace(path: Path, data: bytes) -> None:
    """Write by rename, so that a browser never sees half a page."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
