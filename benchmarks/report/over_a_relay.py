"""Masked sums over a relay: near, far, and with sites that are lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.report.cells import number, row, short, spread, table, verified
from benchmarks.runs import Run
from benchmarks.scaling import count

DISK_AIM = 1.3
"""Of the wall time of a sum whose vectors are synced, over what it takes at least."""


def relayed(entries: list[dict[str, Any]]) -> list[str]:
    """`entries`: files of results of sums over a relay on this machine's own loopback, all sites there."""
    if not entries:
        return []
    lines = [
        "",
        "## Masked sums over a relay",
        "",
        "Relay and sites are processes of their own on this machine. `TLS` is what bare TLS 1.3 sockets move between",
        "as many processes; `unmasked` and `masked` are the same exchange without and with masks, all of it: ready,",
        "keys, shares, encoding, tag, hashing, upload, the relay's sum, answers, download, opening. A rate: all bytes",
        "of all sites, up and down, over the wall time. Round trips: all in line; those between upload and download.",
        "`cpu`: processor seconds of all processes, of the masked sum and of the bare sockets. `disk`: what one file",
        "in the relay's folder takes, written and fsynced, in the same run. Older results have none of these (–).",
        "`store`: whether the relay syncs vectors to the disk (`disk`) or not (`memory`, `--durable memory`).",
        *table(
            *("command", "TLS MB/s", "unmasked s", "masked s", "unmasked/TLS", "masked/unmasked speed"),
            *("relay peak MiB", "site extra MiB", "round trips", "verified"),
            *("kernel", "store", "cpu s", "TLS cpu s", "cpu/TLS cpu", "disk MB/s"),
        ),
    ]
    for entry in entries:
        r = entry["result"]
        lines.append(
            row(
                f"`{short(entry['command'])}`",
                f"{r['tls_socket_bytes_per_s'] / 1e6:.0f}",
                f"{r['unmasked_s']:.2f}",
                f"{r['masked_s']:.2f}",
                f"{r['exchange_over_tls_socket']:.2f}",
                f"{r['masked_speed_over_unmasked']:.2f}",
                f"{r['relay_peak_rss_bytes'] / 2**20:.0f}",
                f"{r['extra_bytes'] / 2**20:.1f}",
                f"{r['round_trips']}, {r['round_trips_exposed']}",
                r["verified"],
                *_processor_and_disk(r),
            )
        )
    return lines + _disk_against_memory([entry["result"] for entry in entries])


def _disk_against_memory(results: Sequence[dict[str, Any]]) -> list[str]:
    """What syncing costs: of each size that was measured with both stores in the same case."""
    lines = [
        "",
        "### What the disk costs",
        "",
        "The same sum with a relay that syncs vectors and with one that does not. One that syncs takes at least as",
        "long as the other, and as all bytes of the vectors take to the disk (`disk MB/s` of the run that syncs).",
        "`over`: the masked sum's wall time over the longer of these.",
        *table("sites", "parameters", "disk s", "memory s", "bytes over disk rate s", "over", "aim", "reached"),
    ]
    found = False
    for disk in results:
        same = [r for r in results if r.get("store") == "memory" and _case(r) == _case(disk)]
        if disk.get("store") != "disk" or "disk_bytes_s" not in disk or not same:
            continue
        found = True
        memory_s = same[-1]["masked_s"]
        written_s = disk["sites"] * disk["params"] * disk["lane_bits"] / 8 / disk["disk_bytes_s"]
        over = disk["masked_s"] / max(memory_s, written_s)
        cells = [disk["sites"], count(disk["params"]), *map(number, (disk["masked_s"], memory_s, written_s, over))]
        lines.append(row(*cells, f"≤ {DISK_AIM}", "yes" if over <= DISK_AIM else "**no**"))
    return lines if found else []


def _case(result: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(result.get(name) for name in ("sites", "params", "ranks", "lane_bits", "degree"))


def _processor_and_disk(result: dict[str, Any]) -> list[str]:
    cells = [str(result.get("kernel", "–")), str(result.get("store", "–"))]
    cells += [
        number(result[name]) if name in result else "–" for name in ("cpu_all_s", "cpu_tls_s", "cpu_all_over_tls")
    ]
    return [*cells, f"{result['disk_bytes_s'] / 1e6:.0f}" if "disk_bytes_s" in result else "–"]


def far_and_narrow(runs: Sequence[Run]) -> list[str]:
    """Over lines of a certain length and width."""
    found = [run for run in runs if {"latency_ms", "mbit_s"} & set(run.get("settings") or {})]
    lines = [
        "",
        "### Far and narrow lines",
        "",
        "A proxy on this machine between each site and the relay holds every byte back (`latency`: of a round trip;",
        "`width`: of each site's line, in each direction; – is no limit). It takes processor time of the same cores.",
        *table("command", "latency ms", "width Mbit/s", "unmasked s", "masked s", "verified"),
    ]
    for run in found:
        settings = run.get("settings")
        cells = settings.get("latency_ms", "–"), settings.get("mbit_s", "–")
        times = spread(run, "unmasked_s"), spread(run, "wall_s")
        lines.append(row(f"`{short(run.get('command'))}`", *cells, *times, verified(run)))
    return lines if found else []


def lost(runs: Sequence[Run]) -> list[str]:
    """With sites that vanish."""
    found = [run for run in runs if (run.get("settings") or {}).get("lost")]
    lines = [
        "",
        "### Lost sites",
        "",
        "The last sites vanish, in every repeat, once they share masks with the others, as if their nodes lost power.",
        "The others wait for their vectors for as long as was agreed (`waits`), then finish without them: `beyond` is",
        "what the sum took besides that wait, recovery included. The sum over those who stayed is checked.",
        *table("command", "sites", "lost", "all there, unmasked s", "waits s", "whole sum s", "beyond s", "verified"),
    ]
    for run in found:
        settings = run.get("settings")
        cells = [run.get("sites"), settings["lost"], spread(run, "unmasked_s"), settings.get("upload_s")]
        cells += [spread(run, "wall_s"), spread(run, "beyond_upload_s"), verified(run)]
        lines.append(row(f"`{short(run.get('command'))}`", *cells))
    return lines if found else []
