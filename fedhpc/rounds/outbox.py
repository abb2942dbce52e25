"""A site's local work of a round on its way to the sum: one sealed file in RUN/SITE/outbox.

A person who can read the file system sees how much was trained and nothing of what: an update before masking is what
the whole protocol hides. The key derives from the site's own key and from a salt of each file, so that no key seals two
blocks with one number.

    magic, salt [32]
    length of the index u64; the index sealed: JSON of what is not arrays, and name, dtype, shape of those
    the arrays' bytes, joined, sealed in blocks of 2^20
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.errors import DataError, PolicyError, StorageError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.files import private_folder, write_stream
from fedhpc.mpi.arrays import from_leader
from fedhpc.mpi.collectives import Group
from fedhpc.rounds.interfaces import LocalResult, LocalWork, Outbox
from fedhpc.secure import labels
from fedhpc.secure.keys import derive
from fedhpc.secure.sealing import SEAL_BYTES, seal, unseal
from fedhpc.secure.transcript import u64

_T = TypeVar("_T")
BLOCK_BYTES = 1 << 20
_MAGIC = b"fedhpc outbox 1\n"
_SALT_BYTES = 32
_MOST_INDEX = 16 << 20
_GROUPS = ("measured", "tensors", "private")
_KINDS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"})


class FileOutbox(Outbox):
    """The outbox of one site. Every rank of the site makes every call; its leader reads and writes.

    What the leader finds holds for all ranks: on a parallel file system two nodes may disagree for a while.
    """

    def __init__(self, directory: Path, config: bytes, key: bytes, site: Group) -> None:
        """`config`: hash of federation.toml [32]. `key` [32]: of this site and federation alone."""
        self.path = directory / "local.work"
        self._config, self._key, self._site = config, key, site

    @override
    def find(self, state: bytes) -> LocalWork | None:
        """Returns None for work from another state: it is of no use now and is not looked at further."""
        return self._find(state)

    def newest(self) -> LocalWork | None:
        """The work that is there, from any state."""
        return self._find(None)

    @override
    def holds(self, state: bytes) -> bool:
        mine = b"\0"
        if self._site.rank == 0 and self._look(lambda file: self._index(file)[1]["state"] == state.hex()):
            mine = b"\1"
        return self._site.broadcast_bytes(mine if self._site.rank == 0 else None) == b"\1"

    def _find(self, state: bytes | None) -> LocalWork | None:
        site = self._site
        work = self._look(lambda file: self._read(file, state)) if site.rank == 0 else None
        if site.size == 1:
            return work
        mine = b"" if work is None else json.dumps(_facts(work)).encode()
        facts = site.broadcast_bytes(mine if site.rank == 0 else None)
        if not facts:
            return None
        return _work(json.loads(facts), [from_leader(site, getattr(work, group, {})) for group in _GROUPS])

    def _look(self, read: Callable[[BinaryIO], _T]) -> _T | None:
        try:
            with open(self.path, "rb") as file:
                return read(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror}", "check the file system") from None
        except (PolicyError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{self.path} is damaged, or of another site or federation: {error}",
                "remove it: the round is trained again",
            ) from None

    @override
    def keep(self, work: LocalWork) -> None:
        if self._site.rank:
            return
        private_folder(self.path.parent)
        write_stream(self.path, self._sealed(work), mode=0o600)

    @override
    def clear(self) -> None:
        if self._site.rank:
            return
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot remove {self.path}: {error.strerror}", "check permissions") from None

    def _sealed(self, work: LocalWork) -> Iterator[bytes]:
        salt = secrets.token_bytes(_SALT_BYTES)
        key = derive(salt, self._key, labels.KEY_OUTBOX)
        groups = [{n: np.asarray(a, order="C") for n, a in getattr(work, group).items()} for group in _GROUPS]
        lists = [[[name, a.dtype.str[1:], list(a.shape)] for name, a in arrays.items()] for arrays in groups]
        index = json.dumps(_facts(work) | dict(zip(_GROUPS, lists, strict=True))).encode()
        yield _MAGIC + salt + u64(len(index)) + seal(key, 0, self._config, index)
        number, pending = 1, bytearray()
        for arrays in groups:
            for array in arrays.values():
                little = array.astype(array.dtype.newbyteorder("<"), copy=False)
                view = little.reshape(-1).view(np.uint8)
                for at in range(0, view.size, BLOCK_BYTES):
                    pending += view[at : at + BLOCK_BYTES].data
                    while len(pending) >= BLOCK_BYTES:
                        yield seal(key, number, self._config, bytes(pending[:BLOCK_BYTES]))
                        del pending[:BLOCK_BYTES]
                        number += 1
        if pending:
            yield seal(key, number, self._config, bytes(pending))

    def _index(self, file: BinaryIO) -> tuple[bytes, dict[str, Any]]:
        """The file's key and index. Raises ValueError or PolicyError for any other file."""
        head = file.read(len(_MAGIC) + _SALT_BYTES + 8)
        if head[: len(_MAGIC)] != _MAGIC or len(head) != len(_MAGIC) + _SALT_BYTES + 8:
            raise ValueError("it does not begin as one")
        key = derive(head[len(_MAGIC) : -8], self._key, labels.KEY_OUTBOX)
        length = int.from_bytes(head[-8:], "little")
        if length > _MOST_INDEX:
            raise ValueError(f"an index of {length} bytes")
        index: dict[str, Any] = json.loads(self._open(key, 0, file.read(length + SEAL_BYTES), length))
        return key, index

    def _read(self, file: BinaryIO, state: bytes | None) -> LocalWork | None:
        key, index = self._index(file)
        if state is not None and bytes.fromhex(index["state"]) != state:
            return None
        arrays = [_empty(index[group]) for group in _GROUPS]
        self._fill(file, key, [a for group in arrays for a in group.values()])
        return _work(index, arrays)

    def _fill(self, file: BinaryIO, key: bytes, arrays: list[NDArray[Any]]) -> None:
        left = sum(a.nbytes for a in arrays)
        number, pending = 1, memoryview(b"")
        for array in arrays:
            view = array.reshape(-1).view(np.uint8)
            at = 0
            while at < view.size:
                if not pending:
                    size = min(BLOCK_BYTES, left)
                    pending = memoryview(self._open(key, number, file.read(size + SEAL_BYTES), size))
                    number, left = number + 1, left - size
                part = pending[: view.size - at]
                view[at : at + len(part)] = np.frombuffer(part, dtype=np.uint8)
                at, pending = at + len(part), pending[len(part) :]
        if pending or file.read(1):
            raise ValueError("there are bytes of no array")

    def _open(self, key: bytes, number: int, box: bytes, length: int) -> bytes:
        return unseal(key, number, self._config, box, length, "this site's own")


