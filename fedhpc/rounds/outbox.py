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
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.errors import DataError, InternalError, PolicyError, StorageError
from fedhpc.federation.checkpoint import Tensors
from fedhpc.federation.held_stream import HeldStream, raw
from fedhpc.federation.ranges import Form, Forms, Held
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

    What the leader finds holds for all ranks: on a parallel file system two nodes may disagree for a while. The model
    goes through it in windows.
    """

    def __init__(self, directory: Path, config: bytes, key: bytes, site: Group) -> None:
        """`config`: hash of federation.toml [32]. `key` [32]: of this site and federation alone."""
        self.path = directory / "local.work"
        self._config, self._key, self._site = config, key, site

    @override
    def find(self, state: bytes, held: Held | None = None) -> LocalWork | None:
        """Returns None for work from another state: it is of no use now and is not looked at further."""
        return self._find(state, held)

    def newest(self) -> LocalWork | None:
        """The work that is there, from any state; of a site of several ranks without the model itself."""
        return self._find(None, None)

    @override
    def holds(self, state: bytes) -> bool:
        mine = b"\0"
        if self._site.rank == 0 and self._look(lambda file: self._index(file)[1]["state"] == state.hex()):
            mine = b"\1"
        return self._site.broadcast_bytes(mine if self._site.rank == 0 else None) == b"\1"

    def _find(self, state: bytes | None, held: Held | None) -> LocalWork | None:
        site = self._site
        if site.size == 1:
            return self._look(lambda file: self._read(file, state))
        facts = site.broadcast_bytes(
            (self._look(lambda file: self._facts(file, state)) or b"") if self._leads else None
        )
        if not facts:
            return None
        index = json.loads(facts)
        forms = _forms(index["tensors"])
        tensors = {} if held is None else held.empty()
        if held is not None and held.forms != forms:
            raise DataError(f"{self.path} holds another model than this task builds", "remove it")
        stream = None if held is None else HeldStream(held, list(tensors.items()))
        others = [_empty(index[group]) for group in ("measured", "private")] if self._leads else [{}, {}]
        if self._leads:
            self._look(lambda file: self._receive(file, others, stream, sum(form.nbytes for form in forms.values())))
        elif stream is not None:
            stream.from_leader(_nothing)
        return replace(_work(index, [from_leader(site, others[0]), tensors, others[1]]), held=held, forms=forms)

    @property
    def _leads(self) -> bool:
        return self._site.rank == 0

    def _facts(self, file: BinaryIO, state: bytes | None) -> bytes | None:
        """The index, for the other ranks; None if the work is from another state."""
        _, index = self._index(file)
        return None if state is not None and index["state"] != state.hex() else json.dumps(index).encode()

    def _receive(self, file: BinaryIO, others: list[Tensors], stream: HeldStream | None, nbytes: int) -> None:
        """Read what is measured and private into `others`, and the model [nbytes] into `stream`, if there is one."""
        key, _ = self._index(file)
        left = nbytes + sum(array.nbytes for group in others for array in group.values())
        boxes = _Boxes(file, partial(self._open, key), left)
        for array in others[0].values():
            boxes.fill(raw(array))
        if stream is not None:
            stream.from_leader(lambda start, stop, into: boxes.fill(into))
        else:
            for start in range(0, nbytes, BLOCK_BYTES):
                boxes.fill(np.empty(min(BLOCK_BYTES, nbytes - start), np.uint8))
        for array in others[1].values():
            boxes.fill(raw(array))
        boxes.end()

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
        windows: Iterator[NDArray[np.uint8]] | None = None
        if work.held is not None:
            stream = HeldStream(work.held, [(n, np.ascontiguousarray(a)) for n, a in work.tensors.items()])
            windows = stream.to_leader()
        if self._leads:
            private_folder(self.path.parent)
            write_stream(self.path, self._sealed(work, windows), mode=0o600)
        else:
            for _ in windows or ():
                pass

    @override
    def clear(self) -> None:
        if self._site.rank:
            return
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"cannot remove {self.path}: {error.strerror}", "check permissions") from None

    def _sealed(self, work: LocalWork, windows: Iterator[NDArray[np.uint8]] | None) -> Iterator[bytes]:
        """`windows`: the bytes of the model, where the leader does not hold all of it."""
        salt = secrets.token_bytes(_SALT_BYTES)
        key = derive(salt, self._key, labels.KEY_OUTBOX)
        groups = [{n: np.asarray(a, order="C") for n, a in getattr(work, group).items()} for group in _GROUPS]
        lists = [[[name, a.dtype.str[1:], list(a.shape)] for name, a in arrays.items()] for arrays in groups]
        if work.held is not None:
            lists[1] = [[name, form.dtype.str[1:], list(form.shape)] for name, form in work.held.forms.items()]
        index = json.dumps(_facts(work) | dict(zip(_GROUPS, lists, strict=True))).encode()
        yield _MAGIC + salt + u64(len(index)) + seal(key, 0, self._config, index)
        number, pending = 1, bytearray()
        parts = [_little(groups[0]), _little(groups[1]) if windows is None else windows, _little(groups[2])]
        for view in chain.from_iterable(parts):
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
        groups = [_empty(index[group]) for group in _GROUPS]
        arrays = [array for group in groups for array in group.values()]
        boxes = _Boxes(file, partial(self._open, key), sum(array.nbytes for array in arrays))
        for array in arrays:
            boxes.fill(raw(array))
        boxes.end()
        return _work(index, groups)

    def _open(self, key: bytes, number: int, box: bytes, length: int) -> bytes:
        return unseal(key, number, self._config, box, length, "this site's own")


class _Boxes:
    """The sealed bytes of arrays, opened one after the other."""

    def __init__(self, file: BinaryIO, unseal_: Callable[[int, bytes, int], bytes], left: int) -> None:
        """`unseal_`: (number of the box, box, bytes in it). `left`: bytes in all boxes."""
        self._file, self._unseal, self._left = file, unseal_, left
        self._number, self._pending = 1, memoryview(b"")

    def fill(self, view: NDArray[np.uint8]) -> None:
        """The next bytes. Raises PolicyError for a box that is not whole."""
        at = 0
        while at < view.size:
            if not self._pending:
                size = min(BLOCK_BYTES, self._left)
                self._pending = memoryview(self._unseal(self._number, self._file.read(size + SEAL_BYTES), size))
                self._number, self._left = self._number + 1, self._left - size
            part = self._pending[: view.size - at]
            view[at : at + len(part)] = np.frombuffer(part, dtype=np.uint8)
            at, self._pending = at + len(part), self._pending[len(part) :]

    def end(self) -> None:
        """Raise ValueError unless that was all."""
        if self._pending or self._file.read(1):
            raise ValueError("there are bytes of no array")


def _little(arrays: Tensors) -> Iterator[NDArray[np.uint8]]:
    """The bytes of C-contiguous arrays, as little-endian numbers."""
    for array in arrays.values():
        yield raw(array.astype(array.dtype.newbyteorder("<"), copy=False))


def _nothing(start: int, stop: int, into: NDArray[np.uint8]) -> None:
    raise InternalError("a rank that does not lead has no outbox to read")


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


def _forms(listed: list[Any]) -> Forms:
    """Of the listed tensors."""
    return {name: Form(np.dtype(kind), tuple(shape)) for name, kind, shape in listed}


def outbox_key(ledger_key: bytes, config: bytes) -> bytes:
    """The key of a site's outbox from its ledger's [32]; where nothing is masked (mode `off`) it hides nothing."""
    return derive(config, ledger_key, labels.KEY_OUTBOX)
