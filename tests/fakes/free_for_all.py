"""A relay that runs no rounds: it keeps objects of any name, and proposes nothing. For what moves objects only.

`python free_for_all.py RELAY.TOML [-v]` serves it, as `fedhpc relay serve` does an ordinary one.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from typing_extensions import override

from fedhpc.cli.relay import serve
from fedhpc.relay.http import server
from fedhpc.relay.rounds.round_threads import Coordinator
from fedhpc.relay.settings import Roster
from fedhpc.wire.object_names import ObjectName


class FreeForAll(Coordinator):
    """A coordinator of no federation."""

    @override
    def update(self, roster: Roster) -> None:
        pass

    @override
    def check_write(self, name: ObjectName, length: int, tree: bytes | None) -> None:
        pass

    @override
    def standing(self, config: str, past: int = 0) -> dict[str, Any]:
        return {"done": 0, "sums": [], "needs": []}


if __name__ == "__main__":
    server.RelayServer = partial(server.RelayServer, coordinator=FreeForAll)  # type: ignore[misc, assignment]
    serve.main(sys.argv[1:])
