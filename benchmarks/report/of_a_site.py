"""What a site does by itself: training rounds, backends, masks alone, reading its store, starting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.report.cells import over_without, row, short, spread, table, verified
from benchmarks.runs import Run


def rounds(runs: Sequence[Run]) -> list[str]:
    """Training rounds with masks and without."""
    lines = [
        "",
        "## Training rounds",
        "",
        "A whole round of the digits example (evaluation, local training, sum, checkpoint), with masks and without, in",
        "turn: every repeat is a fresh run of each, and the order changes from repeat to repeat. `cpu`: processor time",
        "of all ranks. `share`: the part of a masked round's processor time that secure aggregation takes, masked less",
        "unmasked over masked, of each repeat; `overhead`: the same difference over the unmasked round, which is the",
        "quotient that others report. Ranks that wait for one another poll, in both runs; that is in both times, and",
        "its noise in the spread of the share. Both must end with the same model (`verified`).",
        *table(
            *("command", "masked s", "unmasked s", "masked cpu s", "unmasked cpu s", "share %", "overhead %"),
            *("repeats", "verified"),
        ),
    ]
    for run in runs:
        cells = [spread(run, name) for name in ("wall_s", "unmasked_s", "cpu_s", "unmasked_cpu_s")]
        cells += [spread(run, "secure_share", 100), over_without(run), str(len(run.records)), verified(run)]
        lines.append(row(f"`{short(run.get('command'))}`", *cells))
    return lines if runs else []


def backends(entry: dict[str, Any]) -> list[str]:
    """Memory and speed of each backend."""
    lines = [
        "",
        "## Backends of a site",
        "",
        f"`{entry['command']}`. V: bytes of the model, a",
        "transformer; AdamW, DiLoCo. `first`: peak memory of a rank while it is made. `added`: what two rounds with",
        "another site, and their checkpoints, add to the peak of plain steps, at the worst rank. `moves`: the model",
        "out of the backend by ranges and back; `step`: one sequence of 128 tokens at each rank. `speed`: samples for",
        "a second of processor time, of all ranks, over those of a plain loop with the same backend (a smaller model,",
        f"median of {entry['result']['alternations']} alternations). `loss`: of training in the last round.",
        *table(
            *("backend", "ranks", "V MiB", "loss", "first / V", "added MiB", "added / V", "moves s", "step s"),
            *("speed", "MiB sent"),
        ),
    ]
    for r in entry["result"]["backends"]:
        lines.append(
            row(
                *(r["backend"], r["ranks"], f"{r['model_bytes'] / 2**20:.0f}", f"{r['loss']:.3f}"),
                *(f"{r['init_peak_over_v']:.2f}", f"{r['added_bytes'] / 2**20:.0f}", f"{r['added_over_v']:.2f}"),
                *(f"{r['moves_s']:.2f}", f"{r['step_s']:.2f}", f"{r['speed_over_plain']:.3f}"),
                f"{r['bytes_up'] / 2**20:.0f}",
            )
        )
    return lines


def startup(entry: dict[str, Any]) -> list[str]:
    """The start of a run. A result of before the backend numpy has one number, of torch already imported."""
    r = entry["result"]
    lines = ["", "## Start of a run", ""]
    if "backends" not in r:
        return [
            *lines,
            f"`{entry['command']}`: eight ranks of the heart federation. From torch being imported to the first local",
            "step, with MPI's start, the site stores, DDP's process groups, standardisation and the first evaluation: "
            f"**{r['start_to_first_step_s']:.2f} s**; importing torch took {r['import_torch_s']:.2f} s.",
        ]
    lines += [
        f"`{entry['command']}`: {r['ranks']} ranks of the heart federation, {r['repeats']} starts of each in turn.",
        "From the first rank's process to the last rank's first local step, imports, MPI's start and standardisation",
        "included; processor time of all ranks.",
        *table("backend", "wall s, median", "wall s, least", "cpu s, median", "cpu s, least"),
    ]
    for name, of in r["backends"].items():
        lines.append(
            row(name, *(f"{of[f'{key}_{what}']:.2f}" for key in ("wall_s", "cpu_s") for what in ("median", "min")))
        )
    return lines


def masks(runs: Sequence[Run]) -> list[str]:
    """Masks and encoding alone."""
    lines = [
        "",
        "## Masks and encoding alone",
        "",
        "What one site does to its vector before it sends: one process, no wire. A stream for each other site.",
        *table(
            *("command", "sites", "encode s", "masks s", "encode MB/s", "streams MB/s", "cpu s", "verified"),
        ),
    ]
    for run in runs:
        nbytes = run.get("params") * (run.get("settings") or {}).get("lane_bits", 32) / 8e6
        encode, masks_s = run.median("encode_s"), run.median("masks_s")
        cells = [str(run.get("sites")), spread(run, "encode_s"), spread(run, "masks_s")]
        cells.append(f"{nbytes / encode:.0f}" if encode else "–")
        cells.append(f"{(run.get('sites') - 1) * nbytes / masks_s:.0f}" if masks_s else "–")
        cells += [spread(run, "cpu_s"), verified(run)]
        lines.append(row(f"`{short(run.get('command'))}`", *cells))
    return lines if runs else []


def reads(runs: Sequence[Run]) -> list[str]:
    """Reading a store."""
    lines = [
        "",
        "## Reading a site's store",
        "",
        "One process; the file is in the kernel's cache. `open` checks every value; `batches` are rows drawn at",
        "random, as training reads them.",
        *table(
            *(
                "command",
                "rows",
                "open s",
                "in order: rows/s",
                "MB/s",
                "in batches: rows/s",
                "MB/s",
                "cpu s",
                "verified",
            ),
        ),
    ]
    for run in runs:
        settings = run.get("settings") or {}
        rows_, row_mb = settings.get("rows", 0), settings.get("row_bytes", 0) / 1e6
        cells = [str(rows_), spread(run, "open_s")]
        for name in ("in_order_s", "batches_s"):
            seconds = run.median(name)
            cells += [f"{rows_ / seconds:.0f}", f"{rows_ * row_mb / seconds:.0f}"] if seconds else ["–", "–"]
        cells += [spread(run, "cpu_s"), verified(run)]
        lines.append(row(f"`{short(run.get('command'))}`", *cells))
    return lines if runs else []
