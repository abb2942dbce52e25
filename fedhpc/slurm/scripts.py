"""Whole batch scripts: a link of a site, all sites in one job, an array of federations, a relay, a benchmark."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from fedhpc import __version__
from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.images import SHA256_VARIABLE
from fedhpc.agreement.site_file import SiteFile, read_site_directory
from fedhpc.errors import ConfigError
from fedhpc.federation.life import Stage
from fedhpc.slurm.bound import Bound, bound_by_relay, bound_by_sites
from fedhpc.slurm.entrance import INSIDE, OUTSIDE, DataDirectory, entrance
from fedhpc.slurm.image import Image, require_agreed
from fedhpc.slurm.measured import Measured, measured_begin, measured_launch
from fedhpc.slurm.plan import Plan
from fedhpc.slurm.render import fill, header, launcher, log_pattern, one_task, part, resources, template
from fedhpc.slurm.settings import SlurmSettings

Kind = Literal["site", "rehearsal", "multiprog", "array", "hetjob", "relay", "bench"]
KINDS: tuple[str, ...] = get_args(Kind)
_RUN = '-m mpi4py -m fedhpc run "$federation"'


@dataclass(frozen=True)
class Shape:
    """What one job holds. All paths are absolute."""

    kind: Kind = "site"
    sites: Path | None = None
    """rehearsal, multiprog, array: the directory with all site files."""
    federations: tuple[Path, ...] = ()
    """array: a federation.toml for each task."""
    relay: Path | None = None
    """relay: its relay.toml."""
    at_once: int = 0
    """array: most tasks that run at the same time; 0: as many as the queue lets run."""
    measured: Measured | None = None
    """bench: what is measured."""


@dataclass(frozen=True)
class _Pieces:
    """What a shape puts into the common script."""

    launch: str
    shape: str = ""
    begin: str = ""
    log: str = "%j"
    options: tuple[tuple[str, str], ...] = ()
    bound: tuple[Bound, ...] = ()
    """What of the host a container must see."""
    homeless: bool = False
    """Whether a site names no home for its ledger, which is then in the user's data directory."""


def job_script(
    plan: Plan,
    shape: Shape,
    name: str,
    stage: Stage,
    *,
    python: str,
    after: str | None = None,
    image: Image | None = None,
) -> str:
    """The batch script of one job; `after` is the id of the job that it follows. Raises ConfigError.

    `python` runs `fedhpc submit` and `fedhpc jobs`, which need Slurm's commands and so stay outside the `image`.
    """
    settings = plan.of(stage)
    suite = shape.kind == "bench" and shape.measured is not None and shape.measured.suite is not None
    chained = shape.kind in ("site", "hetjob") and plan.life.kind != "inline"
    within = OUTSIDE if image is None else INSIDE
    pieces = _pieces(plan, shape, settings, stage, within)
    values = {
        "header": _header(plan, shape, settings, pieces, name, after),
        "version": __version__,
        "name": shlex.quote(name),
        "jobs": shlex.quote(str(plan.jobs)),
        "outside": f"python={shlex.quote(settings.python or python)}" if image is None or chained or suite else "",
        "life": _life(settings),
        "chain": _chain(plan, image) if chained else part("single"),
        "guard": part("guard", {"max_requeues": str(settings.max_requeues)}),
        "container": _entrance(plan, shape, settings, stage, image, pieces),
    }
    if shape.kind == "bench":
        wrapper = part(settings.rank_wrapper) if settings.rank_wrapper else ""
        told = "\n".join(piece for piece in (wrapper, pieces.begin) if piece)
        return fill(template("bench.sh"), values | {"begin": told, "launch": pieces.launch})
    if shape.kind == "relay":
        if shape.relay is None:
            raise ConfigError("a relay's job needs its relay.toml", "--relay FILE")
        return fill(template("relay.sh"), values | {"relay": shlex.quote(str(shape.relay)), "inside": within})
    begin = [
        f"submit_successors {settings.ahead}" if chained and settings.ahead else "",
        part(settings.rank_wrapper) if settings.rank_wrapper else "",
        pieces.begin,
    ]
    values |= {
        "about": f"{shape.kind}, {plan.site}, {plan.life.kind}, stage {stage}",
        "site": shlex.quote(str(plan.site_file.file)),
        "federation": shlex.quote(str(plan.federation_path)),
        "run": shlex.quote(str(plan.run)),
        "shape": pieces.shape,
        "preflight": _preflight(plan, settings, within) if settings.preflight else "",
        "begin": "\n".join(piece for piece in begin if piece),
        "launch": pieces.launch,
        "again": _again(stage, settings, chained),
    }
    return fill(template("link.sh"), values)


