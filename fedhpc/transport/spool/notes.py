"""What site and carrier write to each other in a spool directory: small JSON files, checked when they are read.

They hold names, lengths, Trees, and what the relay answered: nothing that the relay does not know. A note of another
form is a ValueError; its reader treats it as not there yet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from fedhpc.errors import FedhpcError, PolicyError
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.wire.object_names import ObjectName

MOST_NAMES = 20_000  # in a listing
MOST_OBJECT_BYTES = 1 << 50
_HEX = re.compile(r"[0-9a-f]{2,64}")
_Note = TypeVar("_Note")


@dataclass(frozen=True)
class Refusal:
    """What the relay answered instead of taking or giving something."""

    status: int  # 0: a PolicyError, whose words stand in `detail`
    kind: str
    detail: str
    hint: str = ""

    @classmethod
    def of(cls, error: RelayProblem | PolicyError) -> Refusal:
        """The form in which the carrier writes it."""
        if isinstance(error, RelayProblem):
            detail = error.what.split("): ", 1)[-1]
            return cls(error.status, error.kind, detail, error.hint)
        return cls(0, "policy", error.what, error.hint)

    def error(self) -> FedhpcError:
        """The error that the site raises: the one it would have met over https."""
        if self.status:
            return RelayProblem(self.status, self.kind, self.detail, self.hint)
        return PolicyError(self.detail, self.hint)


@dataclass(frozen=True)
class PutNote:
    """out/puts/…: an object of the site is there, whole."""

    trial: str  # drawn by each call of put, so that a refusal is known to answer it
    length: int
    tree: str


@dataclass(frozen=True)
class Receipt:
    """in/receipts/…: the relay's answer to an object."""

    trial: str
    tree: str
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Want:
    """out/want/….ID: the site wants an object; `length`: of a sum, 0 for a message of any length."""

    length: int


@dataclass(frozen=True)
class Answer:
    """in/answers/….ID: `length` 0 says that the relay does not have it."""

    length: int
    tree: str = ""
    refusal: Refusal | None = None


@dataclass(frozen=True)
class WatchNote:
    """out/watch/…: the site waits for what comes under an attempt; `trial` is drawn by each start of the site."""

    trial: str


@dataclass(frozen=True)
class Listed:
    """An object of a listing."""

    name: str
    length: int
    tree: str


@dataclass(frozen=True)
class Listing:
    """in/R/A/listing.json: what has come, in order. A new `generation` starts over."""

    generation: str
    objects: tuple[Listed, ...]
    trial: str = ""  # of the WatchNote that the refusal answers
    refusal: Refusal | None = None


@dataclass(frozen=True)
class SiteLife:
    """out/site.json: the site's sign of life."""

    beats: int
    ended: bool = False


@dataclass(frozen=True)
class CarrierLife:
    """in/carrier.json: the carrier's sign of life, and by `carrier` its lease on the directory."""

    carrier: str
    host: str
    pid: int
    place: str  # equal where process numbers mean the same
    beats: int = 0
    moved: int = 0  # grows when the relay answers
    at: str = ""  # UTC, by the carrier's clock
    trouble: str = ""
    ended: bool = False


def to_bytes(note: Any) -> bytes:
    """The note as a file holds it."""
    return json.dumps(asdict(note), ensure_ascii=True).encode() + b"\n"


def read_note(kind: type[_Note], data: bytes | None) -> _Note | None:
    """The note in `data`; None for None and for another form: to its reader, the file is not there yet."""
    if data is None:
        return None
    try:
        return parse_note(kind, data)
    except ValueError:
        return None


def parse_note(kind: type[_Note], data: bytes) -> _Note:
    """The note in `data`. Raises ValueError."""
    try:
        value = json.loads(data)
        found: _Note = _READERS[kind](value)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"the note has another form: {type(error).__name__}") from None
    return found


def _int(value: Any, most: int = 1 << 53) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("not a whole number")
    return value


def _hex(value: Any, empty: bool = False) -> str:
    if not isinstance(value, str) or not (_HEX.fullmatch(value) or (empty and not value)):
        raise ValueError("not lower-case hex digits")
    return value


def _tree(value: Any, empty: bool = False) -> str:
    text = _hex(value, empty)
    if text and len(text) != 64:
        raise ValueError("a Tree has 64 hex digits")
    return text


def _words(value: Any) -> str:
    """One line that is safe for a terminal."""
    if not isinstance(value, str):
        raise ValueError("not text")
    return "".join(c if c.isprintable() else "?" for c in value[:600])


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("neither true nor false")
    return value


def _refusal(value: Any) -> Refusal | None:
    if value is None:
        return None
    return Refusal(_int(value["status"], 999), _words(value["kind"]), _words(value["detail"]), _words(value["hint"]))


def _length(value: Any) -> int:
    return _int(value, MOST_OBJECT_BYTES)


def _listing(v: Mapping[str, Any]) -> Listing:
    objects = v["objects"]
    if not isinstance(objects, list) or len(objects) > MOST_NAMES:
        raise ValueError("too many objects")
    listed = [Listed(_object_name(o["name"]), _length(o["length"]), _tree(o["tree"])) for o in objects]
    if not all(o.length for o in listed):
        raise ValueError("an object has no bytes")
    return Listing(_hex(v["generation"]), tuple(listed), _hex(v["trial"], empty=True), _refusal(v["refusal"]))


def _object_name(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name is text")
    return ObjectName("0" * 64, 0, 0, value).name


def _carrier(v: Mapping[str, Any]) -> CarrierLife:
    return CarrierLife(
        carrier=_hex(v["carrier"]),
        host=_words(v["host"]),
        pid=_int(v["pid"]),
        place=_words(v["place"]),
        beats=_int(v["beats"]),
        moved=_int(v["moved"]),
        at=_words(v["at"]),
        trouble=_words(v["trouble"]),
        ended=_bool(v["ended"]),
    )


_READERS: dict[type, Any] = {
    PutNote: lambda v: PutNote(_hex(v["trial"]), _length(v["length"]), _tree(v["tree"])),
    Receipt: lambda v: Receipt(_hex(v["trial"]), _tree(v["tree"]), _refusal(v["refusal"])),
    Want: lambda v: Want(_length(v["length"])),
    Answer: lambda v: Answer(_length(v["length"]), _tree(v["tree"], empty=True), _refusal(v["refusal"])),
    WatchNote: lambda v: WatchNote(_hex(v["trial"])),
    Listing: _listing,
    SiteLife: lambda v: SiteLife(_int(v["beats"]), _bool(v["ended"])),
    CarrierLife: _carrier,
}
