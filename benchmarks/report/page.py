"""The page, which reads like a lab report: aims, method, results by topic, limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks import peer_tables
from benchmarks.complaints import kind
from benchmarks.mask_line import mask_lines
from benchmarks.measure import too_large
from benchmarks.report.growth import mask_growth, series_tables
from benchmarks.report.in_one_job import one_number, sums
from benchmarks.report.of_a_site import backends, masks, reads, rounds, startup
from benchmarks.report.on_paper import cost_model
from benchmarks.report.on_partitions import partitions
from benchmarks.report.over_a_relay import far_and_narrow, lost, relayed
from benchmarks.report.records import records, versions
from benchmarks.report.targets import own_targets
from benchmarks.report.two_builds import two_builds
from benchmarks.runs import PARTITIONS, PEERS, Run, Stored, alone

NOTES = Path(__file__).parents[1] / "notes.md"

ABSTRACT = """\
# Benchmarks

What fedhpc's sums, rounds and stores take, and what other systems take for the same work beside them. The command that
measured a figure stands on this page, and every result was compared with one that was found another way. What is not
reached is shown like what is; what was not measured says so.

## Aims, and what was reached
"""

METHOD = """
## Method

**Machine.** Each row names it, or stands under [Machines and versions](#machines-and-versions). On a machine of two
cores all sites, the relay and a peer's server share them, so absolute times are longer than where each site has nodes
of its own; ratios within a row are what the machine has less to do with.

**A time** goes from a start that all processes make together until the slowest is done. **Processor time** is that of
all processes of the work. A figure is the median of its repeats with the smallest and the largest; one of fewer than
five repeats has an asterisk. Compare figures within a row, or of one run: machines are noisy, and `load` says what else
ran.

**Checked.** Each repeat has fresh masks, and a sum's vectors are drawn anew for it. A sum is compared, value for value,
with one made from the same seeds without masks or messages; all sites must have the same bytes. A training run with
masks must end with the same model as one without, from the same data and the same first model. `verified` is true only
if all of that held in every repeat, and `python -m benchmarks.report --check` fails if a metric, a repeat or a check is
missing.

**To repeat a row**, type its command, with `fedhpc` before one that begins with `bench` (`--json` or `--lines FILE`
keeps the figures); one that begins with `srun` belongs into a job with its nodes, as `fedhpc submit --shape bench`
makes them. `make bench` measures our own rows in about ten minutes, `python benchmarks/measure.py --all` also those
that take longer, `make bench-smoke` runs every benchmark once, as small as it can be, to see that no figure is lost.
This page and its pictures are made by `python -m benchmarks.report` from benchmarks/results/.
"""


def page(stored: Stored, pictures: Mapping[str, str]) -> str:
    """The page's text. `pictures`: the path of each, from the page."""
    here = alone(stored.runs)
    lines = mask_lines(here)
    parts = [
        *ABSTRACT.splitlines(),
        *own_targets(here, lines, stored.objects.get("backends")),
        *peer_tables.sections(_records(stored, PEERS)),
        *METHOD.splitlines(),
        *two_builds(stored.builds),
        *_one_job(stored, pictures),
        *mask_growth(lines, pictures),
        *series_tables(here, pictures),
        *_relay(stored, here),
        *cost_model(here, pictures),
        *rounds(_of_work(here, "training round")),
        *_site(stored, here),
        *partitions([run for run in stored.runs if run.source.startswith(PARTITIONS)]),
        *records(here),
        *versions(stored.objects.values(), here),
        *_left_out(here),
        "",
        NOTES.read_text().rstrip(),
    ]
    return "\n".join(_single_gaps(parts)) + "\n"


def _one_job(stored: Stored, pictures: Mapping[str, str]) -> list[str]:
    entries = [entry for name, entry in stored.objects.items() if name.startswith("sum")]
    latency = stored.objects.get("latency")
    return sums(entries, pictures) + (one_number(latency) if latency else [])


def _relay(stored: Stored, here: list[Run]) -> list[str]:
    special = {"latency_ms", "mbit_s", "lost"}
    entries = [e for n, e in stored.objects.items() if n.startswith("relay") and not special & set(e["result"])]
    return relayed(entries) + far_and_narrow(here) + lost(here)


def _site(stored: Stored, here: list[Run]) -> list[str]:
    lines = masks(_of_work(here, "masks and encoding")) + reads(_of_work(here, "reading a store"))
    if "backends" in stored.objects:
        lines += backends(stored.objects["backends"])
    return lines + (startup(stored.objects["startup"]) if "startup" in stored.objects else [])


def _of_work(runs: list[Run], work: str) -> list[Run]:
    return [run for run in runs if kind(run) == work]


def _records(stored: Stored, source: str) -> list[dict[str, object]]:
    return [record for run in stored.runs if run.source == source for record in run.records]


def _left_out(here: list[Run]) -> list[str]:
    """Cases that would not fit, on the machine of the newest run."""
    if not here:
        return []
    machine = max(here, key=lambda run: str(run.get("date"))).get("machine")
    lines = [f"- `{command}`: {why}" for command, why in too_large(machine)]
    return (
        ["", "## Left out", "", "Sizes above a third of the machine's memory are not run:", "", *lines] if lines else []
    )


def _single_gaps(lines: list[str]) -> list[str]:
    """Without a second empty line after another."""
    return [line for at, line in enumerate(lines) if line or not at or lines[at - 1]]
