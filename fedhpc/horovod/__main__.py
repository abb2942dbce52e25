"""`python -m fedhpc.horovod`: builds Horovod's wheel, or takes it from the user's cache, and installs it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedhpc.errors import ConfigError, FedhpcError
from fedhpc.horovod import build
from fedhpc.horovod.cache import cache_folder, find, install, put, require_own
from fedhpc.horovod.installed import look, require_fit
from fedhpc.horovod.target import Mpi, Target, find_compiler, find_mpi, find_target

_IMPORT_S = 600.0  # on a crowded machine torch alone may take a minute


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m fedhpc.horovod", description=__doc__)
    parser.add_argument("--cached", action="store_true", help="install it only if the cache has it; build nothing")
    parser.add_argument(
        "--jobs", type=int, default=_jobs(), help="compilers side by side; each takes 1 to 2 GB of memory"
    )
    asked = parser.parse_args(words)
    try:
        _provide(cached=asked.cached, jobs=max(1, asked.jobs))
    except FedhpcError as error:
        sys.stderr.write(error.lines() + "\n")
        return error.exit_code
    return 0


def _provide(*, cached: bool, jobs: int) -> None:
    """Install Horovod from the cache; before that, unless `cached`, build what is not in it."""
    try:
        mpi = find_mpi()
        target = find_target(mpi)
    except ConfigError as error:
        if not cached:
            raise
        _say(f"Horovod is not taken from the cache: {error.what}")
        return
    key = target.key(build.RECIPE)
    folder = find(cache_folder(), key)
    if folder is None:
        if cached:
            _say(f"Horovod is not in the cache (key {key}); `make horovod` builds it")
            return
        folder = _build(mpi, target, key, jobs)
    install(folder)
    found = require_fit(look(os.environ, _IMPORT_S))
    _say(f"Horovod {found.version} for {mpi.name} and torch {target.torch}, from {folder}")


def _build(mpi: Mpi, target: Target, key: str, jobs: int) -> Path:
    cache = cache_folder()
    cache.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    cache.mkdir(exist_ok=True, mode=0o700)
    require_own(cache.parent, cache)
    log = cache / f"{key}.log"
    log.write_bytes(b"")
    _say(f"builds Horovod {build.VERSION} for {mpi.name}, torch {target.torch} and {target.compiler}: some minutes")
    compiler, _ = find_compiler()
    made = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=cache))
    try:
        with tempfile.TemporaryDirectory(prefix="fedhpc-horovod-") as work:
            build.build_wheel(mpi, compiler, target.flags, Path(work), made, jobs, log)
        return put(made, cache, key, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _jobs() -> int:
    """As many as there are cores for this process, up to 4: login nodes are shared."""
    return min(4, len(os.sched_getaffinity(0)))


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
