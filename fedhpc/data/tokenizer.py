"""A tokenizer from a local folder, as Hugging Face's `tokenizers` writes it: the file tokenizer.json, and no network.

What the file says of truncation, padding and dropout is left out: they would cut documents short, fill them up, or draw
other tokens each time.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.data.tokens import LARGEST_VOCABULARY, Tokens
from fedhpc.errors import ConfigError, DataError, StorageError
from fedhpc.files import write_whole

FILE = "tokenizer.json"
END = "<|endoftext|>"
_LARGEST_FILE = 256 << 20  # bytes; the largest in use has 34 MB
_KEEPING = ("Split", "Digits", "ByteLevel")  # steps before the model that take texts apart and lose nothing


@dataclass(frozen=True)
class Encoded:
    """A text's tokens, int64 [m]."""

    tokens: Tokens
    lost: str
    """What of the text no token stands for, in words; empty if nothing."""


class Tokenizer:
    """Makes tokens of texts. `sha256` is that of tokenizer.json, by which sites agree on it."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError for a folder without tokenizer.json, DataError for one that cannot be used."""
        path = folder / FILE
        data = _read(folder, path)
        self.path = path
        self.sha256 = hashlib.sha256(data).hexdigest()
        library = _library()
        try:
            said = json.loads(data)
            said |= {"truncation": None, "padding": None}
            said["model"].pop("dropout", None)
            self._tokenizer = library.Tokenizer.from_str(json.dumps(said))
        except BaseException as error:  # the library raises Exception itself, and beyond it where its Rust panics
            told = _told(error)
            raise DataError(
                f"{path} is no tokenizer: {told}", "save_pretrained of a fast tokenizer writes the file that is meant"
            ) from None
        self._tokenizer.encode_special_tokens = True  # a text that says <|endoftext|> ends no document
        self._ids: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        if not self._ids:
            raise DataError(f"{path} has no token", "is it a trained tokenizer?")
        last = max(self._ids, key=self._ids.__getitem__)
        self.vocabulary = self._ids[last] + 1
        if self.vocabulary > LARGEST_VOCABULARY:
            raise DataError(
                f"{path}: token {last!r} has the id {self._ids[last]}",
                f"ids must be below {LARGEST_VOCABULARY}: a model has a row for each",
            )
        self.token_bytes = _token_bytes(said, self._ids, self.vocabulary)
        model = said["model"]
        # Such a model passes over letters that it does not know, and says nothing.
        self._may_lose = (
            model.get("type", "BPE") == "BPE" and not model.get("unk_token") and not model.get("byte_fallback")
        )

    def end_id(self, token: str = END) -> int:
        """The id of the token that ends a document. Raises ConfigError if the vocabulary lacks it."""
        if token not in self._ids:
            special = [t.content for t in self._tokenizer.get_added_tokens_decoder().values() if t.special]
            known = f"; its special tokens: {', '.join(special[:8])}" if special else ""
            raise ConfigError(f"{self.path} has no token {token!r}", f"name one that ends a document with --end{known}")
        return self._ids[token]

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """The tokens of each text, without any that the tokenizer would add.

        Raises DataError if the tokenizer cannot, as one that needs a token for what is unknown and has none.
        """
        exact = self.token_bytes is not None
        encode = self._tokenizer.encode_batch_fast if exact else self._tokenizer.encode_batch  # the latter with offsets
        try:
            found = encode(list(texts), add_special_tokens=False)
        except BaseException as error:  # the library raises Exception itself, and beyond it where its Rust panics
            told = _told(error)
            raise DataError(f"{self.path} cannot make tokens of a text: {told}", "give another tokenizer") from None
        if exact:
            arrays = [np.array(encoding.ids, np.int64) for encoding in found]
            return [Encoded(ids, self._lost_bytes(text, ids)) for text, ids in zip(texts, arrays, strict=True)]
        lost = [_lost_letters(t, e.offsets) if self._may_lose else "" for t, e in zip(texts, found, strict=True)]
        return [Encoded(np.array(e.ids, np.int64), words) for e, words in zip(found, lost, strict=True)]

    def _lost_bytes(self, text: str, ids: Tokens) -> str:
        assert self.token_bytes is not None
        kept, given = int(self.token_bytes[ids].sum(dtype=np.int64)), len(text.encode())
        return "" if kept == given else f"{given - kept} of {given} bytes"


