"""Sums since the last checkpoint (or `fed.forget()`), and the proofs of the newest models, on the site's disk.

Other sites cannot repeat a sum for one that was killed after it, since they have gone on. So its result is kept, and
given again to the same question: statistics, and training sums where no checkpoint will hold their model (scripts).
All of it was opened to every site in the sum; nothing here is secret to them.

`until` says up to which sum nothing is kept, with S of that sum: a script that starts again begins there.

A second copy lies beside the institution's ledger, so that a site that lost its run directory can repeat what no other
site gives it: all sums before the first model, those of scripts, and the statistics since the newest checkpoint.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from fedhpc.errors import PolicyError, StorageError
from fedhpc.federation.going_on import NONE_FINISHED, Reached
from fedhpc.federation.party import Opened, SumKind, SumPlan
from fedhpc.federation.vector import Vector
from fedhpc.files import private_folder, write_whole
from fedhpc.ledger.file import LOST_LEDGER_HINT
from fedhpc.secure.ledger import OtherVectorError, RoundLedger
from fedhpc.secure.transcript import canon, parse_canon

_T = TypeVar("_T")
_SUM = re.compile(r"round-(\d+)\.(?:sum|skipped)")
_PROOF = re.compile(r"round-(\d+)\.proof")
_UNTIL = "until"
_HEAD_BYTES = 64 << 10
_PROOFS = 3  # of the newest models
BESIDE_BYTES = 256 << 20
"""Most that the copies beside the ledger may take, which often lies under a quota; what is beyond is in RUN only."""


_DAMAGED = (
    "put the run directory back from a backup that is not older than its ledger; or remove it and start again: the "
    "site then catches up with the others, where they have a model"
)


class FinishedSums:
    """The finished sums of one site, in `folder`, with a copy in `beside` its ledger where that is given."""

    def __init__(self, folder: Path, beside: Path | None = None) -> None:
        self._folder = folder
        self._folders = [folder] if beside is None else [folder, beside]
        for each in self._folders:
            private_folder(each)
            try:
                for stale in each.glob(".*"):  # a process died while it wrote
                    stale.unlink()
            except OSError as error:
                raise StorageError(f"cannot use {each}: {error.strerror}") from None
        self._room = BESIDE_BYTES - sum(path.stat().st_size for path in self._folders[-1].iterdir())

    def first(self) -> Reached:
        """Up to where nothing is kept: a program without a checkpoint goes on from there."""
        found, damaged = [NONE_FINISHED], ""
        for folder in self._folders:
            try:
                value = parse_canon((folder / _UNTIL).read_bytes())
                found.append(Reached(int(value["round"]), bytes.fromhex(value["salt"])))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, LookupError, TypeError) as error:
                damaged = damaged or f"{folder / _UNTIL} is damaged: {error}"
        if damaged and len(found) == 1:
            raise StorageError(damaged, _DAMAGED)
        return max(found)

    def last(self) -> Reached:
        """The newest sum that is kept or was skipped, or was until it was erased; and the newest S that counts."""
        first, newest = self.first(), max((number for number, _ in self._files(_SUM)), default=0)
        return first if newest <= first.round_ else Reached(newest, self._salt_at(newest))

    def refuse_lost_ledger(self, ledger: RoundLedger, site: str) -> None:
        """Raise PolicyError if this site has finished sums that are not in its `ledger`: deleted, or an older copy."""
        kept = [number for number, path in self._files(_SUM) if path.suffix == ".sum"]
        first = self.first()
        forgotten = [first.round_] if first.salt and not len(ledger) else []
        lost = sorted([number for number in kept if ledger.entry_of(number) is None] + forgotten)
        if lost:
            raise PolicyError(
                f"the ledger of site {site} does not have round {lost[0]}, and {self._folder} has its sum",
                LOST_LEDGER_HINT,
            )

    def _salt_at(self, round_: int) -> bytes:
        """The newest S that counts, of the sums up to `round_`."""
        first = self.first()
        kept = (n for n, path in self._files(_SUM) if path.suffix == ".sum" and first.round_ < n <= round_)
        for number in sorted(kept, reverse=True):
            salt = self._read(number, lambda file: bytes.fromhex(_head(file)["salt"]))
            if salt:
                return salt
        return first.salt

    def keep(self, plan: SumPlan, opened: Opened, vector: Vector, mark: bytes) -> None:
        """Keep a decoded sum until `erase_until`. `mark`: the fingerprint of this site's own vector."""
        data = vector.whole().data
        head = {
            "base": plan.base.hex(),
            "layout": vector.layout.hash.hex(),
            "mark": mark.hex(),
            "members": list(opened.members),
            "purpose": plan.purpose,
            "salt": "" if plan.skip else opened.salt.hex(),  # some sites may hold a sum that others skipped
            "tree": opened.sum_tree.hex(),
        }
        whole = head | {"sha256": _digest(head, data)}
        self._write(f"round-{plan.round_}.sum", canon(whole) + b"\n", data, beside=True)

    def find(self, plan: SumPlan, vector: Vector, mark: bytes) -> tuple[bytes, tuple[int, ...]] | None:
        """(Tree(X), sites in the sum) if this very sum was opened in this round; `vector` then holds it.

        `mark`: the fingerprint of `vector`. Raises PolicyError if a statistic was summed with another one. An update is
        not compared: it was summed for good, and what was trained anew from the same state need not repeat it here.
        """

        def answer(file: BufferedReader) -> tuple[bytes, tuple[int, ...]] | None:
            head = _head(file)
            said = head.pop("sha256")
            if (head["base"], head["purpose"]) != (plan.base.hex(), plan.purpose):
                return None
            same = plan.kind is SumKind.TRAINING or hmac.compare_digest(head["mark"], mark.hex())
            if head["layout"] != vector.layout.hash.hex() or not same:
                raise OtherVectorError(
                    f"'{plan.purpose}' was summed in round {plan.round_} already, with other numbers of this site",
                    "give a new statistic a new name; the same numbers give the sum that is kept",
                )
            whole = file.readinto(vector.whole().data) == vector.layout.nbytes and not file.read(1)
            if not whole or _digest(head, vector.whole().data) != said:
                raise ValueError("its content does not have its SHA-256")
            return bytes.fromhex(head["tree"]), tuple(head["members"])

        try:
            return self._read(plan.round_, answer)
        except FileNotFoundError:
            return None

    def holds(self, plan: SumPlan) -> bool:
        """Whether a sum of this purpose was finished in this round, whatever this site had put in."""
        try:
            return bool(self._read(plan.round_, _head)["purpose"] == plan.purpose)
        except FileNotFoundError:
            return False

    def keep_skipped(self, plan: SumPlan) -> None:
        """Remember that this site went on without a statistic's sum: another answer later would find it alone."""
        self._write(f"round-{plan.round_}.skipped", plan.purpose.encode(), beside=True)

    def is_skipped(self, plan: SumPlan) -> bool:
        """Whether this site went on without the sum before."""
        for folder in self._folders:
            try:
                return (folder / f"round-{plan.round_}.skipped").read_bytes() == plan.purpose.encode()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StorageError(f"cannot read {folder}: {error.strerror}") from None
        return False

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

    def erase_until(self, round_: int, salt: bytes = b"", *, beside: bool = True) -> None:
        """Remove the sums up to `round_`, whose S is `salt`, after it is written down that this is meant.

        Without `salt`, where this process summed nothing, S is that of the newest one that is kept. `beside`: also the
        copies beside the ledger.
        """
        if round_ > self.first().round_:
            until = canon({"round": round_, "salt": (salt or self._salt_at(round_)).hex()})
            self._write(_UNTIL, until, beside=beside)
        for number, path in self._files(_SUM):
            if number <= round_ and (beside or path.parent == self._folder):
                self._room += path.stat().st_size if path.parent != self._folder else 0
                path.unlink(missing_ok=True)

    def _read(self, round_: int, take: Callable[[BufferedReader], _T]) -> _T:
        """What `take` makes of the file of a sum; of its copy, where there is none or it is damaged.

        Raises FileNotFoundError if there is neither, StorageError if what there is is damaged.
        """
        damaged = ""
        for folder in self._folders:
            try:
                with open(folder / f"round-{round_}.sum", "rb") as file:
                    return take(file)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                damaged = damaged or f"the finished sum of round {round_} in {folder} is damaged: {error}"
        if damaged:
            raise StorageError(damaged, _DAMAGED)
        raise FileNotFoundError

    def _files(self, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
        paths = [path for folder in self._folders for path in folder.iterdir()]
        return [(int(m[1]), path) for path in paths if (m := pattern.fullmatch(path.name))]

    def _write(self, name: str, *data: bytes | memoryview, beside: bool = False) -> None:
        write_whole(self._folder / name, *data, mode=0o600)
        size = sum(len(part) for part in data)
        if beside and len(self._folders) > 1 and size <= self._room:
            write_whole(self._folders[1] / name, *data, mode=0o600)
            self._room -= size


def _head(file: BufferedReader) -> dict[str, Any]:
    head: dict[str, Any] = parse_canon(file.readline(_HEAD_BYTES).rstrip(b"\n"))
    return head


def _digest(head: Mapping[str, Any], data: memoryview) -> str:
    """SHA-256 over what a sum is and its bytes."""
    digest = hashlib.sha256(canon(head))
    digest.update(data)
    return digest.hexdigest()
