"""Every command line of fedhpc that containers/ shows, also behind apptainer, podman and kubectl, exists."""

from __future__ import annotations

import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from command_lines import check_command
from containers.definition import read_definition
from harness import ROOT

from fedhpc.cli import cli
from fedhpc.cli.relay import relay as relay_commands

FOLDER = ROOT / "containers"
FILES = [*sorted(FOLDER.rglob("*.md")), *sorted(FOLDER.glob("*.def"))]
# Words of Apptainer before which the image's own words come in, and the section that has them.
SECTION = {"run": "runscript", "instance run": "runscript", "instance start": "startscript"}


def command_lines(text: str) -> Iterator[str]:
    """The indented lines of `text`, each with those that continue it; and what stands in one line between backticks."""
    joined = re.sub(r" *\\\n +", " ", text)
    yield from (line.strip() for line in joined.splitlines() if line.startswith("    "))
    yield from re.findall(r"`(fedhpc [^`\n]+)`", text)


def of_fedhpc(line: str) -> list[str] | None:
    """The words that `fedhpc` gets if `line` is carried out, or None if it does not run."""
    line = re.split(r" [<>|] | \|$", line)[0]
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return None
    if "fedhpc" in words:
        return words[words.index("fedhpc") + 1 :]
    match = re.match(r"(?:srun .*)?(?:apptainer|singularity) (run|instance run|instance start) ", line)
    if not match:
        return None
    image = next(at for at, word in enumerate(words) if word.endswith(".sif"))
    name = words[image].removesuffix(".sif")
    path = FOLDER / f"{name}.def"
    if not path.exists():  # IMAGE.sif: each image of a site has the same
        path = FOLDER / "cpu.def"
    script = getattr(read_definition(path.read_text()).image, SECTION[match[1]])
    program, *first = shlex.split(script.strip().removeprefix("exec "))
    assert (program, first.pop()) == ("fedhpc", "$@")
    return [*first, *words[image + (2 if match[1].startswith("instance") else 1) :]]


def check(words: list[str]) -> None:
    """As the reader would give them; a command without any more words is only named, not shown."""
    named = not any(word.startswith("-") or "." in word or word.isupper() for word in words)
    check_command([*words, "--help"] if named else words)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(FOLDER).as_posix())
def test_the_commands_of(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".def":
        text = textwrap.dedent(read_definition(text).image.help)
    found = [words for line in command_lines(text) if (words := of_fedhpc(line)) is not None]
    assert found
    for words in found:
        check(words)


def test_a_script_s_own_words_count() -> None:
    start = "apptainer instance start --containall --bind heart/relay:/relay relay.sif relay /relay/relay.toml"
    assert of_fedhpc(start) == ["relay", "serve", "/relay/relay.toml"]
    run = of_fedhpc(start.replace("start", "run"))
    assert run == ["relay", "/relay/relay.toml"]
    with pytest.raises((AssertionError, click.ClickException)):
        check(run)
    with pytest.raises(click.ClickException):
        check(of_fedhpc("podman exec relay fedhpc relay status --xml") or [])


def test_the_folder_of_the_relay_is_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its one change the relay has a port that users may open, and the admin port that `relay status` asks."""
    readme = (FOLDER / "README.md").read_text()
    (line,) = re.findall(r"(?m)^    fedhpc (federation new .*)$", readme)
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(cli, shlex.split(line))
    assert made.exit_code == 0, made.output
    text, changes = re.subn(r"(?m)^# ?(?=admin = )", "", (tmp_path / "heart/relay/relay.toml").read_text())
    settings = tomllib.loads(text)["relay"]
    (asked,) = (one.default for one in relay_commands.commands["status"].params if one.name == "admin")
    assert (changes, settings["admin"], settings["listen"]) == (1, asked, "0.0.0.0:8443")
