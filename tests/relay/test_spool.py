"""The spool exchange with a real relay, real sites and real carriers: the same model, whatever is killed or copied."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import call, start, until
from spool_sites import Copier, carrier, carrier_file, carriers, carry_words, copiers, place_of, use_spool
from tiny_federations import ENVIRONMENT, Tiny, relay_of, results, run_sites, words
from tiny_site import update_of

from fedhpc.agreement.identity import read_identity

SITES = ("aa", "bb", "cc")
LARGE = {"weight": (900_001,), "scalar": (), "bias": (7,)}  # 3.4 blocks of 2^20 bytes
SETTINGS: dict[str, Any] = {"secure": {"bound": 2.0}, "strategy": {"name": "diloco", "weights": "uniform"}}
COPIES = copiers()
SITE_MOMENTS = ("2.1.M1.3", "2.1.M3v.3", "2.1.M5.3")
CARRIER_MOMENTS = ("1.0.READY.3", "1.1.M2.3", "1.1.M3v.3", "2.1.M4.3")
NAMES = (
    *("https", "one", "two", "all", "ranks", "cron", "kills", "two carriers", "stale", "disk"),
    *(f"copy {way}" for way in COPIES),
    *(f"site {moment}" for moment in SITE_MOMENTS),
)

BLAKE3 = ("two", "all", "ranks")  # the same model by another suite, mixed with https and alone


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    made = Tiny.enrol(tmp_path_factory.mktemp("spool"), SITES)
    for name in NAMES:
        secure = SETTINGS["secure"] | ({"suite": "blake3"} if name in BLAKE3 else {})
        made.federation(name, **(SETTINGS | {"secure": secure}))
    with relay_of(made):
        yield made


@pytest.fixture(scope="module")
def reference(tiny: Tiny) -> str:
    """The model's hash over https."""
    found = run_sites({site: [tiny.case("https", site, shapes=LARGE)] for site in SITES})
    return one_hash(found)


def one_hash(found: dict[str, list[dict[str, Any]]]) -> str:
    hashes = {got["sha256"] for of in found.values() for got in of}
    assert len(hashes) == 1
    return str(hashes.pop())


def cases(tiny: Tiny, name: str) -> dict[str, list[dict[str, Any]]]:
    return {site: [tiny.case(name, site, shapes=LARGE)] for site in SITES}


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A name that careless code trips over."""
    return tmp_path / "the site's spool"


# --- the same bits


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def check_modes(folder: Path, directories: int, files: int) -> None:
    found = list(folder.rglob("*"))
    assert len(found) > 10
    for path in found:
        mode = path.stat().st_mode & 0o7777
        assert mode == (directories if path.is_dir() else files), f"{path}: {mode:o}"


@pytest.mark.parametrize(
    ("name", "sites", "mask", "directories", "files"),
    [
        ("one", SITES[:1], 0o000, 0o700, 0o600),
        ("two", SITES[1:], 0o077, 0o2770, 0o660),
        ("all", SITES, 0, 0o700, 0o600),
    ],
)
def test_the_same_model_as_over_https(
    name: str, sites: tuple[str, ...], mask: int, directories: int, files: int, tiny: Tiny, reference: str, spool: Path
) -> None:
    """And both halves, and the runs, are for those whom the spool's directory names, whatever the umask."""
    use_spool(tiny, name, sites, spool)
    spool.chmod(directories)
    for site in sites:
        folder = carrier_file(tiny.made[name].site_file(site)).parent
        assert [p.name for p in folder.iterdir()] == ["site.toml"], "the carrier has no key that signs"
        assert "url" not in tiny.made[name].site_file(site).read_text(), "and the site no way to the relay"
    with umask(mask), carriers(tiny, name, sites):
        assert one_hash(run_sites(cases(tiny, name))) == reference
    check_modes(spool, directories, files)
    for of in cases(tiny, name).values():
        check_modes(Path(of[0]["run"]), 0o700, 0o600)


@pytest.mark.mpi
def test_sites_of_several_ranks(tiny: Tiny, reference: str, spool: Path) -> None:
    """Sites of 3, 2 and 1 ranks: every rank writes and reads its part of the vector; bb's two use https."""
    use_spool(tiny, "ranks", ("aa", "cc"), spool)
    with carriers(tiny, "ranks", ("aa", "cc")):
        assert one_hash(run_sites(cases(tiny, "ranks"), {"aa": 3, "bb": 2}, timeout=200)) == reference


