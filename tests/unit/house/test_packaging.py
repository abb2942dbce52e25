"""What the package promises about itself: its tree, its documents, its settings page, and what importing it costs."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import re
import runpy
import sys
import tomllib
import types
import typing
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from harness import ROOT, call

import fedhpc
from fedhpc.agreement import federation_file, roster, site_file
from fedhpc.agreement.strategy_settings import StrategySettings
from fedhpc.app.life.settings import LifeSettings
from fedhpc.app.programs.training import DataSection
from fedhpc.cli import cli
from fedhpc.cohort.settings import CohortSettings
from fedhpc.relay import settings as relay_settings
from fedhpc.secure.settings import SecureSettings
from fedhpc.slurm.container_section import ContainerSection
from fedhpc.slurm.settings import SlurmSettings
from fedhpc.train.linear.options import LogisticOptions
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings
from fedhpc.train.tasks import cnn, mlp, transformer

PACKAGE = ROOT / "fedhpc"
SOURCES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *PACKAGE.rglob("*.md")])
README = (ROOT / "README.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

LARGEST_FILE = 500  # lines: one sitting
LARGEST_FUNCTION = 60  # lines, without decorators and docstring
# Python's own names; settings.py is the section of a file that the room reads.
SAME_IN_EVERY_ROOM = {"__init__.py", "__main__.py", "settings.py"}
NAMED_AFTER = {"cli", "doctor"}  # after a command of `fedhpc`; after what is checked
# The same thing twice, for one kind of exchange, channel or example and for the other.
TWIN_ROOMS = {
    "sums/over_relay": "sums/in_job",
    "transport/spool": "transport/https",
    "demo/digits": "demo/heart",
    "demo/text": "demo/heart",
}
KNOWN_NAMESAKES = {
    *("federation.py", "rehearsal.py"),  # the federation of an example, of a user's program, of a command
    *("listing.py", "mailbox.py"),  # a site's end and the relay's
}
# In two halves, since this file names no registry's host either.
REGISTRIES = tuple(
    ".".join(halves)
    for halves in (("pypi", "org"), ("pythonhosted", "org"), ("download.pytorch", "org"), ("anaconda", "org"))
)
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "yaml"}
TASK_LOADER = PACKAGE / "train" / "tasks" / "loader.py"  # runs a task whose hash was agreed on

SECTIONS = {
    "[federation]": federation_file.FederationSection,
    "[start]": federation_file.StartSettings,
    "[[site]]": roster.RosterEntry,
    "[relay]": federation_file.RelaySection,
    "[cohort]": CohortSettings,
    "[secure]": SecureSettings,
    "[strategy]": StrategySettings,
    "[task]": TaskSettings,
    "[train]": TrainSettings,
    "logistic": LogisticOptions,
    "mlp": mlp._Options,
    "cnn": cnn._Options,
    "transformer": transformer._Options,
    "[site]": site_file.SiteSection,
    "[data]": DataSection,
    "[compute]": ComputeSettings,
    "[exchange]": site_file.ExchangeSection,
    "[ledger]": site_file.LedgerSection,
    "[life]": LifeSettings,
    "[slurm]": SlurmSettings,
    "site.toml [slurm.container]": ContainerSection,
    "relay.toml [relay]": relay_settings.RelaySettings,
    "relay.toml [limits]": relay_settings.Limits,
    "roster.toml, one table for each federation": relay_settings._FederationTable,
}


# --- the pages made from the code


def test_generated_pages_are_those_of_the_code() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))["pages"]()
    stale = [str(path.relative_to(ROOT)) for path, text in made.items() if path.read_text() != text]
    assert stale == [], "python docs/generate.py"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_says_first_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())) or path.name == "__main__.py"


def test_no_two_test_files_have_one_name() -> None:
    """pytest imports them by it: one of the two would not be run."""
    counted = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, count in counted.items() if count > 1] == []


# --- what importing costs


def imported(code: str) -> tuple[set[str], str]:
    """The modules in a fresh process after `code`, and what it printed."""
    ending = "import sys; sys.stderr.write('\\n' + ' '.join(sys.modules))"
    done = call([sys.executable, "-c", f"{code}\n{ending}"]).ok()
    return set(done.err.splitlines()[-1].split()), done.out


COMMAND = """
import runpy, sys, time
begun = time.perf_counter()
sys.argv = ["fedhpc", *{words!r}]
try:
    runpy.run_module("fedhpc", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(f"{{time.perf_counter() - begun:.3f}} s")
"""


def test_importing_fedhpc_imports_next_to_nothing() -> None:
    clock = "import time; begun = time.perf_counter()"
    modules, out = imported(f"{clock}\nimport fedhpc\nprint(f'{{time.perf_counter() - begun:.3f}} s')")
    print("import fedhpc:", out)
    assert {m for m in modules if m.startswith("fedhpc")} == {"fedhpc"}
    assert modules.isdisjoint({"mpi4py", "torch", "numpy", "h5py", "cryptography", "click"})


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["run", "--help"], ["demo", "heart", "--help"]], ids=str)
def test_help_imports_no_mpi_and_no_torch(words: list[str]) -> None:
    modules, out = imported(COMMAND.format(words=words))
    print(f"fedhpc {' '.join(words)}:", out.splitlines()[-1])
    assert modules.isdisjoint({"mpi4py", "mpi4py.MPI", "torch", "h5py", "matplotlib", "sklearn", "scipy", "rich"})


def test_joining_and_summing_import_no_torch() -> None:
    modules, _ = imported("import fedhpc.app.join, fedhpc.app.federation, fedhpc.sums.in_job.mpi_exchange")
    assert modules.isdisjoint({"torch", "mpi4py.MPI", "h5py", "matplotlib", "sklearn"})


# --- docs/configuration.md


def documented() -> dict[str, list[list[str]]]:
    """Heading -> rows of its table."""
    found: dict[str, list[list[str]]] = {}
    heading = ""
    for line in (ROOT / "docs" / "configuration.md").read_text().splitlines():
        if line.startswith("##"):
            heading = line.lstrip("# ")
        elif line.startswith("| `"):
            found.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_configuration_page_has_every_key_with_type_and_default(heading: str) -> None:
    section = SECTIONS[heading]
    hints = typing.get_type_hints(section)
    keys = dataclasses.fields(section)
    expected = [[f"`{f.name.removesuffix('_')}`", spell_type(hints[f.name]), spell_default(f)] for f in keys]
    rows = documented()[heading]
    assert [row[:3] for row in rows] == expected
    assert all(len(row) == 4 for row in rows)


def test_the_configuration_page_has_no_other_sections() -> None:
    assert documented().keys() == SECTIONS.keys()
    named_by_users = {"container"}  # its keys are names of images
    assert {s.strip("[]") for s in SECTIONS if s[0] == "["} | named_by_users == {
        *federation_file.AGREED_SECTIONS,
        *site_file.SITE_SECTIONS,
    }


def spell_type(hint: typing.Any) -> str:
    """A type as the page writes it."""
    plain = {str: "text", int: "integer", float: "number", bool: "boolean", Path: "path"}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in plain:
        return plain[hint]
    if origin is typing.Literal:
        return ", ".join(f'`"{a}"`' for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(spell_type(a) for a in args if a is not types.NoneType)
    if origin is tuple:
        return f"list of {spell_type(args[0])}s"
    assert origin is dict, hint
    return "table"


def spell_default(field: dataclasses.Field[typing.Any]) -> str:
    """A default as the page writes it: TOML."""
    if field.default_factory is not dataclasses.MISSING:
        return "`{}`"
    value = field.default
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "absent"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    return f"`{list(value) if isinstance(value, tuple) else value}`"


# --- documents


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.+)$", document.read_text())
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_links_of_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (document.parent / path) if path else document
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_files_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / "docs" / "architecture.md").read_text())
    assert named
    assert [n for n in named if not any(str(p).endswith(f"/{n}") for p in SOURCES)] == []


def commands(text: str) -> Iterator[list[str]]:
    """The words after `fedhpc` in code: up to the first that is no command, option or number."""
    fenced = r"(?ms)^```\w*\n(.*?)^```"
    prose = re.sub(fenced, "", text)
    code = [*re.findall(fenced, text), *re.findall(r"(?m)^ {4}.+$", prose), *re.findall(r"`([^`\n]+)`", prose)]
    for line in "\n".join(code).splitlines():
        for words in re.findall(r"(?:^|\s|&& |-m )fedhpc((?: +[\w./=$-]+)+)", line):
            yield words.split()


def refuse_unknown(words: list[str]) -> None:
    """Fail for a command or an option that `fedhpc` does not have."""
    command: click.Command = cli
    context = click.Context(cli)
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        assert found is not None, f"fedhpc {' '.join(words)}"
        command, _ = found, rest.pop(0)
    options = {o for p in command.params for o in p.opts} | {"--help", "-h"}
    if "--" in rest:  # `submit` takes the words of a measurement
        at = rest.index("--")
        refuse_unknown(["bench", *rest[at + 1 :]])
        rest = rest[:at]
    for word in rest:
        assert not word.startswith("--") or word in options, f"fedhpc {' '.join(words)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_commands_of_documents_exist(document: Path) -> None:
    found = list(commands(document.read_text()))
    for words in found:
        refuse_unknown(words)
    assert found or document.name != "README.md"


def test_commands_that_messages_name_exist() -> None:
    named = 0
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                text = "".join(p.value if isinstance(p, ast.Constant) else "X" for p in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            for words in re.findall(r"`fedhpc((?: +[\w./=$-]+)+)`", text):
                refuse_unknown(words.split())
                named += 1
    assert named > 50


def test_the_readme_names_every_command_and_target() -> None:
    for name in cli.list_commands(click.Context(cli)):
        assert f"fedhpc {name}" in README, name
    phony = re.search(r"(?m)^\.PHONY: (.+)$", (ROOT / "Makefile").read_text())
    assert phony is not None
    assert set(re.findall(r"`make (\w+)`", README)) <= set(phony[1].split())
    assert [line.split("#")[0].strip() for line in README.splitlines()[2:4]] == ["make demo", "make test"]


def test_the_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    from fedhpc import errors

    codes = {e.exit_code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.FedhpcError)}
    (text,) = re.findall(r"(?s)## Exit codes\n(.*?)\n## ", README)
    assert {int(code) for code in re.findall(r"(?:^|[;\n] *)(\d+) ", text)} == codes | {0}


# --- one place for each fact


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "fedhpc.__version__"}
    assert version("fedhpc") == fedhpc.__version__
    assert f"## {fedhpc.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_setup_cfg_and_pyproject_share_no_fact() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert all(name.startswith("importlinter") for name in setup.sections())
    assert "importlinter" not in PYPROJECT["tool"]
    extras = [d for group in PYPROJECT["project"]["optional-dependencies"].values() for d in group]
    wanted = [re.split(r"[<>=\[]", d)[0] for d in PYPROJECT["project"]["dependencies"] + extras if "fedhpc[" not in d]
    assert sorted(wanted) == sorted(set(wanted)), "a dependency with two ranges"


# --- the sources


def test_no_file_is_too_long_for_one_sitting() -> None:
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in SOURCES}
    assert {path: n for path, n in lengths.items() if n > LARGEST_FILE} == {}


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    first = function.body[0]
    told = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) else 0
    return (function.end_lineno or 0) - function.lineno + 1 - told


def test_no_function_is_too_long_for_one_look() -> None:
    functions = {
        f"{path.relative_to(PACKAGE)} {node.name}": length(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    long = {name: lines for name, lines in functions.items() if lines > LARGEST_FUNCTION}
    assert long == {}


def test_a_module_s_name_tells_it_from_the_others() -> None:
    """Two rooms may use one name only for the same thing of theirs."""
    by_name: dict[str, list[str]] = {}
    for path in SOURCES:
        room = path.parent.relative_to(PACKAGE).as_posix()
        if path.name not in SAME_IN_EVERY_ROOM and room not in NAMED_AFTER:
            by_name.setdefault(path.name, []).append(room)
    shared = {name: {TWIN_ROOMS.get(room, room) for room in rooms} for name, rooms in by_name.items()}
    assert {name: rooms for name, rooms in shared.items() if len(rooms) > 1 and name not in KNOWN_NAMESAKES} == {}


def test_nothing_is_left_to_do_and_no_registry_is_named() -> None:
    files = [*SOURCES, *(ROOT / name for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/run"))]
    for path in files:
        text = path.read_text()
        assert not re.search(r"\b(TODO|FIXME|XXX|HACK)\b", text), path
        assert [host for host in REGISTRIES if host in text] == [], path


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_runs_code_that_came_as_data(path: Path) -> None:
    """No pickle in any dress, no eval; the one exec is the task loader's, behind a hash."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
            names = {a.name.partition(".")[0] for a in node.names} if isinstance(node, ast.Import) else set()
            assert (names | {module.partition(".")[0]}).isdisjoint(UNSAFE_MODULES), ast.unparse(node)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "__import__", "torch.load", "os.system", "os.popen"), ast.unparse(node)
            assert called != "exec" or path == TASK_LOADER
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert keywords.get("allow_pickle", "False") == "False", ast.unparse(node)
            assert keywords.get("shell", "False") == "False", ast.unparse(node)
