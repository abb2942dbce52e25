"""How sums grow: over sites, against the line of mask streams, and over parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.mask_line import AIM, MaskLine
from benchmarks.report.cells import number, row, spread, table
from benchmarks.runs import Run
from benchmarks.scaling import SIZES, Size, series

_WORDS: dict[Size, tuple[str, str]] = {
    "sites": (
        "Over sites",
        "Efficiency: the seconds of the fewest sites over these. Each site brings a vector of its own, and a mask for\n"
        "each other site; on one machine all of them share its cores.",
    ),
    "params": ("Over parameters", "Efficiency: parameters a second, over those of the smallest size."),
}


def mask_growth(lines: Sequence[MaskLine], pictures: Mapping[str, str]) -> list[str]:
    """Measured against fitted."""
    if not lines:
        return []
    text = [
        "",
        "## From two sites to many",
        "",
        "Every two sites share a mask, so each of N sites makes N - 1 streams of masks, and a sum must get slower as",
        "sites join. The question is whether anything else grows. All sites of this table run on one machine: where",
        "sites outnumber cores, the work of N sites goes through few cores, and the wall time grows even if no site",
        "has more to do. So the table compares the **work of one site**: wall × cores / sites (the wall time itself",
        "where each site has a core). Through the sites with all masks goes a line, a + b × streams, fitted by least",
        f"squares of the relative error. The aim: no number of sites takes more than {AIM} times the line.",
        "",
        "With `--degree k` a site shares masks with k others only, whatever N is (a sparse graph; which k is safe is a",
        "matter of the thresholds, so a constant k needs a constant number of `colluders`). Its streams stop growing,",
        "and so should its work; keys and signatures of all sites are still checked.",
    ]
    if "mask_line" in pictures:
        text += ["", f"![Work of a site over the number of sites, with the fitted line]({pictures['mask_line']})"]
    for line in lines:
        text += [
            "",
            f"### {line.name}",
            "",
            f"Line: {number(1e3 * line.base_s)} ms + {number(1e3 * line.stream_s)} ms for each stream.",
            *table(
                "sites", "streams of a site", "wall s", "work of a site s", "fitted s", "measured/fitted", "repeats"
            ),
        ]
        for point in line.points:
            streams = f"{point.streams} (sparse)" if point.sparse else str(point.streams)
            cells = number(point.work_s), number(line.fitted(point)), f"{line.ratio(point):.2f}"
            text.append(row(point.sites, streams, spread(point.run, "wall_s"), *cells, len(point.run.records)))
    return text


def series_tables(runs: Sequence[Run], pictures: Mapping[str, str]) -> list[str]:
    """Efficiency over sites and over parameters."""
    lines: list[str] = []
    for size in SIZES:
        found = series(list(runs), size)
        if not found:
            continue
        title, words = _WORDS[size]
        lines += ["", f"### {title}", "", words]
        if size in pictures:
            lines += ["", f"![Seconds of sums over {title.split()[-1]}]({pictures[size]})"]
        lines += table("work", title.split()[-1], "wall s", "efficiency", "date")
        for one in found:
            for run in one.runs:
                efficiency = one.efficiency(run)
                shown = "other machine" if len(one.machines) > 1 else "–" if efficiency is None else f"{efficiency:.2f}"
                lines.append(row(one.name, run.get(size), spread(run, "wall_s"), shown, str(run.get("date"))[:10]))
    if not lines:
        return []
    return [
        *("", "## Scaling", ""),
        "Sites on one machine share its cores: what they wait for each other there, they would not on nodes of",
        "their own. The runs of a series need not be of one command: look at their dates. Medians (smallest to",
        "largest repeat), and * where one is of fewer than five.",
        *lines,
    ]
