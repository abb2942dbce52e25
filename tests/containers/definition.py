"""Reads Apptainer's definition files as Apptainer does: stages, sections, and arguments filled in.

What Apptainer takes in silence and then does otherwise than it reads is an error here: a `{{ NAME }}` in a comment, a
section that runs on the builder's own machine, an argument that is given, or declared, and never used.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

HEADER = {
    name.lower(): name
    for name in ("Bootstrap", "From", "Stage", "MirrorURL", "OSVersion", "Include", "Fingerprints", "Library")
}
"""Keys of a header, by how they are compared. Apptainer knows more; these are what our bases need."""
SCRIPTS = ("post", "environment", "runscript", "startscript", "test")
SECTIONS = ("arguments", "files", *SCRIPTS, "labels", "help")
ON_THE_HOST = ("setup", "pre")

_ARGUMENT = re.compile(r"{{\s*(\w+)\s*}}")
_NAME = re.compile(r"[A-Za-z_]\w*")
_SHELL = ("/bin/sh", "-ex")


class DefinitionError(ValueError):
    """A definition, or what is given to it, cannot be built as it reads."""


@dataclass(frozen=True)
class Copy:
    """A line of %files: from the builder's machine, or from an earlier `stage`."""

    source: str
    destination: str
    stage: str | None


@dataclass(frozen=True)
class Stage:
    """One base and what is done to it, with its arguments filled in. A section that is not there is empty."""

    header: Mapping[str, str]
    arguments: Mapping[str, str]  # as declared: the defaults
    used: frozenset[str]
    files: tuple[Copy, ...]
    post: str
    post_shell: tuple[str, ...]  # what %post is run with: these words, then the script's path
    environment: str
    runscript: str
    startscript: str
    test: str  # as the three before it put into the image and run there by /bin/sh, without -e
    labels: Mapping[str, str]
    help: str

    @property
    def name(self) -> str:
        """What later stages copy from; empty for a definition of one stage."""
        return self.header.get("Stage", "")


@dataclass(frozen=True)
class Definition:
    """The stages in order; the image is the last one."""

    stages: tuple[Stage, ...]

    @property
    def image(self) -> Stage:
        """The stage that becomes the image."""
        return self.stages[-1]

    def stage(self, name: str) -> Stage:
        """The stage of this name. Raises DefinitionError."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise DefinitionError(f"there is no stage {name}")


def read_arguments(text: str) -> dict[str, str]:
    """An args file: NAME=VALUE lines.

    Apptainer strips blanks, and nothing else: quotes and what stands behind a # belong to the value, a line without =
    is passed over with a warning, and a comment with = is an argument named `# ...`, which ends the build as unused.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or (line.lstrip().startswith("#") and "=" not in line):
            continue
        name, value = _pair(line, f"line {number}")
        if name in found:
            raise DefinitionError(f"line {number}: {name} is given twice")
        found[name] = value
    return found


def read_definition(text: str, given: Mapping[str, str] | None = None) -> Definition:
    """The definition with `given` (--build-arg) in place of defaults. Raises DefinitionError."""
    given = dict(given or {})
    raw = _stages(text)
    if not raw:
        raise DefinitionError("no line begins with Bootstrap:")
    stages = tuple(_stage(lines, given) for lines in raw)
    unused = given.keys() - {name for stage in stages for name in stage.used}
    if unused:
        raise DefinitionError(f"given, and used nowhere: {', '.join(sorted(unused))}")
    _check_order(stages)
    return Definition(stages)


