"""The relay's pod of containers/kubernetes, played by Podman: confined, as any user, with three sites that sum.

Podman knows no Service, Route, NetworkPolicy or fsGroup. Of the rest its version 4.3 takes all but what `played` says.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pip_settings
import podman_store
import pytest
import root_fs
import yaml
from harness import ROOT, until
from podman_store import PodmanStore

sys.path.insert(0, str(Path(__file__).parents[1] / "relay"))

from sum_site import run_sums, sum_federation

from fedhpc.enrolment.one_machine import Enrolled

FOLDER = ROOT / "containers" / "kubernetes"
README = (FOLDER / "README.md").read_text()
IMAGE = "localhost/fedhpc-relay:test"
USER = 1_000_680_000  # such a number OKD gives to a namespace; no image knows it
SECRET = [Path(path).name for path in re.findall(r"--from-file=(\S+)", README)]
(SECRET_NAME,) = re.findall(r"kubectl create secret generic (\S+)", README)
POD = "fedhpc-relay-pod-0"
RELAY = f"{POD}-relay"
PORT = 8443  # Podman 4.3 makes a container's port one of its machine; that machine is the test's own


@dataclass
class Pod:
    """The relay's pod, and the federation that it is for."""

    podman: PodmanStore
    enrolled: Enrolled

    @property
    def kinds(self) -> dict[str, dict[str, Any]]:
        return {one["kind"]: one for one in yaml.safe_load_all((FOLDER / "relay.yaml").read_text())}

    @property
    def probes(self) -> dict[str, list[str]]:
        """The command of each probe."""
        (container,) = self.kinds["Deployment"]["spec"]["template"]["spec"]["containers"]
        return {name: container[name]["exec"]["command"] for name in container if name.endswith("Probe")}

    def played(self, *, volume: bool) -> str:
        """What Podman is given; `volume`: the volume does not exist yet."""
        kinds = self.kinds
        spec = kinds["Deployment"]["spec"]["template"]["spec"]
        spec["restartPolicy"] = "OnFailure"  # under Always, a Deployment's, 4.3 runs the init container for 20 s
        for container in (*spec["initContainers"], *spec["containers"]):
            container["image"] = IMAGE
            container["securityContext"] |= {"runAsUser": USER, "runAsGroup": 0}  # as OKD does when a pod is admitted
        # 4.3 mounts what a Secret has in base64 as it is, so its files come as those of a ConfigMap.
        (secret,) = (volume for volume in spec["volumes"] if volume["name"] == "secret")
        assert secret.pop("secret")["secretName"] == SECRET_NAME
        secret["configMap"] = {"name": SECRET_NAME}
        data = {name: (self.enrolled.relay.parent / name).read_text() for name in SECRET}
        keys = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": SECRET_NAME}, "data": data}
        wanted = ["ConfigMap", *(["PersistentVolumeClaim"] if volume else []), "Deployment"]
        return yaml.safe_dump_all([keys, *(kinds[kind] for kind in wanted)])

    def play(self, *, volume: bool) -> None:
        self.podman.run("play", "kube", "-", text=self.played(volume=volume))
        self.wait()

    def wait(self) -> None:
        try:
            until(lambda: all(self.probe(name) for name in self.probes), 60, "the pod's probes")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.podman.run('logs', RELAY)}") from None

    def probe(self, name: str) -> bool:
        try:
            return self.podman.call("exec", RELAY, *self.probes[name], timeout=20).returncode == 0
        except subprocess.TimeoutExpired:  # so does Podman where the relay ends meanwhile
            return False

    def inside(self, *words: str, text: str = "") -> str:
        """What a command in the relay's container prints."""
        return self.podman.run("exec", "--interactive", RELAY, *words, text=text)

    def certificate(self) -> str:
        """What the pod's port shows to those who dial it from its machine."""
        code = f"import ssl; print(ssl.get_server_certificate(('127.0.0.1', {PORT})))"
        return self.podman.place.do(sys.executable, "-c", code)

    def sum(self) -> None:
        """Two sums of the three sites: (1 + 2 + 3) · 1 and (1 + 2 + 3) · 2."""
        for site in run_sums(self.enrolled, PORT, sums=2, within=self.podman.place.inside()):
            assert [(one["low"], one["high"]) for one in site] == [(6, 6), (12, 12)]


@pytest.fixture(scope="module")
def pod(workshop: Path) -> Iterator[Pod]:
    """The image built from nothing but Debian's packages, and its pod."""
    reason = podman_store.why_not()
    assert not reason, reason
    base = workshop / "relay-base"
    root_fs.debian(base, "bookworm", ["python3", "python3-venv"])
    podman = PodmanStore(workshop / "podman")
    try:
        podman.import_root(base, "localhost/base:test")
        pip = pip_settings.here(workshop / "relay-pip.conf", root_fs.cache_folder() / "pip")
        settings = f"{pip_settings.WITHIN}/pip.conf"
        arguments = ["BASE=localhost/base:test", f"PIP_CONFIG_FILE={settings}"]
        binds = [f"{source}:{target}" for source, target in {**pip.binds, pip.file: settings}.items()]
        podman.build(ROOT / "containers" / "relay.Containerfile", ROOT, IMAGE, arguments, binds)
        made = Pod(podman, sum_federation(workshop / "sums", sites=3))
        made.play(volume=True)
        yield made
    finally:
        podman.close()


