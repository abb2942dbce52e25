"""The manifests of the relay keep to the policy, and each rule of the policy refuses what it is there for."""

from __future__ import annotations

import copy
import re
import shlex
import stat
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_lines import check_command
from harness import ROOT
from pod_policy import IMAGE, pods, wrong, wrong_about_relay

from fedhpc.cli.relay import relay as relay_commands
from fedhpc.config import read_section
from fedhpc.relay.settings import Limits, RelaySettings

FOLDER = ROOT / "containers" / "kubernetes"
README = (FOLDER / "README.md").read_text()
TEXTS = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.yaml"))}
OBJECTS: list[dict[str, Any]] = [one for text in TEXTS.values() for one in yaml.safe_load_all(text)]
SECRET = [Path(path).name for path in re.findall(r"--from-file=(\S+)", README)]

Change = Callable[[dict[str, dict[str, Any]]], object]


def changed(change: Change) -> list[dict[str, Any]]:
    """The manifests after `change`, which is given them by kind."""
    objects = copy.deepcopy(OBJECTS)
    change({one["kind"]: one for one in objects})
    return objects


def pod(kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return kinds["Deployment"]["spec"]["template"]["spec"]


def relay(kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return pod(kinds)["containers"][0]


def first(kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return pod(kinds)["initContainers"][0]


def config(old: str, new: str) -> Change:
    """One change of relay.toml in the ConfigMap."""

    def change(kinds: dict[str, dict[str, Any]]) -> None:
        data = kinds["ConfigMap"]["data"]
        assert data["relay.toml"].count(old) == 1, old
        data["relay.toml"] = data["relay.toml"].replace(old, new)

    return change


def test_the_manifests_keep_to_the_policy() -> None:
    assert {one["kind"] for one in OBJECTS} >= {
        "Deployment",
        "Service",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "Route",
    }
    assert wrong(OBJECTS) == []
    assert wrong_about_relay(OBJECTS, SECRET) == []


REFUSED: dict[str, tuple[Change, str]] = {
    "may run as root": (lambda k: pod(k)["securityContext"].pop("runAsNonRoot"), "it may run as root"),
    "a fixed user": (lambda k: pod(k)["securityContext"].update(runAsUser=1000), "runAsUser is not allowed"),
    "a fixed group of files": (lambda k: pod(k)["securityContext"].update(fsGroup=10001), "fsGroup is not allowed"),
    "no seccomp": (lambda k: pod(k)["securityContext"].pop("seccompProfile"), "seccomp"),
    "unconfined": (lambda k: pod(k)["securityContext"].update(seccompProfile={"type": "Unconfined"}), "seccomp"),
    "the host's network": (lambda k: pod(k).update(hostNetwork=True), "hostNetwork is not allowed"),
    "the host's processes": (lambda k: pod(k).update(hostPID=True), "hostPID is not allowed"),
    "the host's IPC": (lambda k: pod(k).update(hostIPC=True), "hostIPC is not allowed"),
    "a chosen node": (lambda k: pod(k).update(nodeName="n1"), "nodeName is not allowed"),
    "a token": (lambda k: pod(k).pop("automountServiceAccountToken"), "a token is mounted"),
    "the account's token": (lambda k: k["ServiceAccount"].pop("automountServiceAccountToken"), "its token is mounted"),
    "the default account": (lambda k: pod(k).pop("serviceAccountName"), "account `default`"),
    "privileged": (lambda k: relay(k)["securityContext"].update(privileged=True), "securityContext is not"),
    "escalation": (lambda k: relay(k)["securityContext"].pop("allowPrivilegeEscalation"), "securityContext is not"),
    "a root to write to": (
        lambda k: relay(k)["securityContext"].update(readOnlyRootFilesystem=False),
        "securityContext is not",
    ),
    "a misspelt field": (
        lambda k: relay(k)["securityContext"].update(
            readOnlyRootFileSystem=relay(k)["securityContext"].pop("readOnlyRootFilesystem")
        ),
        "securityContext is not",
    ),
    "a capability": (lambda k: relay(k)["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]), "security"),
    "capabilities kept": (lambda k: relay(k)["securityContext"].pop("capabilities"), "securityContext is not"),
    "an unconfined first container": (lambda k: first(k).pop("securityContext"), "container key: its securityContext"),
    "a path of the host": (lambda k: pod(k)["volumes"][4].update(hostPath={"path": "/"}), "volume tmp is a"),
    "a projected token": (
        lambda k: pod(k)["volumes"].append({"name": "t", "projected": {}}),
        "volume t is a projected",
    ),
    "a port of the host": (lambda k: relay(k)["ports"][0].update(hostPort=8443), "hostPort is not allowed"),
    "a privileged port": (lambda k: relay(k)["ports"][0].update(containerPort=443), "below 1024"),
    "no memory limit": (lambda k: relay(k)["resources"]["limits"].pop("memory"), "no limits.memory"),
    "no requests": (lambda k: first(k)["resources"].pop("requests"), "no requests.cpu"),
    "a tag": (lambda k: relay(k).update(image="registry.example/fedhpc-relay:latest"), "has no digest"),
    "no probe": (lambda k: relay(k).pop("livenessProbe"), "livenessProbe is no command"),
    "a probe over the network": (
        lambda k: relay(k).update(readinessProbe={"httpGet": {"port": 9443}}),
        "readinessProbe is no command",
    ),
    "environment from anywhere": (lambda k: relay(k).update(envFrom=[]), "envFrom is not allowed"),
    "a secret to write to": (lambda k: relay(k)["volumeMounts"][1].pop("readOnly"), "it may write to secret"),
    "a secret for others": (lambda k: pod(k)["volumes"][1]["secret"].pop("defaultMode"), "lets others"),
    "a volume without bounds": (lambda k: pod(k)["volumes"][4].update(emptyDir={}), "has no sizeLimit"),
    "a volume for nothing": (lambda k: relay(k)["volumeMounts"].pop(), "volume tmp is not mounted"),
    "a mount of nothing": (lambda k: pod(k)["volumes"].pop(), "there is no volume tmp"),
    "a part of a volume": (lambda k: relay(k)["volumeMounts"][4].update(subPath="x"), "subPath is not allowed"),
    "two relays": (lambda k: k["Deployment"]["spec"].update(replicas=2), "a store has one relay"),
    "two relays for a moment": (lambda k: k["Deployment"]["spec"].pop("strategy"), "a store has one relay"),
    "other pods": (
        lambda k: k["Deployment"]["spec"]["selector"].update(matchLabels={"a": "b"}),
        "its selector is not its pods' labels",
    ),
    "a namespace": (lambda k: k["Service"]["metadata"].update(namespace="default"), "chooses a namespace"),
    "a secret in the file": (lambda k: k["ConfigMap"].update(kind="Secret"), "a Secret is made by hand"),
    "rights in the cluster": (lambda k: k["ConfigMap"].update(kind="ClusterRoleBinding"), "not known here"),
    "a port of every node": (lambda k: k["Service"]["spec"].update(type="NodePort"), "type is not allowed"),
    "a service of nothing": (lambda k: k["Service"]["spec"].update(selector={"a": "b"}), "no pod has these labels"),
    "a service of no port": (
        lambda k: k["Service"]["spec"]["ports"][0].update(targetPort="admin"),
        "no pod has the port admin",
    ),
    "a policy of nothing": (
        lambda k: k["NetworkPolicy"]["spec"].update(podSelector={}),
        "NetworkPolicy fedhpc-relay: no pod has these labels",
    ),
    "a way out": (lambda k: k["NetworkPolicy"]["spec"].update(egress=[{}]), "pods may dial out"),
    "an unguarded way out": (lambda k: k["NetworkPolicy"]["spec"].update(policyTypes=["Ingress"]), "may dial out"),
    "all ports": (lambda k: k["NetworkPolicy"]["spec"].update(ingress=[{}]), "lets in to other ports"),
    "no way in": (lambda k: k["NetworkPolicy"]["spec"].update(ingress=[]), "lets in to other ports"),
    "TLS ends at the router": (
        lambda k: k["Route"]["spec"]["tls"].update(termination="edge"),
        "TLS does not pass through",
    ),
    "a route to nothing": (lambda k: k["Route"]["spec"]["to"].update(name="other"), "no service has its port"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_the_policy_refuses(change: Change, told: str) -> None:
    found = wrong(changed(change))
    assert any(told in what for what in found), found


DISAGREE: dict[str, tuple[Change, str]] = {
    "another port": (config(":8443", ":8444"), "it listens on 8444"),
    "only its own machine": (config("0.0.0.0", "127.0.0.1"), "where no service reaches it"),
    "no admin port": (config('admin = "127.0.0.1:9443"', ""), "where no admin port is"),
    "too little time to end": (config("put_bytes", "drain_s = 60.0\nput_bytes"), "it is killed while"),
    "a certificate that is not there": (config("/secret/relay.pem", "/secret/tls.crt"), "tls.crt is not in the Secret"),
    "the key as it is mounted": (config("/key/relay.key", "/secret/relay.key"), "relay.key is not in memory"),
    "the key on the volume": (config("/key/relay.key", "/relay/relay.key"), "relay.key is not in memory"),
    "the key on a disk": (lambda k: pod(k)["volumes"][2]["emptyDir"].pop("medium"), "relay.key is not in memory"),
    "a key to write to": (lambda k: relay(k)["volumeMounts"][2].pop("readOnly"), "may write to its key"),
    "a key for the group": (
        lambda k: first(k)["command"].append(first(k)["command"].pop().replace("umask 077", "umask 007")),
        "only the relay reads it",
    ),
    "a roster that nobody writes": (config("/relay/roster", "/config/roster"), "roster.toml is not on the volume"),
    "a store that is forgotten": (config("/relay/store", "/tmp/store"), "/tmp/store is not on the volume"),
    "another relay.toml": (lambda k: relay(k).update(args=["serve", "/relay/relay.toml"]), "ConfigMap's relay.toml"),
}


@pytest.mark.parametrize(("change", "told"), DISAGREE.values(), ids=DISAGREE.keys())
def test_the_policy_sees_where_pod_and_relay_disagree(change: Change, told: str) -> None:
    found = wrong_about_relay(changed(change), SECRET)
    assert any(told in what for what in found), found


def test_the_secret_holds_the_files_that_the_relay_reads() -> None:
    assert SECRET == ["relay.key", "relay.pem", "authority.pem"]
    for name in SECRET:
        assert wrong_about_relay(OBJECTS, [other for other in SECRET if other != name])


def test_the_settings_are_those_of_a_relay() -> None:
    (table,) = (tomllib.loads(one["data"]["relay.toml"]) for one in OBJECTS if one["kind"] == "ConfigMap")
    settings = read_section(RelaySettings, table["relay"], "relay")
    assert settings.reserve_bytes == RelaySettings.reserve_bytes
    assert read_section(Limits, table["limits"], "limits") == Limits()


def test_the_commands_of_the_pod_exist() -> None:
    (spec,) = pods(OBJECTS)
    (container,) = spec["containers"]
    check_command(["relay", *container["args"]])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        program, *words = container[probe]["exec"]["command"]
        assert program == "fedhpc"
        check_command(words)
    (asked,) = (one.default for one in relay_commands.commands["status"].params if one.name == "admin")
    assert f'admin = "{asked}"' in TEXTS["relay.yaml"]


def test_the_first_container_copies_the_key_for_the_relay_alone(tmp_path: Path) -> None:
    (spec,) = pods(OBJECTS)
    shell, flags, script = spec["initContainers"][0]["command"]
    for folder in ("secret", "key", "relay"):
        (tmp_path / folder).mkdir()
        script = script.replace(f"/{folder}/", f"{shlex.quote(str(tmp_path))}/{folder}/")
    (tmp_path / "secret" / "relay.key").write_text("a key")
    (tmp_path / "secret" / "relay.key").chmod(0o440)
    key, roster = tmp_path / "key" / "relay.key", tmp_path / "relay" / "roster.toml"
    for _ in range(2):  # the pod starts again
        subprocess.run([shell, flags, script], check=True)
        assert (key.read_text(), stat.S_IMODE(key.stat().st_mode)) == ("a key", 0o600)
        assert roster.read_text() in ("", "# kept\n")
        roster.write_text("# kept\n")
    (tmp_path / "secret" / "relay.key").unlink()
    assert subprocess.run([shell, flags, script], stderr=subprocess.DEVNULL).returncode != 0


def test_the_lines_of_the_readme_fill_the_files_in() -> None:
    """Each sed of the README, run on its file, gives manifests of the image and keeps to the policy."""
    image = f"registry.example/fedhpc-relay@sha256:{'0' * 64}"
    lines = [line.replace("\\|", "|") for line in re.findall(r"(sed .+?) \\?\| kubectl apply -f -", README)]
    assert len(lines) == 3
    filled = []
    for line in lines:
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, env={"IMAGE": image, "PATH": "/usr/bin:/bin"}, text=True,
                              stdout=subprocess.PIPE, check=True)  # fmt: skip
        filled.append([*yaml.safe_load_all(done.stdout)])
    okd, plain, route = filled
    assert wrong([*okd, *route]) == []
    assert wrong(plain, fixed_ids=True) == []
    assert wrong(plain) == ["Deployment fedhpc-relay: the pod's fsGroup is not allowed here"]
    next(pods(plain))["securityContext"]["fsGroup"] = 0  # type: ignore[index]
    assert wrong(plain, fixed_ids=True) == ["Deployment fedhpc-relay: its volumes are root's"]
    for objects in (okd, plain):
        (spec,) = pods(objects)
        assert {one["image"] for one in (*spec["initContainers"], *spec["containers"])} == {image}
    assert route[0]["spec"]["host"] == "relay.example"
    assert all(placeholder not in str(filled) for placeholder in (IMAGE, "RELAY_HOST"))


def test_the_commands_of_the_readme_exist() -> None:
    found = re.findall(r"^ +fedhpc (relay .+?)(?: <.*)?$", README, re.MULTILINE)
    found += re.findall(r"`fedhpc (relay .+?)`", README)
    assert len(found) == 4
    for words in found:
        check_command(shlex.split(words))


@pytest.mark.parametrize("name", TEXTS)
def test_a_manifest_names_no_registry(name: str) -> None:
    versions = {one["apiVersion"].partition("/")[0] for one in OBJECTS}
    labels = {"app.kubernetes.io"}
    hosts = set(re.findall(r"[\w-]+(?:\.[a-z][\w-]*)+(?=/)", TEXTS[name]))
    assert hosts <= versions | labels
