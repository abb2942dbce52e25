"""Sites of a tiny federation that use a spool directory, carriers as processes, and copying as rsync does it."""

from __future__ import annotations

import contextlib
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import Job, start
from tiny_federations import ENVIRONMENT, Tiny

from fedhpc.agreement.federation_file import read_agreement


def use_spool(tiny: Tiny, name: str, sites: Sequence[str], spool: Path) -> None:
    """These sites of a federation write to `spool`. Their own site files know no way to the relay any more."""
    spool.mkdir(exist_ok=True, parents=True)
    for site in sites:
        path = tiny.made[name].site_file(site)
        text = path.read_text()
        carrier_file(path).write_text(text.replace('kind = "https"', f'kind = "spool"\nspool = "{spool}"'))
        head = text.partition("[exchange]")[0]
        path.write_text(f'{head}[exchange]\nkind = "spool"\nspool = "{spool}"\npatience_s = 60\n')


def carrier_file(site_file: Path) -> Path:
    """The site file on the machine that carries: beside it no sign.key."""
    folder = site_file.parent / "on the carrier's machine"
    folder.mkdir(exist_ok=True)
    return folder / "site.toml"


def carry_words(tiny: Tiny, name: str, site: str, *more: str | Path) -> list[str | Path]:
    made = tiny.made[name]
    file = carrier_file(made.site_file(site))
    return [sys.executable, "-m", "fedhpc", "spool", "carry", made.federation, "--site", file, *more]


def carrier(tiny: Tiny, name: str, site: str, *more: str | Path) -> Job:
    """`fedhpc spool carry` as a process."""
    return start(carry_words(tiny, name, site, *more), env=ENVIRONMENT)


@contextlib.contextmanager
def carriers(tiny: Tiny, name: str, sites: Sequence[str], *more: str | Path) -> Iterator[None]:
    """A carrier for each of the sites; each must still run at the end, and ends when told to."""
    with contextlib.ExitStack() as stack:
        jobs = [stack.enter_context(carrier(tiny, name, site, "--watch", *more)) for site in sites]
        yield
        for job in jobs:
            assert job.process.poll() is None, job.finish(5).text
            job.process.terminate()
            job.finish(60).ok()


def place_of(tiny: Tiny, name: str, site: str, spool: Path) -> Path:
    """Where a site's part of a spool directory is."""
    made = tiny.made[name]
    agreement = read_agreement(made.federation.read_bytes(), "federation.toml")
    return spool / agreement.hash.hex() / str(agreement.number_of(site))


class Copier:
    """Copies one half to another directory in a thread, over and over: new files by rename, gone ones removed.

    `late`: files become visible late and in any order, as on a slow shared file system. `seen` is called with each.
    """

    def __init__(self, source: Path, target: Path, *, late: bool = False, seed: int = 0) -> None:
        self.source, self.target, self.late = source, target, late
        self.draw = random.Random(seed)
        self.copied: dict[Path, tuple[int, int, int]] = {}
        self.contents: list[tuple[str, bytes]] = []
        self.failed: list[BaseException] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Copier:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        assert self.failed == []

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            try:
                self.once()
            except BaseException as error:
                self.failed.append(error)
                return

    def once(self) -> None:
        try:
            files = [p for p in self.source.rglob("*") if not p.name.startswith(".")] if self.source.exists() else []
        except FileNotFoundError:
            return  # a folder went while it was listed: next time
        self.draw.shuffle(files)
        here = set()
        for path in files:
            relative = path.relative_to(self.source)
            try:
                if not path.is_file():
                    continue
                status = path.stat()
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            here.add(relative)
            sign = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self.copied.get(relative) == sign or (self.late and self.draw.random() < 0.5):
                continue
            self.contents.append((str(relative), data))
            to = self.target / relative
            to.parent.mkdir(parents=True, exist_ok=True)
            part = to.with_name(f".{to.name}.copying")
            part.write_bytes(data)
            part.replace(to)
            self.copied[relative] = sign
        for relative in set(self.copied) - here:
            (self.target / relative).unlink(missing_ok=True)
            del self.copied[relative]


class Rsync(Copier):
    """The same by the real program."""

    def once(self) -> None:
        if self.source.exists():
            self.target.mkdir(parents=True, exist_ok=True)
            words = ["rsync", "-a", "--delete", "--exclude=.*", f"{self.source}/", f"{self.target}/"]
            with start(words) as job:
                done = job.finish(30)
            assert done.code in (0, 24), done.text  # 24: files vanished meanwhile


def copiers() -> dict[str, Callable[[Path, Path], Copier]]:
    """Ways of copying that this machine has."""
    ways: dict[str, Callable[[Path, Path], Copier]] = {
        "as rsync": Copier,
        "late": lambda source, target: Copier(source, target, late=True),
    }
    return ways | ({"rsync": Rsync} if shutil.which("rsync") else {})
