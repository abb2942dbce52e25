"""A spool directory with its carrier is to a site what the relay is: the same answers, the same refusals."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from spool_fakes import (
    CONFIG,
    PATIENCE_S,
    SITE,
    VECTOR,
    FakeClient,
    FakeRelay,
    carrying,
    halves,
    name,
    once,
    spool_in,
    wait_for,
)

from fedhpc.errors import FedhpcError, PeersError, PolicyError, StorageError
from fedhpc.secure.suite import SHA256
from fedhpc.transport.link_problems import RelayProblem
from fedhpc.transport.spool.client import SpoolClient
from fedhpc.transport.spool.folder import PUTS, RECEIPTS, SpoolFolder, names_in, note_name, write_file
from fedhpc.transport.spool.notes import PutNote, to_bytes
from fedhpc.transport.spool.transfer import part_of
from fedhpc.wire.object_names import BLOCK_BYTES, ObjectName


@pytest.fixture
def relay() -> FakeRelay:
    return FakeRelay()


@pytest.fixture
def folder(tmp_path: Path) -> SpoolFolder:
    return spool_in(tmp_path)


@pytest.fixture
def site(folder: SpoolFolder, relay: FakeRelay) -> Iterator[SpoolClient]:
    with carrying(folder, relay):
        client = SpoolClient(folder, patience_s=PATIENCE_S)
        yield client
        client.close()


def outcome(client: Any, what: str, *arguments: Any) -> Any:
    """What a call gives, or how it is refused."""
    try:
        return getattr(client, what)(*arguments)
    except RelayProblem as problem:
        return "problem", problem.status, problem.kind, problem.what
    except FedhpcError as error:
        return type(error).__name__, error.what


# --- the same as over https


@pytest.mark.parametrize("seed", range(4))
def test_a_spool_answers_as_the_relay_does(seed: int, tmp_path: Path) -> None:
    """Random calls of one site, straight to one relay and by a spool to another: every answer is the same."""
    draw = random.Random(seed)
    near, far = FakeRelay(), FakeRelay()
    straight = FakeClient(near)
    folder = spool_in(tmp_path)
    with carrying(folder, far):
        spool = SpoolClient(folder, patience_s=PATIENCE_S)
        for _ in range(25):
            round_, attempt = draw.randrange(1, 4), draw.randrange(0, 2)
            of = name(draw.choice(["READY/2", "M1/2", "M2/2", "M1/3", "M0"]), round_, attempt)
            data = draw.randbytes(draw.choice([1, 40, 5000]))
            what = draw.choice(["put", "put", "get", "repeat", "other", "over"])
            if what == "over" and draw.random() < 0.3:
                near.over = far.over = draw.randrange(0, 3)
            if what == "other":
                of = name(f"M1/{draw.choice([1, 3])}", round_, attempt)
                near.add(of, data)
                far.add(of, data)
            call: tuple[str, Any] = ("get", of)
            if what in ("put", "repeat"):
                call = "put", of, near.objects.get(of, data) if what == "repeat" else data
            expected, got = (outcome(client, *call) for client in (straight, spool))
            if (
                expected != got
            ):  # what has come, or was taken, before the round was over is known here without the relay
                assert expected[:3] == ("problem", 409, "round-over")
                assert got == (SHA256.tree(call[2]) if call[0] == "put" else far.objects[of])
        spool.close()


def test_listings_come_in_order_and_with_their_messages(site: SpoolClient, relay: FakeRelay) -> None:
    relay.add(name("A1", 1, 0), b"{}")
    found, cursor = site.listing(CONFIG, 1, 0, "", 20.0)
    assert [(e.name, e.body) for e in found] == [("A1", b"{}")]
    assert site.listing(CONFIG, 1, 0, cursor, 0.0)[0] == []
    site.put(name("READY/2", 1, 0), b"ready")
    found, cursor = site.listing(CONFIG, 1, 0, cursor, 20.0)
    assert [(e.name, e.body) for e in found] == [("READY/2", b"ready")]
    found, _ = site.listing(CONFIG, 1, 0, "", 0.0)
    assert [e.name for e in found] == ["A1", "READY/2"]
    site.put(name("READY/2", 1, 0), b"ready for something else")
    found, _ = site.listing(CONFIG, 1, 0, cursor, 20.0)
    assert [(e.name, e.body) for e in found][-1] == ("READY/2", b"ready for something else")


def test_until_waits_for_so_many_or_for_the_relay_going_on(site: SpoolClient, relay: FakeRelay) -> None:
    relay.add(name("M1/1"), b"one")
    found, cursor = site.listing(CONFIG, 1, 1, "", 20.0)
    assert len(found) == 1
    with ThreadPoolExecutor(2) as pool:
        both = pool.submit(site.listing, CONFIG, 1, 1, cursor, 20.0, ("M1", 3))
        relay.add(name("M1/3"), b"three")
        assert not both.done()
        relay.add(name("M1/4"), b"four")
        assert [e.name for e in both.result()[0]] == ["M1/3", "M1/4"]
        given_up = pool.submit(site.listing, CONFIG, 1, 1, both.result()[1], 20.0, ("M1", 9))
        relay.add(name("NEXT"), b"{}")
        assert [e.name for e in given_up.result()[0]] == ["NEXT"]
    found, _ = site.listing(CONFIG, 1, 1, "", 0.1, ("M1", 9))
    assert len(found) == 4, "after the wait what is there comes all the same"


def test_a_relay_that_started_anew_is_listed_again(site: SpoolClient, relay: FakeRelay) -> None:
    relay.add(name("M0"), b"m0")
    _, cursor = site.listing(CONFIG, 1, 1, "", 20.0)
    with relay.changed:
        relay.life = "bb"
        relay.objects.clear()
        relay.order.clear()
    relay.add(name("M0"), b"another m0")
    found, _ = site.listing(CONFIG, 1, 1, cursor, 20.0)
    assert [(e.name, e.body) for e in found] == [("M0", b"another m0")]


def test_a_round_that_is_over_ends_the_wait(site: SpoolClient, relay: FakeRelay) -> None:
    site.listing(CONFIG, 1, 1, "", 0.0)
    with relay.changed:
        relay.over = 1
        relay.changed.notify_all()
    with pytest.raises(RelayProblem) as refused:
        site.listing(CONFIG, 1, 1, "", 20.0)
    assert (refused.value.kind, refused.value.status) == ("round-over", 409)


def test_where_the_federation_stands(site: SpoolClient) -> None:
    path = f"/v1/federations/{CONFIG}"
    assert site.get_json(path) == {"done": 0, "path": path}
    with pytest.raises(PeersError, match="does not carry"):
        site.get_json("/v1/health")


# --- vectors


def test_a_vector_of_two_ranks_and_the_sum_back(site: SpoolClient, relay: FakeRelay, folder: SpoolFolder) -> None:
    _, root = halves(site)
    assert root == SHA256.tree(VECTOR)
    of = name("M3v/2")
    assert site.missing(of) is None, "it has no name before it is whole"
    assert site.upload(of, len(VECTOR)).commit(root) == root
    assert relay.objects[of] == VECTOR
    assert not folder.sent(of).exists(), "the relay has it: no second copy stays"
    assert site.missing(of) == (len(VECTOR), [])
    assert site.upload(of, len(VECTOR)).commit(root) == root, "a site that was killed says it again"
    total = bytes(reversed(VECTOR))
    relay.add(name("Y"), total)
    view = bytearray(len(total) - BLOCK_BYTES)
    finished: list[int] = []
    got = site.fetch_part(name("Y"), len(total), BLOCK_BYTES, memoryview(view), lambda a, b: finished.append(a))
    assert bytes(view) == total[BLOCK_BYTES:]
    assert got == {i: hashlib.sha256(total[i * BLOCK_BYTES :][:BLOCK_BYTES]).digest() for i in (1, 2)}
    assert sorted(finished) == [BLOCK_BYTES, 2 * BLOCK_BYTES]


def test_a_sum_comes_unasked_where_this_site_sent_a_vector(
    site: SpoolClient, relay: FakeRelay, folder: SpoolFolder
) -> None:
    _, root = halves(site)
    site.upload(name("M3v/2"), len(VECTOR)).commit(root)
    relay.add(name("Y"), VECTOR)
    relay.add(name("Y", 2), VECTOR)  # of a round without this site
    site.listing(CONFIG, 1, 1, "", 20.0)
    site.listing(CONFIG, 2, 1, "", 20.0)
    wait_for(lambda: folder.come(name("Y")).exists())
    assert not folder.come(name("Y", 2)).exists()


def test_sums_that_are_not_there_or_have_another_length(site: SpoolClient, relay: FakeRelay) -> None:
    view = memoryview(bytearray(len(VECTOR)))
    assert site.fetch_part(name("Y"), len(VECTOR), 0, view) is None
    relay.add(name("Y"), VECTOR[:-1])
    with pytest.raises(RelayProblem, match="bad-length"):
        site.fetch_part(name("Y"), len(VECTOR), 0, view)


def test_a_masked_vector_is_given_to_nobody(site: SpoolClient, relay: FakeRelay) -> None:
    relay.add(name("M3v/1"), VECTOR)
    with pytest.raises(PolicyError, match="given to no site"):
        site.get(name("M3v/1"))


def test_what_prepare_and_finish_raise_comes_out(site: SpoolClient, relay: FakeRelay) -> None:
    def fail(low: int, high: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        site.upload(name("M3v/2"), len(VECTOR)).write(0, memoryview(bytearray(VECTOR)), fail)
    relay.add(name("Y"), VECTOR)
    with pytest.raises(ZeroDivisionError):
        site.fetch_part(name("Y"), len(VECTOR), 0, memoryview(bytearray(len(VECTOR))), fail)


# --- kills


def test_a_vector_half_written_is_never_believed(folder: SpoolFolder, relay: FakeRelay) -> None:
    """A site killed between its ranks' writes, with the file at its full length already."""
    killed = SpoolClient(folder, patience_s=PATIENCE_S)
    killed.upload(name("M3v/2"), len(VECTOR)).write(0, memoryview(bytearray(VECTOR[:BLOCK_BYTES])))
    assert part_of(folder.sent(name("M3v/2"))).stat().st_size == len(VECTOR)
    assert once(folder, relay) == 0
    again = SpoolClient(folder, patience_s=PATIENCE_S)
    assert again.missing(name("M3v/2")) is None
    with carrying(folder, relay):
        _, root = halves(again)
        again.upload(name("M3v/2"), len(VECTOR)).commit(root)
    assert relay.objects[name("M3v/2")] == VECTOR


