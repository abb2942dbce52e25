"""Pictures of how long sums take over sites and over parameters: docs/images/*.svg, the same for the same results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.runs import Run
from benchmarks.scaling import SIZES, Series, Size, count, series

_WORKS = ("masked sum", "relayed masked sum")
_LABELS = {"sites": "sites", "params": "parameters"}


def draw(runs: Sequence[Run], folder: Path) -> dict[Size, str]:
    """The file's name of each picture that was drawn: of sizes of which two and more were measured on one machine."""
    drawn: dict[Size, str] = {}
    for size in SIZES:
        found = [one for one in series(list(runs), size) if one.work in _WORKS and len(one.machines) == 1]
        if found:
            drawn[size] = f"sum_over_{_LABELS[size]}.svg"
            folder.mkdir(parents=True, exist_ok=True)
            _picture(size, found, folder / drawn[size])
    return drawn


def _picture(size: Size, found: Sequence[Series], path: Path) -> None:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    style = {"svg.hashsalt": path.name, "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for marker, one in zip("osD^vPX*" * len(found), found, strict=False):
            sizes = [run.get(size) for run in one.runs]
            middles = [run.median("wall_s") or float("nan") for run in one.runs]
            values = [run.values("wall_s") for run in one.runs]
            below = [m - min(v, default=m) for m, v in zip(middles, values, strict=True)]
            above = [max(v, default=m) - m for m, v in zip(middles, values, strict=True)]
            axes.errorbar(sizes, middles, [below, above], marker=marker, markersize=5, capsize=3, label=one.name)
        axes.set_xscale("log", base=2 if size == "sites" else 10)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ticks = sorted({run.get(size) for one in found for run in one.runs})
        axes.set_xticks(ticks, [count(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(_LABELS[size])
        axes.set_ylabel("seconds for a sum (median; smallest to largest)")
        axes.grid(visible=True, linewidth=0.4)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
