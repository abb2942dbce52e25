"""A site that was away takes the others' model: real takers and givers, over a relay in memory that may lie."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from protocol_fakes import World
from secure_fakes import key_of

from fedhpc.errors import DataError, PeersError, PolicyError
from fedhpc.federation.checkpoint import Checkpoint, StoredState
from fedhpc.federation.held_stream import LoadedState
from fedhpc.federation.state_tensors import arrays_of_checkpoint
from fedhpc.mpi.byte_moves import Read
from fedhpc.secure.catch_up_messages import BLOCK_BYTES, CaughtUp, CommonKnowledge
from fedhpc.secure.messages import Result
from fedhpc.secure.suite import SHA256
from fedhpc.secure.transcript import canon, sign_message, state_hash
from fedhpc.sums.over_relay import catch_up as catching_up
from fedhpc.sums.over_relay.catch_up import Attendant, take
from fedhpc.sums.over_relay.exchange import RelayExchange
from fedhpc.sums.over_relay.finished_sums import FinishedSums
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.transport.listing import Entry
from fedhpc.wire.object_names import ObjectName

WORLD = World(4)
CONFIG = key_of("config")
WAIT_S = 20.0


def checkpoint(round_: int, fill: float = 1.0) -> Checkpoint:
    """After training round `round_`, which was masked sum 2·round_; 2.3 blocks of tensors."""
    draw = np.random.default_rng([round_, int(fill)])
    tensors = {"w": draw.standard_normal(600_000).astype(np.float32), "b": np.array(fill)}
    return Checkpoint(round_, 2 * round_, CONFIG, tensors, {"velocity/w": np.ones(7, np.float32)})


def bytes_of(of: Checkpoint) -> bytes:
    return b"".join(a.tobytes() for a in arrays_of_checkpoint(of))


def state_of(of: Checkpoint) -> bytes:
    return state_hash(CONFIG, of.sums, SHA256.tree(bytes_of(of)))


def proof_of(of: Checkpoint, u3: tuple[int, ...] = (1, 2, 3)) -> tuple[bytes, ...]:
    body = Result(state_of(of), key_of("sum"), u3).as_json()
    return tuple(sign_message(WORLD.identities[u], "M6", u, key_of("T3"), body) for u in u3)


class Store:
    """CheckpointStore in memory."""

    def __init__(self, *held: Checkpoint) -> None:
        self.held = {c.round_: c for c in held}
        self.loads = 0
        self.error: Exception | None = None

    def rounds(self) -> list[int]:
        return sorted(self.held)

    def load(self, round_: int) -> Checkpoint:
        self.loads += 1
        if self.error is not None:
            raise self.error
        return self.held[round_]

    def state(self, round_: int) -> StoredState:
        return LoadedState(self.load(round_))


class Relay:
    """The objects of catch-up. `asks` says which site a new NEED is given to."""

    def __init__(self) -> None:
        self.objects: dict[ObjectName, bytes] = {}
        self.changed = threading.Condition()
        self.asks: Callable[[], int] = lambda: 1
        self.looks = 0  # how often sites have asked what is needed
        self.needs: list[tuple[int, int, int]] = []  # site, number, asked
        self.extra: list[Any] = []  # whatever else the relay puts among the needs
        self.refuse: Callable[[ObjectName], Exception | None] = lambda name: None
        self.alter: Callable[[ObjectName, bytes], bytes | None] = lambda name, data: data

    def exchange(self, site: int) -> RelayExchange:
        return RelayExchange(Client(self, site), CONFIG, site)  # type: ignore[arg-type]

    def puts(self, kind: str) -> int:
        with self.changed:
            return sum(name.kind == kind for name in self.objects)

    def wait_for_looks(self, count: int) -> None:
        """So many more, each of which has ended before the next one."""
        until = self.looks + count
        self.wait(lambda: self.looks >= until)

    def wait(self, seen: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        with self.changed:
            while not seen():
                assert time.monotonic() < deadline, "it did not happen"
                self.changed.wait(0.01)


class Client:
    """RelayClient of one site."""

    def __init__(self, relay: Relay, site: int) -> None:
        self.relay, self.site = relay, site

    def put(self, name: ObjectName, data: bytes) -> bytes:
        relay = self.relay
        with relay.changed:
            assert name.owner == self.site
            refused = relay.refuse(name)
            if refused is not None:
                raise refused
            if name.kind == "NEED":  # it asks anew: what was given goes
                for site, number, _ in [n for n in relay.needs if n[0] == self.site]:
                    relay.needs = [n for n in relay.needs if n[0] != site]
                    relay.objects = {n: d for n, d in relay.objects.items() if n.attempt != number}
                relay.needs.append((self.site, name.attempt, relay.asks()))
            elif name.attempt not in [number for _, number, _ in relay.needs]:
                raise RelayProblem(409, "too-late", "nobody waits for it any more")
            if relay.objects.get(name, data) != data:
                raise PolicyError("the relay refused (409 conflict): other bytes are there")
            relay.objects[name] = data
            relay.changed.notify_all()
        return SHA256.tree(data)

    def get(self, name: ObjectName, wait_s: float = 0.0, most_bytes: int = 4 << 20) -> bytes | None:
        with self.relay.changed:
            data = self.relay.objects.get(name)
            return None if data is None else self.relay.alter(name, data)

    def listing(
        self, config: str, round_: int, attempt: int, after: str = "", wait_s: float = 0.0, until: Any = None
    ) -> tuple[list[Entry], str]:
        relay, seen = self.relay, int(after or 0)

        def names() -> list[ObjectName]:
            return [n for n in relay.objects if n.attempt_name == (config, round_, attempt)]

        with relay.changed:
            kind, count = until or ("", 0)
            relay.changed.wait_for(
                lambda: sum(n.kind == kind for n in names()) >= count if kind else len(names()) > seen, wait_s
            )
            found = names()
        return [Entry(n.name, bytes(32), 1) for n in found[seen:]], str(len(found))

    def get_json(self, path: str) -> dict[str, Any]:
        assert path.startswith(f"/v1/federations/{CONFIG.hex()}")
        with self.relay.changed:
            self.relay.looks += 1
            needs = [{"site": s, "attempt": n, "asked": a} for s, n, a in self.relay.needs]
            return {"needs": [*self.relay.extra, *needs]}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catching_up, "_LOOK_S", 0.01)


def federation(nbytes: int) -> CommonKnowledge:
    return CommonKnowledge(CONFIG, WORLD.roster, WORLD.thresholds, nbytes)


@contextmanager
def attending(relay: Relay, site: int, store: Store, finished: FinishedSums) -> Iterator[Attendant]:
    attendant = Attendant(federation(0), relay.exchange(site), WORLD.identities[site], finished)
    attendant.start(store)  # type: ignore[arg-type]
    try:
        yield attendant
    finally:
        attendant.stop()


@pytest.fixture
def finished(tmp_path: Path) -> FinishedSums:
    """The proofs of rounds 1 to 4, at every site."""
    kept = FinishedSums(tmp_path / "sums")
    for round_ in (2, 3, 4):
        kept.keep_proof(2 * round_, proof_of(checkpoint(round_)))
    return kept


def receiving(data: NDArray[np.uint8]) -> Callable[[Read], bytes]:
    """All of it at one rank."""

    def receive(read: Read) -> bytes:
        read(0, data.size, data)
        return SHA256.tree(data)

    return receive


def taken(
    relay: Relay, at: int = 1, deadline_s: float = WAIT_S, expected: int = 4
) -> tuple[CaughtUp, NDArray[np.uint8]]:
    """What site 4, whose model is that after training round `at`, gets."""
    own = checkpoint(at)
    known = federation(len(bytes_of(own)))
    data = np.zeros(known.nbytes, np.uint8)
    take_into = receiving(data)
    got = take(known, relay.exchange(4), WORLD.identities[4], state_of(own), own.sums, deadline_s, take_into), data
    if expected:
        wanted = checkpoint(expected)
        assert (got[0].round_, got[0].state) == (wanted.sums, state_of(wanted))
        assert got[1].tobytes() == bytes_of(wanted)
    return got


def test_the_newest_checkpoint_is_given(finished: FinishedSums) -> None:
    relay = Relay()
    with attending(relay, 1, Store(checkpoint(3), checkpoint(4)), finished):
        caught, _ = taken(relay)
    assert caught.settled.u3 == (1, 2, 3)
    assert caught.settled.proof == proof_of(checkpoint(4))
    plain = bytes_of(checkpoint(4))
    for name, data in relay.objects.items():  # the relay reads nothing of it
        assert name.kind in ("NEED", "STATE", "B0", "B1", "B2")
        assert not any(plain[at : at + 16] in data for at in range(0, len(plain), 99_991))


def test_a_site_with_nothing_newer_waits_for_its_next_checkpoint(finished: FinishedSums) -> None:
    """Neither its first model, which nobody signed, nor the very state that the other has."""
    relay, store = Relay(), Store(checkpoint(0))
    got: list[Any] = []
    with attending(relay, 1, store, finished):
        thread = threading.Thread(target=lambda: got.append(taken(relay, at=3)))
        thread.start()
        relay.wait(lambda: store.loads > 0)
        store.held[3] = checkpoint(3)
        relay.wait(lambda: store.loads > 1)
        assert relay.puts("B0") == 0
        relay.wait_for_looks(5)
        assert store.loads == 2, "a checkpoint with nothing to give is read again and again"
        store.held[4] = checkpoint(4)
        thread.join(WAIT_S)
    assert got[0][1].tobytes() == bytes_of(checkpoint(4))


@pytest.mark.parametrize("lie", ["other tensors", "an older round", "blocks of noise", "no block", "no state", "junk"])
def test_a_giver_that_lies_is_left_and_another_one_asked(
    lie: str, finished: FinishedSums, caplog: pytest.LogCaptureFixture
) -> None:
    """Site 1 is asked first, then site 2."""
    relay = Relay()
    asked: list[int] = []

    def asks() -> int:
        asked.append(1 if not asked else 2)
        return asked[-1]

    relay.asks = asks
    honest, at = Store(checkpoint(4)), 1
    store: Store = honest
    if lie == "other tensors":
        real = checkpoint(4)
        store = Store(dataclasses.replace(real, tensors=real.tensors | {"b": np.array(2.0)}))
    elif lie == "an older round":
        store, at = Store(checkpoint(2)), 3
    elif lie != "no state":
        altered = {"blocks of noise": "B1", "no block": "B2", "junk": "STATE"}[lie]

        def alter(name: ObjectName, data: bytes) -> bytes | None:
            if name.kind != altered or name.owner != 1:
                return data
            return None if lie == "no block" else bytes(len(data)) if lie == "blocks of noise" else b"{}"

        relay.alter = alter
    else:
        relay.refuse = lambda name: PeersError("the line is cut") if (name.kind, name.owner) == ("STATE", 1) else None
    with (
        attending(relay, 1, store, finished),
        attending(relay, 2, honest, finished),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(catching_up, "_ASK_AGAIN_S", 1.0 if lie == "no state" else WAIT_S)
        with caplog.at_level(logging.WARNING):
            taken(relay, at)
    assert asked == [1, 2]
    assert "site 1" in caplog.text or lie == "no state"


def test_an_answer_of_two_sites_is_taken_from_the_one_that_does_not_lie(finished: FinishedSums) -> None:
    """The relay asked a second site since the first was slow; both have answered by then."""
    relay = Relay()
    both = threading.Event()
    relay.alter = lambda name, data: bytes(len(data)) if (name.kind, name.owner) == ("B0", 1) else data
    client = Client(relay, 4)
    real = client.listing

    def listing(*arguments: Any, **more: Any) -> Any:
        assert both.wait(WAIT_S)
        return real(*arguments, **more)

    client.listing = listing  # type: ignore[method-assign]
    exchange = RelayExchange(client, CONFIG, 4)  # type: ignore[arg-type]
    own = checkpoint(1)

    def answer() -> None:
        relay.wait(lambda: bool(relay.needs))
        with attending(relay, 1, Store(checkpoint(4)), finished):
            relay.wait(lambda: any(n.kind == "STATE" and n.owner == 1 for n in relay.objects))
        relay.needs = [(site, number, 2) for site, number, _ in relay.needs]
        with attending(relay, 2, Store(checkpoint(4)), finished):
            relay.wait(lambda: any(n.kind == "STATE" and n.owner == 2 for n in relay.objects))
        both.set()

    thread = threading.Thread(target=answer)
    thread.start()
    known = federation(len(bytes_of(own)))
    data = np.zeros(known.nbytes, np.uint8)
    caught = take(known, exchange, WORLD.identities[4], state_of(own), own.sums, WAIT_S, receiving(data))
    thread.join(WAIT_S)
    assert data.tobytes() == bytes_of(checkpoint(4))
    assert caught.round_ == 8
    assert relay.puts("NEED") == 1


def test_nobody_gives(finished: FinishedSums) -> None:
    with pytest.raises(PeersError, match="no other site gave its model within 0 s") as refused:
        taken(Relay(), deadline_s=0.3)
    assert refused.value.exit_code == 69


def test_the_relay_names_what_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Relay()
    exchange = relay.exchange(4)
    real = exchange.client.listing

    def listing(*arguments: Any, **more: Any) -> Any:
        entries, cursor = real(*arguments, **more)
        more_names = ["STATE", "STATE/1", "STATE/1/3", "STATE/4/4", "STATE/99/4", "STATE/2/4"]
        return [*entries, *(Entry(name, bytes(32), 1) for name in more_names)], cursor

    exchange.client.listing = listing  # type: ignore[method-assign]
    own = checkpoint(1)
    monkeypatch.setattr(catching_up, "_ASK_AGAIN_S", 0.05)
    data = np.zeros(len(bytes_of(own)), np.uint8)
    known, receive = federation(data.size), receiving(data)
    with pytest.raises(PeersError, match="no other site gave its model"):
        take(known, exchange, WORLD.identities[4], state_of(own), own.sums, 0.3, receive)


# --- the giver


def junk_needs() -> list[Any]:
    whole = {"site": 3, "attempt": 5, "asked": 1}
    return [
        None,
        7,
        [],
        {},
        *({k: v for k, v in whole.items() if k != name} for name in whole),
        *(whole | {"site": s} for s in (0, -1, 99, 10**30, "3", None)),
        *(whole | {"attempt": a} for a in (0, -5, 1 << 53, 10**30, "5", 1.0)),
    ]


def test_whatever_the_relay_and_other_sites_say_the_attendant_goes_on(
    finished: FinishedSums, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests that are junk, or whose NEED is: the honest one behind them is answered all the same."""
    relay = Relay()
    relay.extra = [*junk_needs(), *({"site": 3, "attempt": n, "asked": 1} for n in range(11, 16))]
    envelope = {"body": {"key": "00" * 32, "state": "00" * 32}, "from": 3, "name": "NEED", "sig": "00" * 64, "t": ""}
    for number, need in enumerate((b"", b"{", b"[]", b'{"body":1}', canon(envelope)), start=11):
        relay.objects[ObjectName(CONFIG.hex(), 0, number, "NEED/3")] = need
    with attending(relay, 1, Store(checkpoint(4)), finished):
        taken(relay)


