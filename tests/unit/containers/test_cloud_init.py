"""containers/cloud-init.yaml: what a virtual machine is told fits the service unit, the firewall and the relay."""

from __future__ import annotations

import configparser
import re
import subprocess
from typing import Any

import yaml
from harness import ROOT

TEXT = (ROOT / "containers" / "cloud-init.yaml").read_text()
CONFIG: dict[str, Any] = yaml.safe_load(TEXT)
FILES = {one["path"]: one["content"] for one in CONFIG["write_files"]}
(SCRIPT,) = CONFIG["runcmd"]
UNIT_FILE = "fedhpc/jobs/relay/fedhpc-relay.service"


def test_it_is_user_data_without_a_key() -> None:
    assert TEXT.startswith("#cloud-config\n")
    assert CONFIG.keys() == {
        *("package_update", "packages", "ssh_pwauth", "disable_root", "users", "write_files", "runcmd"),
    }
    assert (CONFIG["ssh_pwauth"], CONFIG["disable_root"]) == (False, True)
    assert "PRIVATE" not in TEXT
    assert not any("relay.key" in path for path in FILES)


def test_its_user_and_paths_are_those_of_the_unit() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((ROOT / UNIT_FILE).read_text())  # the wheel has it: package-data in pyproject.toml
    service = unit["Service"]
    (user,) = (one for one in CONFIG["users"] if one != "default")
    assert user["name"] == service["User"] == service["Group"]
    assert user["homedir"] == service["WorkingDirectory"]
    assert user["shell"] == "/usr/sbin/nologin"
    assert user["lock_passwd"] is True
    assert f"-o {service['User']} -g {service['Group']} {service['WorkingDirectory']}\n" in SCRIPT
    (venv,) = re.findall(r"-m venv (\S+)", SCRIPT)
    assert service["ExecStart"].startswith(f"{venv}/bin/fedhpc relay serve ")
    assert f"{venv}/lib/python3*/site-packages/{UNIT_FILE} /etc/systemd/system/" in SCRIPT
    assert "systemctl enable fedhpc-relay\n" in SCRIPT
    assert {"python3-venv", "nftables"} <= {*CONFIG["packages"]}


def test_the_script_is_sound_and_stops_at_the_first_failure() -> None:
    assert SCRIPT.startswith("set -eu\n")
    done = subprocess.run(["shellcheck", "--shell", "sh", "-"], input=SCRIPT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_the_firewall_can_be_loaded_and_lets_in_the_relay() -> None:
    rules = FILES["/etc/nftables.conf"]
    done = subprocess.run(["nft", "--check", "--file", "-"], input=rules, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"policy (\w+);", rules) == ["drop", "drop"]
    (ports,) = re.findall(r"tcp dport \{ (.+?) \} accept", rules)
    assert set(ports.split(", ")) == {"22", "8443"}
    assert "ip6 saddr fe80::/10 udp dport 546 accept" in rules, "the machine would lose its address of IPv6"


def test_the_firewall_is_up_before_anything_can_fail() -> None:
    enable, start, *rest = SCRIPT.removeprefix("set -eu\n").splitlines()
    assert (enable, start) == ("systemctl enable nftables", "systemctl restart nftables")
    assert any("pip install" in line for line in rest)


def test_the_mirror_of_the_comment_is_pip_s_index_once_it_is_none() -> None:
    text, comments = re.subn(r"(?m)^# (?=index-url)", "", FILES["/etc/pip.conf"])
    assert comments == 1
    settings = configparser.ConfigParser()
    settings.read_string(text)
    assert settings["global"]["index-url"].startswith("https://")
