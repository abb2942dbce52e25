"""Reads what a site's half of a spool directory asks for, and clears away what it no longer asks for."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fedhpc.transport.spool.client import KEPT_ROUNDS, comes_along
from fedhpc.transport.spool.folder import (
    ANSWERS,
    MOST_NOTE_BYTES,
    PUTS,
    RECEIPTS,
    WANTS,
    WATCHES,
    SpoolFolder,
    names_in,
    read_attempt_name,
    read_file,
    read_note_name,
    remove,
)
from fedhpc.transport.spool.notes import PutNote, SiteLife, Want, WatchNote, read_note
from fedhpc.wire.object_names import ObjectName

MOST_WATCHED = 16  # attempts at once; a site waits for two or three
_RUNS_S = 60.0  # without a new sign of life a site is not reported to the relay as running


@dataclass(frozen=True)
class Put:
    """An object that the site has written."""

    name: ObjectName
    note: PutNote


@dataclass(frozen=True)
class Wish:
    """An object that the site wants; `note` is the file's name."""

    name: ObjectName
    note: str
    want: Want


@dataclass(frozen=True)
class Watched:
    """An attempt that the site waits for."""

    round: int
    attempt: int
    trial: str


class SiteNotes:
    """Reads the site's half. For one thread, but `runs`."""

    def __init__(self, folder: SpoolFolder) -> None:
        self._folder = folder
        self._life: SiteLife | None = None
        self._changed = time.monotonic()
        self.runs = False
        """Whether the site gave a sign of life lately."""

    def puts(self) -> list[Put]:
        """What the site has written, in the order of rounds."""
        found = []
        for text in names_in(self._folder.out / PUTS):
            note = read_note(PutNote, read_file(self._folder.note(PUTS, text), MOST_NOTE_BYTES))
            name = _object(text, self._folder.config)
            if note is not None and name is not None and note.length:
                found.append(Put(name, note))
        return sorted(found, key=lambda put: (put.name.round, put.name.attempt, put.name.name))

    def wishes(self) -> list[Wish]:
        """What the site wants."""
        found = []
        for text in names_in(self._folder.out / WANTS):
            want = read_note(Want, read_file(self._folder.note(WANTS, text), MOST_NOTE_BYTES))
            name = _object(text.rpartition(".")[0], self._folder.config)
            if want is not None and name is not None:
                found.append(Wish(name, text, want))
        return found

    def watched(self) -> list[Watched]:
        """What the site waits for: the newest MOST_WATCHED attempts."""
        found = []
        for text in names_in(self._folder.out / WATCHES):
            note = read_note(WatchNote, read_file(self._folder.note(WATCHES, text), MOST_NOTE_BYTES))
            try:
                round_, attempt = read_attempt_name(text, self._folder.config)
            except ValueError:
                continue
            if note is not None:
                found.append(Watched(round_, attempt, note.trial))
        return sorted(found, key=lambda w: (w.round, w.attempt))[-MOST_WATCHED:]

    def look_at_the_site(self) -> None:
        """Find out whether the site runs."""
        life = read_note(SiteLife, read_file(self._folder.runs, MOST_NOTE_BYTES))
        if life is not None and life != self._life:
            self._life, self._changed = life, time.monotonic()
        self.runs = life is not None and not life.ended and time.monotonic() - self._changed < _RUNS_S

    def clear(self) -> None:
        """Remove from the carrier's half what no note of the site asks for, and rounds that are long over."""
        folder = self._folder
        wanted = set(names_in(folder.out / WANTS))
        for text in names_in(folder.in_ / ANSWERS):
            if text not in wanted:
                remove(folder.note(ANSWERS, text))
        written = set(names_in(folder.out / PUTS))
        for text in names_in(folder.in_ / RECEIPTS):
            if text not in written:
                remove(folder.note(RECEIPTS, text))
        watched = {(w.round, w.attempt) for w in self.watched()}
        names = [name for text in written if (name := _object(text, folder.config))]
        names += [name for text in wanted if (name := _object(text.rpartition(".")[0], folder.config))]
        asked = watched | {(name.round, name.attempt) for name in names}
        newest = max((round_ for round_, _ in asked), default=0)
        for text in names_in(folder.in_):
            if not text.isdigit():
                continue
            round_ = int(text)
            attempts = names_in(folder.in_ / text)
            if round_ and round_ < newest - KEPT_ROUNDS and not any(r == round_ for r, _ in asked):
                remove(folder.in_ / text)
            elif round_ == 0:
                for attempt in attempts:
                    if attempt != "0" and not any(str(a) == attempt for r, a in asked if r == 0):
                        remove(folder.in_ / text / attempt)
            elif round_ < newest:
                for attempt in attempts:
                    self._clear_sums(round_, attempt)

    def _clear_sums(self, round_: int, attempt: str) -> None:
        """Sums of a round that the site has finished. They are large, and are fetched again if it comes back."""
        for text in names_in(self._folder.in_ / str(round_) / attempt):
            name = _object(f"{round_}.{attempt}.{text}", self._folder.config)
            if name is not None and not comes_along(name):
                remove(self._folder.come(name))


def _object(text: str, config: str) -> ObjectName | None:
    try:
        return read_note_name(text, config)
    except ValueError:
        return None
