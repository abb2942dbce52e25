"""Makes a token store of text files: reads documents, ends each with a token of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedhpc.data.tokenizer import END, Tokenizer
from fedhpc.data.tokens import Tokens, write_tokens
from fedhpc.data.written_over import refuse_written_over
from fedhpc.errors import DataError, StorageError

LARGEST_DOCUMENT = 256 << 20  # bytes, which go through the tokenizer at once
_BATCH_DOCUMENTS, _BATCH_LETTERS = 1024, 4 << 20
_MARK = b"\xef\xbb\xbf"  # that some editors put before UTF-8

Unit = Literal["file", "line"]


@dataclass(frozen=True)
class Document:
    """A text, and where it stands."""

    text: str
    where: str


@dataclass(frozen=True)
class Tokenized:
    """What was written."""

    documents: int
    tokens: int


def tokenize(
    texts: Sequence[Path], tokenizer: Tokenizer, out: Path, *, unit: Unit = "file", end: str = END
) -> Tokenized:
    """Write the token store `out` of UTF-8 files, one document each or one in each line.

    Each document ends with the token `end`. Raises ConfigError if the tokenizer lacks that or `out` is one of the files
    that are read, DataError with file and
    line for text that is not UTF-8, empty or lost by the tokenizer, StorageError for I/O.
    """
    refuse_written_over(out, *texts, tokenizer.path)
    end_id = tokenizer.end_id(end)
    documents = itertools.chain.from_iterable(read_documents(path, unit) for path in texts)
    count, tokens = write_tokens(
        out,
        _encoded(documents, tokenizer, end_id),
        vocabulary=tokenizer.vocabulary,
        tokenizer_sha256=tokenizer.sha256,
        token_bytes=tokenizer.token_bytes,
    )
    return Tokenized(count, tokens)


def read_documents(path: Path, unit: Unit) -> Iterator[Document]:
    """The documents of a file: all of it, or each line. Raises DataError, StorageError."""
    try:
        with path.open("rb") as file:
            if unit == "file":
                data = file.read(LARGEST_DOCUMENT + 1)
                yield Document(_decoded(path, 1, data), str(path))
                return
            number = 0
            while line := file.readline(LARGEST_DOCUMENT + 1):
                number += 1
                text = _decoded(path, number, line.removesuffix(b"\n").removesuffix(b"\r"), one_line=True)
                yield Document(text, f"{path}, line {number}")
            if not number:
                raise DataError(f"{path} is empty", "leave it out")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "check the path and its permissions") from None


def _decoded(path: Path, line: int, data: bytes, *, one_line: bool = False) -> str:
    """`data`, which begins in `line` of the file, as text."""
    where = f"{path}, line {line}" if one_line else str(path)
    if len(data) > LARGEST_DOCUMENT:
        raise DataError(
            f"{where}: a document of more than {LARGEST_DOCUMENT >> 20} MiB",
            "cut it into several files, or make a document of each line: --documents line",
        )
    try:
        text = (data.removeprefix(_MARK) if line == 1 else data).decode("utf-8")
    except UnicodeDecodeError as error:
        line += 0 if one_line else data.count(b"\n", 0, error.start)
        raise DataError(
            f"{path}, line {line}: not UTF-8 (byte 0x{error.object[error.start]:02x})",
            "convert it first: iconv -f latin1 -t utf-8",
        ) from None
    if not text.strip():
        raise DataError(f"{where} is empty", "a document has text: leave it out")
    return text


def _encoded(documents: Iterator[Document], tokenizer: Tokenizer, end_id: int) -> Iterator[Tokens]:
    for batch in _batches(documents):
        for document, encoded in zip(batch, tokenizer.encode([d.text for d in batch]), strict=True):
            if encoded.lost:
                raise DataError(
                    f"{document.where}: its tokens leave out {encoded.lost}",
                    f"{tokenizer.path} loses text: give another tokenizer",
                )
            yield np.append(encoded.tokens, end_id)


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Together through the tokenizer's threads, within some memory."""
    batch: list[Document] = []
    letters = 0
    for document in documents:
        batch.append(document)
        letters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or letters >= _BATCH_LETTERS:
            yield batch
            batch, letters = [], 0
    if batch:
        yield batch
