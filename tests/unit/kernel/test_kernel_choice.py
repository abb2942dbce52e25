"""A compiled path runs only where it was built, can run, is wanted and knows its answers; else Python's does."""

import re
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from conftest import BUILT, HERE

import fedhpc.kernel
from fedhpc.errors import ConfigError
from fedhpc.kernel import choice
from fedhpc.kernel.calls import Kernel
from fedhpc.kernel.known_answers import failure

compiled = pytest.mark.parametrize("name", HERE)


class Broken:
    """The extension with one answer altered."""

    def __init__(self, call: str, alter: Any) -> None:
        self.PATHS, self.FLAGS = BUILT.PATHS, BUILT.FLAGS  # type: ignore[union-attr]
        self._call, self._alter = call, alter

    def __getattr__(self, name: str) -> Any:
        real = getattr(BUILT, name)
        return self._alter(real) if name == self._call else real


def test_the_extension_is_built_where_there_is_a_compiler() -> None:
    headers = Path(sysconfig.get_path("include"), "Python.h")
    assert BUILT is not None or shutil.which("cc") is None or not headers.is_file()


def test_an_auditor_can_read_it_in_an_afternoon() -> None:
    """At most 600 lines of C that say something: without blank lines, comments, closing braces and #endif."""
    sources = Path(fedhpc.kernel.__file__).parent.glob("*.[ch]")
    lines = [line.strip() for source in sources for line in source.read_text().splitlines()]
    nothing = re.compile(r"$|//|[{}]+;?$|#(else|endif|pragma clang attribute pop)")
    assert sum(nothing.match(line) is None for line in lines) <= 600


def test_every_path_knows_its_answers(kernel: Kernel) -> None:
    assert failure(kernel) == ""


def test_the_best_path_runs_unless_another_is_wanted() -> None:
    assert choice.choose("", BUILT)[0].name == (HERE[0] if HERE else "python")
    for name in HERE:
        found, kernel = choice.choose(name, BUILT)
        assert (found.name, found.reason) == (name, "")
        assert kernel is not None
        assert kernel.name == name
    assert choice.choose("python", BUILT) == (
        choice.Running("python", "FEDHPC_KERNEL asks for it", () if BUILT is None else tuple(BUILT.FLAGS.split())),
        None,
    )


def test_a_path_that_this_cpu_lacks_means_python() -> None:
    found, kernel = choice.choose("", None)
    assert (found.name, found.reason, kernel) == ("python", "the compiled kernel was not built", None)
    if BUILT is not None:
        other = "vaes" if "armv8" in HERE else "armv8"
        found, kernel = choice.choose(other, BUILT)
        assert (found.name, found.reason, kernel) == ("python", f"this CPU cannot run {other}", None)


def test_a_wrong_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "sse2")
    for ask in choice.running, choice.kernel:
        with pytest.raises(ConfigError, match="FEDHPC_KERNEL is 'sse2'") as refused:
            ask()
        assert refused.value.exit_code == 64
    monkeypatch.setenv(choice.VARIABLE, "python")
    assert choice.running().name == "python"
    assert choice.kernel() is None


def streams_of_another_key(real: Any) -> Any:
    return lambda path, keys, signs: real(path, bytes(len(keys)), signs)


def streams_without_signs(real: Any) -> Any:
    return lambda path, keys, signs: real(path, keys, b"+" * len(signs))


def another_tag(real: Any) -> Any:
    return lambda *a: bytes(16) if real(*a) else b""


def no_largest(real: Any) -> Any:
    def inspect(path: int, key: Any, number: int, block: Any, tagged: int, spans: Any) -> Any:
        tag = real(path, key, number, block, tagged, spans)
        spans[:, 3] = 0
        return tag

    return inspect


def another_wide_tag(real: Any) -> Any:
    def run(*arguments: Any) -> Any:
        narrow, low, high = real(*arguments)
        return narrow, low, high ^ 1

    return run


def no_refusal(real: Any) -> Any:
    return lambda *arguments: real(*arguments[:-1], 2**63 - 1)


def raises(real: Any) -> Any:
    def run(*arguments: Any) -> Any:
        raise RuntimeError("no")

    return run


@compiled
@pytest.mark.parametrize(
    ("call", "alter", "reason"),
    [
        ("streams", streams_of_another_key, "AES-256-CTR differs"),
        ("streams", streams_without_signs, "hidden lanes differ"),
        ("inspect", another_tag, "GMAC differs"),
        ("inspect", no_largest, "the largest value differs"),
        ("run", another_wide_tag, "hidden lanes differ"),
        ("decode", no_refusal, "a sum out of range passes"),
        ("streams", raises, "raises RuntimeError"),
    ],
)
def test_a_wrong_answer_means_python(name: str, call: str, alter: Any, reason: str) -> None:
    found, kernel = choice.choose(name, Broken(call, alter))
    assert found.name == "python"
    assert kernel is None
    assert f"{name} fails its known answers: " in found.reason
    assert reason in found.reason
