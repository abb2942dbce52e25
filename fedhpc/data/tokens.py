"""A site's text on disk, format `fedhpc-tokens/1`: the tokens of its documents, laid end to end in one HDF5 file.

| dataset       | dtype            | shape   | meaning                                                               |
|---------------|------------------|---------|-----------------------------------------------------------------------|
| `tokens`      | uint16 or uint32 | [n]     | chunks of 2^20; uint16 where the vocabulary has at most 2^16 tokens   |
| `documents`   | int64            | [d + 1] | document i is tokens[documents[i] : documents[i + 1]]; none is empty  |
| `token_bytes` | uint16           | [V]     | bytes of text that a token stands for; only of byte-level tokenizers  |

The root attributes are listed in docs/text.md.
"""

from __future__ import annotations

import datetime
import os
import re
from array import array
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from fedhpc.data import hdf5
from fedhpc.data.late_file import LateFile
from fedhpc.errors import DataError

FORMAT = "fedhpc-tokens/1"
CHUNK_TOKENS = 1 << 20
LARGEST_VOCABULARY = 1 << 24  # sixteen times the largest in use; an embedding has a row for each token
_IN_MEMORY_BYTES = 64 << 20  # of tokens; more are read window by window
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "make the file again with `fedhpc data tokenize`"

Tokens = NDArray[np.int64]


def write_tokens(
    path: Path,
    documents: Iterable[Tokens],
    *,
    vocabulary: int,
    tokenizer_sha256: str,
    token_bytes: NDArray[np.uint16] | None = None,
) -> tuple[int, int]:
    """Write `documents`, each integers [m] of 0 … vocabulary - 1, to `path`; the numbers of documents and tokens.

    Atomically and durably, readable by its owner only. `token_bytes` uint16 [vocabulary]. Raises DataError for no
    document, an empty one, and tokens that the vocabulary does not have; StorageError for I/O.
    """
    if not 1 <= vocabulary <= LARGEST_VOCABULARY or not _SHA256.fullmatch(tokenizer_sha256):
        raise DataError(f"vocabulary {vocabulary}, tokenizer {tokenizer_sha256!r}", "see docs/text.md")
    if token_bytes is not None and (token_bytes.dtype != np.uint16 or token_bytes.shape != (vocabulary,)):
        raise DataError(f"token_bytes are {token_bytes.dtype} {token_bytes.shape}", f"expected uint16 [{vocabulary}]")
    hdf5.remove_stale(path.parent, re.escape(path.name))
    with hdf5.new_file(path) as file:
        hdf5.put_text(file, "format", FORMAT)
        hdf5.put_text(file, "tokenizer_sha256", tokenizer_sha256)
        hdf5.put_text(file, "creator", "fedhpc")
        hdf5.put_text(file, "created", datetime.datetime.now(datetime.UTC).date().isoformat())
        file.attrs["vocabulary"] = np.int64(vocabulary)
        dtype = "<u2" if vocabulary <= 1 << 16 else "<u4"
        target = file.create_dataset("tokens", (0,), dtype, maxshape=(None,), chunks=(CHUNK_TOKENS,))
        offsets = _append(target, documents, vocabulary)
        if len(offsets) == 1:
            raise DataError(f"{path} would hold no document", "give at least one text")
        file.create_dataset("documents", data=np.frombuffer(offsets, np.int64).astype("<i8"))
        if token_bytes is not None:
            file.create_dataset("token_bytes", data=token_bytes.astype("<u2"))
    return len(offsets) - 1, offsets[-1]


def _append(target: h5py.Dataset, documents: Iterable[Tokens], vocabulary: int) -> array[int]:
    """Write all documents in blocks of about a chunk; their offsets [d + 1]."""
    offsets, block, waiting = array("q", [0]), [], 0
    for number, tokens in enumerate(documents, start=1):
        if not tokens.size:
            raise DataError(f"document {number} is empty", "leave it out")
        if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:  # a narrowing write would clip them in silence
            raise DataError(f"document {number} has a token outside 0 … {vocabulary - 1}", "is it another tokenizer's?")
        offsets.append(offsets[-1] + tokens.size)
        block.append(tokens.astype(target.dtype))
        waiting += tokens.size
        if waiting >= CHUNK_TOKENS:
            _extend(target, block)
            block, waiting = [], 0
    if block:
        _extend(target, block)
    return offsets


def _extend(target: h5py.Dataset, block: list[NDArray[Any]]) -> None:
    values = np.concatenate(block)
    done = target.shape[0]
    target.resize((done + values.size,))
    target[done:] = values


def holds_tokens(path: Path) -> bool:
    """Whether `path` says that it is a token store, of this format or another. Raises what hdf5.open_file raises."""
    with hdf5.open_file(path) as file:
        try:
            return "format" in file.attrs and "schema_version" not in file.attrs
        except hdf5.DAMAGE:
            return False  # what opens it says what is wrong


