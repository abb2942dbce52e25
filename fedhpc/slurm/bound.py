"""What of the host a job sees inside its image: what it needs, and writable only where it writes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedhpc.agreement.site_file import SiteFile
from fedhpc.app.programs.training import DataSection
from fedhpc.config import read_section
from fedhpc.slurm.container_section import check_bound
from fedhpc.slurm.plan import Plan


@dataclass(frozen=True)
class Bound:
    """One path of the host, at the same place inside."""

    path: Path
    writable: bool = False
    made: bool = False
    """A folder that the job makes where it is missing, as fedhpc would outside."""


def bound_by_sites(
    plan: Plan, federations: tuple[Path, ...], sites: list[SiteFile], folder: Path | None
) -> list[Bound]:
    """What a job of these sites needs; `folder`: of all site files, where they are in one job."""
    found = [Bound(path) for path in (plan.federation_path, *federations)]
    found += [Bound(plan.run, writable=True, made=True), Bound(plan.directory, writable=True, made=True)]
    found += [] if folder is None else [Bound(folder)]
    for site in sites:
        found += _of_site(site)
    return found


def _of_site(site: SiteFile) -> Iterator[Bound]:
    yield Bound(site.base)  # its file, keys, approvals
    data = read_section(DataSection, site.data, "data") if site.data else None
    named = [getattr(data, f.name) for f in dataclasses.fields(DataSection)] if data else []
    for path in (site.site.key, site.exchange.key, site.exchange.certificate, *named):
        if path is not None:
            yield Bound(site.path(path))
    if site.exchange.kind == "spool" and site.exchange.spool is not None:
        yield Bound(site.path(site.exchange.spool), writable=True)
    if site.ledger.path is not None:
        yield Bound(site.path(site.ledger.path), writable=True, made=True)
    if site.site.directory is not None:
        # The copy of federation.toml lies in the folder above, as it does in RUN.
        yield Bound(site.path(site.site.directory).parent, writable=True, made=True)


def arranged(found: list[Bound], *, flat: bool = False) -> list[Bound]:
    """Each path once, outer folders first, without what lies in a folder that is as writable.

    A path that is a symbolic link is bound under both of its names, since files name each other by either. `flat`:
    folders only, none in another, all writable: for a runtime without :ro, whose targets must be in the image. Raises
    ConfigError for a path that a runtime would split.
    """
    rights: dict[Path, bool] = {}
    for bound in found:
        whole = Path(os.path.abspath(bound.path))
        if flat and not bound.writable and not whole.is_dir():
            whole = whole.parent
        for path in dict.fromkeys((whole, Path(os.path.realpath(whole)))):
            check_bound(str(path), "a container's bind")
            rights[path] = rights.get(path, False) or bound.writable
    kept: dict[Path, bool] = {}
    for path in sorted(rights, key=lambda p: (len(p.parts), p)):
        above = next((kept[p] for p in path.parents if p in kept), None)
        if above is None or (rights[path] and not above and not flat):
            kept[path] = rights[path]
    return [Bound(path, writable) for path, writable in kept.items()]