@pytest.mark.parametrize("way", COPIES)
def test_two_copies_of_the_directory(way: str, tiny: Tiny, reference: str, tmp_path: Path) -> None:
    """The site's copy and the carrier's, each half copied one way; nothing secret passes."""
    name, near, far = f"copy {way}", tmp_path / "near", tmp_path / "far"
    use_spool(tiny, name, ("cc",), near)
    far.mkdir()
    here, there = (place_of(tiny, name, "cc", folder) for folder in (near, far))
    with COPIES[way](here / "out", there / "out") as out, COPIES[way](there / "in", here / "in") as back:
        with carriers(tiny, name, ("cc",), "--spool", far):
            assert one_hash(run_sites(cases(tiny, name))) == reference
        if way != "rsync":
            look_for_secrets(tiny, out, back)


def look_for_secrets(tiny: Tiny, out: Copier, back: Copier) -> None:
    """Neither key of the site, nor a piece of its update, is in any file that was ever there."""
    passed = [data for _, data in out.contents + back.contents]
    sign = read_identity(tiny.base.folder / "sites" / "cc" / "sign.key")
    tls = (tiny.base.folder / "sites" / "cc" / "tls.key").read_bytes().splitlines()[1]
    canaries = [sign, sign.hex().encode(), tls]
    for round_ in (1, 2):
        plain = update_of("cc", round_, "weight", (900_001,)).tobytes()
        canaries += [plain[at : at + 32] for at in range(0, len(plain) - 32, len(plain) // 50)]
    assert len(canaries) > 100
    assert [c for c in canaries if any(c in data for data in passed)] == []
    vectors = [path for path, data in out.contents if "M3v" in path and len(data) > 1 << 20]
    assert vectors, "else nothing was looked at"
    assert not [path for path, _ in back.contents if "M3v" in path and "receipts" not in path]


# --- cron


def test_one_pass_after_another(tiny: Tiny, reference: str, spool: Path) -> None:
    """No carrier stays: each pass begins anew, as from cron."""
    use_spool(tiny, "cron", ("bb",), spool)
    with contextlib.ExitStack() as stack:
        jobs = {
            site: stack.enter_context(start(words(of), env=ENVIRONMENT)) for site, of in cases(tiny, "cron").items()
        }
        passes = 0
        while jobs["bb"].process.poll() is None:
            call(carry_words(tiny, "cron", "bb"), timeout=60, env=ENVIRONMENT).ok()
            passes += 1
            assert passes < 200
        call(carry_words(tiny, "cron", "bb"), timeout=60, env=ENVIRONMENT).ok()
        assert one_hash({site: results(job.finish(60)) for site, job in jobs.items()}) == reference


# --- kills


@pytest.mark.faults
def test_carriers_killed_at_many_moments(tiny: Tiny, reference: str, spool: Path) -> None:
    """kill -9 as soon as a note of the site is there, and another carrier at once."""
    use_spool(tiny, "kills", ("cc",), spool)
    notes = place_of(tiny, "kills", "cc", spool) / "out" / "puts"
    with contextlib.ExitStack() as stack:
        jobs = {
            site: stack.enter_context(start(words(of), env=ENVIRONMENT)) for site, of in cases(tiny, "kills").items()
        }
        for moment in CARRIER_MOMENTS:
            with carrier(tiny, "kills", "cc", "--watch") as job:
                until((notes / moment).exists, 60, moment)
                job.kill()
        with carriers(tiny, "kills", ("cc",)):
            assert one_hash({site: results(job.finish(120)) for site, job in jobs.items()}) == reference


@pytest.mark.faults
@pytest.mark.parametrize("moment", SITE_MOMENTS)
def test_a_site_killed_and_started_again(moment: str, tiny: Tiny, reference: str, spool: Path) -> None:
    name = f"site {moment}"
    use_spool(tiny, name, ("cc",), spool)
    note = place_of(tiny, name, "cc", spool) / "out" / "puts" / moment
    with contextlib.ExitStack() as stack:
        stack.enter_context(carriers(tiny, name, ("cc",)))
        of = cases(tiny, name)
        jobs = {site: stack.enter_context(start(words(of[site]), env=ENVIRONMENT)) for site in SITES[:2]}
        with start(words(of["cc"]), env=ENVIRONMENT) as job:
            until(note.exists, 60, moment)
            job.kill()
        jobs["cc"] = stack.enter_context(start(words(of["cc"]), env=ENVIRONMENT))
        assert one_hash({site: results(job.finish(120)) for site, job in jobs.items()}) == reference


# --- what can be wrong


def test_a_second_carrier_is_refused(tiny: Tiny, spool: Path) -> None:
    use_spool(tiny, "two carriers", ("aa",), spool)
    with carriers(tiny, "two carriers", ("aa",)):
        file = place_of(tiny, "two carriers", "aa", spool) / "in" / "carrier.json"
        until(file.exists, 30, "the first carrier")
        first = json.loads(file.read_text())
        done = call(carry_words(tiny, "two carriers", "aa", "--watch"), timeout=60, env=ENVIRONMENT)
        done.refused(69, "is carried already", f"process {first['pid']}", first["host"], "last sign of life")
    assert json.loads(file.read_text())["ended"] is True
    call(carry_words(tiny, "two carriers", "aa"), timeout=60, env=ENVIRONMENT).ok()


def test_files_of_another_federation_are_left_alone(tiny: Tiny, spool: Path) -> None:
    use_spool(tiny, "stale", ("aa",), spool)
    other = spool / ("ab" * 32) / "1" / "out" / "puts"
    other.mkdir(parents=True)
    (other / "1.0.READY.1").write_text('{"trial": "abab", "length": 5, "tree": "' + "ab" * 32 + '"}')
    done = call(carry_words(tiny, "stale", "aa"), timeout=60, env=ENVIRONMENT).ok()
    assert "not carried: abababababababab" in done.err
    assert "another federation.toml" in done.err
    assert sorted(p.name for p in (spool / ("ab" * 32) / "1").iterdir()) == ["out"]


MOUNT = 'mount -t tmpfs -o "$1" none "$2" && shift 2 && exec "$@"'
FILL = 'mount -t tmpfs -o "$1" none "$2" && { head -c 40000 /dev/zero >"$2/full"; shift 2; exec "$@"; }'


@pytest.mark.parametrize(
    ("script", "options", "reason"),
    [(MOUNT, "ro", "the file system is read-only here"), (FILL, "size=36k", "the disk is full: make room")],
    ids=["read-only", "full"],
)
def test_a_disk_that_takes_nothing(script: str, options: str, reason: str, tiny: Tiny, tmp_path: Path) -> None:
    """At the carrier: in/ is a file system of its own in a mount namespace. It ends with 74, and goes on later."""
    spool = tmp_path / "spool"
    folder = tmp_path / "copy of disk"
    shutil.copytree(tiny.made["disk"].folder, folder)
    made = type(tiny.made["disk"])(folder, tiny.base.url, tiny.base.port, SITES)
    tiny.made[f"disk {options}"] = made
    use_spool(tiny, f"disk {options}", ("aa",), spool)
    place = place_of(tiny, f"disk {options}", "aa", spool)
    (place / "in").mkdir(parents=True)
    carry = carry_words(tiny, f"disk {options}", "aa")
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    command = [*unshare, "sh", "-c", script, "sh", options, place / "in", *carry]
    done = call(command, timeout=60, env=ENVIRONMENT)
    done.refused(74, reason)
    assert list((place / "in").iterdir()) == []
    call(carry, timeout=60, env=ENVIRONMENT).ok()
    assert json.loads((place / "in" / "standing.json").read_text())["sites"] == 3


def test_without_a_spool_or_a_carrier(tiny: Tiny, tmp_path: Path) -> None:
    """What people meet who forget one of them."""
    made = tiny.made["disk"]
    site = made.site_file("bb")
    keys = tiny.base.folder / "sites" / "bb" / "sign.key"
    file = site.parent / "no-spool.toml"
    head = f'[site]\nname = "bb"\nkey = "{keys}"\n[exchange]\nkind = "spool"\n'
    run = [sys.executable, "-m", "fedhpc", "run", made.federation, "--site", file, "--out", tmp_path / "run"]
    file.write_text(head)
    call(run, env=ENVIRONMENT).refused(64, 'kind = "spool" needs spool')
    file.write_text(f'{head}spool = "{tmp_path / "nowhere"}"\npatience_s = 1\n')
    call(run, env=ENVIRONMENT).refused(74, "nowhere is not there", "make it once")
    (tmp_path / "nowhere").mkdir()
    call(run, env=ENVIRONMENT).refused(69, "no carrier has been seen", "fedhpc spool carry")
    carry = [sys.executable, "-m", "fedhpc", "spool", "carry", made.federation, "--site", file]
    call(carry, env=ENVIRONMENT).refused(64, "url, certificate and key")
