"""Prints a relay's status, once or again and again."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from fedhpc.errors import PeersError
from fedhpc.report.relay_table import console, render

EVERY_S = 2.0


def show(ask: Callable[[], dict[str, Any]], *, as_json: bool, watch: bool) -> None:
    """Print what `ask` says. With `watch` until interrupted, also while the relay is away. Raises what `ask` raises."""
    first = ask()
    if as_json:
        print(json.dumps(first), flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            for found in _again(ask) if watch else ():
                line = found if isinstance(found, dict) else {"error": found.what}
                print(json.dumps(line), flush=True)
        return
    screen = console()
    if not watch:
        screen.print(render(first, screen.width))
        return
    shown: RenderableType = render(first, screen.width)
    with contextlib.suppress(KeyboardInterrupt), Live(shown, console=screen, auto_refresh=False) as live:
        for found in _again(ask):
            if isinstance(found, dict):
                shown = render(found, screen.width)
            away = [] if isinstance(found, dict) else [Text(found.lines(), "bold red")]
            live.update(Group(*away, shown), refresh=True)


def _again(ask: Callable[[], dict[str, Any]]) -> Iterator[dict[str, Any] | PeersError]:
    while True:
        time.sleep(EVERY_S)
        try:
            yield ask()
        except PeersError as error:
            yield error
