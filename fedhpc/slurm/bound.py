"""What of the host a job sees inside its image: what it needs, and writable only where it writes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.run_folder import FEDERATION_FILE
from fedhpc.agreement.site_file import SiteFile
from fedhpc.app.previous import beside
from fedhpc.app.programs.training import DataSection
from fedhpc.config import read_section
from fedhpc.ledger.home import LedgerHome, home_of
from fedhpc.ledger.stores import homes_of
from fedhpc.relay.settings import read_settings
from fedhpc.slurm.container_section import check_bound
from fedhpc.slurm.plan import Plan

_MOST_LINKS = 40  # as the kernel follows
_MOST_BINDS = 64  # for links into one folder
_SYSTEM = tuple(map(Path, ("/", "/etc", "/usr", "/var", "/home", "/opt", "/run", "/tmp", "/root")))  # noqa: S108


@dataclass(frozen=True)
class Bound:
    """A path of the host that a job needs inside, under the same name."""

    path: Path
    writable: bool = False
    made: bool = False
    """A folder that the job makes where it is missing, as fedhpc would outside."""


@dataclass(frozen=True)
class Bind:
    """One bind of the runtime: the place on the host, without links, and its name inside."""

    source: Path
    target: Path
    writable: bool = False


def bound_by_sites(
    plan: Plan, federations: tuple[Path, ...], sites: list[SiteFile], folder: Path | None
) -> list[Bound]:
    """What a job of these sites needs; `folder`: of all site files, where they are in one job."""
    found = [Bound(path) for path in (plan.federation_path, *federations)]
    found += [Bound(plan.run, writable=True, made=True), Bound(plan.directory, writable=True, made=True)]
    found += [] if folder is None else [Bound(folder)]
    agreements = [plan.agreement, *(Agreement.open(path) for path in federations)]
    for site in sites:
        found += _of_site(site)
        for agreement in agreements:
            found += _of_earlier_epochs(site, agreement, site.run_directory(plan.run))
    return found


def bound_by_relay(file: Path | None) -> list[Bound]:
    """What a relay needs: its folder, and what its relay.toml names elsewhere. Raises ConfigError."""
    if file is None:
        return []
    found = [Bound(file.parent, writable=True), Bound(file)]
    if not file.is_file():
        return found  # the relay itself says so
    settings, _ = read_settings(file)
    # Files are replaced by others of their name, which only their folders show.
    read = [settings.certificate, settings.key, *settings.client_authorities]
    found += [Bound(_folder_of(path)) for path in read]
    found += [Bound(settings.store, writable=True, made=True), Bound(_folder_of(settings.roster), writable=True)]
    found += [] if settings.tokens is None else [Bound(_folder_of(settings.tokens), writable=True)]
    found += [] if settings.enrolment is None else [Bound(settings.enrolment, writable=True, made=True)]
    return found


def _folder_of(file: Path) -> Path:
    """The folder of a file; the file itself where that is HOME, or the system's, which would cover the image's."""
    shared = (*_SYSTEM, Path(os.path.realpath(os.path.expanduser("~"))))
    return file if Path(os.path.realpath(file)).parent in shared or file.is_symlink() else file.parent


def _of_site(site: SiteFile) -> Iterator[Bound]:
    yield Bound(site.base)  # its file, keys, approvals
    data = read_section(DataSection, site.data, "data") if site.data else None
    values = [getattr(data, f.name) for f in dataclasses.fields(DataSection)] if data else []
    named = [value for value in values if isinstance(value, Path)]
    for path in (site.site.key, site.exchange.key, site.exchange.certificate, *named):
        if path is not None:
            yield Bound(site.path(path))
    if data is not None:  # looked for, before this run's own is noted beside them
        yield from (Bound(LedgerHome(Path(home)).ledger) for home in homes_of(site.path(data.path)))
    if site.exchange.kind == "spool" and site.exchange.spool is not None:
        yield Bound(site.path(site.exchange.spool), writable=True)
    if site.ledger.path is not None:
        yield Bound(site.path(site.ledger.path), writable=True, made=True)
    if site.site.directory is not None:
        # The copy of federation.toml lies in the folder above, as it does in RUN.
        yield Bound(site.path(site.site.directory).parent, writable=True, made=True)


def _of_earlier_epochs(site: SiteFile, agreement: Agreement, directory: Path) -> Iterator[Bound]:
    """The run directories that [start] goes on from, where app/previous.py looks for them."""
    epochs = agreement.start.epochs
    if not epochs:
        return
    home = home_of(site)
    places = [home.run_of(bytes.fromhex(config)) for config in epochs]
    for place in (*places, *beside(directory, epochs)):
        if place is not None:
            yield Bound(place)
            yield Bound(place.parent / FEDERATION_FILE)


def names_of(path: Path) -> list[Path]:
    """Every name by which the kernel comes to `path`: as it is written, after each link on the way, and the place."""
    name = Path(os.path.abspath(path))
    found = [name]
    for _ in range(_MOST_LINKS):
        link = next((part for part in (*reversed(name.parents), name) if part.is_symlink()), None)
        if link is None:
            break
        name = Path(os.path.normpath(link.parent / os.readlink(link) / name.relative_to(link)))
        found.append(name)
    return list(dict.fromkeys([*found, Path(os.path.realpath(path))]))


def _folders_of(file: Path) -> list[Path]:
    """The folder of a file, and those of the other names that its links lead to."""
    return [file.parent, *(name.parent for name in names_of(file)[1:])]


def _links_in(folder: Path) -> list[Path]:
    """The links among a folder's entries, such as those of a snapshot into a store of blobs.

    Where many lead into one folder, it stands for them: a script cannot hold a line for each of a million files.
    """
    places: dict[Path, list[Path]] = {}
    try:
        with os.scandir(folder) as entries:
            for link in sorted(folder / entry.name for entry in entries if entry.is_symlink()):
                places.setdefault(Path(os.path.realpath(link)).parent, []).append(link)
    except OSError:
        return []
    return [path for place, links in places.items() for path in (links if len(links) <= _MOST_BINDS else [place])]


def arranged(found: Iterable[Bound], *, flat: bool = False) -> list[Bind]:
    """Each path once, outer folders first, without what lies in a folder that shows it and is as writable.

    Symbolic links stay links inside, so what one leads to is bound under all of its names. `flat`: folders only, none
    in another, all writable: for a runtime without :ro, whose targets must be in the image. Raises ConfigError for a
    path that a runtime would split.
    """
    wanted: dict[Path, Bind] = {}
    for bound in found:
        paths = [bound.path]
        if not bound.writable and bound.path.is_dir():
            paths += _links_in(bound.path)
        for path in paths:
            for place in _folders_of(path) if flat and not bound.writable and not path.is_dir() else [path]:
                source = Path(os.path.realpath(place))
                for name in names_of(place):
                    check_bound(str(name), "a container's bind")
                    known = wanted.get(name)
                    wanted[name] = Bind(source, name, bound.writable or (known is not None and known.writable))
    kept: dict[Path, Bind] = {}
    for target in sorted(wanted, key=lambda p: (len(p.parts), p)):
        bind = wanted[target]
        above = next((kept[p] for p in target.parents if p in kept), None)
        if above is None or _needed(bind, above, flat=flat):
            kept[target] = bind
    return list(kept.values())


def _needed(bind: Bind, above: Bind, *, flat: bool) -> bool:
    """Whether `bind` shows something that the folder `above` it does not."""
    shown = above.source / bind.target.relative_to(above.target)
    if shown == bind.source:
        return bind.writable and not above.writable and not flat
    if Path(os.path.realpath(shown)) == bind.source:
        return False  # a link leads there, and the place itself is bound
    return shown.exists() and not flat