def _facts(work: LocalWork) -> dict[str, Any]:
    """All of `work` but its arrays, as JSON holds it."""
    return {
        "state": work.state.hex(),
        "round": work.round_,
        "averaged": sorted(work.averaged),
        "samples": work.result.samples,
        "steps": work.result.steps,
        "loss": float(work.result.loss).hex(),
        "seconds": float(work.result.seconds).hex(),
        "whole": work.result.whole,
    }


def _work(facts: Mapping[str, Any], groups: Sequence[Tensors]) -> LocalWork:
    """What `_facts` and the arrays in the order of `_GROUPS` were taken from."""
    return LocalWork(
        state=bytes.fromhex(facts["state"]),
        round_=int(facts["round"]),
        result=LocalResult(
            int(facts["samples"]),
            int(facts["steps"]),
            float.fromhex(facts["loss"]),
            float.fromhex(facts["seconds"]),
            whole=bool(facts["whole"]),
        ),
        measured=groups[0],
        tensors=groups[1],
        private=groups[2],
        averaged=frozenset(facts["averaged"]),
    )


def _empty(listed: list[Any]) -> Tensors:
    """Arrays of the listed names, dtypes and shapes. The list is authentic: it was sealed by this site."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, kind, shape in listed:
        if kind not in _KINDS:
            raise ValueError(f"an array of {kind}")
        arrays[name] = np.empty(tuple(shape), dtype=np.dtype("<" + kind if kind[1:] != "1" else kind))
    return arrays


def outbox_key(ledger_key: bytes, config: bytes) -> bytes:
    """The key of a site's outbox from its ledger's [32]; where nothing is masked (mode `off`) it hides nothing."""
    return derive(config, ledger_key, labels.KEY_OUTBOX)
