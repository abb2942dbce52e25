"""The page of a report: one HTML file without scripts that loads nothing.

It is opened from mail attachments and ticket systems inside hospitals, so the figures are inlined, and a policy in
the page forbids the browser to fetch anything. Every text that comes from a file is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from fedhpc.app.telemetry import is_half_width, nothing_held_out, number, table, within
from fedhpc.report.report import Record, Run, finished_rounds, is_final

if TYPE_CHECKING:
    from fedhpc.report.figures import Drawn

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #fff; --line: #d8dde3; --box: #f5f7f9;
  --warn: #8a3b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ec; --soft: #9aa5b1; --paper: #141414; --line: #343b44; --box: #1e242b; --warn: #ffb27a; }
  img { filter: invert(0.92) hue-rotate(180deg); }
}
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 54rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
.facts td { overflow-wrap: anywhere; } .facts th { color: var(--soft); font-weight: 500; white-space: nowrap; }
.rounds th, .rounds td { text-align: right; white-space: nowrap; } .wide { overflow-x: auto; }
figure { margin: 0; } img { max-width: 100%; height: auto; display: block; background: #fff; }
figcaption, .soft { color: var(--soft); font-size: .9rem; } .warn { color: var(--warn); font-weight: 600; }
code, pre { font: .85rem/1.5 ui-monospace, monospace; } pre { background: var(--box); padding: 1rem; overflow-x: auto; }
summary { cursor: pointer; margin: 1.5rem 0 .7rem; font-weight: 600; }
@media print { body { max-width: none; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(run: Run, figures: Sequence[Drawn]) -> str:
    """The whole page as HTML."""
    name = run.setting("name") or run.path.resolve().name
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(name)}: federated training report</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(name)}</h1>",
        _facts(run),
        *(_figure(f) for f in figures),
        _rounds(run),
        _config(run),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _facts(run: Run) -> str:
    public, last = run.public, run.public[-1]
    planned = run.planned
    rows: list[tuple[str, str]] = []  # a label and HTML
    if planned is None:
        rows.append(("Rounds", f"{run.finished} finished"))
    elif run.finished >= planned:
        rows.append(("Rounds", f"{run.finished} of {planned}: complete"))
    else:
        told = f'{run.finished} of {planned}: <span class="warn">still going, or broken off</span>'
        rows.append(("Rounds", told))
    took_part = [r["sites"] for r in public if isinstance(r.get("sites"), list)]
    rows.append(("Sites in the last round", _names(took_part[-1] if took_part else None)))
    rows.append(("Records from", _names(list(run.sites))))
    rows.append(_model(run))
    metrics = table(last, "metrics")
    if nothing_held_out(metrics):
        rows.append(("Held-out rows", "none at any site; there is each site's own training loss"))
    elif metrics:
        model = "Final metrics" if is_final(last) else f"Metrics after {finished_rounds(last)} rounds"
        names = [n for n in sorted(metrics) if not is_half_width(n, metrics)]
        rows.append((model, ", ".join(f"{escape(n)} {_cell(metrics, n)}" for n in names)))
    without = [r for r in public if isinstance(r.get("no_metrics"), str)]
    if without:
        why = escape("; ".join(sorted({str(r["no_metrics"]) for r in without})))
        rows.append(("Without metrics", f"{len(without)} of {len(public)} records: {why}"))
    rows.append(("Masks", escape(run.setting("mode") or "not stated in federation.toml")))
    rows.append(("federation.toml", f"SHA-256 <code>{run.config_sha256}</code>" if run.config else "not there"))
    times = [r["time"] for r in public if isinstance(r.get("time"), str)]
    if times:
        rows.append(("First and last record", f"{escape(min(times))} – {escape(max(times))}"))
    rows.extend(_totals(run))
    body = "".join(f"<tr><th scope='row'>{label}</th><td>{html}</td></tr>" for label, html in rows)
    return f'<table class="facts">{body}</table>'


def _totals(run: Run) -> Iterable[tuple[str, str]]:
    """Seconds and bytes over the whole run, a mean where there are several sites."""
    of = " (mean of the sites)" if len(run.sites) > 1 else ""
    for label, unit, scale, keys in (
        ("Time in rounds", "s", 1.0, ("seconds", "total")),
        ("Sent", "MB", 1e6, ("bytes_up",)),
        ("Received", "MB", 1e6, ("bytes_down",)),
    ):
        sums = [s for s in (_sum(records, keys) for records in run.sites.values()) if s is not None]
        if sums:
            yield label, f"{sum(sums) / len(sums) / scale:,.1f} {unit}{of}"


def _sum(records: Iterable[Record], keys: tuple[str, ...]) -> float | None:
    found = [number((r if len(keys) == 1 else table(r, keys[0])).get(keys[-1])) for r in records]
    values = [v for v in found if v is not None]
    return sum(values) if values else None


def _model(run: Run) -> tuple[str, str]:
    """The newest model's round and hash, and whether the sites that recorded one agree on it."""
    newest = max((r["round"] for r in run.public if isinstance(r.get("model_sha256"), str)), default=None)
    if newest is None:
        return "Model", "no hash recorded"
    models, label = run.models(newest), f"model_sha256 after round {newest}"
    if len(set(models.values())) == 1:
        return label, f"<code>{escape(next(iter(models.values())))}</code>"
    each = "<br>".join(f"{escape(site)} <code>{escape(model)}</code>" for site, model in models.items())
    return label, f'<span class="warn">the sites disagree</span><br>{each}'