def test_a_site_killed_before_its_note_goes_on_from_the_file(folder: SpoolFolder, relay: FakeRelay) -> None:
    client = SpoolClient(folder, patience_s=PATIENCE_S)
    _, root = halves(client)
    part_of(folder.sent(name("M3v/2"))).replace(folder.sent(name("M3v/2")))  # and killed
    again = SpoolClient(folder, patience_s=PATIENCE_S)
    assert again.missing(name("M3v/2")) == (len(VECTOR), [])
    with carrying(folder, relay):
        again.upload(name("M3v/2"), len(VECTOR)).commit(root)
    assert relay.objects[name("M3v/2")] == VECTOR


def test_a_put_that_was_answered_returns_at_once(folder: SpoolFolder, relay: FakeRelay) -> None:
    with carrying(folder, relay):
        SpoolClient(folder, patience_s=PATIENCE_S).put(name("M1/2"), b"keys")
    # Nobody carries any more: a repeat needs no carrier, other bytes do.
    again = SpoolClient(folder, patience_s=0.5)
    assert again.put(name("M1/2"), b"keys") == SHA256.tree(b"keys")
    with pytest.raises(PeersError, match="is not carried"):
        again.put(name("M1/2"), b"other keys")
    # The other bytes wait there now, so that even the first ones are no repeat any more.
    with carrying(folder, relay):
        again = SpoolClient(folder, patience_s=PATIENCE_S)
        with pytest.raises(PolicyError, match="409 conflict"):
            again.put(name("M1/2"), b"other keys")
        again.put(name("M1/2"), b"keys")
    assert relay.objects[name("M1/2")] == b"keys"


