"""What the carrier brings of one attempt: messages as files, then the listing that names them."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable

from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.listing import Entry
from fedhpc.transport.spool.client import MOST_MESSAGE_BYTES, comes_along
from fedhpc.transport.spool.folder import SpoolFolder, read_file, write_file
from fedhpc.transport.spool.notes import MOST_NAMES, Listed, Listing, Refusal, to_bytes

MOST_ATTEMPT_BYTES = 1 << 30  # of messages of one attempt; a relay that sends more is taken for dishonest


class ListedAttempt:
    """One attempt as the site is shown it. Thread-safe: a new watcher may come before the last poll has ended."""

    def __init__(self, folder: SpoolFolder, round_: int, attempt: int) -> None:
        self._folder, self.round, self.attempt = folder, round_, attempt
        self._cursor = ""
        self._listing = Listing(secrets.token_hex(4), ())
        self._bytes = 0
        self._lock = threading.Lock()  # never held while the relay is polled

    @property
    def objects(self) -> tuple[Listed, ...]:
        """What the site has been shown."""
        return self._listing.objects

    def bring(self, client: RelayClient, wait_s: float, still: Callable[[], bool]) -> bool:
        """Ask the relay for what is new, at most `wait_s`, and show it to the site; returns whether there was anything.

        `still`: whether it is still wanted when the answer comes. Raises the relay's refusal, PeersError, StorageError;
        the next call then goes on where this one was.
        """
        after = self._cursor
        entries, cursor = client.listing(self._folder.config, self.round, self.attempt, after, wait_s)
        again = cursor.partition(".")[0] != after.partition(".")[0]  # the relay was restarted
        with self._lock:
            return still() and self._take(client, entries, cursor, again=again)

    def _take(self, client: RelayClient, entries: Iterable[Entry], cursor: str, *, again: bool) -> bool:
        before = () if again else self._listing.objects
        known = set(before)
        new: list[Listed] = []
        size = 0 if again else self._bytes
        for entry in entries:
            listed = Listed(entry.name, entry.length, entry.tree.hex())
            if listed in known or len(before) + len(new) >= MOST_NAMES:
                continue
            if comes_along(self._folder.of(self.round, self.attempt, entry.name)):
                size += entry.length
                if entry.length > MOST_MESSAGE_BYTES or size > MOST_ATTEMPT_BYTES or not self._store(client, entry):
                    continue
            known.add(listed)
            new.append(listed)
        if new or again:
            names = {listed.name for listed in new}
            stay = tuple(listed for listed in before if listed.name not in names)
            anew = again or len(stay) < len(before)  # a READY was replaced: the site's cursors count objects
            listing = Listing(secrets.token_hex(4) if anew else self._listing.generation, (*stay, *new))
            if again and listing.objects == self._listing.objects and self._cursor:
                listing = self._listing
            self._show(listing)
        self._cursor, self._bytes = cursor, size
        return bool(new)

    def refuse(self, trial: str, refusal: Refusal) -> None:
        """Show the site that the relay no longer lists this attempt. Raises StorageError."""
        with self._lock:
            self._show(Listing(self._listing.generation, self._listing.objects, trial, refusal))

    def _store(self, client: RelayClient, entry: Entry) -> bool:
        """Bring the message as a file; False if the relay no longer has it."""
        name = self._folder.of(self.round, self.attempt, entry.name)
        path = self._folder.come(name)
        there = read_file(path, MOST_MESSAGE_BYTES)
        if there is not None and self._folder.suite.tree(there) == entry.tree:
            return True
        body = entry.body if entry.body is not None else client.get(name)
        if body is None or self._folder.suite.tree(body) != entry.tree:
            return False  # removed or replaced in between: it is then listed again
        write_file(path, body)
        return True

    def _show(self, listing: Listing) -> None:
        if listing != self._listing or not self._folder.listing(self.round, self.attempt).exists():
            write_file(self._folder.listing(self.round, self.attempt), to_bytes(listing))
        self._listing = listing