def _stages(text: str) -> list[list[str]]:
    """The lines of each stage: it begins at any line that begins with Bootstrap:, wherever that stands."""
    found: list[list[str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.lower().startswith("bootstrap:"):
            found.append([])
        if found:
            found[-1].append(line)
        elif line.strip() and not line.startswith("#"):
            raise DefinitionError(f"line {number} stands before the first Bootstrap:")
    return found


def _stage(lines: list[str], given: Mapping[str, str]) -> Stage:
    declared: dict[str, str] = {}
    for name, _, body in _sections(lines):
        if name == "arguments":
            declared |= _declared(body)
    used = set[str]()
    filled = [_fill(line, {**declared, **given}, used) for line in lines]
    idle = declared.keys() - used
    if idle:
        raise DefinitionError(f"declared, and not used in this stage: {', '.join(sorted(idle))}")
    header: dict[str, str] = {}
    copies: list[Copy] = []
    texts: dict[str, list[str]] = {}
    shell: tuple[str, ...] = _SHELL
    for name, options, body in _sections(filled):
        if not name:
            header = _header(body)
        elif name == "files":
            copies += _copies(options, body)
        else:
            texts.setdefault(name, []).extend(body)
            if name == "post" and options:
                shell = (*shell, *_shell(options))
            elif options:
                raise DefinitionError(f"%{name} takes no options: {' '.join(options)}")
    scripts = {name: "".join(f"{line}\n" for line in texts.get(name, [])) for name in SCRIPTS}
    return Stage(
        header=header,
        arguments=declared,
        used=frozenset(used),
        files=tuple(copies),
        post_shell=shell,
        **scripts,
        labels=dict(_label(line) for line in _meant(texts.get("labels", []))),
        help="\n".join(texts.get("help", [])),
    )


def _sections(lines: list[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """(name, options, lines) of the header, whose name is empty, and of each section.

    A section begins at any line whose first word begins with %, indented or not.
    """
    name, options, body = "", list[str](), list[str]()
    for line in lines:
        words = line.partition("#")[0].split()
        if not words or not words[0].startswith("%"):
            body.append(line)
            continue
        yield name, options, body
        name, options, body = words[0][1:].lower(), words[1:], []
        if name in ON_THE_HOST:
            raise DefinitionError(f"%{name} runs on the machine that builds, not in the image")
        if name not in SECTIONS:
            raise DefinitionError(f"unknown section {words[0]}; there are {', '.join('%' + s for s in SECTIONS)}")
    yield name, options, body


def _declared(body: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in _meant(body):
        if "{{" in line:
            raise DefinitionError(f"%arguments: not every Apptainer fills in one argument by another: {line.strip()}")
        name, value = _pair(line, "%arguments")
        if name in found:
            raise DefinitionError(f"%arguments: {name} is declared twice")
        found[name] = value
    return found


def _pair(line: str, where: str) -> tuple[str, str]:
    name, equals, value = (part.strip() for part in line.partition("="))
    if not equals or not _NAME.fullmatch(name):
        raise DefinitionError(f"{where} is not NAME=VALUE: {line.strip()}")
    if "#" in value:
        raise DefinitionError(f"{where}: a comment here would be part of the value of {name}")
    return name, value


def _fill(line: str, values: Mapping[str, str], used: set[str]) -> str:
    if "{{" not in line:
        return line
    if line.lstrip().startswith("#"):
        raise DefinitionError(f"some versions of Apptainer fill in comments, too: {line.strip()}")

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise DefinitionError(f"{match[1]} is neither declared in this stage nor given: {line.strip()}")
        used.add(match[1])
        return values[match[1]]

    return _ARGUMENT.sub(value, line)


def _header(body: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in _meant(body):
        key, colon, value = line.partition("#")[0].partition(":")
        name = HEADER.get(key.strip().lower(), "")
        if not colon or not name:
            raise DefinitionError(f"unknown line of a header: {line.strip()}")
        if name in found or not value.strip():
            raise DefinitionError(f"{name} is empty, or there twice")
        found[name] = value.strip()
    return found


def _copies(options: list[str], body: list[str]) -> list[Copy]:
    if options and (len(options) != 2 or options[0] != "from"):
        raise DefinitionError(f"not `%files from STAGE`: %files {' '.join(options)}")
    found = []
    for line in _meant(body):
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise DefinitionError(f"%files: {error}: {line.strip()}") from None
        if len(words) not in (1, 2):
            raise DefinitionError(f"not `SOURCE [DESTINATION]`: {line.strip()}")
        found.append(Copy(words[0], words[-1], options[1] if options else None))
    return found


def _shell(options: list[str]) -> tuple[str, ...]:
    """Of `-c SHELL`: all that follows -c is one word, and the script's path is put behind it."""
    if options[0] != "-c" or len(options) < 2:
        raise DefinitionError(f"%post takes -c SHELL: {' '.join(options)}")
    return ("-c", " ".join(options[1:]))


def _label(line: str) -> tuple[str, str]:
    name, _, value = line.strip().partition(" ")
    if not value.strip():
        raise DefinitionError(f"the label {name} has no value")
    return name, value.strip()


def _meant(lines: list[str]) -> Iterator[str]:
    """Without blank lines and comments."""
    return (line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _check_order(stages: tuple[Stage, ...]) -> None:
    """A stage copies from those before it, by their names."""
    names: list[str] = []
    for stage in stages:
        for copy in stage.files:
            if copy.stage is not None and copy.stage not in names:
                raise DefinitionError(f"%files from {copy.stage}: no stage before this one has that name")
        if stage.name in names:
            raise DefinitionError(f"two stages are called {stage.name or 'nothing'}")
        names.append(stage.name)
