"""The command line. Commands are found by name and imported when used, so that `--help` starts at once."""

from __future__ import annotations

import importlib
import io
import signal
import sys

import click

from fedhpc import __version__

# What the commands are for -> command -> (module, name in it, one line of help). The lines stand here so that the
# overview imports nothing.
_COMMANDS = {
    "To try it": {
        "demo": ("fedhpc.cli.demo", "demo", "Run an example with real data."),
        "new": ("fedhpc.cli.new", "new", "Write a working federation to start from."),
        "bench": ("fedhpc.cli.bench", "bench", "Measure masked sums and training rounds on this machine."),
    },
    "At a site": {
        "data": ("fedhpc.cli.data", "data", "Make, check and split a site's data store."),
        "run": ("fedhpc.cli.run", "run", "Train, or go on; started under mpirun or srun."),
        "status": ("fedhpc.cli.status", "status", "Show how far a run is, and the hash of its model."),
        "report": ("fedhpc.cli.report", "report", "Draw a run's curves, times and traffic."),
        "export": ("fedhpc.cli.report", "export", "Write a run's newest model as safetensors."),
        "predict": ("fedhpc.cli.predict", "predict", "Score a store's rows by an exported model."),
        "evaluate": ("fedhpc.cli.predict", "evaluate", "Measure an exported model on a store."),
        "spool": ("fedhpc.cli.spool", "spool", "Carry messages for nodes without a route to the relay."),
    },
    "In the batch queue": {
        "doctor": ("fedhpc.cli.doctor", "doctor", "Look for what would end a job, before it waits."),
        "submit": ("fedhpc.cli.submit", "submit", "Submit a site's jobs to Slurm."),
        "jobs": ("fedhpc.cli.jobs", "jobs", "List, cancel and read the jobs of a site."),
    },
    "Across machines, over a relay": {
        "federation": ("fedhpc.cli.federation", "federation", "Coordinator: begin a federation, admit its sites."),
        "site": ("fedhpc.cli.site", "site", "Site: make keys, get a certificate, sign what is agreed."),
        "relay": ("fedhpc.cli.relay", "relay", "Operator: run the relay, see where it stands."),
    },
}
_BY_NAME = {name: found for group in _COMMANDS.values() for name, found in group.items()}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_BY_NAME)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _BY_NAME:
            return None
        module, name, _ = _BY_NAME[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, group in _COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:10}", line) for name, (_, _, line) in group.items()])


def _tell_version(context: click.Context, option: click.Parameter, asked: bool) -> None:
    """`--verbose` may stand on either side of it, so the words themselves are looked at."""
    if not asked or context.resilient_parsing:
        return
    if "--verbose" in sys.argv[1:]:
        from fedhpc.cli.version import verbose_version

        click.echo(verbose_version())
    else:
        click.echo(f"fedhpc, version {__version__}")
    context.exit()


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--verbose", is_flag=True, expose_value=False, help="With --version: what a bug report should say.")
@click.option(
    *("-V", "--version"),
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_tell_version,
    help="Show the version.",
)
def cli() -> None:
    """Train one PyTorch model across institutions whose data may not move, on the supercomputers where they lie.

    Begin with `fedhpc demo heart`. Each command has its own --help.

    Exit codes: 0 done, 64 configuration or usage, 65 bad data, 69 peers unavailable, 70 internal error, 74 I/O,
    75 interrupted after a checkpoint (submit again), 77 refused by policy.
    """


def _hear_signals() -> None:
    """Make this process and its children react to the signals that a batch system or a user sends.

    A wrapper may have started it with signals blocked, or SIGTERM ignored, and children inherit both. SIGINT and SIGHUP
    that are ignored stay so: background jobs and nohup rely on it.
    """
    if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    heard = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, heard)


def main() -> None:
    """Run the command line; every failure becomes a message and an exit code, and ends the whole job under MPI."""
    from fedhpc.errors import InterruptedRun
    from fedhpc.mpi.world import abort_job, describe_failure, tell_failure
    from fedhpc.slurm.exit_file import leave_exit_code

    _hear_signals()
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        tell_failure(shown.getvalue().rstrip("\n"))
        sys.exit(64)
    except click.Abort:
        abort_job(130)
        sys.exit(130)
    except Exception as error:
        text, code = describe_failure(error)
        stopped = isinstance(error, InterruptedRun)
        if not text or tell_failure(text, "stopped" if stopped else "failed"):
            leave_exit_code(code, untrained=isinstance(error, InterruptedRun) and error.untrained)
        abort_job(code)
        sys.exit(code)
    code = code if isinstance(code, int) else 0
    leave_exit_code(code)
    sys.exit(code)
