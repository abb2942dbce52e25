"""The command line. Commands are found by name and imported when used, so that `--help` starts at once."""

from __future__ import annotations

import importlib
import sys

import click

from fedhpc import __version__

# Command -> (module, name in it, one line of help). The line stands here so that the overview imports nothing.
_COMMANDS = {
    "bench": ("fedhpc.cli.bench", "bench", "Measure masked sums on this machine."),
    "data": ("fedhpc.cli.data", "data", "Make, check and split a site's data store."),
    "demo": ("fedhpc.cli.demo", "demo", "Run an example with real data."),
    "export": ("fedhpc.cli.report", "export", "Write a run's newest model as safetensors."),
    "federation": ("fedhpc.cli.federation", "federation", "Begin a federation, admit and revoke its sites."),
    "new": ("fedhpc.cli.new", "new", "Write a working federation to start from."),
    "relay": ("fedhpc.cli.relay", "relay", "Run the relay where sites of different machines meet."),
    "report": ("fedhpc.cli.report", "report", "Draw a run's curves, times and traffic."),
    "run": ("fedhpc.cli.run", "run", "Train a federation; started under mpirun or srun."),
    "site": ("fedhpc.cli.site", "site", "Make a site's keys, ask for its certificate, approve a configuration."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in sorted(_COMMANDS.items())])


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="fedhpc")
def cli() -> None:
    """Train one PyTorch model across institutions whose data may not move, on the supercomputers where it lies.

    Exit codes: 0 done, 64 configuration or usage, 65 bad data, 69 peers unavailable, 70 internal error, 74 I/O,
    75 interrupted after a checkpoint (submit again), 77 refused by policy.
    """


def main() -> None:
    """Run the command line; every failure becomes a message and an exit code, and under MPI ends the whole job."""
    from fedhpc.mpi.world import abort_job, describe_failure

    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(64)
    except click.Abort:
        abort_job(130)
        sys.exit(130)
    except Exception as error:
        text, code = describe_failure(error)
        sys.stderr.write(text + "\n")
        abort_job(code)
        sys.exit(code)
    sys.exit(code if isinstance(code, int) else 0)
