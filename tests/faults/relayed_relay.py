"""The relay as a process that freezes at a named place: `relayed_relay.main([RELAY_FILE, POINT])`.

POINT is "" or `NAME WHEN ROUND`: the relay's own object NAME (M0, A1, U1, U2, Y, M4r, DONE) of that round, `before` it
is written, `half` (written, not yet under its name), `after`; or an object of a site (M1, M3, M3v), `before` or `after`
it becomes whole; for M3v also `half`, when its second block is about to be written; for Y also `adding`, in the sum.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import freeze

from fedhpc.cli.relay import serve
from fedhpc.errors import FedhpcError
from fedhpc.relay.http import server
from fedhpc.relay.store import kept_attempt as kept
from fedhpc.relay.store import upload

OWN = ("M0", "A1", "A2", "U1", "U2", "Y", "M4r", "DONE", "NEXT")


def place_fault(name: str, when: str, round_: int) -> None:
    """See the module."""

    def own(self: Any, at: str, *rest: Any) -> bool:
        return at == name and self._attempt[1] == round_

    def others(self: Any, *rest: Any) -> bool:
        return bool(self.name.kind == name and self.name.round == round_)

    if name in OWN and when == "half":
        real = kept.KeptAttempt._adopt

        def adopt(self: Any, at: str, *rest: Any) -> bool:
            if own(self, at):
                freeze.around(kept, "_sync", "after", freeze.nth(2, lambda path: True))
            return real(self, at, *rest)

        kept.KeptAttempt._adopt = adopt  # type: ignore[method-assign]
    elif name == "Y" and when == "adding":
        freeze.around(kept.KeptAttempt, "write", "after", freeze.nth(1, own))
    elif name in OWN:
        freeze.around(kept.KeptAttempt, "keep" if name == "Y" else "put", when, own)
    elif when == "half":
        freeze.around(upload.Upload, "write_block", "before", freeze.nth(2, others))
    else:
        freeze.around(
            upload.Upload, "finish", when, lambda self: others(self) and (when == "before" or not self.missing())
        )


def main(words: Sequence[str]) -> int:
    file, point = words
    freeze.shift_clock(server)
    if point:
        name, when, round_ = point.split()
        place_fault(name, when, int(round_))
    try:
        serve.main([str(Path(file)), "-v"], standalone_mode=False)
    except FedhpcError as error:
        print(f"error: {error.what}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0
