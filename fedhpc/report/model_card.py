"""A model card: what a file of `fedhpc export` holds and how it came to be, as Markdown, from the run's own files.

The headings are those of Mitchell et al. 2019 (Model Cards for Model Reporting, arXiv:1810.03993) as far as a run can
fill them; what only people know is marked so. The same run gives the same card, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.app.telemetry import short
from fedhpc.report.report import Record, Run, finished_rounds
from fedhpc.train.evaluate import HALF_WIDTH

_LEFT = "*To be filled in by people.*"
_SHOWN_TENSORS = 40


def model_card(run: Run, done: Mapping[str, Any], tensors: Mapping[str, Any]) -> str:
    """The card of an exported file: `done` as export_model gives it, `tensors` those in the file, by name."""
    name = run.setting("name") or "the federation"
    lines = [f"# {name}: a model of {_sites(done)}", "", "## The model", ""]
    task = run.table("task")
    facts = {
        "task": task.get("name", "not known"),
        "parameters": done["parameters"],
        "after round": done["round"],
        "SHA-256 of the model": f"`{done['model_sha256']}`",
        "SHA-256 of federation.toml": f"`{done['metadata'].get('config_sha256', 'not known')}`",
        "made with": f"fedhpc {done['metadata'].get('fedhpc_version', 'unknown')}",
    }
    lines += _rows(("what", "value"), [(key, str(value)) for key, value in facts.items()])
    lines += ["", "Tensors, which `safetensors` reads; the standardisation of the features, if any, is among them:", ""]
    shown = list(tensors.items())[:_SHOWN_TENSORS]
    lines += _rows(("tensor", "dtype", "shape"), [(f"`{n}`", str(t.dtype), _shape(t.shape)) for n, t in shown])
    if len(tensors) > len(shown):
        lines += ["", f"… and {len(tensors) - len(shown)} more."]
    lines += ["", "## Intended use", "", _LEFT, "", "## Data", "", *_data(task)]
    lines += ["", "## Metrics", "", *_metrics(run, int(done["round"]))]
    lines += ["", "## Training", "", *_settings(run), "", "## What others learnt", "", *_protection(run)]
    lines += ["", "## Limits", "", _LEFT, ""]
    return "\n".join(lines)


def _sites(done: Mapping[str, Any]) -> str:
    sites = json.loads(done["metadata"].get("sites", "[]"))
    return f"{len(sites)} sites ({', '.join(sites)})" if sites else "several sites"


def _data(task: Mapping[str, Any]) -> list[str]:
    said = []
    if task.get("features_sha256"):
        said.append(f"All sites' stores have the features `{task['features_sha256']}` (`fedhpc data check`).")
    said.append(f"{100 * float(task.get('held_out', 0.2)):.0f} % of each site's rows were kept from training.")
    said.append("How many rows a site has is its own; who the persons are and how they were chosen:")
    return [" ".join(said), "", _LEFT]


def _metrics(run: Run, round_: int) -> list[str]:
    """Of the model after `round_`: measured in the next round, or at the end."""
    found = [record for record in run.public if finished_rounds(record) == round_ and record.get("metrics")]
    if not found:
        return ["This round's model was not measured over all sites."]
    record: Record = found[-1]
    lines = _table_of("held-out rows", record["metrics"])
    if record.get("test_metrics"):
        lines += ["", *_table_of("test rows", record["test_metrics"])]
    return lines


def _table_of(rows: str, metrics: Mapping[str, Any]) -> list[str]:
    """With half-widths, which say how exact a metric from histograms is."""
    cells = [
        (name, short(value), short(metrics[name + HALF_WIDTH]) if metrics.get(name + HALF_WIDTH) else "–")
        for name, value in metrics.items()
        if not name.endswith(HALF_WIDTH)
    ]
    return [f"Over all sites' {rows} together:", "", *_rows(("metric", "value", "exact to ±"), cells)]


def _settings(run: Run) -> list[str]:
    cells = [
        (f"[{section}] {key}", f"`{json.dumps(value)}`")
        for section in ("strategy", "train")
        for key, value in run.table(section).items()
    ]
    return _rows(("setting", "value"), cells) if cells else ["federation.toml is not there."]


def _protection(run: Run) -> list[str]:
    if run.table("secure").get("mode", "pairwise") == "off":
        return ["Nothing was hidden: `[secure] mode` is `off`."]
    return [
        "Updates and counts were added under masks: every site, and the relay where there was one, learnt sums over "
        "sites and no site's own numbers. The model is such a sum. It carries no noise, so that differential privacy "
        "is not claimed; docs/security.md says what a sum may still tell."
    ]


def _rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in cells)]


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "a number"
