"""How far the sites of a run directory are: training rounds done, and the SHA-256 of the model after them.

`round` and `model_sha256` are the numbers that `fedhpc run`, `report`, `export` and metrics.jsonl show: training rounds
done, and the hash of the shared model's tensors. Both stay at the sites. Files only: a run may be going on.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from fedhpc.agreement.run_folder import checkpoints
from fedhpc.agreement.site_file import SiteFile
from fedhpc.app.life.history import finished
from fedhpc.app.logs import printable
from fedhpc.app.telemetry import METRICS_FILE, number, read_metrics, result_words, table
from fedhpc.errors import ConfigError, DataError
from fedhpc.federation.state_tensors import model_sha256
from fedhpc.report.report import FEDERATION_FILE, Record, Run, is_run

KIND = "fedhpc-run"
CHECKPOINTS, ATTEMPTS = "checkpoints", "attempts"
_ATTEMPT = re.compile(r"round-(\d+)\.attempt")


def status_of_run(run: Path) -> dict[str, Any]:
    """The sites of the run directory `run`. Raises ConfigError if it is none, DataError for files that are damaged."""
    if not run.is_dir() or not is_run(run):
        raise ConfigError(
            f"{run} is not a run directory",
            f"looked for {FEDERATION_FILE} and */{METRICS_FILE} in it; give the directory that `fedhpc run` wrote",
        )
    return _status(run, [p for p in sorted(run.iterdir()) if p.is_dir() and _has_begun(p)])


def status_of_site(site: Path, run: Path | None = None) -> dict[str, Any]:
    """The site of `site`, a site.toml or its folder. `run`: the run directory, if the site file does not say which.

    Raises ConfigError if nothing of the site is found.
    """
    mine = SiteFile.open(site)
    name = mine.site.name
    if mine.site.directory is not None and run is None:
        places = [mine.run_directory(Path())]
    else:
        beside = mine.file.absolute().parent
        runs = [run] if run is not None else [beside / "run", beside.parent / "run", Path("run")]
        places = [place / name for place in runs]
    for place in places:
        if place.is_dir() and _has_begun(place):
            return _status(place.parent, [place])
    looked = ", ".join(str(place) for place in places)
    raise ConfigError(f"site {name} has no run yet", f"looked in {looked}; give the run directory before --site")


def _has_begun(folder: Path) -> bool:
    return (folder / METRICS_FILE).is_file() or (folder / CHECKPOINTS).is_dir()


def _status(run: Path, folders: list[Path]) -> dict[str, Any]:
    config = run / FEDERATION_FILE
    told = Run(run, config.read_bytes() if config.is_file() else None)
    sites = [_site(folder, told) for folder in folders]
    furthest = max((site["round"] for site in sites), default=0)
    models = {site["model_sha256"] for site in sites if site["round"] == furthest and site["model_sha256"]}
    return {
        "kind": KIND,
        "run": str(run),
        "federation": told.setting("name"),
        "config": told.config_sha256,
        "round": furthest,
        "rounds": max((site["rounds"] for site in sites if site["rounds"] is not None), default=_planned(told)),
        "model_sha256": next(iter(models)) if len(models) == 1 else None,
        "agree": len(models) <= 1,  # those that are furthest
        "finished": bool(sites) and all(site["finished"] for site in sites),
        "sites": sites,
    }


def _site(folder: Path, told: Run) -> dict[str, Any]:
    metrics = folder / METRICS_FILE
    records = read_metrics(metrics) if metrics.is_file() else []
    last: Record = records[-1] if records else {}
    round_, model = _model(folder, records)
    rounds = last.get("rounds")
    pending = sorted(int(m[1]) for p in (folder / ATTEMPTS).glob("*") if (m := _ATTEMPT.fullmatch(p.name)))
    return {
        "site": folder.name,
        "round": round_,
        "rounds": rounds if type(rounds) is int else _planned(told),
        "model_sha256": model,
        "metrics": table(last, "metrics"),
        "train_loss": next((x for r in reversed(records) if (x := number(r.get("train_loss"))) is not None), None),
        "finished": told.config is not None and finished(folder, bytes.fromhex(told.config_sha256 or "")) is not None,
        "pending_sums": pending,
    }


def _model(folder: Path, records: list[Record]) -> tuple[int, str | None]:
    """(training rounds done, hash of the model) of the newest checkpoint; its record has the hash, if there is one.

    A site that caught up, or was killed between checkpoint and record, has none: then the checkpoint is read.
    """
    numbers = list(checkpoints(folder / CHECKPOINTS))
    hashes = {r["round"]: r["model_sha256"] for r in records if isinstance(r.get("model_sha256"), str)}
    damaged: DataError | None = None
    for newest in reversed(numbers):
        if newest in hashes:
            return newest, hashes[newest]
        try:
            return newest, model_sha256(_load(folder / CHECKPOINTS, newest))
        except DataError as error:  # the run goes on from the one before
            damaged = damaged or error
    if damaged is not None:
        raise damaged
    done = max(hashes, default=0)
    return done, hashes.get(done)


def _load(directory: Path, round_: int) -> Any:
    """The tensors of a checkpoint. Raises DataError if it is damaged."""
    from fedhpc.train.checkpoint_files import Hdf5Checkpoints

    return Hdf5Checkpoints(directory).load(round_).tensors


def _planned(told: Run) -> int | None:
    try:
        rounds = tomllib.loads((told.config or b"").decode()).get("federation", {}).get("rounds")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, AttributeError):
        return None
    return rounds if type(rounds) is int else None


def status_text(found: dict[str, Any]) -> str:
    """The same for people."""
    planned = "" if found["rounds"] is None else f" of {found['rounds']}"
    name = printable(found["federation"] or "federation without a name")
    lines = [f"{name}: round {found['round']}{planned}{', finished' if found['finished'] else ''}"]
    if found["model_sha256"]:
        lines.append(f"model_sha256 {found['model_sha256']}")
    if not found["agree"]:
        lines.append(f"the sites disagree on the model after round {found['round']}:")
    width = max((len(site["site"]) for site in found["sites"]), default=0)
    lines += [_line(site, width, with_hash=not found["agree"]) for site in found["sites"]]
    if not found["sites"]:
        lines.append("no site has begun")
    return "\n".join(lines)


def _line(site: dict[str, Any], width: int, *, with_hash: bool) -> str:
    words = [f"{printable(site['site']):{width}}", f"round {site['round']}"]
    words += result_words(site["metrics"], site["train_loss"])
    if site["finished"]:
        words.append("finished")
    if site["pending_sums"]:
        words.append("in a sum: " + ", ".join(str(n) for n in site["pending_sums"]))
    if with_hash:
        words.append(site["model_sha256"] or "no model")
    return "  ".join(words)