class TokenStore:
    """A checked file of tokens. It may be handed to workers of a data loader, forked or spawned."""

    def __init__(
        self,
        file: LateFile,
        vocabulary: int,
        tokenizer_sha256: str,
        offsets: NDArray[np.int64],
        token_bytes: NDArray[np.uint16] | None,
    ) -> None:
        self.path = file.path
        self.vocabulary = vocabulary
        self.tokenizer_sha256 = tokenizer_sha256
        self.offsets = offsets  # int64 [d + 1]
        self.token_bytes = token_bytes  # uint16 [vocabulary], or None
        self._file = file
        self._source: Any = None
        self._pid = 0

    @property
    def n(self) -> int:
        """The number of tokens."""
        return int(self.offsets[-1])

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """The store at `path`, everything about it checked and every token read once.

        Raises DataError that says what is wrong and where; StorageError if the file system fails.
        """
        path = Path(path)
        file = hdf5.open_file(path)
        try:
            late = LateFile(path)
            _require_format(file, path)
            vocabulary = hdf5.get_integer(file, "vocabulary")
            if not 1 <= vocabulary <= LARGEST_VOCABULARY:
                raise DataError(f"{path}: a vocabulary of {vocabulary} tokens cannot be used", _AGAIN)
            tokenizer = hdf5.get_text(file, "tokenizer_sha256", 64)
            if not _SHA256.fullmatch(tokenizer):
                raise DataError(f"{path}: tokenizer_sha256 is not a SHA-256", _AGAIN)
            tokens = hdf5.get_dataset(file, "tokens", ["uint16", "uint32"])
            if tokens.ndim != 1 or not tokens.shape[0]:
                raise DataError(f"{path}: tokens have the shape {tokens.shape}", f"it must be [n], n > 0; {_AGAIN}")
            offsets = _read_offsets(file, path, tokens.shape[0])
            token_bytes = _read_token_bytes(file, path, vocabulary)
            _scan(path, tokens, vocabulary, offsets)
        except hdf5.DAMAGE as error:
            raise DataError(f"{path} is damaged: {' '.join(str(error).split())[:200]}", _AGAIN) from None
        finally:
            file.close()
        return cls(late, vocabulary, tokenizer, offsets, token_bytes)

    def tokens(self, start: int, stop: int) -> NDArray[Any]:
        """uint16 or uint32 [stop - start]: the tokens of a range."""
        try:
            if self._source is None or self._pid != os.getpid():  # no open handle crosses a fork
                self._source, self._pid = self._tokens(), os.getpid()
            return np.asarray(self._source[start:stop])
        except hdf5.DAMAGE as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"cannot read tokens of {self.path}: {reason}", "is the file damaged?") from None

    def __enter__(self) -> TokenStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a later read opens it again."""
        self._source = None
        self._file.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None, "_pid": 0}

    def _tokens(self) -> Any:
        """All tokens, or the dataset where they are many."""
        dataset = self._file.handle()["tokens"]
        if dataset.nbytes <= _IN_MEMORY_BYTES:
            return dataset[:]
        # Without a cache HDF5 reads from a chunk what is asked for, and not all of its 2 or 4 MiB.
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        access.set_chunk_cache(0, 0, 1.0)
        return h5py.Dataset(h5py.h5d.open(self._file.handle().id, b"tokens", access))


def _require_format(file: h5py.File, path: Path) -> None:
    if "schema_version" in file.attrs:
        raise DataError(f"{path} is a store of rows, not of tokens", "`fedhpc data tokenize` makes one from texts")
    found = hdf5.get_text(file, "format", 64)
    if found != FORMAT:
        raise DataError(f"{path} has the format {found!r}, not {FORMAT!r}", _AGAIN)


def _read_offsets(file: h5py.File, path: Path, n: int) -> NDArray[np.int64]:
    dataset = hdf5.get_dataset(file, "documents", ["int64"])
    if dataset.ndim != 1 or not 2 <= dataset.shape[0] <= n + 1:
        hint = f"it must be [d + 1], with 1 to {n} documents; {_AGAIN}"
        raise DataError(f"{path}: documents have the shape {dataset.shape}", hint)
    offsets = np.asarray(dataset[:], np.int64)
    if offsets[0] != 0 or offsets[-1] != n:
        raise DataError(f"{path}: documents go from {offsets[0]} to {offsets[-1]}, tokens from 0 to {n}", _AGAIN)
    wrong = np.flatnonzero(offsets[1:] <= offsets[:-1])
    if wrong.size:
        at = int(wrong[0])
        raise DataError(f"{path}: document {at} goes from token {offsets[at]} to {offsets[at + 1]}", _AGAIN)
    return offsets


def _read_token_bytes(file: h5py.File, path: Path, vocabulary: int) -> NDArray[np.uint16] | None:
    if "token_bytes" not in file:
        return None
    dataset = hdf5.get_dataset(file, "token_bytes", ["uint16"])
    if dataset.shape != (vocabulary,):
        raise DataError(f"{path}: token_bytes have the shape {dataset.shape}, not [{vocabulary}]", _AGAIN)
    return np.asarray(dataset[:], np.uint16)


def _scan(path: Path, tokens: h5py.Dataset, vocabulary: int, offsets: NDArray[np.int64]) -> None:
    """Here, and not in the assertion of a GPU, a token that the vocabulary lacks has a file and a position."""
    if vocabulary > np.iinfo(tokens.dtype).max:
        return
    for start in range(0, tokens.shape[0], CHUNK_TOKENS):
        wrong = np.flatnonzero(tokens[start : start + CHUNK_TOKENS] >= vocabulary)
        if wrong.size:
            at = start + int(wrong[0])
            document = int(np.searchsorted(offsets, at, side="right")) - 1
            raise DataError(
                f"{path}: token {tokens[at]} at position {at} (document {document}) is outside the vocabulary of "
                f"{vocabulary}",
                _AGAIN,
            )