def _figure(figure: Drawn) -> str:
    data = base64.b64encode(figure.png).decode("ascii")
    return (
        f"<h2>{escape(figure.title)}</h2><figure>"
        f'<img src="data:image/png;base64,{data}" alt="{escape(figure.caption)}">'
        f"<figcaption>{escape(figure.caption)}</figcaption></figure>"
    )


def _rounds(run: Run) -> str:
    """Every public number of every round as a table."""
    every = [table(record, "metrics") for record in run.public]
    names = sorted({n for m in every if not nothing_held_out(m) for n in m if not is_half_width(n, m)})
    own = [] if names else ["training loss"]
    head = ["round", *names, *own, "seconds", "MB sent", "MB received", "sites"]
    lines = []
    for record in run.public:
        metrics, seconds = table(record, "metrics"), table(record, "seconds")
        up, down = number(record.get("bytes_up")), number(record.get("bytes_down"))
        sites = record.get("sites")
        cells = [
            "final" if is_final(record) else str(record["round"]),
            *(_cell(metrics, name) for name in names),
            *(_digits(record.get("train_loss")) for _ in own),
            _digits(seconds.get("total")),
            _digits(None if up is None else up / 1e6),
            _digits(None if down is None else down / 1e6),
            str(len(sites)) if isinstance(sites, list) else "–",
        ]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heading = "".join(f"<th scope='col'>{escape(name)}</th>" for name in head)
    return (
        "<details><summary>All rounds</summary>"
        '<p class="soft">Metrics are those of the global model at the start of a round; the row "final" has those '
        f"of the finished model. {'Training loss, seconds' if own else 'Seconds'} and bytes are those of one site: "
        f"{escape(next(iter(run.sites)))}, "
        "or the next one that has the round.</p>"
        f'<div class="wide"><table class="rounds"><thead><tr>{heading}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div></details>"
    )


def _config(run: Run) -> str:
    if run.config is None:
        return '<p class="soft">The run directory has no federation.toml.</p>'
    text = escape(run.config.decode("utf-8", "replace"))
    return f"<details><summary>federation.toml</summary><pre>{text}</pre></details>"


def _names(value: object) -> str:
    if not isinstance(value, list) or not value:
        return "not recorded"
    return f"{len(value)}: " + ", ".join(escape(str(v)) for v in value)


def _cell(metrics: Mapping[str, Any], name: str) -> str:
    """A metric, with the interval around it where that is wide."""
    return _digits(metrics.get(name)) + within(metrics, name)


def _digits(value: Any) -> str:
    finite = number(value)
    return "–" if finite is None else f"{finite:.5g}"
