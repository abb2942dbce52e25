"""Checks a command line that a file of the project shows against the commands that `fedhpc` has."""

from __future__ import annotations

import click

from fedhpc.cli import cli


def check_command(words: list[str]) -> None:
    """`words` after `fedhpc` are a command that exists, with options that it has and as many arguments as it needs."""
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group):
        assert rest, words
        found = command.get_command(click.Context(command), rest.pop(0))
        assert found is not None, words
        command = found
    command.make_context("fedhpc", rest, resilient_parsing="--help" in rest)