def test_a_refusal_answers_one_call_only(site: SpoolClient, relay: FakeRelay) -> None:
    relay.closed_kinds.add("M1")
    with pytest.raises(RelayProblem, match="too-late"):
        site.put(name("M1/2"), b"keys")
    relay.closed_kinds.clear()
    site.put(name("M1/2"), b"keys")
    assert relay.objects[name("M1/2")] == b"keys"


@pytest.mark.parametrize("moment", ["sent", "listed", "answered"])
def test_a_carrier_killed_between_relay_and_file_does_it_again(
    moment: str, folder: SpoolFolder, relay: FakeRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay has taken or given it, and the carrier's own file was never written."""
    places = {"sent": ("carrier_tasks", RECEIPTS), "answered": ("carrier_tasks", "answers")}
    module, where = places.get(moment, ("carrier_listing", "listing.json"))
    relay.add(name("M0"), b"m0")
    relay.add(name("M6/1"), b"m6")
    with monkeypatch.context() as patch:

        class Killed(BaseException):
            pass

        def killed(path: Path, *data: bytes) -> None:
            if where in str(path):
                raise Killed
            write_file(path, *data)

        patch.setattr(f"fedhpc.transport.spool.{module}.write_file", killed)
        client = SpoolClient(folder, patience_s=PATIENCE_S)
        with ThreadPoolExecutor(3) as pool:
            calls = [
                pool.submit(client.put, name("M1/2"), b"keys"),
                pool.submit(client.listing, CONFIG, 1, 1, "", 20.0, ("M0", 1)),
                pool.submit(client.get, name("M6/1", 1, 1)),
            ]
            wait_for(lambda: len(names_in(folder.out / PUTS)) == 1 and len(names_in(folder.out / "watch")) == 1)
            with pytest.raises(Killed):
                passes(folder, relay)
            patch.undo()
            with carrying(folder, relay):
                assert calls[0].result(30) == SHA256.tree(b"keys")
                assert "M0" in [e.name for e in calls[1].result(30)[0]]
                assert calls[2].result(30) == b"m6"
    assert relay.objects[name("M1/2")] == b"keys"


def test_a_sum_half_fetched_goes_on_or_begins_anew(folder: SpoolFolder, relay: FakeRelay) -> None:
    relay.add(name("Y"), VECTOR)
    part = part_of(folder.come(name("Y")))
    part.parent.mkdir(parents=True)
    for left in (b"", VECTOR[:BLOCK_BYTES], b"\0" * (len(VECTOR) + 5)):
        part.write_bytes(left)
        folder.come(name("Y")).unlink(missing_ok=True)
        with carrying(folder, relay):
            view = bytearray(len(VECTOR))
            client = SpoolClient(folder, patience_s=PATIENCE_S)
            client.fetch_part(name("Y"), len(VECTOR), 0, memoryview(view))
        assert bytes(view) == VECTOR


# --- half-visible directories


def test_a_note_whose_file_is_not_visible_yet_is_left_alone(folder: SpoolFolder, relay: FakeRelay) -> None:
    note = PutNote("ab" * 8, 4, SHA256.tree(b"keys").hex())
    write_file(folder.note(PUTS, note_name(name("M1/2"))), to_bytes(note))
    assert once(folder, relay) == 0
    write_file(folder.sent(name("M1/2")), b"key")  # of an older time, or not all of it
    assert once(folder, relay) == 0
    write_file(folder.sent(name("M1/2")), b"kezs")
    assert once(folder, relay) == 0
    write_file(folder.sent(name("M1/2")), b"keys")
    assert once(folder, relay) == 1
    assert relay.objects == {name("M1/2"): b"keys"}


def test_a_listing_stops_at_a_message_that_is_not_visible_yet(folder: SpoolFolder, relay: FakeRelay) -> None:
    for text in ("M1/1", "M1/3", "M1/4"):
        relay.add(name(text), text.encode())
    client = SpoolClient(folder, patience_s=PATIENCE_S)
    client.listing(CONFIG, 1, 1, "", 0.0)
    once(folder, relay)
    path = folder.come(name("M1/3"))
    for hidden in (None, b"M1/", b"M1/4"):
        path.unlink(missing_ok=True)
        if hidden is not None:
            path.write_bytes(hidden)
        found, cursor = client.listing(CONFIG, 1, 1, "", 0.0)
        assert [e.name for e in found] == ["M1/1"]
        assert client.listing(CONFIG, 1, 1, cursor, 0.0)[0] == []
    path.write_bytes(b"M1/3")
    found, _ = client.listing(CONFIG, 1, 1, cursor, 0.0)
    assert [(e.name, e.body) for e in found] == [("M1/3", b"M1/3"), ("M1/4", b"M1/4")]


def test_old_listings_that_come_back_do_not_confuse(folder: SpoolFolder, relay: FakeRelay) -> None:
    """A file system that shows an older file again for a while."""
    relay.add(name("M0"), b"m0")
    client = SpoolClient(folder, patience_s=PATIENCE_S)
    client.listing(CONFIG, 1, 1, "", 0.0)
    once(folder, relay)
    path = folder.listing(1, 1)
    old = path.read_bytes()
    with carrying(folder, relay):
        _, cursor = client.listing(CONFIG, 1, 1, "", 20.0)
        relay.add(name("U1"), b"[1]")
        found, later = client.listing(CONFIG, 1, 1, cursor, 20.0, ("U1", 1))
        assert "U1" in [e.name for e in found]
    new = path.read_bytes()
    path.write_bytes(old)
    assert [e.name for e in client.listing(CONFIG, 1, 1, later, 0.0)[0]] in ([], ["M0"])
    path.write_bytes(new)
    assert client.listing(CONFIG, 1, 1, later, 0.0)[0] == []


# --- what is kept


def test_old_rounds_go_in_both_halves(folder: SpoolFolder, relay: FakeRelay) -> None:
    client = SpoolClient(folder, patience_s=PATIENCE_S)
    with carrying(folder, relay):
        for round_ in range(1, 8):
            relay.add(name("Y", round_), VECTOR)
            client.put(name("READY/2", round_, 0), b"ready")
            client.listing(CONFIG, round_, 1, "", 20.0)
            client.put(name("M1/2", round_), b"keys")
            client.fetch_part(name("Y", round_), len(VECTOR), 0, memoryview(bytearray(len(VECTOR))))
    once(folder, relay)
    assert [n for n in names_in(folder.out) if n.isdigit()] == ["5", "6", "7"]
    assert [n for n in names_in(folder.in_) if n.isdigit()] == ["5", "6", "7"]
    assert {note.split(".")[0] for note in names_in(folder.out / PUTS)} == {"5", "6", "7"}
    assert {note.split(".")[0] for note in names_in(folder.in_ / RECEIPTS)} == {"5", "6", "7"}
    assert [r for r in (5, 6, 7) if folder.come(name("Y", r)).exists()] == [7], "sums are large"
    assert names_in(folder.in_ / "answers") == names_in(folder.out / "want") == []


def test_blocks_of_a_model_do_not_stay(site: SpoolClient, relay: FakeRelay, folder: SpoolFolder) -> None:
    of = ObjectName(CONFIG, 0, 12345, "B0/2/3")
    site.put(of, b"sealed")
    assert relay.objects[of] == b"sealed"
    assert not folder.sent(of).exists()
    assert names_in(folder.out / PUTS) == []


def test_nothing_is_there_that_does_not_go_over_the_wire(folder: SpoolFolder, relay: FakeRelay) -> None:
    """Every object in the site's half is a body that the relay is sent, byte for byte."""
    with carrying(folder, relay):
        client = SpoolClient(folder, patience_s=PATIENCE_S)
        client.put(name("READY/2", 1, 0), b"ready")
        client.put(name("M1/2"), b"keys")
        seen: dict[str, bytes] = {}
        _, root = halves(client)
        part = part_of(folder.sent(name("M3v/2")))
        seen[part.name] = part.read_bytes()
        client.upload(name("M3v/2"), len(VECTOR)).commit(root)
        for path in folder.out.rglob("*"):
            if path.is_file() and path.relative_to(folder.out).parts[0].isdigit():
                seen[path.name] = path.read_bytes()
        client.close()
    assert len(seen) == 3
    assert set(seen.values()) <= {*relay.sent, VECTOR}
    assert relay.objects[name("M3v/2")] == VECTOR


# --- patience, life


def test_without_a_carrier_patience_ends_with_the_command(folder: SpoolFolder) -> None:
    told: list[str] = []
    client = SpoolClient(folder, patience_s=0.1, on_retry=lambda retry: told.append(retry.reason))
    with pytest.raises(PeersError) as error:
        client.put(name("M1/2"), b"keys")
    assert error.value.exit_code == 69
    assert "no carrier has been seen" in error.value.what
    assert "fedhpc spool carry" in error.value.hint


def test_a_carrier_without_a_relay_helps_nobody_and_says_why(folder: SpoolFolder, relay: FakeRelay) -> None:
    relay.down = True
    with carrying(folder, relay):
        wait_for(lambda: b"cannot be reached" in (folder.carrier.read_bytes() if folder.carrier.exists() else b""))
        with pytest.raises(PeersError) as error:
            SpoolClient(folder, patience_s=1.5).put(name("M1/2"), b"keys")
        assert "the relay cannot be reached" in error.value.what
        assert f"process {os.getpid()}" in error.value.what
        relay.down = False
        SpoolClient(folder, patience_s=PATIENCE_S).put(name("M1/2"), b"keys")


def test_a_closed_client_ends_its_waits(folder: SpoolFolder) -> None:
    client = SpoolClient(folder, patience_s=PATIENCE_S)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.listing, CONFIG, 1, 1, "", 60.0)
        wait_for(lambda: len(names_in(folder.out / "watch")) == 1)
        client.close()
        with pytest.raises(PeersError, match="closed by this program"):
            waiting.result(20)


def test_the_relay_hears_of_a_site_only_while_it_runs(folder: SpoolFolder, relay: FakeRelay) -> None:
    client = SpoolClient(folder, patience_s=PATIENCE_S)
    client.listing(CONFIG, 1, 1, "", 0.0)
    once(folder, relay)
    client.close()
    once(folder, relay)
    assert relay.quiet == [False, True]


def test_a_spool_that_is_not_mounted_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="is not there"):
        SpoolClient(SpoolFolder(tmp_path / "nowhere", CONFIG, SITE))
    assert not (tmp_path / "nowhere").exists()


def passes(folder: SpoolFolder, relay: FakeRelay) -> None:
    for _ in range(100):
        once(folder, relay)