def _header(plan: Plan, shape: Shape, settings: SlurmSettings, pieces: _Pieces, name: str, after: str | None) -> str:
    options = [
        ("job-name", name),
        *resources(settings),
        ("output", f"{log_pattern(plan.jobs)}/{name}-{pieces.log}.out"),
        ("open-mode", "append"),
        ("chdir", str(plan.site_file.base)),
        ("signal", f"B:USR1@{settings.signal_s}"),
        ("requeue", ""),
        ("export", settings.export),
        *pieces.options,
    ]
    if after is not None:
        options.append(("dependency", f"afterany:{after}"))
    lines = header(options, settings.extra)
    if shape.kind == "hetjob":
        lines += "\n#SBATCH hetjob\n" + header(resources(plan.exchange), plan.exchange.extra)
    return lines


def _entrance(
    plan: Plan, shape: Shape, settings: SlurmSettings, stage: Stage, image: Image | None, pieces: _Pieces
) -> str:
    """The lines that lead into the image, '' without one. PolicyError where federation.toml lists others for sites."""
    relay = shape.kind == "relay"
    unfederated = shape.kind in ("relay", "bench")
    if not relay:
        require_agreed(image, [plan.agreement.images, *(Agreement.open(path).images for path in shape.federations)])
    if image is None:
        return ""
    folder = shape.relay.parent if relay and shape.relay else plan.site_file.base
    found = [*pieces.bound, Bound(plan.jobs, writable=True)]
    data: DataDirectory = "nothing" if unfederated else "ledger" if pieces.homeless else "notes"
    return entrance(plan, settings, stage, image, found, folder=folder, gpu=not unfederated, data=data)


def _pieces(plan: Plan, shape: Shape, settings: SlurmSettings, stage: Stage, within: str) -> _Pieces:
    """`within`: the words that start Python."""
    start = launcher(settings)
    contained = within != OUTSIDE
    if shape.kind in ("site", "hetjob"):
        carries = shape.kind == "hetjob"
        start = start.replace("srun ", "srun --het-group=0 ", 1) if carries else start
        return _Pieces(
            f'{start} \\\n  {within} {_RUN} --site "$site" --out "$run" --stage {stage}',
            begin=part("carrier", {"inside": within}) if carries else "",
            bound=tuple(bound_by_sites(plan, (), [plan.site_file], None) if contained else ()),
            homeless=plan.site_file.ledger.path is None,
        )
    if shape.kind == "relay":
        return _Pieces("", bound=tuple(bound_by_relay(shape.relay) if contained else ()))
    if shape.kind == "bench":
        if shape.measured is None:
            raise ConfigError("a benchmark's job needs a suite, or a command", "-- sum --sites 4")
        measured = shape.measured
        seen = [Bound(plan.site_file.base)]
        seen += [Bound(measured.reads)] if measured.reads else []
        seen += [Bound(measured.writes, writable=True)] if measured.writes else []
        return _Pieces(
            measured_launch(measured, settings, within),
            begin=measured_begin(measured, settings, contained=contained),
            bound=tuple(seen) if contained else (),
        )
    if shape.sites is None:
        raise ConfigError(f"shape {shape.kind} needs all site files", "--sites DIR")
    files = read_site_directory(shape.sites, plan.agreement)
    _check_ranks(files, settings)
    bound = tuple(bound_by_sites(plan, shape.federations, [plan.site_file, *files], shape.sites) if contained else ())
    homeless = any(file.ledger.path is None for file in files)
    if shape.kind == "multiprog":
        return replace(_multiprog(start, files, plan, shape.sites, within, bound), homeless=homeless)
    together = f'{start} \\\n  {within} {_RUN} --sites {shlex.quote(str(shape.sites))} --out "$run"'
    if shape.kind == "rehearsal":
        return _Pieces(together, bound=bound, homeless=homeless)
    if not shape.federations:
        raise ConfigError("an array needs a federation.toml for each task", "--federation FILE, several times")
    for path in shape.federations:
        read_site_directory(shape.sites, Agreement.open(path))
    listed = " ".join(shlex.quote(str(path)) for path in shape.federations)
    limit = f"%{shape.at_once}" if shape.at_once else ""
    return _Pieces(
        together,
        shape=part("array", {"federations": listed}),
        log="%A-%a",
        options=(("array", f"0-{len(shape.federations) - 1}{limit}"),),
        bound=bound,
        homeless=homeless,
    )


