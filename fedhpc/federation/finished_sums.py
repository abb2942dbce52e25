"""Sums since the last checkpoint (or `fed.forget()`), and the proofs of the newest models, on the site's disk.

Other sites cannot repeat a sum for one that was killed after it, since they have gone on. So its result is kept, and
given again to the same question: statistics, and training sums where no checkpoint will hold their model (scripts).
All of it was opened to every site in the sum; nothing here is secret to them.

`until` says up to which sum nothing is kept any more: there a script that starts again begins to count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedhpc.errors import StorageError
from fedhpc.federation.layout import Vector
from fedhpc.federation.party import Opened, SumPlan
from fedhpc.files import private_folder, write_whole
from fedhpc.secure.ring import Layout
from fedhpc.secure.transcript import canon, parse_canon

_SUM = re.compile(r"round-(\d+)\.sum")
_PROOF = re.compile(r"round-(\d+)\.proof")
_UNTIL = "until"
_HEAD_BYTES = 64 << 10
_PROOFS = 3  # of the newest models


class FinishedSums:
    """The finished sums of one site, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        private_folder(folder)
        try:
            for stale in folder.glob(".*"):  # a process died while it wrote
                stale.unlink()
        except OSError as error:
            raise StorageError(f"cannot use {folder}: {error.strerror}") from None

    def first_round(self) -> int:
        """The round up to which nothing is kept: a program without a checkpoint goes on from there."""
        try:
            return int((self._folder / _UNTIL).read_text("ascii"))
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            raise StorageError(
                f"{self._folder / _UNTIL} is damaged: {error}",
                "restore the run directory from a backup that is not older than its ledger",
            ) from None

    def last_round(self) -> int:
        """The newest round whose sum is kept, or was until it was erased; 0 if there was none."""
        return max((number for number, _ in self._files(_SUM)), default=self.first_round())

    def keep(self, plan: SumPlan, layout: Layout, opened: Opened, vector: Vector) -> None:
        """Keep a decoded sum until `erase_until`."""
        data = vector.buffer.data
        head = {
            "base": plan.base.hex(),
            "layout": layout.hash.hex(),
            "members": list(opened.members),
            "purpose": plan.purpose,
            "tree": opened.sum_tree.hex(),
        }
        whole = head | {"sha256": _digest(head, data)}
        self._write(f"round-{plan.round_}.sum", canon(whole) + b"\n", data)

    def find(self, plan: SumPlan, vector: Vector) -> tuple[bytes, tuple[int, ...]] | None:
        """(Tree(X), sites in the sum) if this very sum was opened in this round; `vector` then holds it."""
        try:
            with open(self._folder / f"round-{plan.round_}.sum", "rb") as file:
                head = parse_canon(file.readline(_HEAD_BYTES).rstrip(b"\n"))
                said = head.pop("sha256")
                asked = plan.base.hex(), vector.layout.hash.hex(), plan.purpose
                if (head["base"], head["layout"], head["purpose"]) != asked:
                    return None
                whole = file.readinto(vector.buffer.data) == vector.layout.nbytes and not file.read(1)
                if not whole or _digest(head, vector.buffer.data) != said:
                    raise ValueError("its content does not have its SHA-256")
                return bytes.fromhex(head["tree"]), tuple(head["members"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise StorageError(
                f"the finished sum of round {plan.round_} in {self._folder} is damaged: {error}",
                "restore the run directory from a backup that is not older than its ledger",
            ) from None

    def keep_proof(self, round_: int, proof: tuple[bytes, ...]) -> None:
        """Keep the τ signed results of a training round: what a site that was away needs to believe the model."""
        self._write(f"round-{round_}.proof", b"\n".join(proof))
        for _, path in sorted(self._files(_PROOF))[:-_PROOFS]:
            path.unlink(missing_ok=True)

    def proof(self, round_: int) -> tuple[bytes, ...]:
        """The signed results of a training round; empty if they are not kept."""
        try:
            return tuple((self._folder / f"round-{round_}.proof").read_bytes().split(b"\n"))
        except OSError:
            return ()

    def erase_until(self, round_: int) -> None:
        """Remove the sums of all rounds up to `round_`, after it is written down that this was meant."""
        if round_ > self.first_round():
            self._write(_UNTIL, b"%d" % round_)
        for number, path in self._files(_SUM):
            if number <= round_:
                path.unlink(missing_ok=True)

    def _files(self, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
        return [(int(m[1]), path) for path in self._folder.iterdir() if (m := pattern.fullmatch(path.name))]

    def _write(self, name: str, *data: bytes | memoryview) -> None:
        write_whole(self._folder / name, *data, mode=0o600)


def _digest(head: Mapping[str, Any], data: memoryview) -> str:
    """SHA-256 over what a sum is and its bytes."""
    digest = hashlib.sha256(canon(head))
    digest.update(data)
    return digest.hexdigest()
