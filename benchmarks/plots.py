"""Pictures of the page: docs/images/*.svg and the same as *.png; the same files for the same results.

They have a white ground of their own, so that they can be read on a dark page too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cost_model import TERMS, enough, fit, measurements
from benchmarks.mask_line import AIM, MaskLine, mask_lines
from benchmarks.runs import Run, alone
from benchmarks.scaling import SIZES, Series, Size, count, series

_WORKS = ("masked sum", "relayed masked sum")
_LABELS = {"sites": "sites", "params": "parameters"}
# Told apart by all eyes: those of Okabe and Ito, and a grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
_MARKERS = "osD^vPX*"  # as many as colours: beyond them lines differ
_LINES = ("-", "--", ":", "-.")


def draw(runs: Sequence[Run], folder: Path) -> dict[str, str]:
    """The SVG file of each picture that was drawn, by its name; what was not measured has none."""
    here = alone(runs)
    wanted: dict[str, tuple[str, Callable[[Any], None]]] = {}
    for size in SIZES:
        if found := _sums(here, size):
            wanted[size] = f"sum_over_{_LABELS[size]}", lambda axes, size=size, found=found: _sizes(axes, size, found)
    if lines := mask_lines(here):
        wanted["mask_line"] = "work_of_a_site", lambda axes: _mask_lines(axes, lines)
    if stages := _stage_runs(here):
        wanted["stages"] = "stages", lambda axes: _stages(axes, stages)
    if enough(measurements(here)):
        wanted["cost_model"] = "cost_model", lambda axes: _cost_model(axes, here)
    if wanted:
        folder.mkdir(parents=True, exist_ok=True)
    for stem, fill in wanted.values():
        _save(folder / stem, fill)
    return {name: f"{stem}.svg" for name, (stem, _) in wanted.items()}


def _save(path: Path, fill: Callable[[Any], None]) -> None:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {
        "svg.hashsalt": path.name,
        "svg.fonttype": "none",
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.prop_cycle": matplotlib.cycler(color=_COLOURS),
        "savefig.facecolor": "white",
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7.5, 4.5), layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        fill(axes)
        axes.grid(visible=True, linewidth=0.4, alpha=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
        figure.savefig(path.with_suffix(".png"), dpi=120, metadata={"Software": None})


def _sums(runs: Sequence[Run], size: Size) -> list[Series]:
    return [one for one in series(list(runs), size) if one.work in _WORKS and len(one.machines) == 1]


def _sizes(axes: Any, size: Size, found: Sequence[Series]) -> None:
    for at, one in enumerate(found):
        marker, line = _MARKERS[at % len(_MARKERS)], _LINES[at // len(_MARKERS) % len(_LINES)]
        sizes = [run.get(size) for run in one.runs]
        middles, spread = _bars(one.runs)
        axes.errorbar(sizes, middles, spread, marker=marker, linestyle=line, markersize=5, capsize=3, label=one.name)
    axes.set_xscale("log", base=2 if size == "sites" else 10)
    _logarithmic(axes)
    ticks = sorted({run.get(size) for one in found for run in one.runs})
    axes.set_xticks(ticks, [count(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(_LABELS[size])
    axes.set_ylabel("seconds for a sum (median; smallest to largest)")
    axes.legend(frameon=False, fontsize=9)


def _bars(runs: Sequence[Run]) -> tuple[list[float], list[list[float]]]:
    """Medians, and how far the smallest and the largest are from them."""
    middles = [run.median("wall_s") or float("nan") for run in runs]
    values = [run.values("wall_s") for run in runs]
    below = [m - min(v, default=m) for m, v in zip(middles, values, strict=True)]
    above = [max(v, default=m) - m for m, v in zip(middles, values, strict=True)]
    return middles, [below, above]


def _logarithmic(axes: Any, *which: str) -> None:
    """Seconds, written as people write them, on the axes `which`."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    for axis in which or ("y",):
        axes.set(**{f"{axis}scale": "log"})
        getattr(axes, f"{axis}axis").set_major_locator(LogLocator(subs=(1, 2, 5)))
        getattr(axes, f"{axis}axis").set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _mask_lines(axes: Any, lines: Sequence[MaskLine]) -> None:
    """Work of a site over the sites: what was measured, the line, and the aim above it."""
    for colour, line in zip(_COLOURS * len(lines), lines, strict=False):
        complete = line.complete
        sites = [point.sites for point in complete]
        fitted = [line.fitted(point) for point in complete]
        name = line.name
        axes.plot(sites, fitted, color=colour, linewidth=1.2, label=f"{name}: fitted line")
        axes.plot(sites, [AIM * work for work in fitted], color=colour, linewidth=1, linestyle=":")
        axes.plot(sites, [point.work_s for point in complete], "o", color=colour, label=f"{name}: masks with all")
        sparse = [point for point in line.points if point.sparse]
        if sparse:
            label = f"{name}: degree {', '.join(str(k) for k in sorted({point.streams for point in sparse}))}"
            known = [point.sites for point in sparse], [point.work_s for point in sparse]
            axes.plot(*known, "s--", color=colour, markerfacecolor="white", label=label)
    axes.set_xscale("log", base=2)
    _logarithmic(axes)
    ticks = sorted({point.sites for line in lines for point in line.points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"sites (dotted: {AIM} times the line)")
    axes.set_ylabel("work of one site, seconds")
    axes.legend(frameon=False, fontsize=9)


def _stage_runs(runs: Sequence[Run]) -> list[tuple[str, dict[str, float]]]:
    """Sums of four sites in one job, the smallest first: seconds of a core for each stage and million parameters."""
    found = []
    for one in measurements(runs):
        if one.run.get("sites") == 4 and one.sizes["streams"] == 3:
            millions = one.run.get("params") / 1e6
            found.append((count(one.run.get("params")), {n: 1e3 * s / millions for n, s in one.seconds.items()}))
    return found


def _stages(axes: Any, found: Sequence[tuple[str, dict[str, float]]]) -> None:
    left = [0.0] * len(found)
    names = [name for name, _ in found]
    for colour, stage in zip(_COLOURS, TERMS, strict=False):
        widths = [seconds[stage] for _, seconds in found]
        axes.barh(names, widths, left=left, color=colour, label=stage, height=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_xlabel("milliseconds of a core, of one of four sites, for each million parameters")
    axes.set_ylabel("parameters")
    axes.legend(frameon=False, fontsize=9, ncols=(len(TERMS) + 1) // 2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _cost_model(axes: Any, runs: Sequence[Run]) -> None:
    measured = measurements(runs)
    model = fit(measured)
    predicted = [model.predict(one.sizes) for one in measured]
    totals = [one.total for one in measured]
    ends = [0.7 * min(totals), 1.4 * max(totals)]
    axes.plot(ends, ends, color="black", linewidth=1, label="as measured")
    axes.fill_between(ends, [e / AIM for e in ends], [e * AIM for e in ends], alpha=0.12, label=f"within {AIM} times")
    values, errors = [p[0] for p in predicted], [p[1] for p in predicted]
    axes.errorbar(
        totals, values, errors, fmt="o", markersize=5, capsize=3, label="the model, ± about two standard errors"
    )
    _logarithmic(axes, "x", "y")
    axes.minorticks_off()
    axes.set_xlabel("measured, seconds of a core for one site")
    axes.set_ylabel("modelled, seconds of a core for one site")
    axes.legend(frameon=False, fontsize=9)
