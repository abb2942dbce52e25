"""The cost model and what it says of a sum that nobody has run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.cost_model import Cluster, CostModel, enough, fit, held_out, measurements, outlooks, relay_cost
from benchmarks.report.cells import number, row, short, table
from benchmarks.runs import Run

CLUSTER = Cluster()


def cost_model(runs: Sequence[Run], pictures: Mapping[str, str]) -> list[str]:
    """Costs, held-out sizes, the outlook; empty where too little was measured."""
    measured = measurements(runs)
    if not enough(measured):
        return []
    model, tried, relay = fit(measured), held_out(measured), relay_cost(runs)
    lines = [
        "",
        "## What a sum costs, and a hundred sites on paper",
        "",
        f"A model of few terms, fitted to {len(measured)} sizes of a masked sum in one job (`python -m",
        "benchmarks.cost_model`). Seconds are those of a core: where ranks share cores, a rank's seconds times cores",
        "over ranks. `wire` is shared memory on this machine, and what ranks wait for one another. Least squares of",
        "the relative error; ± two standard errors, approximate: a stage's costs depend on one another, which counts,",
        "and stages are taken to err independently. A cost that would come out below zero is left out.",
        *table("stage", "cost", "±", "for each"),
    ]
    for term in (term for term in model.terms if term.value > 0):
        value, error, unit = term.shown
        what = "sum" if term.name == "1" else unit.partition("/")[2]
        lines.append(row(term.stage, f"{number(value)} {unit.partition('/')[0]}", number(error), what))
    if relay is not None:
        lines.append(
            row("the relay's processor", f"{number(1e9 * relay[0])} ns", number(1e9 * relay[1]), "byte of a site")
        )
    lines += [
        "",
        "Fitted again without the sizes with most work, the model predicts those (seconds of a core, of one site):",
        *table("held out", "measured", "predicted", "±", "off by"),
    ]
    for one in tried:
        command = f"`{short(one.measured.run.get('command'))}`"
        lines.append(
            row(command, number(one.measured.total), number(one.seconds), number(one.error), f"{one.off_by:+.0%}")
        )
    if "cost_model" in pictures:
        lines += ["", f"![Measured and modelled seconds of a masked sum]({pictures['cost_model']})"]
    spread = max(abs(one.off_by) for one in tried)
    return lines + _on_paper(model, spread, relay)


def _on_paper(model: CostModel, spread: float, relay: tuple[float, float] | None) -> list[str]:
    """What was never run. `spread`: the largest error of a held-out size."""
    lines = [
        "",
        f"**On paper**: {CLUSTER.sites} sites, {CLUSTER.params / 1e9:.0f} billion parameters,",
        f"{CLUSTER.nbytes / 1e9:.0f} GB in lanes of 32 bits. Assumed: {CLUSTER.cores} cores for each site, as fast as",
        "one here, with a rank each and memory wide enough for all of them; lines of",
        f"{CLUSTER.gbit_s:.0f} Gbit/s at each site and {CLUSTER.relay_gbit_s:.0f} Gbit/s at the relay,",
        f"fully used; a relay that uses all of {CLUSTER.relay_cores} cores; an allreduce that moves twice the vector",
        "through each line; computing and network one after the other. `agree` and `share` are at one rank of a site,",
        "all else is shared out. Over a relay a site has the terms of a sum in one job: its own TLS and hashing of",
        "what it sends, and the shares of its secrets, are in none of them. Error bars of computing: those of the",
        f"coefficients, and the largest error of a held-out size ({spread:.0%}). The network is arithmetic, not",
        "measured, so it has none.",
        *table("way", "streams of a site", "computing s", "network s", "together s"),
    ]
    found = outlooks(model, CLUSTER, spread, relay)
    for outlook in found:
        computing = f"{number(outlook.compute_s)} ± {number(outlook.compute_error_s)}"
        lines.append(
            row(outlook.name, outlook.streams, computing, number(outlook.network_s), f"about {number(outlook.total_s)}")
        )
    if relay is not None:
        lines += [
            "",
            f"Of the computing over a relay {number(found[-1].relay_s)} s are its own (± {relay[1] / relay[0]:.0%}).",
        ]
    return lines