def test_requests_for_other_sites_are_left_alone(finished: FinishedSums) -> None:
    relay = Relay()
    relay.asks = lambda: 2
    one, two = Store(checkpoint(3)), Store(checkpoint(4))
    with attending(relay, 1, one, finished), attending(relay, 2, two, finished):
        taken(relay)
    assert one.loads == 0


@pytest.mark.parametrize("error", [DataError("damaged"), OSError("gone"), KeyError("x")])
def test_a_store_that_fails_does_not_end_the_help(finished: FinishedSums, error: Exception) -> None:
    relay, store = Relay(), Store(checkpoint(3))
    store.error = error
    got: list[Any] = []
    with attending(relay, 1, store, finished):
        thread = threading.Thread(target=lambda: got.append(taken(relay)))
        thread.start()
        relay.wait(lambda: store.loads > 0)
        store.held[4], store.error = checkpoint(4), None
        thread.join(WAIT_S)
    assert len(got) == 1


def test_a_request_that_was_given_up_in_the_middle_is_not_begun_again_with_another_key(finished: FinishedSums) -> None:
    """The relay keeps the first box of a name: another one under it would be refused for ever."""
    relay, store = Relay(), Store(checkpoint(4))
    relay.refuse = lambda name: PeersError("the line is cut") if name.kind == "B2" else None
    relay.needs.append((4, 77, 1))
    own = checkpoint(1)
    body = {"key": key_of("public").hex(), "state": state_of(own).hex()}
    need = sign_message(WORLD.identities[4], "NEED", 4, CONFIG, body)
    relay.objects[ObjectName(CONFIG.hex(), 0, 77, "NEED/4")] = need
    with attending(relay, 1, store, finished):
        relay.wait(lambda: any(n.kind == "B0" for n in relay.objects))
        boxes = {n.name: d for n, d in relay.objects.items()}
        relay.refuse = lambda name: None
        loads = store.loads
        store.held[5] = checkpoint(5)
        finished.keep_proof(10, proof_of(checkpoint(5)))
        relay.wait_for_looks(5)
    assert store.loads == loads
    assert {n: relay.objects[ObjectName(CONFIG.hex(), 0, 77, n)] for n in boxes} == boxes
    with attending(relay, 1, store, finished):
        taken(relay, expected=5)  # it asks anew