def _multiprog(
    start: str, files: list[SiteFile], plan: Plan, sites: Path, within: str, bound: tuple[Bound, ...]
) -> _Pieces:
    if not start.startswith("srun "):
        raise ConfigError("only srun has --multi-prog", '[slurm] launcher = "srun"')
    paths = {SiteFile.open(path).site.name: path for path in sites.glob("*.toml")}
    program = ("" if within == OUTSIDE else "bash ") + '"$FEDHPC_PROGRAM_PYTHON"'
    exports, lines, first = [], [], 0
    for number, file in enumerate(files, start=1):
        last = first + file.site.ranks - 1
        ranks = f"{first}-{last}" if last > first else f"{first}"
        exports.append(f"export FEDHPC_PROGRAM_SITE_{number}={shlex.quote(str(paths[file.site.name]))}")
        words = f'{program} -m mpi4py -m fedhpc run "$FEDHPC_PROGRAM_FEDERATION"'
        own = f'--site "$FEDHPC_PROGRAM_SITE_{number}" --out "$FEDHPC_PROGRAM_RUN"'
        lines.append(f"{ranks} bash -c 'exec {words} {own}'")
        first = last + 1
    python = "$python" if within == OUTSIDE else "$jobs/$name.inside"
    begin = part("multiprog", {"sites": "\n".join(exports), "lines": "\n".join(lines), "python": python})
    if within != OUTSIDE:
        begin = f"{part('multiprog_inside')}\n{begin}"
    return _Pieces(f'{start} --multi-prog "$programs"', begin=begin, bound=bound)


def _check_ranks(files: list[SiteFile], settings: SlurmSettings) -> None:
    asked = sum(file.site.ranks for file in files)
    tasks = settings.nodes * settings.tasks_per_node
    if asked != tasks:
        each = ", ".join(f"{file.site.name} {file.site.ranks}" for file in files)
        raise ConfigError(
            f"the site files ask for {asked} ranks ({each}), but [slurm] nodes x tasks_per_node is {tasks}",
            "change one of them",
        )


def _life(settings: SlurmSettings) -> str:
    variables = [f"export {name}={shlex.quote(value)}" for name, value in settings.environment.items()]
    return part("life", {"setup": "\n".join(settings.setup), "environment": "\n".join(variables)})


def _preflight(plan: Plan, settings: SlurmSettings, within: str) -> str:
    if within == OUTSIDE and settings.inside.image:  # the chain began before the site file named it
        within = f"env {SHA256_VARIABLE}= {within}"
    values = {"one": one_task(settings), "inside": within, "profile": shlex.quote(plan.profile.name)}
    return part("preflight", values)


def _chain(plan: Plan, image: Image | None) -> str:
    container = "" if image is None else f" --container {shlex.quote(str(image.path))}"
    return part("chain", {"profile": shlex.quote(plan.profile.name), "container": container})


def _again(stage: Stage, settings: SlurmSettings, chained: bool) -> str:
    """What the script does after exit code 75."""
    if not chained:
        return "requeue"
    return f"come_back_or_hand_over {settings.requeue_s}" if stage == "exchange" else "hand_over"
