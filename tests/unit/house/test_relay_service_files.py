"""The service unit, the container recipes and the operator's pages name commands, options and files that exist."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from command_lines import check_command
from containers.definition import read_definition
from harness import ROOT, call
from test_packaging import PYPROJECT, REGISTRIES, commands

from fedhpc.relay.metrics import _HELP, PREFIX
from fedhpc.relay.settings import Limits

UNIT = (ROOT / "jobs" / "relay" / "fedhpc-relay.service").read_text()
CONTAINERFILE = (ROOT / "containers" / "relay.Containerfile").read_text()
RECIPE = (ROOT / "containers" / "relay.def").read_text()
PAGES = [ROOT / "containers" / "README.md", ROOT / "jobs" / "relay" / "README.md"]
OPERATION = (ROOT / "docs" / "relay-operation.md").read_text()
ALERTS = (ROOT / "jobs" / "relay" / "fedhpc-relay-alerts.yml").read_text()
PACKAGES = {"blake3", "click", "cryptography", "h11", "numpy", "rich", "typing_extensions"}


def unit(section: str) -> dict[str, list[str]]:
    """The unit's settings; systemd lets a name stand more than once."""
    found: dict[str, list[str]] = {}
    block = re.search(rf"(?ms)^\[{section}\]\n(.*?)(?=^\[|\Z)", UNIT)
    assert block is not None
    for line in block[1].splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_starts_and_reloads_the_relay() -> None:
    service = unit("Service")
    (start,) = service["ExecStart"]
    program, *words = shlex.split(start)
    assert program.endswith("/bin/fedhpc")
    check_command(words)
    assert Path(words[-1]).parent == Path("/var/lib") / service["StateDirectory"][0]
    assert service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert int(service["TimeoutStopSec"][0]) > Limits().drain_s
    assert int(service["LimitNOFILE"][0]) >= 2 * Limits().connections
    assert int(service["TasksMax"][0]) > Limits().connections
    assert service["RestartPreventExitStatus"] == ["64"]


def test_the_unit_is_hardened_and_has_no_root() -> None:
    service = unit("Service")
    wanted = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "MemoryMax": "512M", "Restart": "on-failure"}
    assert {name: service[name][0] for name in wanted} == wanted
    assert service["User"] == service["Group"] == ["fedhpc-relay"]
    assert service["CapabilityBoundingSet"] == [""]


def test_the_recipes_have_one_base_and_name_no_host() -> None:
    assert re.findall(r"(?m)^ARG BASE=(\S+)", CONTAINERFILE) == ["python:3.12-slim"]
    assert set(re.findall(r"(?m)^FROM (\S+)", CONTAINERFILE)) == {"${BASE}"}
    assert {stage.header["From"] for stage in read_definition(RECIPE, {"BASE": "here"}).stages} == {"here"}
    for text in (CONTAINERFILE, RECIPE, UNIT, *(page.read_text() for page in PAGES)):
        assert [host for host in REGISTRIES if host in text] == []
        assert not re.search(r"https?://(?!relay\.example)", text)


def test_the_recipes_start_the_relay_without_root() -> None:
    lines = dict(re.findall(r"(?m)^(USER|ENTRYPOINT|CMD|HEALTHCHECK) (.+)$", CONTAINERFILE))
    entry, command = json.loads(lines["ENTRYPOINT"]), json.loads(lines["CMD"])
    check_command((entry + command)[1:])
    check_command(json.loads(lines["HEALTHCHECK"].partition("CMD ")[2])[1:])
    user, _, group = lines["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    for section, given in (("runscript", ["serve", "relay.toml"]), ("startscript", ["relay.toml"])):
        script = re.search(rf"(?m)^%{section}\n +exec fedhpc (.+)$", RECIPE)
        assert script is not None
        words = shlex.split(script[1])
        assert words.pop() == "$@"
        check_command(words + given)
    test = re.search(r"(?m)^%test\n +fedhpc (.+)$", RECIPE)
    assert test is not None
    check_command(shlex.split(test[1]))
    for words_after in re.findall(r"(?m)^ +apptainer run relay.sif (.+)$", RECIPE):
        check_command(["relay", *shlex.split(words_after)])


@pytest.mark.parametrize("recipe", [CONTAINERFILE, RECIPE], ids=["Containerfile", "def"])
def test_the_recipes_install_what_pyproject_says_of_what_the_relay_imports(recipe: str) -> None:
    project = PYPROJECT["project"]
    known = {*project["dependencies"], *project["optional-dependencies"]["relay"]}
    installed = set(re.findall(r'"([a-z0-9_]+>=[0-9.]+)"', recipe))
    assert installed <= known
    assert {re.split(r"[<>=]", package)[0] for package in installed} == PACKAGES
    for path in re.findall(r"(?m)^(?:COPY|    )(?= ?(?:pyproject|README|LICENSE|fedhpc))(.+)$", recipe):
        source = shlex.split(path)[0]
        assert (ROOT / source).exists(), source


def test_the_relay_imports_nothing_else() -> None:
    code = """
import sys
sys.modules.update(dict.fromkeys(("h5py", "mpi4py", "safetensors", "torch", "matplotlib", "sklearn")))
import fedhpc.cli.relay, fedhpc.mpi.world, fedhpc.relay.status.admin, fedhpc.relay.http.server
import fedhpc.report.relay_status, fedhpc.report.relay_table, fedhpc.enrolment.relay
places = {name.partition(".")[0]: getattr(module, "__file__", "") or "" for name, module in sys.modules.items()}
print(*(name for name, place in places.items() if "site-packages" in place and not name.startswith("_")))
"""
    out = call([sys.executable, "-c", code]).ok().out
    assert set(out.split()) - {"pygments"} == PACKAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_commands_and_links_of_the_pages_exist(page: Path) -> None:
    seen = 0
    for words in commands(page.read_text()):
        check_command([*words, "--help"])
        seen += 1
    assert seen
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path = target.partition("#")[0]
        assert not path or (page.parent / path).exists(), target


def test_the_operators_page_names_every_metric() -> None:
    assert [name for name in _HELP if f"`{name}`" not in OPERATION] == []


def test_the_alerts_ask_for_metrics_that_exist() -> None:
    asked = set(re.findall(rf"{PREFIX}([a-z_]+)", ALERTS))
    assert asked
    assert asked <= set(_HELP)
    labels = set(re.findall(r"\{([a-z]+)!?=", ALERTS))
    assert labels <= {"owner", "phase"}


def test_the_unit_has_no_other_sections() -> None:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.read_string(UNIT)
    assert parser.sections() == ["Unit", "Service", "Install"]
