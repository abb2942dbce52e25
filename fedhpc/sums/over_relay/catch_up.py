"""Sites that were away, over the relay: one asks (NEED), another gives its newest checkpoint (STATE and sealed blocks).

The relay carries it and reads none of it; the taker believes τ signatures, not the giver (secure/catch_up_messages.py).
"""

from __future__ import annotations

import itertools
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedhpc.errors import FedhpcError, PeersError, PolicyError
from fedhpc.federation.checkpoint import CheckpointStore, StoredState
from fedhpc.federation.party import GIVEN_EPOCH, Party
from fedhpc.mpi.byte_moves import Read
from fedhpc.secure import labels
from fedhpc.secure.catch_up_messages import BLOCK_BYTES, CaughtUp, CommonKnowledge, Giver, Taker, release
from fedhpc.secure.transcript import parse_canon
from fedhpc.sums.over_relay.attempt_store import AttemptFiles
from fedhpc.sums.over_relay.exchange import RelayExchange, Watch, objects_of
from fedhpc.sums.over_relay.finished_sums import FinishedSums

_log = logging.getLogger("fedhpc.federation")
_LOOK_S = 2.0
_TELL_S = 60.0
_ASK_AGAIN_S = 300.0
_LAST_S = 60.0  # for a model that is being given when the run ends
_AT_ONCE = 4  # blocks on their way at the same time
_NEVER_AGAIN = 1 << 62  # later than any checkpoint