def test_the_relay_is_confined(pod: Pod) -> None:
    lines = pod.inside("cat", "/proc/1/status").splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert set(status["Uid"].split()) == {str(USER)}
    assert set(status["Gid"].split()) == {"0"}
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {f"{0:016x}"}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    for path in ("/x", "/opt/fedhpc/x", "/secret/x", "/config/x", "/key/x"):
        done = pod.podman.call("exec", RELAY, "touch", path)
        assert (done.returncode, "Read-only file system" in done.stderr) == (1, True), done.stderr
    script = "cd /sys/fs/cgroup && if [ -e memory.max ]; then cat memory.max; else cat memory/memory.limit_in_bytes; fi"
    assert int(pod.inside("sh", "-c", script)) == 512 << 20


def test_only_the_relay_reads_its_key(pod: Pod) -> None:
    assert pod.inside("stat", "--format", "%a %u", "/key/relay.key").split() == ["600", str(USER)]
    assert pod.inside("cat", "/key/relay.key") == (pod.enrolled.relay.parent / "relay.key").read_text()
    mode = int(pod.inside("stat", "--format", "%a", "/secret/relay.key"), 8)
    assert mode & 0o077, "the Secret's own file would do, and the init container is for nothing"


def test_the_image_holds_the_relay_and_nothing_to_install_with(pod: Pod) -> None:
    installed = pod.inside("/opt/fedhpc/bin/python", "-c", "import importlib.metadata as m; "
                           "print(*sorted({d.name.lower() for d in m.distributions()}))").split()  # fmt: skip
    assert {"fedhpc", "h11", "cryptography", "numpy"} <= set(installed)
    assert set(installed).isdisjoint({"torch", "mpi4py", "h5py", "pip", "setuptools"})
    environment = pod.podman.run("image", "inspect", "--format", "{{.Config.Env}}", IMAGE)
    assert "PIP_" not in environment


def test_the_probes_pass_and_see_a_relay_that_hangs(pod: Pod) -> None:
    assert len(pod.probes) == 3
    assert all(pod.probe(name) for name in pod.probes)
    pod.podman.run("healthcheck", "run", RELAY)  # the livenessProbe, as Podman understood it
    pod.podman.run("kill", "--signal", "STOP", RELAY)
    try:
        assert not any(pod.probe(name) for name in pod.probes)
    finally:
        pod.podman.run("kill", "--signal", "CONT", RELAY)
    assert all(pod.probe(name) for name in pod.probes)


def test_the_pod_shows_the_relays_certificate_and_no_admin_port(pod: Pod) -> None:
    assert pod.certificate().split() == (pod.enrolled.relay.parent / "relay.pem").read_text().split()
    (address,) = pod.inside("hostname", "-I").split()
    code = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)"
    pod.podman.place.do(sys.executable, "-c", code, address, str(PORT))
    with pytest.raises(AssertionError, match="ConnectionRefusedError"):
        pod.podman.place.do(sys.executable, "-c", code, address, "9443")


def test_sites_sum_through_the_pod_and_go_on_after_it_ends(pod: Pod) -> None:
    federation = pod.enrolled.federation.read_text()
    (line,) = re.findall(r"(fedhpc relay admit .+?) <", README)
    assert "admitted sums, 3 sites" in pod.inside(*shlex.split(line), text=federation)
    assert "admitted already" in pod.inside(*shlex.split(line), text=federation)
    pod.sum()
    pod.podman.run("stop", "--time", "60", RELAY)  # SIGTERM
    assert pod.podman.inspect(RELAY)["State"]["ExitCode"] == 0
    assert pod.podman.run("logs", RELAY).splitlines()[-1] == "relay: stopped"
    with pytest.raises(AssertionError, match="Connection"):
        pod.certificate()
    pod.podman.run("start", RELAY)
    pod.wait()
    pod.sum()
    # Another pod over the same volume: an upgrade. The roster is on it, the key comes from the Secret again.
    pod.podman.run("play", "kube", "--down", "-", text=pod.played(volume=False))
    assert "key" not in pod.podman.run("volume", "ls", "--quiet").split()  # an emptyDir ends with its pod
    # As fsGroup does on Kubernetes, each time that the volume is mounted.
    for path in Path(pod.podman.run("volume", "inspect", "--format", "{{.Mountpoint}}", "fedhpc-relay").strip()).rglob(
        "*"
    ):
        path.chmod(path.stat().st_mode | (0o2770 if path.is_dir() else 0o660))
    pod.play(volume=False)
    (served,) = json.loads(pod.inside("fedhpc", "relay", "status", "--json"))["federations"]
    assert served["done"] == 4
    pod.sum()
