"""One round over the relay at a site's leader: ready, attempts until one opens the sum, τ signatures over its result.

The protocol itself is secure/attempt.py; here are its messages' ways, the waiting, and what happens when the relay
has gone on without this site. Everything the relay says is a hint, or is checked there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from fedhpc.errors import PeersError, PolicyError
from fedhpc.federation.party import Party, RoundOverError, SumPlan
from fedhpc.federation.vector import Vector
from fedhpc.secure import labels, messages
from fedhpc.secure.attempt import Expected, SiteAttempt
from fedhpc.secure.attempt_file import AttemptSecrets
from fedhpc.secure.ledger import Mark
from fedhpc.secure.opening import Opening
from fedhpc.secure.results import RoundResults, Settled
from fedhpc.secure.tag import Tag
from fedhpc.secure.thresholds import Thresholds
from fedhpc.secure.transcript import parse_canon
from fedhpc.sums.over_relay.acceptable_bases import KnownStates
from fedhpc.sums.over_relay.attempt_store import AttemptFiles
from fedhpc.sums.over_relay.exchange import RelayExchange, TooLateError, Watch, too_late
from fedhpc.sums.over_relay.lobby import Lobby, explain_lost_sum
from fedhpc.sums.over_relay.orders import Answer, Hide, Open, Upload, silent_without_keys
from fedhpc.sums.over_relay.skip import DoWithoutError, Skip
from fedhpc.sums.over_relay.waiting import late_sites, wait_telling
from fedhpc.transport.transport import Transport
from fedhpc.wire.object_names import ObjectName

_log = logging.getLogger("fedhpc.federation")
_T = TypeVar("_T")


class _GivenUp(Exception):  # noqa: N818 - the attempt's end, not an error
    """The relay has given the attempt up."""


class _LeftOut(Exception):  # noqa: N818
    """A set was closed without this site."""


@dataclass(frozen=True)
class _Going:
    """An attempt that this site is in."""

    number: int
    watch: Watch
    site: SiteAttempt
    stored: AttemptSecrets | None  # of the attempt file, if this site has been in it before
    own: Expected


class RelayedRound:
    """The leader's way through one round."""

    def __init__(
        self,
        party: Party,
        exchange: RelayExchange,
        files: AttemptFiles,
        thresholds: Thresholds,
        plan: SumPlan,
        vector: Vector,
        mark: Mark,
    ) -> None:
        """`mark`: what the ledger remembers of this site's vector."""
        self._party, self._exchange, self._files, self._thresholds = party, exchange, files, thresholds
        self._plan, self.vector, self.layout, self.mark = plan, vector, vector.layout, mark
        self._skip = Skip(party, exchange, files, thresholds, plan)
        self._settling: _Going | None = None  # the attempt whose sum is open
        self._first: Watch | None = None  # of attempt 1, asked for before it was proposed
        self._waited_s = 0.0
        self._turns_before = exchange.turns
        cohort = party.agreement.cohort
        # The relay closes sets by its own deadlines; a site waits a little longer than the longest of them.
        self._attempt_s = cohort.upload_s + 4 * cohort.answer_s + 60.0

    def run(self, hide: Hide, open_: Open, states: KnownStates) -> Answer:
        """Until a sum is opened. `states`: those that an update may start from.

        Raises RoundOverError if the round ended without this site or the sites do without its sum, PolicyError for
        whatever the protocol refuses, PeersError where nobody goes on.
        """
        with self._ends_with_the_round():
            try:
                if self._plan.absent:
                    raise DoWithoutError
                return self._run(hide, open_, states)
            except DoWithoutError:
                self._skip.abandon(self.mark)
                raise RoundOverError(self._plan.round_, f"the sites do without '{self._plan.purpose}'") from None

    def _run(self, hide: Hide, open_: Open, states: KnownStates) -> Answer:
        plan, shapes = self._plan, tuple((bits, lanes) for bits, lanes in self.layout.shapes())
        bases = states.bases(plan)
        config = self._party.agreement.hash
        layout = self.layout.hash_under(plan.layout_key)
        own = Expected(config, layout, plan.purpose, plan.round_, plan.state, shapes, plan.base, bases)
        lobby = Lobby(self._party, self._exchange, plan, self.layout, self._skip)
        stored = self._files.load(plan.round_)
        if stored is None:
            self._first = self._exchange.watch(plan.round_, 1)
            self._first.ahead("M0")
        lobby.be_ready(ahead=stored is None)
        number = lobby.next_attempt(0)  # also after a restart: the attempt of the file may have been given up
        while True:
            try:
                return self._go_through(number, own, states, hide, open_)
            except _GivenUp:
                _log.info("round %d: attempt %d was given up", plan.round_, number)
            except (_LeftOut, TooLateError) as left:
                if isinstance(left, TooLateError) and left.kind == "round-over":
                    raise
                _log.info("round %d: attempt %d goes on without this site: %s", plan.round_, number, left)
                if isinstance(left, TooLateError) and left.kind == "other-bytes":
                    lobby.come_back(number)
            number = lobby.next_attempt(number)

    def settle(self, sum_tree: bytes, state: bytes) -> tuple[bytes, ...]:
        """Send M6 and wait until τ sites stand behind one next state; their messages.

        Raises PolicyError if it is not this site's own state, RoundOverError if the others have gone on long since.
        """
        going = self._settling
        assert going is not None
        with self._ends_with_the_round():
            try:
                settled = self._settled(going, sum_tree, state)
            except DoWithoutError:  # τ others do without: this site keeps what it holds
                settled = self._skip.abandon(self.mark)
        if settled.state != state:
            raise PolicyError(
                f"{self._thresholds.threshold} sites have another state after round {self._plan.round_} than this one",
                "its memory, NumPy or software differs; the round is not applied",
            )
        going.site.forget()
        return settled.proof

    def _settled(self, going: _Going, sum_tree: bytes, state: bytes) -> Settled:
        watch = going.watch
        mine = going.site.result(state, sum_tree)
        self._put(going, labels.SIGN_RESULT, mine, labels.SIGN_RESULT, self._thresholds.threshold)
        results = RoundResults(self._party.members, self._thresholds, self._plan.state)
        results.receive(mine)
        seen = {self._party.number}
        while (settled := results.settled()) is None:
            need = self._thresholds.threshold
            try:
                self._wait(watch, lambda w: bool(set(w.sites(labels.SIGN_RESULT)) - seen), self._attempt_s, "M6", need)
            except _GivenUp:
                if self._skip.allowed:
                    raise DoWithoutError from None
                raise PeersError(
                    f"round {self._plan.round_}: the attempt was given up after this site opened its sum",
                    "start this site again: it goes on with the next attempt over the same sites",
                ) from None
            new = set(watch.sites(labels.SIGN_RESULT)) - seen
            for u, message in watch.messages(labels.SIGN_RESULT, sorted(new)).items():
                seen.add(u)
                try:
                    results.receive(message)
                except PolicyError as error:
                    _log.warning("round %d: %s", self._plan.round_, error.what)
        return settled

    # --- one attempt

    def _go_through(self, number: int, own: Expected, states: KnownStates, hide: Hide, open_: Open) -> Answer:
        """One attempt, from M0 to X."""
        going = self._enter(number, own, states)
        self._agree_on_keys(going)
        self._send_vector(going, hide)
        uploaded = self._exchange.turns
        u3 = self._agree_on_set(going)
        opening = self._answer(going, u3)
        exposed = self._exchange.turns - uploaded
        fetched = open_(number, opening.streams, opening.tag_key)
        if fetched is None:
            explain_lost_sum(self._exchange, self._plan.round_, number)
        going.site.check_sum(fetched.hidden_tree, fetched.tag)
        for fault in going.site.faults:
            _log.warning("round %d: %s", self._plan.round_, fault)
        self._settling = going
        turns = self._exchange.turns - self._turns_before + 2
        return Answer(fetched.plain_tree, u3, self._waited_s, turns, exposed)

    def _enter(self, number: int, own: Expected, states: KnownStates) -> _Going:
        """M0: whether this site takes part, and with what it begins or goes on."""
        plan, me = self._plan, self._party.number
        watch = self._first if self._first and number == 1 else self._exchange.watch(plan.round_, number)
        self._first = None
        self._wait(watch, lambda w: "M0" in w, self._attempt_s, "M0")
        m0 = watch.body("M0")
        proposed = messages.read_proposal(m0, self._thresholds.sites)
        if me not in [u for u, _ in proposed.cohort]:
            raise _LeftOut("not in the cohort")
        own, unknown = states.widened(own, proposed, plan)
        if unknown:
            strange = [self._party.agreement.names[u - 1] for u, base in proposed.cohort if base in unknown]
            raise _LeftOut(f"site {', '.join(strange)} began from a model that is unknown here or too old")
        stored = self._files.load(plan.round_)
        if stored is not None and stored.m0 != m0:
            stored = None
        if stored is None and "NEXT" in watch:  # not after a message: LEAVE would be taken for the next attempt
            raise _GivenUp
        assert self._party.identity is not None
        site = SiteAttempt(
            me,
            self._party.identity,
            self._party.members,
            self._thresholds,
            self._files.disk(plan.round_, self.mark, resumed=stored is not None),
            degree=self._party.agreement.secure.degree,
            stored=stored,
        )
        return _Going(number, watch, site, stored, own)

    def _put(self, going: _Going, kind: str, message: bytes, awaited: str, count: int = 1) -> None:
        going.watch.ahead(awaited, count)  # before the message: both cost one round trip then
        self._exchange.put(self._plan.round_, going.number, kind, message)

    def _agree_on_keys(self, going: _Going) -> None:
        """M1 and M2: keys, then shares, of the sites that the relay counts."""
        watch, site = going.watch, going.site
        with silent_without_keys():
            self._put(going, labels.SIGN_KEYS, site.receive_proposal(watch.body("M0"), going.own), "U1")
        m2 = site.receive_keys(self._set(watch, "U1", labels.SIGN_KEYS))
        self._put(going, labels.SIGN_SHARES, m2, "U2")
        site.receive_shares(self._set(watch, "U2", labels.SIGN_SHARES))

    def _send_vector(self, going: _Going, hide: Hide) -> None:
        """M3 and the vector; what was sent before a restart is not sent again, and is not kept once it was added."""
        watch, site, stored = going.watch, going.site, going.stored
        masks = site.begin_masking(self.mark.fingerprint)
        before = None if stored is None else stored.sent.get(labels.SIGN_MASKED)
        if before is not None and "M4r" not in watch and self._has_blocks(going.number):
            self._put(going, labels.SIGN_MASKED, before, "M4r")
            tree = messages.read_masked(parse_canon(before)["body"], self._party.name).vector
            self._finish(Upload(self._vector_name(going.number), tree, Tag()))
        elif before is None or "M4r" not in watch:
            upload = hide(going.number, masks.streams, masks.tag_key, stored is not None)
            if upload is None and before is None:
                raise _LeftOut("its vector came too late")
            if upload is not None:
                m3 = site.masked(upload.tree, upload.tag)
                with ThreadPoolExecutor(1) as pool:
                    finished = pool.submit(self._finish, upload)
                    self._put(going, labels.SIGN_MASKED, m3, "M4r")
                    finished.result()

    def _agree_on_set(self, going: _Going) -> tuple[int, ...]:
        """M4: the set and the sum that are about to be opened; U3."""
        watch, plan, number = going.watch, self._plan, going.number
        self._wait(watch, lambda w: "M4r" in w, self._attempt_s, "M4r")
        m4r = watch.body("M4r")
        u3 = messages.read_survivors(m4r, self._thresholds.sites).u3
        if self._party.number not in u3:
            raise _LeftOut("its vector is not in the sum")
        if plan.everyone and len(u3) < len(self._party.members):
            raise PolicyError(f"the sum '{plan.purpose}' needs every site, and the relay offers it over {len(u3)}")
        self._wait(watch, lambda w: set(u3) <= set(w.sites(labels.SIGN_MASKED)), self._attempt_s, "M3", len(u3))
        try:
            m4 = going.site.receive_survivors(m4r, watch.messages(labels.SIGN_MASKED, u3))
        except PolicyError as refused:
            # The attempt file brings a site that starts again back to an attempt that it has refused. Once that was
            # given up, the next one may be over the set that this site is bound to.
            if going.stored is None or "NEXT" not in watch:
                raise
            _log.warning("round %d: attempt %d, given up, is refused: %s", plan.round_, number, refused.what)
            raise _GivenUp from None
        self._put(going, labels.SIGN_SURVIVORS, m4, labels.SIGN_SURVIVORS, self._answers(u3))
        return u3

    def _answer(self, going: _Going, u3: tuple[int, ...]) -> Opening:
        """M5: τ signatures, then this site's shares; then τ sites' shares open the sum."""
        watch, site = going.watch, going.site
        m5 = self._enough(watch, labels.SIGN_SURVIVORS, site.receive_signatures, u3)
        self._put(going, labels.SIGN_UNMASK, m5, labels.SIGN_UNMASK, self._answers(u3))
        opening = self._enough(watch, labels.SIGN_UNMASK, site.receive_answers, u3)
        if "NEXT" in watch:  # it came before enough answers did: the sum goes, and this vector is needed again
            raise _GivenUp
        return opening

    def _answers(self, u3: tuple[int, ...]) -> int:
        """How many M4 or M5 to wait for, this site's own among them."""
        return min(self._thresholds.threshold, len(u3))

    def _set(self, watch: Watch, name: str, kind: str) -> dict[int, bytes]:
        """The messages of a set of the relay's. Raises _LeftOut if this site is not in it."""
        self._wait(watch, lambda w: name in w, self._attempt_s, name)
        sites = messages.read_sites(watch.body(name), self._thresholds.sites, name)
        if self._party.number not in sites:
            raise _LeftOut(f"not in {name}")
        self._wait(watch, lambda w: set(sites) <= set(w.sites(kind)), self._attempt_s, kind, len(sites))
        return watch.messages(kind, sites)

    def _enough(self, watch: Watch, kind: str, take: Callable[[dict[int, bytes]], _T], u3: tuple[int, ...]) -> _T:
        """What `take` gives once enough sites of U3 have sent `kind`."""
        others = [u for u in u3 if u != self._party.number]
        need = min(self._thresholds.threshold - 1, len(others))
        while True:
            self._wait(watch, partial(_have, kind, others, need), self._attempt_s, kind, need + 1)
            have = [u for u in watch.sites(kind) if u in others]
            try:
                return take(watch.messages(kind, have))
            except PeersError:
                if len(have) == len(others):
                    raise
                need = len(have) + 1

    def _has_blocks(self, number: int) -> bool:
        """Whether the relay has every block of this site's vector."""
        missing = self._client.missing(self._vector_name(number))
        return missing is not None and not missing[1]

    def _vector_name(self, number: int) -> ObjectName:
        return self._exchange.name(self._plan.round_, number, f"M3v/{self._party.number}")

    def _finish(self, upload: Upload) -> None:
        """Make the vector whole at the relay. Raises TooLateError like RelayExchange.put."""
        with too_late():
            if upload.data is not None:
                self._client.put(upload.name, upload.data)
            else:
                self._client.upload(upload.name, self.layout.nbytes).commit(upload.tree)

    @property
    def _client(self) -> Transport:
        return self._exchange.client

    @contextmanager
    def _ends_with_the_round(self) -> Iterator[None]:
        """The relay's word that the round is over, or the attempt given up too late, as errors of this site."""
        try:
            yield
        except TooLateError as error:
            raise RoundOverError(self._plan.round_, f"round {self._plan.round_} is over: {error.what}") from None
        except _GivenUp as why:
            raise PeersError(
                f"round {self._plan.round_}: the relay gave the attempt up after the sum was opened: {why}",
                "start this site again; the relay's log names the site whose vector was not the one it signed",
            ) from None

    # --- waiting

    def _wait(self, watch: Watch, seen: Callable[[Watch], bool], seconds: float, what: str, count: int = 1) -> None:
        """Until `seen`, which takes `count` objects of the kind `what`.

        Raises _GivenUp if the relay starts another attempt, DoWithoutError if this site has waited long enough for a
        sum that it can do without, PeersError if nothing comes in time.
        """
        begun = time.monotonic()
        end = min(begun + seconds, self._skip.deadline)
        came = wait_telling(watch, lambda w: seen(w) or "NEXT" in w, end, self._what_is_awaited, (what, count))
        self._waited_s += time.monotonic() - begun
        if not came:
            self._skip.look()
            raise PeersError(
                f"round {self._plan.round_}: {what} did not come within {seconds:.0f} s",
                "the relay or the other sites do not go on; start this site again to go on with the round",
            )
        if not seen(watch):
            raise _GivenUp

    def _what_is_awaited(self) -> str:
        late = late_sites(self._exchange, self._party.agreement.names, self._plan.round_)
        what = f"round {self._plan.round_} ({self._plan.purpose}) goes on when the others do"
        return f"{what}, {late}{self._exchange.at}"


def _have(kind: str, of: list[int], count: int, watch: Watch) -> bool:
    return sum(u in of for u in watch.sites(kind)) >= count