class Attendant:
    """Gives this site's newest checkpoint to sites that ask, in a thread of its own, until `stop`."""

    def __init__(
        self, known: CommonKnowledge, exchange: RelayExchange, identity: Ed25519PrivateKey, finished: FinishedSums
    ) -> None:
        """`known.nbytes` is ignored: each checkpoint says how long its state is."""
        self._known, self._exchange, self._identity, self._finished = known, exchange, identity, finished
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, store: CheckpointStore) -> None:
        """Look for requests from now on, and answer them from `store`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(store,), name="attendant", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look for requests once more, finish what is being given, and end."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_LAST_S)

    def _run(self, store: CheckpointStore) -> None:
        looked: dict[int, int] = {}  # request -> the newest checkpoint with which it was looked at
        last = False
        while not last:
            last = self._stopping.wait(_LOOK_S)
            try:
                newest = max(store.rounds(), default=-1)
                for site, number in self._asked():
                    if looked.get(number, -1) < newest:
                        looked[number] = newest
                        if self._help(site, number, store.state(newest)):
                            looked[number] = _NEVER_AGAIN
            except FedhpcError as error:
                _log.warning("could not help a site that was away: %s", error.what)
            except Exception:  # nothing of this site depends on it, and the next request may be a better one
                _log.exception("could not help a site that was away")

    def _asked(self) -> list[tuple[int, int]]:
        """(site, number) of the requests that the relay asks this site to answer."""
        found = []
        for need in objects_of(self._exchange.standing(), "needs"):
            site, number = need.get("site"), need.get("attempt")
            if need.get("asked") != self._exchange.me or type(site) is not int or type(number) is not int:
                continue
            if 1 <= site <= len(self._known.roster) and 1 <= number < 1 << 53:
                found.append((site, number))
        return found

    def _help(self, taker: int, number: int, state: StoredState) -> bool:
        try:
            return self._offer(taker, number, state)
        finally:
            state.close()

    def _offer(self, taker: int, number: int, state: StoredState) -> bool:
        """Whether there is nothing more to do: not, if this site has nothing yet that the taker lacks.

        A request whose answer failed in the middle is not answered again: other boxes under the same names would be
        refused. The taker asks anew.
        """
        proof = self._finished.proof(state.sums)
        need = self._exchange.client.get(self._exchange.name(0, number, f"NEED/{taker}"))
        if not proof or need is None:
            return False
        known = CommonKnowledge(self._known.config, self._known.roster, self._known.thresholds, state.nbytes)
        try:
            giver = Giver(known, self._exchange.me, self._identity, taker, need, state.sums, proof)
            if parse_canon(need)["body"]["state"] == parse_canon(proof[0])["body"]["state"]:
                return False  # it is where this site is; there will be more to give after the next round
            self._give(taker, number, giver, state)
        except FedhpcError as error:
            _log.warning("could not give the model to site %d: %s", taker, error.what)
            return True
        _log.info("gave the model after %d rounds to site %d", state.round_, taker)
        return True

    def _give(self, taker: int, number: int, giver: Giver, state: StoredState) -> None:
        def send(block: tuple[int, bytes]) -> None:
            index, data = block
            self._exchange.put(0, number, f"B{index}", giver.box(index, data), to=taker)

        blocks = _blocks(state)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while some := list(itertools.islice(blocks, _AT_ONCE)):  # a pool takes all that it is given at once
                list(pool.map(send, some))
        self._exchange.put(0, number, labels.SIGN_STATE, giver.state, to=taker)


def take(
    known: CommonKnowledge,
    exchange: RelayExchange,
    identity: Ed25519PrivateKey,
    state: bytes,
    round_: int,
    deadline_s: float,
    receive: Callable[[Read], bytes],
    while_waiting: Callable[[], bool] = lambda: False,
) -> CaughtUp:
    """A later state than `state` [32] of `round_`, from whichever site gives one.

    `receive` reads its bytes [known.nbytes] in windows of whole blocks and gives their Tree [32]; they count if this
    returns. `while_waiting` is called from time to time, and says whether the model must be asked for again. Raises
    PeersError if none comes within `deadline_s`.
    """
    deadline = time.monotonic() + deadline_s
    while (left := deadline - time.monotonic()) > 0:
        number = 1 + secrets.randbelow((1 << 52) - 1)
        taker = Taker(known, exchange.me, identity, state, round_)
        exchange.put(0, number, labels.SIGN_NEED, taker.need)
        watch = exchange.watch(0, number)
        end = time.monotonic() + min(left, _ASK_AGAIN_S)
        _await_state(watch, exchange, end, while_waiting)
        for giver in _givers(watch, exchange.me):
            try:
                taker.receive_state(giver, watch.body(f"{labels.SIGN_STATE}/{giver}/{exchange.me}"))
                with ThreadPoolExecutor(_AT_ONCE) as pool:
                    return taker.finish(receive(_Given(taker, exchange, number, giver, pool).read))
            except (PolicyError, PeersError) as error:  # what it gave is wrong, or gone
                _log.warning("site %d could not help: %s", giver, error.what)
                time.sleep(_LOOK_S)
    raise PeersError(
        f"no other site gave its model within {deadline_s:.0f} s",
        "start this site again while the others run: they give their newest model; if they have finished, ask one of "
        f"them for it (`fedhpc export`); if they all wait for this site, {GIVEN_EPOCH}, or with --again before there "
        "is a model",
    )


def _await_state(watch: Watch, exchange: RelayExchange, end: float, while_waiting: Callable[[], bool]) -> None:
    """Wait until a site gives its model or `while_waiting` says to ask again, at most until `end` (time.monotonic)."""
    told = time.monotonic() + _TELL_S
    while True:
        if while_waiting():
            return
        until = min(end, time.monotonic() + _LOOK_S)
        if (
            watch.wait(lambda w: bool(_givers(w, exchange.me)), until, until=(labels.SIGN_STATE, 1))
            or time.monotonic() >= end
        ):
            return
        if time.monotonic() >= told:
            what = "another site that runs must give its model, once it has a newer one than this site"
            _log.warning("waiting: %s%s", what, exchange.at)
            told = math.inf


def release_input(party: Party, files: AttemptFiles, caught: CaughtUp) -> None:
    """Free the input of an update that a round ended without; the round is known by its tensors now. Leaders only."""
    assert party.journal is not None
    entry = party.journal.ledger.entry_of(caught.round_)
    members = caught.settled.u3
    if entry is not None and members and party.number not in members and not entry.state:
        release(files.disk(caught.round_), entry, party.number, caught)


def _givers(watch: Watch, me: int) -> list[int]:
    """The sites whose STATE for this site is there, rising."""
    found = (name.split("/") for name in watch.names)
    return sorted(int(parts[1]) for parts in found if parts[0] == labels.SIGN_STATE and parts[2:] == [str(me)])


class _Given:
    """What a site gives, read in windows of whole blocks, some of them fetched at the same time."""

    def __init__(
        self, taker: Taker, exchange: RelayExchange, number: int, giver: int, pool: ThreadPoolExecutor
    ) -> None:
        self._taker, self._exchange, self._number, self._giver = taker, exchange, number, giver
        self._pool = pool

    def read(self, start: int, stop: int, into: NDArray[np.uint8]) -> None:
        """Raises PolicyError for a block that is not there, or not what the giver has signed."""

        def one(index: int) -> None:
            place = f"B{index}/{self._giver}/{self._exchange.me}"
            box = self._exchange.client.get(self._exchange.name(0, self._number, place))
            if box is None:
                raise PolicyError(f"site {self._giver} did not give block {index}")
            at = index * BLOCK_BYTES - start
            block = np.frombuffer(self._taker.block(index, box), dtype=np.uint8)
            into[at : at + block.size] = block

        list(self._pool.map(one, range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))))


def _blocks(state: StoredState) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of each block of a state."""
    for number, start in enumerate(range(0, state.nbytes, BLOCK_BYTES)):
        block = np.empty(min(BLOCK_BYTES, state.nbytes - start), np.uint8)
        state.read(start, start + block.size, block)
        yield number, block.tobytes()
