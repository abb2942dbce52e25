"""Command groups whose help lists commands in the order in which people use them."""

from __future__ import annotations

import click


class OrderedGroup(click.Group):
    """Lists commands as they were defined, not alphabetically."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of definition."""
        return list(self.commands)
