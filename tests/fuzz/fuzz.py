"""python tests/fuzz/fuzz.py [TARGET…] --runs 20000 --seconds 3: bytes at a parser, until one makes it misbehave.

With atheris (libFuzzer) where it has wheels, guided by which lines of fedhpc an input reaches; elsewhere by blind
mutation of the genuine inputs. Misbehaving is: an exception that the target may not raise, an accepted input that
breaks its promise, or more memory than its size allows (Target.least, .factor). Exits with 0 only if nothing was found.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import sys
import tempfile
import time
import traceback
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from targets import Target

HERE = Path(__file__).parent
GUIDED = sys.platform == "linux" and platform.machine() == "x86_64"  # as `atheris` in the extra `test`
LONGEST = 1 << 16


def use_paths() -> None:
    """Let the targets find the fakes of the unit tests."""
    for folder in (HERE, HERE.parent / "fakes"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


def one_input(target: Target, data: bytes) -> None:
    """One try. Raises whatever the target may not raise, and MemoryError for too much memory."""
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    most = target.least + target.factor * len(data)
    # Twice where it is much: patterns and type hints that are made once and kept are not the input's.
    if cost(target, data) > most and (peak := cost(target, data)) > most:
        raise MemoryError(f"{target.name}: {peak} bytes for an input of {len(data)}: {data[:200]!r}")


def cost(target: Target, data: bytes) -> int:
    """The most memory that one try holds at once, in bytes of Python's allocator."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    with contextlib.suppress(*target.refuses):
        target.parse(data)
    return tracemalloc.get_traced_memory()[1] - before


def mutated(seed: bytes, draw: random.Random) -> bytes:
    """`seed` with a few changes: bits, bytes cut out, doubled, moved, or replaced by what parsers stumble over."""
    data = bytearray(seed)
    for _ in range(draw.randint(1, 4)):
        at, length = draw.randint(0, len(data)), draw.choice((0, 1, 1, 2, 8, 64))
        piece = bytes(data[at : at + length])
        change = draw.randint(0, 4)
        if change == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << draw.randint(0, 7)
        elif change == 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = piece * draw.choice((1, 2, 50))
        elif change == 3:
            data[at : at + length] = draw.choice(STUMBLES)
        else:
            del data[at : at + length]
            to = draw.randint(0, len(data))
            data[to:to] = piece
    return bytes(data[:LONGEST])


STUMBLES = [
    b"", b"0", b"-1", b"00", b"1e999", b"1" * 5000, b"null", b"true", b"NaN", b'""', b"[]", b"{}", b"[" * 3000,
    b"\x00", b"\xff\xfe", "é".encode(), "²".encode(), b"\r\n", b"/../", b"\\u0000", b"9" * 19, b"1979-05-27",
]  # fmt: skip


def blindly(target: Target, runs: int, seconds: float) -> None:
    """Mutations of the seeds."""
    draw = random.Random(1)
    end = time.monotonic() + seconds
    for number in range(runs):
        if time.monotonic() > end:
            break
        data = mutated(draw.choice(target.seeds), draw)
        try:
            one_input(target, data)
        except BaseException:
            print(f"{target.name}, input {number}: {data!r}", file=sys.stderr)
            raise


def guided(target: Target, runs: int, seconds: float, folder: Path) -> None:
    """libFuzzer, with its files in `folder`; does not return."""
    import atheris

    corpus, words = folder / "corpus", folder / "words"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)
    escaped = ["".join(map(r"\x{:02x}".format, word[:60])) for word in STUMBLES if word]
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    options = [
        f"-runs={runs}", f"-max_total_time={max(1, round(seconds))}", "-seed=1", f"-max_len={LONGEST}",
        "-timeout=60", "-rss_limit_mb=2048", f"-artifact_prefix={folder}/", f"-dict={words}", "-verbosity=0",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: one_input(target, data))
    atheris.Fuzz()


def in_a_child(target: Target, guide: bool, runs: int, seconds: float) -> tuple[bool, str]:
    """Whether nothing was found, and what was said: libFuzzer ends its process, so each target has one."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            status = 1
            try:
                if guide:
                    guided(target, runs, seconds, Path(folder))
                blindly(target, runs, seconds)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return status == 0, said.read()[-4000:].decode("utf-8", "replace")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="*", help="some of --list; absent: all of them, one after another")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--runs", type=int, default=1_000_000_000, help="inputs for each target at most")
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each target at most")
    parser.add_argument("--blindly", action="store_true", help="without atheris")
    given = parser.parse_args()
    use_paths()
    guide = GUIDED and not given.blindly and not given.list
    if guide:
        import atheris

        with atheris.instrument_imports(include=["fedhpc"]):
            from targets import targets
    else:
        from targets import targets
    known = targets()
    if given.list:
        print("\n".join(known))
        return 0
    unknown = [name for name in given.target if name not in known]
    if unknown:
        parser.error(f"{unknown[0]!r} is no target; --list shows them")
    bad = 0
    for name in given.target or known:
        good, said = in_a_child(known[name], guide, given.runs, given.seconds)
        print(f"{'good' if good else 'bad'}: {name}", flush=True)
        if not good:
            bad += 1
            print(said, flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
