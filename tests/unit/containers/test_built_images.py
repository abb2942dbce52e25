"""The pure parts of what `make test-containers` builds and starts images with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness import ROOT

sys.path += [str(ROOT / "tests" / folder) for folder in ("containers", "slurm")]

import charliecloud
from built_image import base_of
from definition import read_definition
from pip_settings import settings
from prove import _containers


def test_pip_s_settings_go_into_a_build_with_the_files_they_name(tmp_path: Path) -> None:
    index, wheels, bundle = tmp_path / "mirror" / "simple", tmp_path / "wheels", tmp_path / "ca.pem"
    index.mkdir(parents=True)
    wheels.mkdir()
    bundle.touch()
    lines = [
        ":env:.timeout='180'",
        f"global.cert='{bundle}'",
        f"global.extra-index-url='file://{index} https://mirror.example/simple'",
        f"global.find-links='{wheels} /nowhere'",
        "global.timeout='5'",
        "list.format='columns'",
    ]
    values, binds = settings(lines)
    assert binds == {bundle: "/run/pip/0", index.parent: "/run/pip/1", wheels: "/run/pip/2"}
    assert values == {
        "cert": "/run/pip/0",
        "extra-index-url": "file:///run/pip/1/simple https://mirror.example/simple",
        "find-links": "/run/pip/2 /nowhere",
        "timeout": "180",
    }


@pytest.mark.parametrize(
    ("header", "release"),
    [
        ("Bootstrap: docker\nFrom: debian:bookworm-slim", "bookworm"),
        ("Bootstrap: docker\nFrom: mirror.example/library/debian:trixie", "trixie"),
        ("Bootstrap: debootstrap\nOSVersion: bookworm\nMirrorURL: http://mirror.example/debian", "bookworm"),
    ],
)
def test_the_base_of_a_definition_is_a_release_of_debian(header: str, release: str) -> None:
    assert base_of(read_definition(f"{header}\n\n%post\n    true\n").image) == release


def test_an_image_is_started_with_its_own_path_and_without_the_host_s_python() -> None:
    words = charliecloud.words(Path("/image"), "python", binds={Path("/data"): "/mnt"}, env={"A": "b"})
    assert words[:2] == ["env", "--unset=TMPDIR"]
    assert words[-4:] == ["/image", "--", charliecloud.EXEC, "python"]
    assert {"--unset-env=PYTHON*", "--unset-env=LD_LIBRARY_PATH", "--set-env=A=b"} <= set(words)
    assert words[words.index("--bind") + 1] == "/data:/mnt"


def test_evidence_of_images_needs_every_file_of_tests() -> None:
    files = [path.stem for path in ROOT.glob("tests/containers/test_*.py")]
    model = {"final_model_sha256": "ab"}
    said = {"hybrid": model, "bind": model, "relay": model, "horovod": {}, "air gap": {}}
    whole = {"passed": dict.fromkeys(files, 1), "skipped": [], **said}
    assert _containers(whole) == ""
    assert _containers({**whole, "passed": dict.fromkeys(files[1:], 1)}) == f"nothing passed in {files[0]}"
    assert _containers({**whole, "skipped": ["a"]}).startswith("skipped")
    assert _containers({**whole, "bind": {"final_model_sha256": "cd"}}) == "another model"
    for name in said:
        assert _containers({key: value for key, value in whole.items() if key != name}) == f"nothing is said of {name}"
    assert _containers("1 failed").startswith("skipped")
