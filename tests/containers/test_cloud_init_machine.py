"""containers/cloud-init.yaml, read by Debian's cloud-init in a root file system: user, venv and service are there.

There is no virtual machine: systemd does not run, so what it would start is started by hand, and the firewall's rules
are only read. Of cloud-init's modules those run that the file speaks to; others would change the machine of the test.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pip_settings
import pytest
import root_fs
import yaml
from harness import ROOT

sys.path.insert(0, str(Path(__file__).parents[1] / "relay"))

from sum_site import sum_federation

USER_DATA = ROOT / "containers" / "cloud-init.yaml"
HOME = "/var/lib/fedhpc-relay"
# The stages of a boot, with those of their modules that may run within somebody else's machine.
_SETTINGS = """\
datasource_list: [NoCloud]
network: {config: disabled}
preserve_hostname: true
cloud_init_modules: [write-files, users-groups]
cloud_config_modules: [runcmd]
cloud_final_modules: [package-update-upgrade-install, scripts-user]
"""
_MIRROR = "      # index-url = https://mirror.example/simple\n"
_INSTALL = "apt-get update -qq; apt-get install -y -qq --no-install-recommends cloud-init systemd-sysv"
_BOOT = """\
set -e
cloud-init schema --config-file /var/lib/cloud/seed/nocloud/user-data
cloud-init init --local
cloud-init init
cloud-init modules --mode=config
cloud-init modules --mode=final
"""


@pytest.fixture(scope="module")
def machine(workshop: Path) -> Path:
    """The root file system after its first boot."""
    root, log = workshop / "machine", workshop / "machine.log"
    root_fs.debian(root, "bookworm", ["python3", "python3-venv"])
    (root / "usr/sbin/policy-rc.d").write_text("#!/bin/sh\nexit 101\n")  # nothing starts when it is installed
    (root / "usr/sbin/policy-rc.d").chmod(0o755)
    # debootstrap's own --include does not find what python3-cryptography needs by a name of several packages.
    root_fs.run_within(root, ["sh", "-ec", _INSTALL], env={"DEBIAN_FRONTEND": "noninteractive"}, log=log)
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(workshop / "wheel"), "."]
    subprocess.run(words, cwd=ROOT, check=True, timeout=600)
    (wheel,) = (workshop / "wheel").glob("fedhpc-*.whl")
    shutil.copy(wheel, root / "mnt")
    seed = root / "var/lib/cloud/seed/nocloud"
    seed.mkdir(parents=True)
    pip = pip_settings.here(workshop / "machine-pip.conf", root_fs.cache_folder() / "pip")
    user_data = put_in(USER_DATA.read_text(), "FEDHPC_WHEEL", f"file:///mnt/{wheel.name}")
    settings = pip.file.read_text().removeprefix("[global]\n")
    user_data = put_in(user_data, _MIRROR, textwrap.indent(settings, " " * 6))
    (seed / "user-data").write_text(user_data)
    (seed / "meta-data").write_text("instance-id: relay-1\n")
    (root / "etc/cloud/cloud.cfg.d/99_test.cfg").write_text(_SETTINGS)
    # Offline, systemctl writes what it enables, and lets be what would be started.
    root_fs.run_within(root, ["sh", "-c", _BOOT], env={"SYSTEMD_OFFLINE": "1"}, log=log, binds=pip.binds)
    return root


def put_in(text: str, old: str, new: str) -> str:
    """`text` with the last `old` in it replaced, as the comment at its top tells its reader to."""
    assert old in text
    return new.join(text.rsplit(old, 1))


def within(root: Path, *command: str) -> str:
    """What a command printed in the machine."""
    done = subprocess.run(["chroot", str(root), *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def user_of(root: Path, name: str) -> pwd.struct_passwd:
    """The entry of a user in the machine."""
    lines = (root / "etc/passwd").read_text().splitlines()
    (found,) = (line.split(":") for line in lines if line.startswith(f"{name}:"))
    return pwd.struct_passwd((*found[:2], int(found[2]), int(found[3]), *found[4:]))


def test_it_boots_without_a_complaint(machine: Path) -> None:
    done = yaml.safe_load((machine / "var/lib/cloud/data/result.json").read_text())
    assert done["v1"]["errors"] == []
    assert "NoCloud" in done["v1"]["datasource"]


def test_the_relay_has_a_user_of_its_own_and_one_folder(machine: Path) -> None:
    user = user_of(machine, "fedhpc-relay")
    assert (user.pw_dir, user.pw_shell) == (HOME, "/usr/sbin/nologin")
    assert 0 < user.pw_uid < 1000
    (locked,) = (s for s in (machine / "etc/shadow").read_text().splitlines() if s.startswith("fedhpc-relay:"))
    assert locked.split(":")[1].startswith("!")
    home = (machine / HOME.lstrip("/")).stat()
    assert (home.st_uid, home.st_gid, stat.S_IMODE(home.st_mode)) == (user.pw_uid, user.pw_gid, 0o700)


def test_the_service_is_the_projects_and_begins_with_the_machine(machine: Path) -> None:
    unit = machine / "etc/systemd/system/fedhpc-relay.service"
    assert unit.read_text() == (ROOT / "jobs" / "relay" / "fedhpc-relay.service").read_text()
    for wanted in ("multi-user.target.wants/fedhpc-relay.service", "sysinit.target.wants/nftables.service"):
        assert os.path.lexists(machine / "etc/systemd/system" / wanted), wanted
    within(machine, "systemd-analyze", "verify", "/etc/systemd/system/fedhpc-relay.service")


def test_the_rules_of_the_firewall_are_those_of_the_file(machine: Path) -> None:
    (rules,) = (one["content"] for one in yaml.safe_load(USER_DATA.read_text())["write_files"] if "nft" in one["path"])
    assert (machine / "etc/nftables.conf").read_text() == rules
    within(machine, "nft", "--check", "--file", "/etc/nftables.conf")


def test_the_relay_serves_as_its_user_from_what_the_comment_copies(machine: Path, tmp_path: Path) -> None:
    enrolled = sum_federation(tmp_path / "sums", sites=3)
    user = user_of(machine, "fedhpc-relay")
    home = machine / HOME.lstrip("/")
    shutil.copytree(enrolled.relay.parent, home, dirs_exist_ok=True)
    for path in (home, *home.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid)
    words = ["chroot", f"--userspec={user.pw_uid}:{user.pw_gid}", str(machine)]
    command = [*words, "/opt/fedhpc/bin/fedhpc", "relay", "serve", f"{HOME}/relay.toml"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as relay:
        try:
            assert relay.stdout is not None
            assert "listening" in relay.stdout.readline()
        finally:
            relay.terminate()
        out, errors = relay.communicate(timeout=60)
    assert (relay.returncode, out, errors) == (0, "relay: stopped\n", "")
