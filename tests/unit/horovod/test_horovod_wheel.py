"""Horovod's wheel: what it is bound to, what of the machine its build takes, and where it is kept. Builds none."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import zipfile
from pathlib import Path

import pytest

from fedhpc.errors import ConfigError, InternalError, StorageError
from fedhpc.horovod import __main__ as command
from fedhpc.horovod import build, target
from fedhpc.horovod.cache import cache_folder, find, put, require_own
from fedhpc.horovod.installed import Installed, look, require_fit
from fedhpc.horovod.target import Mpi, Target

HERE = Target("cpython-311 glibc 2.36", "x86_64", "2.13.0+cpu", "Open MPI v5.0.11", "g++ 12.2.0", "-mavx", ())
OPEN_MPI = Mpi("Open MPI v5.0.11, package: x\nmore", Path("/nowhere/lib/libmpi.so.40"))


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


# --- what it is bound to


def test_a_wheel_is_another_s_if_anything_differs() -> None:
    others = [dataclasses.replace(HERE, **{f.name: "other"}) for f in dataclasses.fields(HERE) if f.name != "options"]
    others.append(dataclasses.replace(HERE, options=(("HOROVOD_GPU_OPERATIONS", "NCCL"),)))
    keys = [HERE.key("recipe"), HERE.key("another"), *(other.key("recipe") for other in others)]
    assert len(set(keys)) == len(keys)
    assert dataclasses.replace(HERE).key("recipe") == keys[0]


def test_this_machine_has_an_mpi_and_a_torch(tmp_path: Path) -> None:
    mpi = target.find_mpi()
    assert mpi.path.is_file()
    cxx = script(tmp_path / "cxx", "echo 'cxx 1.2'\necho more")
    environment = {"CXX": str(cxx), "HOROVOD_GPU_OPERATIONS": "NCCL", "HOROVOD_CYCLE_TIME": "2"}
    here = target.find_target(mpi, environment)
    assert (here.compiler, here.mpi) == ("cxx 1.2", mpi.version)
    assert here.torch.startswith("2.")
    assert here.options == (("HOROVOD_GPU_OPERATIONS", "NCCL"),)


def test_a_compiler_is_looked_for(tmp_path: Path) -> None:
    script(tmp_path / "c++", "exit 1")
    script(tmp_path / "g++", "echo g++ 12")
    path = {"PATH": str(tmp_path)}
    assert target.find_compiler(path) == (tmp_path / "g++", "g++ 12")
    with pytest.raises(ConfigError, match="CXX = icpx is no C"):
        target.find_compiler(path | {"CXX": "icpx"})
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        target.find_compiler({"PATH": str(tmp_path / "nowhere")})


def test_the_processor_s_flags(tmp_path: Path) -> None:
    cpu = tmp_path / "cpuinfo"
    cpu.write_text("processor : 0\nflags : fpu avx avx2 f16c sse\nflags : fma\n")
    assert target.vector_flags({}, cpu) == "-mf16c -mavx"
    assert target.vector_flags({"HOROVOD_BUILD_ARCH_FLAGS": "-march=znver3"}, cpu) == "-march=znver3"
    assert target.vector_flags({}, tmp_path / "nowhere") == ""


# --- how it is built


def mpicxx(path: Path, version: str) -> Path:
    """A compiler whose programs, in place of theirs, say this version."""
    return script(path, f'printf \'#!/bin/sh\\nprintf "%s"\\n\' "{version}" > "$3" && chmod 700 "$3"')


def test_the_compiler_of_the_mpi_that_mpi4py_loads(tmp_path: Path) -> None:
    """Not the first one on PATH, which may be another MPI's."""
    mpi = Mpi("Open MPI v5.0.11, package", tmp_path / "prefix" / "lib" / "libmpi.so.40")
    work = tmp_path / "work"
    work.mkdir()
    other = mpicxx(tmp_path / "path" / "mpicxx", "Open MPI v4.1.4, package")
    environment = {"PATH": f"{other.parent}:{os.defpath}"}
    with pytest.raises(ConfigError) as caught:
        build.mpi_compiler(mpi, work, environment)
    assert f"{other} builds for Open MPI v4.1.4" in caught.value.what
    assert "MPICXX" in caught.value.hint
    beside = mpicxx(tmp_path / "prefix" / "bin" / "mpicxx", mpi.version)
    assert build.mpi_compiler(mpi, work, environment) == beside
    broken = script(tmp_path / "broken", "echo 'mpi.h: no such file' >&2; exit 1")
    with pytest.raises(ConfigError, match=r"builds for nothing: mpi\.h"):
        build.mpi_compiler(mpi, work, environment | {"MPICXX": str(broken)})
    with pytest.raises(ConfigError, match="no mpicxx is beside it"):
        build.mpi_compiler(Mpi("MPICH", tmp_path / "a" / "b" / "libmpi.so.12"), work, {"PATH": str(tmp_path)})