def test_a_large_model_is_sealed_block_by_block(finished: FinishedSums, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more blocks are made than are on their way: the whole model would be in memory once more."""
    relay, blocks = Relay(), 40
    big = dataclasses.replace(checkpoint(4), tensors={"w": np.zeros(blocks * BLOCK_BYTES // 4, np.float32)})
    finished.keep_proof(big.sums, proof_of(big))
    exchange = relay.exchange(1)
    put, real = exchange.client.put, catching_up._blocks
    full = threading.Barrier(catching_up._AT_ONCE)  # as many are sent at once as may be
    made = sent = ahead = 0

    def counted(arrays: Any) -> Iterator[tuple[int, bytes]]:
        nonlocal made
        for block in real(arrays):
            made += 1
            yield block

    def watched(name: ObjectName, data: bytes) -> bytes:
        nonlocal sent, ahead
        if name.kind.startswith("B") and int(name.kind[1:]) < blocks:
            full.wait(WAIT_S)
        ahead, sent = max(ahead, made - sent), sent + 1
        return put(name, data)

    exchange.client.put = watched  # type: ignore[method-assign]
    monkeypatch.setattr(catching_up, "_blocks", counted)
    attendant = Attendant(federation(0), exchange, WORLD.identities[1], finished)
    attendant.start(Store(big))  # type: ignore[arg-type]
    own = state_of(checkpoint(1))
    data = np.zeros(len(bytes_of(big)), np.uint8)
    take(federation(data.size), relay.exchange(4), WORLD.identities[4], own, 2, WAIT_S, receiving(data))
    attendant.stop()
    assert data.tobytes() == bytes_of(big)
    assert made == blocks + 1
    assert ahead <= 2 * catching_up._AT_ONCE


def test_what_is_asked_at_the_end_is_given_before_the_site_leaves(finished: FinishedSums) -> None:
    relay = Relay()
    got: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catching_up, "_LOOK_S", WAIT_S)  # it looks at the end only
        with attending(relay, 1, Store(checkpoint(4)), finished):
            thread = threading.Thread(target=lambda: got.append(taken(relay)))
            thread.start()
            relay.wait(lambda: bool(relay.needs))
        assert relay.puts("STATE") == 1
        thread.join(WAIT_S)
    assert len(got) == 1
