"""`fedhpc doctor`: looks for problems that would end a job, before it waits in the queue."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click


@click.command()
@click.argument("site", metavar="[SITE.TOML]", type=click.Path(path_type=Path), required=False)
@click.option(
    "--federation",
    metavar="FEDERATION.TOML",
    type=click.Path(path_type=Path),
    help="By default the one beside SITE.TOML, or in the folder above.",
)
@click.option("--profile", default="", metavar="NAME", help="The cluster's profile; by default [slurm] profile.")
@click.option("--out", metavar="RUN", type=click.Path(path_type=Path), help="Run directory, as for `fedhpc run`.")
@click.option("--quick", is_flag=True, help="Only what takes no time, as every job does before it starts its ranks.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(
    site: Path | None, federation: Path | None, profile: str, out: Path | None, quick: bool, as_json: bool
) -> None:
    """Look for what would end a job, before it waits in the queue.

    Run it on a login node, and again in a job of a minute: each place sees other things. Without SITE.TOML only the
    machine is looked at. What cannot be seen from here is `not checked`, never ok.

    Exit code: 0 if nothing fails, warnings included; else that of the worst failure: 77 keys and rules, 74 storage,
    65 data, 64 settings, 69 the relay.
    """
    from fedhpc.doctor.check import examine, exit_code
    from fedhpc.doctor.checks import CHECKS
    from fedhpc.doctor.subject import open_subject
    from fedhpc.doctor.table import as_json as to_json
    from fedhpc.doctor.table import as_text

    subject = open_subject(site, os.environ, federation=federation, profile=profile, out=out, quick=quick)
    results = examine(subject, CHECKS)
    code = exit_code(results)
    # In a step of several tasks one prints for all, and any of them may fail.
    if subject.environment.get("SLURM_PROCID", "0") == "0" or subject.place != "step" or code:
        width = min(shutil.get_terminal_size((100, 24)).columns, 120)
        click.echo(to_json(subject, results) if as_json else as_text(subject, results, width))
    if code:
        sys.exit(code)