def test_the_environment_of_the_build() -> None:
    base = {"PYTHONPATH": "/mine", "HOME": "/home/x", "CXX": "clang++"}
    made = build.build_environment(base, Path("/t"), Path("/w/compiler"), Path("/w/tc"), "-mavx", 3)
    assert made.items() >= build.SETTINGS.items()
    assert (made["CXX"], made["MAKEFLAGS"], made["PYTHONPATH"]) == ("/w/compiler", "-j3", "/t:/mine")
    assert (made["CMAKE_TOOLCHAIN_FILE"], made["HOROVOD_CMAKE"]) == ("/w/tc", "/t/bin/cmake")
    assert made["HOME"] == "/home/x"


def test_the_standard_that_torch_wants_comes_last(tmp_path: Path) -> None:
    """As the compiler's wrapper calls it, wherever it and Python lie."""
    real = script(tmp_path / "a 'b" / "g++", 'for word in "$@"; do echo "$word"; done')
    text = build.COMPILER.format(compiler=build._quoted(real), headers=build._quoted(Path("/include it")))
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(text)
    wrapper.chmod(0o700)
    out = tmp_path / "out"
    build._run([str(wrapper), "-std=c++14", "x.cc"], {}, out)
    assert out.read_text().split("\n")[:-1] == ["-std=c++14", "x.cc", "-std=c++17", "-g0", "-isystem", "/include it"]


def test_a_build_that_fails_says_its_last_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    failing = script(tmp_path / "pip", "echo '#error C++17 or later'; echo make stopped; exit 2")
    with pytest.raises(ConfigError) as caught:
        build._run([str(failing), "-m", "pip", "wheel", "horovod"], {}, log)
    assert caught.value.what.endswith("failed at `-m pip wheel`: #error C++17 or later")
    assert str(log) in caught.value.hint


