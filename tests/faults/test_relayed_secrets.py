"""No secret is left anywhere: canaries from the sites' keys and attempt files, looked for in every file afterwards.

A site is killed where its attempt file holds all that there is; the test reads the secrets there, and looks for them as
bytes, in hex and in base64 at the relay (store, log) and in all other files of the sites, before and after the run.
"""

from __future__ import annotations

import base64
import contextlib
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from relayed_peel import SECRETS, attempt_file, encoded, layout_of
from relayed_site import BOUND, floats, ints
from relayed_world import NAMES, QUORUM, SYNC, TRAINING, World
from theatre import Theatre

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
PRIVATE = {"sign.key", "tls.key", "authority.key", "relay.key"}


def forms(secret: bytes) -> list[bytes]:
    """How a secret could stand in a file."""
    return [
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        base64.b64encode(secret)[:-4],
        repr(secret).encode()[2:-1],
    ]


def long_term(world: World) -> Iterator[bytes]:
    for name in NAMES[: world.kind.sites]:
        folder = world.folder / "sites" / name
        yield from forms(bytes.fromhex((folder / "sign.key").read_text()))
        yield from (line.encode() for line in (folder / "tls.key").read_text().splitlines()[1:-1] if len(line) > 30)


def values(world: World) -> Iterator[bytes]:
    """Pieces of the vectors, as the sites hold them and as lanes."""
    for u in world.numbers:
        numbers = floats(u, 0)
        yield from (numbers["x"].tobytes()[:24], numbers["y"].tobytes()[:24], ints(u, 0)["n"].tobytes()[:24])
        yield encoded(numbers, layout_of(numbers, BOUND, world.kind.sites), world.kind.sites)[:24]


def found(canaries: Iterable[bytes], files: Iterable[Path]) -> list[tuple[str, bytes]]:
    wanted = list(canaries)
    assert all(len(canary) >= 16 for canary in wanted)
    assert wanted
    hits = []
    for path in files:
        with contextlib.suppress(FileNotFoundError):  # the relay cleans up meanwhile
            data = path.read_bytes()
            hits += [(path.name, canary) for canary in wanted if canary in data]
    return hits


def files_of(world: World, *, attempts: bool) -> list[Path]:
    """Every file of relay and sites but keys; `attempts`: with attempt files."""
    every = [path for path in world.folder.rglob("*") if path.is_file() and path.name not in PRIVATE]
    return [path for path in every if attempts or path.parent.name != "attempts"]


@pytest.mark.parametrize("point", ["M3 after", "M5 saved", "M6 saved"])
def test_no_secret_is_left_anywhere(theatre: Theatre, point: str) -> None:
    with theatre.world(SYNC, f"secrets-{point.split()[0]}") as world:
        world.start_relay()
        sites = world.start_sites([1, 3, 4])
        dying = world.start_site(2, "sums", f"{point} 2")
        world.await_frozen("bb", dying)
        dying.kill()
        path = world.run / "bb" / "attempts" / "round-2.attempt"
        kept = attempt_file(path)
        secrets = [bytes.fromhex(kept[name]) for name in SECRETS]
        assert all(len(secret) == 32 for secret in secrets)
        canaries = [form for secret in secrets for form in forms(secret)]
        assert not found(canaries, [path])  # sealed: versions that were replaced are on the disk for long
        key = path.with_suffix(".key").read_bytes()
        canaries += forms(key)
        assert found(canaries, [path.with_suffix(".key")])  # it can be found where it is
        assert not found([*canaries, *long_term(world), *values(world)], files_of(world, attempts=False))
        check_modes(world)
        sites[2] = world.start_site(2)
        world.finish(sites)
        # Also in attempt files, of which none is left.
        assert not found([*canaries, *long_term(world), *values(world)], files_of(world, attempts=True))
        assert not [p for u in NAMES[:4] for p in (world.run / u / "attempts").iterdir()]
        check_modes(world)


def test_keys_are_erased_after_the_main_loop(theatre: Theatre) -> None:
    with theatre.world(TRAINING, "erased") as world:
        world.start_relay()
        world.finish(world.start_sites(world.numbers, "rounds"))
        assert not [p for u in NAMES[:4] for p in (world.run / u / "attempts").iterdir()]
        assert not found(long_term(world), files_of(world, attempts=True))
        check_modes(world)


def test_a_traceback_shows_no_secret(theatre: Theatre) -> None:
    """A mistake in the program, while keys are in use, and a message that shows every object that holds them."""
    with theatre.world(QUORUM, "traceback") as world:
        world.start_relay()
        sites = world.start_sites([1, 3, 4])
        falling = world.start_site(2, FEDHPC_TEST_MISTAKE="1")
        assert falling.wait(60) == 70, world.texts()
        assert "RuntimeError: a mistake of the program: SiteAttempt(site 2) AttemptSecrets(<private>" in falling.text()
        kept = attempt_file(world.run / "bb" / "attempts" / "round-1.attempt")
        canaries = [form for name in SECRETS for form in forms(bytes.fromhex(kept[name]))]
        assert not found([*canaries, *long_term(world)], files_of(world, attempts=False))
        for child in sites.values():
            child.kill()


def test_keys_that_others_can_read_are_refused(theatre: Theatre) -> None:
    with theatre.world(SYNC, "modes") as world:
        folder = world.site_file(2).parent
        world.start_relay()
        for name, code, words in (
            ("sign.key", 74, "can be read by others"),
            ("tls.key", 64, "others can read the key"),
        ):
            (folder / name).chmod(0o640)
            child = world.start_site(2)
            assert child.wait(60) == code, world.texts()
            assert words in child.text()
            assert name in child.text()
            (folder / name).chmod(0o600)
        assert not world.store.exists() or not list(world.store.glob("*/*/*/*"))
        sites = world.start_sites([1, 3, 4])
        dying = world.start_site(2, "sums", "M3 after 2")
        world.await_frozen("bb", dying)
        dying.kill()
        path = world.run / "bb" / "attempts" / "round-2.attempt"
        path.chmod(0o644)
        child = world.start_site(2)
        assert child.wait(60) == 74, world.texts()
        assert "round-2.attempt can be read by others" in child.text()
        path.chmod(0o600)
        world.finish(sites | {2: world.start_site(2)})


def check_modes(world: World) -> None:
    """Nobody else reads keys, anything of a run, or anything at the relay."""
    for path in world.folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(path.stat().st_mode)
            if path.name in PRIVATE or path.name in ("ledger.jsonl", "ledger.key"):
                assert mode == 0o600, f"{path}: {mode:o}"
            if path == world.run or world.run in path.parents:
                assert mode == (0o700 if path.is_dir() else 0o600), f"{path}: {mode:o}"
            if path == world.store or world.store in path.parents:
                assert not mode & 0o077, f"{path}: {mode:o}"
