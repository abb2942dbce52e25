"""The figures of a report: loss, other metrics, where the time went, bytes per round.

Colours are Paul Tol's "muted" set, which stays distinct for colour-blind readers. Names come from files of other
parties: they are drawn as plain text, never as TeX, and cut to a length that leaves the figure readable.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedhpc.app.logs import printable
from fedhpc.app.telemetry import PARTS, TOLD_FROM, is_half_width, number, table
from fedhpc.errors import ConfigError
from fedhpc.report.report import Run, finished_rounds, is_final, mean_by_round
from fedhpc.train.evaluate import HALF_WIDTH

INDIGO, CYAN, TEAL, GREEN, OLIVE = "#332288", "#88CCEE", "#44AA99", "#117733", "#999933"
SAND, ROSE, WINE, PURPLE, GREY = "#DDCC77", "#CC6677", "#882255", "#AA4499", "#BBBBBB"
LINES = (INDIGO, ROSE, TEAL, WINE, OLIVE, PURPLE, GREEN, CYAN)
PART_COLOURS = dict(zip(PARTS, (INDIGO, CYAN, ROSE, TEAL, SAND, OLIVE, PURPLE, WINE, GREEN), strict=True), other=GREY)
MARKERS = "os^Dv<>P"

MAX_CURVES = 8  # more lines cannot be told apart; the table on the page has every value
MAX_BARS = 60
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
}
_SIZE_INCHES = (7.2, 3.4)
_DPI = 120

Curve = tuple[list[float], list[float]]  # x and y, equal lengths, finite


@dataclass(frozen=True)
class Drawn:
    """One figure."""

    file: str  # its file name
    title: str
    caption: str  # what it shows, also for those who cannot see it
    png: bytes


def figures(run: Run) -> list[Drawn]:
    """The figures for which `run` has numbers, always in the same order.

    Raises ConfigError if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise ConfigError(
            "matplotlib is not installed, and the report needs it", "pip install 'fedhpc[report]'"
        ) from None
    # A user's own matplotlibrc (backend, TeX, fonts) must neither break nor change a report.
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that the font lacks are drawn as boxes
        matplotlib.rcParams.update({k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"})
        matplotlib.rcParams.update(_STYLE)
        return [d for d in (_loss(run), _metrics(run), _time(run), _bytes(run)) if d is not None]


def _loss(run: Run) -> Drawn | None:
    curves = {f"global model: {n}": c for n, c in _public(run).items() if _is_loss(n)}
    private = {site: _private(run, site) for site in run.sites}
    private = {site: c for site, c in private.items() if c[0]}
    if not curves and not private:
        return None
    figure, axes = _empty()
    _draw(axes, curves)
    if len(private) <= MAX_CURVES - len(curves):
        _draw(axes, {f"training at {s}": c for s, c in private.items()}, first=len(curves), dashed=True)
    else:
        for i, (x, y) in enumerate(private.values()):
            label = f"training, one line for each of {len(private)} sites" if i == 0 else None
            axes.plot(x, y, color=GREY, linewidth=0.9, zorder=1, label=label)
    _label(axes, "finished rounds", "mean loss")
    _legend(axes)
    caption = "By the number of finished rounds."
    if curves:
        caption = "Loss of the global model on held-out rows of all sites, by the number of finished rounds."
    if private:
        caption += (
            " Dashed or grey: each site's own mean training loss of a round, drawn at its end; "
            "this number is not shared with other sites."
        )
    return Drawn("loss.png", "Loss", caption, _png(figure))


def _metrics(run: Run) -> Drawn | None:
    public = _public(run)
    curves = {n: c for n, c in public.items() if not (_is_loss(n) or is_half_width(n, public))}
    # A slope over the small scores of the first rounds is so large that nothing else could be seen.
    calibration = {n for n in curves if n.startswith("calibration_")}
    scores = {n: c for n, c in curves.items() if n not in calibration and all(0 <= y <= 1 for y in c[1])}
    others = {n: c for n, c in curves.items() if n not in calibration and n not in scores}
    panels = [("score (0 to 1)", scores)] if scores else []
    panels += [(_name(n), {n: c}) for n, c in list(others.items())[: MAX_CURVES // 2]]
    if not panels:
        return None
    figure, all_axes = _empty(len(panels))
    shaded = False
    for axes, (label, shown) in zip(all_axes if len(panels) > 1 else [all_axes], panels, strict=True):
        _draw(axes, shown)
        shaded = _shade(axes, shown, public) or shaded
        _label(axes, "finished rounds", label)
        if shown is scores:
            _legend(axes)
    caption = "Metrics of the global model on held-out rows of all sites, by the number of finished rounds."
    if shaded:
        caption += " Shaded: what the bins of the scores leave open."
    if calibration or len(scores) > MAX_CURVES or len(others) > MAX_CURVES // 2:
        caption += " Some metrics are in the table only."
    return Drawn("metrics.png", "Metrics", caption, _png(figure))


def _time(run: Run) -> Drawn | None:
    parts = {part: mean_by_round(run, "seconds", part) for part in PARTS}
    total = mean_by_round(run, "seconds", "total")
    rounds = sorted(set(total).union(*parts.values()))
    named = {r: sum(p.get(r, 0.0) for p in parts.values()) for r in rounds}
    parts["other"] = {r: max(0.0, total.get(r, 0.0) - named[r]) for r in rounds}
    everything = sum(named.values()) + sum(parts["other"].values())
    if not 0 < everything < math.inf:
        return None
    figure, axes = _empty()
    base = dict.fromkeys(rounds, 0.0)
    for part, values in parts.items():
        share = sum(values.values()) / everything
        if not any(values.values()) or (part == "other" and share < 0.005):
            continue
        percent = f"{100 * share:.0f}%" if share >= 0.005 else "<1%"
        _bar(axes, base, values, PART_COLOURS[part], f"{part}  {percent}")
        base = {r: base[r] + values.get(r, 0.0) for r in rounds}
    _label(axes, "round", "seconds per round")
    _legend(axes, reverse=True)
    caption = f"Wall-clock time of each round by what it was spent on{_over(run)}; in the legend, shares of all rounds."
    return Drawn("time.png", "Time", caption, _png(figure))


def _bytes(run: Run) -> Drawn | None:
    up, down = mean_by_round(run, "bytes_up"), mean_by_round(run, "bytes_down")
    rounds = sorted({*up, *down})
    if not rounds:
        return None
    largest = max([*up.values(), *down.values()])
    unit, scale = next(
        (u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1.0)) if largest >= s or s == 1
    )
    figure, axes = _empty()
    for values, colour, marker, label in ((up, ROSE, "^", "sent"), (down, INDIGO, "v", "received")):
        x, y = list(values), [v / scale for v in values.values()]
        axes.plot(x, y, color=colour, marker=marker if len(x) <= MAX_BARS else "", label=label)
    axes.set_ylim(bottom=0, top=1.08 * largest / scale or 1)
    _label(axes, "round", f"{unit} per round")
    _legend(axes)
    caption = f"Bytes sent and received in each round{_over(run)} (1 MB = 10^6 bytes)."
    return Drawn("bytes.png", "Traffic", caption, _png(figure))


def _public(run: Run) -> dict[str, Curve]:
    """{metric: curve} of the global model, names in alphabetical order; nulls leave no point."""
    curves: dict[str, Curve] = {}
    for record in run.public:
        for name, value in sorted(table(record, "metrics").items()):
            finite = number(value)
            if finite is not None:
                x, y = curves.setdefault(name, ([], []))
                x.append(finished_rounds(record))
                y.append(finite)
    return dict(sorted(curves.items()))


def _private(run: Run, site: str) -> Curve:
    """The training loss of one site, each at the end of its round."""
    points = [(r["round"], number(r.get("train_loss"))) for r in run.sites[site] if not is_final(r)]
    return [float(x) for x, y in points if y is not None], [y for _, y in points if y is not None]


def _is_loss(name: str) -> bool:
    return "loss" in name.lower()


def _over(run: Run) -> str:
    return f", mean of {len(run.sites)} sites" if len(run.sites) > 1 else ""


def _name(name: str, length: int = 28) -> str:
    """A name as a figure shows it; a leading underscore would hide it from a legend."""
    text = printable(name).lstrip("_") or "unnamed"
    return text if len(text) <= length else text[: length - 1] + "…"


def _empty(panels: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    width, height = _SIZE_INCHES
    figure = Figure(figsize=(width, height if panels == 1 else 2.3 * panels), dpi=_DPI, layout="constrained")
    return figure, figure.subplots(panels, 1, sharex=panels > 1)


def _draw(axes: Any, curves: Mapping[str, Curve], first: int = 0, dashed: bool = False) -> None:
    for i, (name, (x, y)) in enumerate(list(curves.items())[:MAX_CURVES], first):
        style = {"color": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)] if len(x) <= 40 else ""}
        axes.plot(x, y, label=_name(name, 36), linestyle="--" if dashed else "-", **style)


def _shade(axes: Any, curves: Mapping[str, Curve], public: Mapping[str, Curve]) -> bool:
    """Shade the intervals around curves where they are wide; returns whether there is any."""
    shaded = False
    for i, (name, (x, y)) in enumerate(list(curves.items())[:MAX_CURVES]):
        at, half = public.get(name + HALF_WIDTH, ([], []))
        if at == x and max(half) > TOLD_FROM:
            low, high = ([v + sign * h for v, h in zip(y, half, strict=True)] for sign in (-1, 1))
            axes.fill_between(x, low, high, color=LINES[i % len(LINES)], alpha=0.15, linewidth=0)
            shaded = True
    return shaded


def _bar(axes: Any, base: Mapping[int, float], values: Mapping[int, float], colour: str, label: str) -> None:
    x, bottom = list(base), list(base.values())
    height = [values.get(r, 0.0) for r in base]
    if len(x) <= MAX_BARS:
        axes.bar(x, height, bottom=bottom, color=colour, width=0.8, label=label)
    else:
        top = [b + h for b, h in zip(bottom, height, strict=True)]
        axes.fill_between(x, bottom, top, color=colour, linewidth=0, step="mid", label=label)


def _label(axes: Any, x: str, y: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    first, last = axes.dataLim.intervalx
    if last - first < 2:  # a single round would fill the whole width
        axes.set_xlim(first - 1, last + 1)
    else:
        axes.margins(x=0.02)
    axes.label_outer()


def _legend(axes: Any, reverse: bool = False) -> None:
    """A legend beside the curves, where it can hide none."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    order = slice(None, None, -1 if reverse else 1)
    legend = axes.legend(handles[order], labels[order], loc="center left", bbox_to_anchor=(1.0, 0.5))
    for text in legend.get_texts():
        text.set_parse_math(False)


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