def wheel(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"horovod-{build.VERSION}-cp311-cp311-linux_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"library")
    return path


def test_a_wheel_that_could_not_be_moved_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, library = tmp_path / "out", "horovod/torch/mpi_lib_v2.so"
    wheel(out)
    with pytest.raises(InternalError, match="has no part for torch"):
        build.check_wheel(out, tmp_path)
    wheel(out, library)
    line = " 0x000000000000001d (RUNPATH)            Library runpath: [{}]"
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    script(tmp_path / "bin" / "readelf", f"echo '{line.format('$ORIGIN/../../torch/lib:$ORIGIN/../../../..')}'")
    build.check_wheel(out, tmp_path)
    script(tmp_path / "bin" / "readelf", f"echo '{line.format('$ORIGIN/..:/venv/lib')}'")
    with pytest.raises(InternalError, match="looks for libraries in /venv/lib"):
        build.check_wheel(out, tmp_path)
    (out / f"horovod-{build.VERSION}-cp312.whl").touch()
    with pytest.raises(InternalError, match="left 2 wheels"):
        build.check_wheel(out, tmp_path)


# --- where it is kept


def kept(cache: Path, key: str = "k") -> Path:
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    wheel(cache / ".made", "x")
    return put(cache / ".made", cache, key, HERE)


def test_what_was_built_is_found_again_and_only_whole(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert find(cache, "k") is None
    folder = kept(cache)
    assert find(cache, "k") == folder
    assert find(cache, "another") is None
    assert json.loads((folder / "built.json").read_text())["target"]["torch"] == HERE.torch
    (made,) = folder.glob("*.whl")
    whole = made.read_bytes()
    made.write_bytes(whole[:-1])
    assert find(cache, "k") is None
    made.write_bytes(whole)
    (folder / "stranger.whl").touch()
    assert find(cache, "k") is None
    assert kept(cache) == folder  # a new one takes its place
    assert find(cache, "k") == folder
    (folder / "built.json").write_text("{")
    assert find(cache, "k") is None


def test_what_others_may_change_is_not_installed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    folder = kept(cache)
    for path in (folder, cache, cache.parent):
        path.chmod(0o775)
        with pytest.raises(StorageError, match=f"others may write into {path}"):
            find(cache, "k")
        path.chmod(0o755)
    assert find(cache, "k") == folder
    require_own(cache)
    (tmp_path / "link").symlink_to(cache)
    for path in (tmp_path / "link", folder / "built.json"):
        with pytest.raises(StorageError, match="others may write into"):
            require_own(path)


def test_the_user_s_cache() -> None:
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/fedhpc/horovod")
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == Path.home() / ".cache/fedhpc/horovod"


def test_the_command_builds_nothing_for_a_cache_that_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", str(script(tmp_path / "cxx", "echo cxx 1")))
    monkeypatch.setattr(command, "find_mpi", lambda: OPEN_MPI)
    assert command.main(["--cached"]) == 0
    assert "Horovod is not in the cache" in capsys.readouterr().out
    monkeypatch.setenv("CXX", "/nowhere/cxx")
    assert command.main(["--cached"]) == 0
    assert "not taken from the cache: CXX = /nowhere/cxx" in capsys.readouterr().out
    assert command.main([]) == 64
    assert capsys.readouterr().err.startswith("error: CXX = /nowhere/cxx is no C++ compiler\nhint: ")
    assert {path.name for path in tmp_path.iterdir()} == {"cxx"}


# --- what is installed


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, ("not installed", "make horovod")),
        (Installed("0.28.1", trouble="undefined symbol"), ("cannot be imported: undefined symbol",)),
        (Installed("0.28.1", mpi=False), ("built without MPI",)),
        (Installed("0.28.1", mpi=True, libraries=("/a", "/b")), ("another MPI library than mpi4py's: /a, /b",)),
        (Installed("0.28.1", mpi=True), ("built for the CPU", "NCCL")),
    ],
)
def test_what_does_not_fit(found: Installed | None, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        require_fit(found, gpus=True)
    assert [word for word in words if word not in caught.value.lines()] == []


def test_what_does_fit() -> None:
    found = Installed("0.28.1", mpi=True, libraries=("/a",))
    assert require_fit(found) is found


def test_it_is_looked_at_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in is installed; mpi4py is loaded first."""
    (tmp_path / "horovod").mkdir()
    (tmp_path / "horovod" / "__init__.py").touch()
    module = tmp_path / "horovod" / "torch.py"
    module.write_text(
        "import sys\nassert 'mpi4py.MPI' in sys.modules\nprint('Warning!')\n"
        "mpi_built = gloo_built = cuda_built = lambda: True\nrocm_built = lambda: False\n"
    )
    info = tmp_path / "horovod-0.28.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: horovod\nVersion: 0.28.1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    found = look(environment, 60)
    assert found is not None
    assert (found.version, found.mpi, found.gloo, found.gpus, found.trouble) == ("0.28.1", True, True, True, "")
    assert len(found.libraries) == 1
    module.write_text("raise ImportError('libc10.so: cannot open shared object file')")
    found = look(environment, 60)
    assert found is not None
    assert "libc10.so" in found.trouble


def test_none_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert look({}, 1) is None
