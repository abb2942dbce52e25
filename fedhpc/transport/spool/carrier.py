"""The carrier of a spool directory: on a machine with a route it moves a site's objects to the relay and back.

It has the site's TLS key and no other: it cannot sign, and what it carries is masked, sealed or public to the relay. It
can be killed at any moment: everything it does can be repeated, and its results are in files.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor

from fedhpc.errors import FedhpcError, PeersError, PolicyError, StorageError
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.link_problems import NoWayError, RelayProblem
from fedhpc.transport.spool.carrier_lease import BEAT_S, STALE_S, Lease
from fedhpc.transport.spool.carrier_listing import ListedAttempt
from fedhpc.transport.spool.carrier_notes import Put, SiteNotes, Watched, Wish
from fedhpc.transport.spool.carrier_tasks import Tasks, is_refusal
from fedhpc.transport.spool.folder import MOST_NOTE_BYTES, PUTS, SpoolFolder, names_in, read_file, remove, write_file
from fedhpc.transport.spool.notes import PutNote, Refusal, read_note
from fedhpc.wire import kinds
from fedhpc.wire.object_names import BLOCK_BYTES

_POLL_S = 20.0  # of one long poll
_FIRST_S, _LONGEST_S = 0.02, 0.5  # between looks at the site's half
_STANDING_S, _QUIET_STANDING_S = 2.0, 15.0
_AGAIN_S = 3.0  # after something failed
_CLEAR_S = 30.0
_HEED_S = 0.1  # between looks whether a signal came
_TELL_S = 60.0  # between two equal complaints
_MESSAGES, _VECTORS = 8, 2  # carried at once

_Key = tuple[str, str, str]


class Carrier:
    """Carries one site's spool directory."""

    def __init__(self, folder: SpoolFolder, client: RelayClient, say: Callable[[str], None]) -> None:
        """`say`: prints for people."""
        folder.require()
        self._folder, self._client, self._say = folder, client, say
        self.stopping = threading.Event()
        self._stop_asked = False
        self._tasks, self._notes = Tasks(folder, client), SiteNotes(folder)
        self._lease = Lease(folder, self._moved)
        self._lock = threading.Lock()  # for what threads share: all containers below, and `carried`
        self._under_way: set[_Key] = set()
        self._done: set[_Key] = set()
        self._not_before: dict[_Key, float] = {}
        self._watchers: dict[tuple[int, int], str] = {}
        self._listed: dict[tuple[int, int], ListedAttempt] = {}
        self._trouble, self._told = "", 0.0
        self._goes_on = True  # after a trouble, which is then reported; a single pass ends with it
        self._fatal: BaseException | None = None
        self._messages = ThreadPoolExecutor(_MESSAGES, "carry message")
        self._vectors = ThreadPoolExecutor(_VECTORS, "carry vector")
        self.carried = 0
        """Objects that were moved, either way."""

    def once(self, stale_s: float = STALE_S) -> None:
        """Carry what there is to carry now, and end. Raises what stands in the way."""
        self._goes_on = False
        self._begin(stale_s)
        try:
            before = -1
            while before < self.carried:
                before = self.carried
                self._notes.look_at_the_site()
                for future in self._start_all():
                    future.result()
                for watched in self._notes.watched() if self._notes.runs else ():
                    self._bring(watched, 0.0, lambda: True)
            self._stand(quiet=not self._notes.runs)
            self._notes.clear()
        except (PeersError, CancelledError):
            if self._fatal is not None:
                raise self._fatal from None
            if not self.stopping.is_set():
                raise
        finally:
            self._end()

    def watch(self, stale_s: float = STALE_S) -> None:
        """Carry until `stopping` is set. Failures of network and disks are reported and tried again."""
        self._begin(stale_s)
        try:
            threading.Thread(target=self._keep_standing, name="standing", daemon=True).start()
            pause, cleared = _FIRST_S, time.monotonic()
            while not self.stopping.wait(pause):
                before = self.carried
                try:
                    self._notes.look_at_the_site()
                    started = self._start_all()
                    self._start_watchers()
                    if time.monotonic() > cleared + _CLEAR_S:
                        cleared = time.monotonic()
                        self._notes.clear()
                except StorageError as error:
                    self._complain(error)
                    self.stopping.wait(_AGAIN_S)
                    continue
                pause = _FIRST_S if started or self.carried > before else min(1.5 * pause, _LONGEST_S)
            if self._fatal is not None:
                raise self._fatal
        finally:
            self._end()

    # --- start and end

    def stop(self) -> None:
        """End in a moment; safe in a signal handler, which may take no lock: setting an Event takes one."""
        self._stop_asked = True

    def _heed_stop(self) -> None:
        while not self.stopping.wait(_HEED_S):
            if self._stop_asked:
                self.stopping.set()

    def _begin(self, stale_s: float) -> None:
        threading.Thread(target=self._heed_stop, name="stop", daemon=True).start()
        try:
            self._take_place(stale_s)
        except BaseException:
            self.stopping.set()
            raise
        threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True).start()

    def _take_place(self, stale_s: float) -> None:
        for name in names_in(self._folder.spool):
            if len(name) == 64 and name != self._folder.config:
                self._say(f"not carried: {name[:16]}… in {self._folder.spool} belongs to another federation.toml")
        self._lease.take(self._say, self.stopping, stale_s)

    def _end(self) -> None:
        self.stopping.set()
        self._client.close()
        self._messages.shutdown(cancel_futures=True)
        self._vectors.shutdown(cancel_futures=True)
        self._lease.end()

    def _keep_beating(self) -> None:
        while not self.stopping.wait(BEAT_S):
            try:
                self._lease.beat(self._trouble)
            except StorageError as error:
                self._complain(error)
            except PeersError as error:
                self._fail(error)
        self._client.close()

    def _moved(self) -> int:
        """Grows with every answer of the relay, and with every block of a transfer."""
        traffic = self._client.traffic
        return traffic.bytes_up + traffic.bytes_down + int(traffic.waited_s * 1e6)

    # --- single objects

    def _start_all(self) -> list[Future[None]]:
        """Start everything that the site's notes ask for and that is not under way."""
        started = []
        asked: set[_Key] = set()
        for put in self._notes.puts():
            key = ("put", str(put.name), put.note.trial)
            asked.add(key)
            started.append(self._start(key, lambda put=put: self._send(put), put.note.length))  # type: ignore[misc]
        for wish in self._notes.wishes():
            key = ("want", wish.note, "")
            asked.add(key)
            started.append(self._start(key, lambda wish=wish: self._fetch(wish), wish.want.length))  # type: ignore[misc]
        self._forget_all_but(asked)
        return [future for future in started if future is not None]

    def _forget_all_but(self, asked: set[_Key]) -> None:
        """Forget what no note asks for; sums are kept, since they are brought unasked."""
        with self._lock:
            self._done = {key for key in self._done if key in asked or key[0] == "sum"}
            now = time.monotonic()
            self._not_before = {key: at for key, at in self._not_before.items() if at > now}

    def _start(self, key: _Key, act: Callable[[], bool], length: int) -> Future[None] | None:
        with self._lock:
            late = self._not_before.get(key, 0.0) > time.monotonic()
            if key in self._under_way or key in self._done or late or self.stopping.is_set():
                return None
            self._under_way.add(key)

        def run() -> None:
            try:
                if act():
                    with self._lock:
                        self._done.add(key)
                    self._trouble = ""
                else:
                    self._pause(key, _LONGEST_S)
            except (PeersError, StorageError) as error:
                self._pause(key, _AGAIN_S)
                self._complain(error)
                raise
            except BaseException as error:
                self._fail(error)
                raise
            finally:
                with self._lock:
                    self._under_way.discard(key)

        return (self._vectors if length > BLOCK_BYTES else self._messages).submit(run)

    def _pause(self, key: _Key, seconds: float) -> None:
        with self._lock:
            self._not_before[key] = time.monotonic() + seconds

    def _count(self, moved: bool = True) -> None:
        with self._lock:
            self.carried += moved

    def _send(self, put: Put) -> bool:
        if Tasks.is_sent(self._folder, put.name, put.note):
            return True
        if not self._tasks.send(put.name, put.note):
            return False
        self._count()
        return True

    def _fetch(self, wish: Wish) -> bool:
        self._tasks.fetch(wish.name, wish.note, wish.want)
        self._count()
        return True

    # --- attempts

    def _start_watchers(self) -> None:
        """A thread for each attempt that the site waits for."""
        asked = {(w.round, w.attempt): w for w in self._notes.watched()}
        with self._lock:
            new = [watched for place, watched in asked.items() if self._watchers.get(place) != watched.trial]
            self._watchers = {place: watched.trial for place, watched in asked.items()}  # others end after this poll
            self._listed = {place: listed for place, listed in self._listed.items() if place in asked}
        for watched in new:
            threading.Thread(target=self._keep_watching, args=(watched,), name="watch", daemon=True).start()

    def _keep_watching(self, watched: Watched) -> None:
        def still() -> bool:
            with self._lock:
                asked = self._watchers.get((watched.round, watched.attempt)) == watched.trial
            return asked and not self.stopping.is_set()

        while still():
            if not self._notes.runs:  # the relay takes a poll for a sign that the site runs
                self.stopping.wait(_LONGEST_S)
                continue
            try:
                if not self._bring(watched, _POLL_S, still):
                    return
            except (PeersError, StorageError) as error:
                if still():
                    self._complain(error)
                self.stopping.wait(_AGAIN_S)
            except BaseException as error:
                self._fail(error)
                return

    def _bring(self, watched: Watched, wait_s: float, still: Callable[[], bool]) -> bool:
        """Bring what is new of an attempt, and its sum; False if the relay refuses to list it."""
        place = watched.round, watched.attempt
        with self._lock:
            listed = self._listed.setdefault(place, ListedAttempt(self._folder, *place))
        try:
            self._count(listed.bring(self._client, wait_s, still))
        except (RelayProblem, PolicyError) as error:
            if not is_refusal(error):
                raise
            listed.refuse(watched.trial, Refusal.of(error))
            return False
        for found in listed.objects:
            if found.name == "Y" and found.length == self._own_length(*place):
                name = self._folder.of(*place, found.name)
                bring = lambda n=name, f=found: self._tasks.bring(n, f.length, f.tree)  # noqa: E731
                future = self._start(("sum", str(name), found.tree), bring, found.length)
                if future is not None and not wait_s:
                    future.result()
        return True

    def _own_length(self, round_: int, attempt: int) -> int:
        """The bytes of this site's vector in an attempt: what its sum must have to be worth bringing unasked."""
        path = self._folder.note(PUTS, f"{round_}.{attempt}.{kinds.M3V.name}.{self._folder.site}")
        note = read_note(PutNote, read_file(path, MOST_NOTE_BYTES))
        return 0 if note is None else note.length

    # --- where the federation stands

    def _keep_standing(self) -> None:
        asked = 0.0
        while not self.stopping.wait(0.2):
            now = time.monotonic()
            if now - asked < (_STANDING_S if self._notes.runs else _QUIET_STANDING_S):
                continue
            asked = now
            try:
                self._stand(quiet=not self._notes.runs)
            except (PeersError, StorageError) as error:
                if not self.stopping.is_set():
                    self._complain(error)
            except BaseException as error:
                self._fail(error)

    def _stand(self, *, quiet: bool) -> None:
        """Bring the state of the federation. `quiet`: this is not a sign that the site runs."""
        path = f"/v1/federations/{self._folder.config}" + ("?quiet" if quiet else "")
        try:
            found = self._client.get_json(path)
        except (RelayProblem, PolicyError) as error:
            if not is_refusal(error):
                raise
            remove(self._folder.standing)
            raise PeersError(error.what, error.hint) from None
        write_file(self._folder.standing, json.dumps(found).encode())
        self._trouble = ""

    # --- troubles

    def _complain(self, error: FedhpcError) -> None:
        """Tell people, and with the next sign of life the site."""
        if self.stopping.is_set():
            return
        if isinstance(error, NoWayError) and not self._client.met:
            self._fail(error)  # a wrong address shows at the start, not after days
            return
        now = time.monotonic()
        if self._goes_on and (error.what != self._trouble or now - self._told > _TELL_S):
            self._told = now
            self._say(error.what + (f" ({error.hint})" if error.hint else ""))
        self._trouble = error.what

    def _fail(self, error: BaseException) -> None:
        """End with this error."""
        if self._fatal is None and not self.stopping.is_set():
            self._fatal = error
        self.stopping.set()