def train_tokenizer(folder: Path, texts: Iterable[str], vocabulary: int = 257) -> Tokenizer:
    """Write FOLDER/tokenizer.json: byte-level BPE of at most `vocabulary` tokens, learnt from `texts`; opened.

    257 tokens are the bytes and the one that ends a document, and learn nothing. A larger tokenizer shows words of its
    texts to whoever gets it: they must be public. Raises ConfigError for a folder that has one, StorageError for I/O.
    """
    if not 257 <= vocabulary <= LARGEST_VOCABULARY:
        raise ConfigError(f"a vocabulary of {vocabulary} is out of range", f"from 257 to {LARGEST_VOCABULARY}")
    path = folder / FILE
    if path.exists():
        raise ConfigError(f"{path} exists", "texts may have been tokenized with it: choose another folder")
    library = _library()
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts if vocabulary > 257 else [], trainer)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, made.to_str(pretty=True).encode())
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}", "check the path and its permissions") from None
    return Tokenizer(folder)


def _told(error: BaseException) -> str:
    """What the library says; a wish to end the program is passed on."""
    if isinstance(error, KeyboardInterrupt | SystemExit):
        raise error
    return " ".join(str(error).split())[:200]


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ConfigError("tokenizers is not installed", "pip install 'fedhpc[text]'") from None
    return tokenizers


def _read(folder: Path, path: Path) -> bytes:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", f"give the folder that holds {FILE}")
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DataError(f"{path} is larger than {_LARGEST_FILE >> 20} MiB", "is it a tokenizer?")
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(
            f"{folder} has no {FILE}",
            "save_pretrained of a fast tokenizer writes it; `fedhpc data new-tokenizer` makes a small one",
        ) from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "check its permissions") from None


def _lost_letters(text: str, offsets: Sequence[tuple[int, int]]) -> str:
    """How many letters and digits of `text` are in none of the ranges `offsets`. Signs may be left out on purpose.

    Which ones cannot be told: the library counts on from token to token, as if the lost ones had not been there.
    """
    left = set(range(len(text))).difference(*(range(start, stop) for start, stop in offsets))
    lost = sum(unicodedata.category(text[at])[0] in "LN" for at in left)
    return f"{lost} letters that the tokenizer does not know" if lost else ""


def _token_bytes(said: dict[str, Any], ids: dict[str, int], vocabulary: int) -> NDArray[np.uint16] | None:
    """uint16 [vocabulary]: the bytes of text that each token stands for, 0 for special ones.

    None where tokens say that of no text: all but byte-level tokenizers that change nothing, of tokens below 64 KiB.
    """
    first = said.get("pre_tokenizer") or {}
    steps = first.get("pretokenizers", []) if first.get("type") == "Sequence" else [first]
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    if (
        said.get("normalizer") is not None
        or len(byte_level) != 1
        or byte_level[0].get("add_prefix_space", True)
        or any(step.get("type") not in _KEEPING or step.get("behavior") == "Removed" for step in steps)
    ):
        return None
    letters = set(_library().pre_tokenizers.ByteLevel.alphabet())  # a letter for each byte
    added = {token["content"]: token for token in said.get("added_tokens", [])}
    if not letters <= ids.keys() or any(t["lstrip"] or t["rstrip"] for t in added.values() if not t["special"]):
        return None
    lengths = np.zeros(vocabulary, np.int64)
    for token, at in ids.items():
        if token not in added:
            lengths[at] = len(token)
        elif not added[token]["special"]:
            lengths[at] = len(token.encode())
    return lengths.astype(np.uint16) if lengths.max() <= np.iinfo(np.uint16).max else None
