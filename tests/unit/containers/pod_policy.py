"""What Kubernetes manifests of this project may hold: pure functions from their objects to what is wrong with them.

A list of what is allowed, not of what is forbidden: a field that this module has never heard of is refused, but for
what is inside a ConfigMap, a claim and a volume. Nothing in it needs a cluster. `wrong` is about any pod that mounts
what the relay's does, `wrong_about_relay` about its relay.toml.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

Object = Mapping[str, Any]

IMAGE = "RELAY_IMAGE"  # what a manifest says until its reader puts an image in
_DIGEST = re.compile(r"[a-z0-9][\w.:/-]*@sha256:[0-9a-f]{64}")
_TEMPLATES = {"Deployment"}
_KINDS = {
    *("ServiceAccount", "ConfigMap", "PersistentVolumeClaim", "Service", "NetworkPolicy", "Route"),
    *_TEMPLATES,
}
_POD = {
    *("automountServiceAccountToken", "containers", "enableServiceLinks", "initContainers", "securityContext"),
    *("serviceAccountName", "terminationGracePeriodSeconds", "volumes"),
}
_METADATA = {"labels", "name"}
_FIELDS = {  # of an object, beside apiVersion, kind and metadata
    "ServiceAccount": {"automountServiceAccountToken"},
    "ConfigMap": {"data"},
}
_DEPLOYMENT = {"replicas", "revisionHistoryLimit", "selector", "strategy", "template"}
_ROUTE = {"host", "port", "tls", "to", "wildcardPolicy"}
_PROBE = ["fedhpc", "relay", "status", "--json"]
_PROBE_FIELDS = {"exec", "failureThreshold", "periodSeconds", "timeoutSeconds"}
_MOUNTS = {"config": "/config", "key": "/key", "relay": "/relay", "secret": "/secret", "tmp": "/tmp"}
_LEAST_MEMORY = {"containers": 256, "initContainers": 16}  # MiB
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
_CONTAINER = {"args", "command", "image", "name", "ports", "resources", "securityContext", "volumeMounts", *_PROBES}
_CONFINED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
_READ_ONLY = {"configMap", "secret"}


def wrong(objects: Sequence[Object], *, fixed_ids: bool = False) -> list[str]:
    """What is wrong with `objects`, each as `KIND NAME: what`; empty if nothing is.

    `fixed_ids`: fsGroup may be given, as Kubernetes needs it; OKD gives each namespace its own and refuses others.
    """
    found = []
    for one in objects:
        kind, name = one.get("kind", ""), one.get("metadata", {}).get("name", "")
        found += [f"{kind} {name}: {what}" for what in _of_object(one, objects, fixed_ids)]
    return found


def pods(objects: Iterable[Object]) -> Iterator[Object]:
    """The specifications of all pods."""
    for one in objects:
        if one.get("kind") in _TEMPLATES:
            yield one["spec"]["template"]["spec"]


def _of_object(one: Object, objects: Sequence[Object], fixed_ids: bool) -> Iterator[str]:
    kind = one.get("kind")
    if kind not in _KINDS:
        yield "this kind is not known here; a Secret is made by hand"
        return
    if "namespace" in one["metadata"]:
        yield "it chooses a namespace"
    yield from _unknown(one, {"apiVersion", "kind", "metadata", *_FIELDS.get(kind, {"spec"})}, "its")
    yield from _unknown(one["metadata"], {*_METADATA, "namespace"}, "its metadata's")
    if kind in _TEMPLATES:
        yield from _of_deployment(one["spec"])
        yield from _of_pod(one["spec"]["template"]["spec"], fixed_ids)
    elif kind == "ServiceAccount":
        if one.get("automountServiceAccountToken") is not False:
            yield "its token is mounted"
    elif kind == "Service":
        yield from _of_service(one["spec"], objects)
    elif kind == "NetworkPolicy":
        yield from _of_network_policy(one["spec"], objects)
    elif kind == "Route":
        yield from _of_route(one["spec"], objects)


def _of_deployment(spec: Object) -> Iterator[str]:
    yield from _unknown(spec, _DEPLOYMENT, "the deployment's")
    yield from _unknown(spec["template"], {"metadata", "spec"}, "the template's")
    # Annotations can take AppArmor and seccomp away.
    yield from _unknown(spec["template"]["metadata"], {"labels"}, "the template's metadata's")
    yield from _unknown(spec["selector"], {"matchLabels"}, "the selector's")
    if spec.get("replicas") != 1 or spec.get("strategy") != {"type": "Recreate"}:
        yield "a store has one relay: replicas 1, strategy Recreate"
    if spec["selector"].get("matchLabels") != spec["template"]["metadata"].get("labels"):
        yield "its selector is not its pods' labels"


def _of_pod(spec: Object, fixed_ids: bool) -> Iterator[str]:
    yield from _unknown(spec, _POD, "the pod's")
    if spec.get("automountServiceAccountToken") is not False:
        yield "a token is mounted"
    if spec.get("serviceAccountName", "default") == "default":
        yield "it runs under the account `default`"
    security = spec.get("securityContext", {})
    yield from _unknown(security, {"runAsNonRoot", "seccompProfile", *(["fsGroup"] if fixed_ids else [])}, "the pod's")
    if security.get("runAsNonRoot") is not True:
        yield "it may run as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "it has not the seccomp profile RuntimeDefault"
    if "fsGroup" in security and not security["fsGroup"] > 0:
        yield "its volumes are root's"
    kinds = {}
    for volume in spec.get("volumes", []):
        (kind, *more) = sorted(volume.keys() - {"name"}) or [""]
        kinds[volume["name"]] = kind
        if more or kind not in _VOLUMES:
            yield f"volume {volume['name']} is a {kind}"
        if kind == "emptyDir" and "sizeLimit" not in volume[kind]:
            yield f"volume {volume['name']} has no sizeLimit"
        if kind == "secret" and volume[kind].get("defaultMode", 0o644) & 0o337:
            yield f"volume {volume['name']} lets others than owner and group read"
    containers = [*spec.get("initContainers", []), *spec["containers"]]
    for container in containers:
        yield from (f"container {container['name']}: {what}" for what in _of_container(container, kinds))
    for group, least in _LEAST_MEMORY.items():
        for container in spec.get(group, []):
            limit = _mebibytes(container.get("resources", {}).get("limits", {}).get("memory", ""))
            if limit is not None and limit < least:
                yield f"container {container['name']}: {limit} MiB of memory are too few"
    for container in spec["containers"]:
        for probe in _PROBES:
            given = container.get(probe, {})
            if given.get("exec") != {"command": _PROBE}:
                yield f"container {container['name']}: {probe} is not the command {' '.join(_PROBE)}"
            yield from (
                f"container {container['name']}: {what}" for what in _unknown(given, _PROBE_FIELDS, f"{probe}'s")
            )
    mounted = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
    yield from (f"volume {name} is not mounted" for name in kinds.keys() - mounted)


def _of_container(container: Object, volumes: Mapping[str, str]) -> Iterator[str]:
    yield from _unknown(container, _CONTAINER, "its")
    image = container.get("image", "")
    if image != IMAGE and not _DIGEST.fullmatch(image):
        yield f"image {image} has no digest"
    if container.get("securityContext") != _CONFINED:
        yield f"its securityContext is not {_CONFINED}"
    resources = container.get("resources", {})
    for group in ("requests", "limits"):
        yield from (f"no {group}.{what}" for what in ("cpu", "memory") if what not in resources.get(group, {}))
    for port in container.get("ports", []):
        yield from _unknown(port, {"name", "containerPort", "protocol"}, "a port's")
        if port["containerPort"] < 1024:
            yield "a port below 1024 needs a capability"
    for mount in container.get("volumeMounts", []):
        yield from _unknown(mount, {"name", "mountPath", "readOnly"}, "a mount's")
        kind = volumes.get(mount["name"])
        if mount["mountPath"] != _MOUNTS.get(mount["name"]):
            yield f"{mount['name']} is mounted over {mount['mountPath']}"
        if kind is None:
            yield f"there is no volume {mount['name']}"
        if kind in _READ_ONLY and mount.get("readOnly") is not True:
            yield f"it may write to {mount['name']}"


def _mebibytes(text: str) -> int | None:
    """A quantity of memory in MiB, or None where it is missing; what is written in another way is none at all."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+)(Mi|Gi)", text)
    return int(match[1]) * {"Mi": 1, "Gi": 1024}[match[2]] if match else 0


def _of_service(spec: Object, objects: Sequence[Object]) -> Iterator[str]:
    yield from _unknown(spec, {"selector", "ports"}, "the service's")
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in objects if one.get("kind") in _TEMPLATES]
    if labels and spec.get("selector") not in labels:
        yield "no pod has these labels"
    for port in spec["ports"]:
        yield from _unknown(port, {"name", "port", "targetPort", "protocol"}, "a port's")
        if port.get("targetPort") not in _pod_ports(objects):
            yield f"no pod has the port {port.get('targetPort')}"


def _of_network_policy(spec: Object, objects: Sequence[Object]) -> Iterator[str]:
    yield from _unknown(spec, {"podSelector", "policyTypes", "ingress", "egress"}, "the policy's")
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in objects if one.get("kind") in _TEMPLATES]
    if spec["podSelector"].get("matchLabels") not in labels:
        yield "no pod has these labels"
    if set(spec.get("policyTypes", [])) != {"Ingress", "Egress"} or spec.get("egress") != []:
        yield "pods may dial out"
    yield from _unknown(spec["podSelector"], {"matchLabels"}, "the selector's")
    for rule in spec.get("ingress", []):
        yield from _unknown(rule, {"ports"}, "a rule's")
        for port in rule.get("ports", []):
            yield from _unknown(port, {"port", "protocol"}, "a port's")
    ports = [port.get("port") for rule in spec.get("ingress", []) for port in rule.get("ports", [{}])]
    if not ports or any(port not in _pod_ports(objects) for port in ports):
        yield "it lets in to other ports than those of a pod"


def _of_route(spec: Object, objects: Sequence[Object]) -> Iterator[str]:
    yield from _unknown(spec, _ROUTE, "the route's")
    yield from _unknown(spec["to"], {"kind", "name", "weight"}, "the route's target's")
    yield from _unknown(spec["port"], {"targetPort"}, "the route's port's")
    if spec.get("wildcardPolicy", "None") != "None" or spec["to"].get("kind") != "Service":
        yield "it is for more names than one, or leads to no service"
    if spec.get("tls") != {"termination": "passthrough", "insecureEdgeTerminationPolicy": "None"}:
        yield "TLS does not pass through to the relay"
    services = {one["metadata"]["name"]: one["spec"]["ports"] for one in objects if one.get("kind") == "Service"}
    ports = services.get(spec["to"].get("name"), [])
    if spec["port"].get("targetPort") not in [port["name"] for port in ports]:
        yield "no service has its port"


def _pod_ports(objects: Iterable[Object]) -> set[str]:
    return {port["name"] for pod in pods(objects) for one in pod["containers"] for port in one.get("ports", [])}


def _unknown(given: Iterable[str], known: Iterable[str], whose: str) -> Iterator[str]:
    yield from (f"{whose} {key} is not allowed here" for key in given if key not in set(known))


def wrong_about_relay(objects: Sequence[Object], secret: Iterable[str]) -> list[str]:
    """Where the relay's pod and its relay.toml disagree; `secret`: names of the files in its Secret."""
    return [*_of_relay(objects, set(secret))]


def _of_relay(objects: Sequence[Object], secret: set[str]) -> Iterator[str]:
    (pod,) = pods(objects)
    (container,) = pod["containers"]
    (first,) = pod["initContainers"]
    (config,) = (one for one in objects if one["kind"] == "ConfigMap")
    table = tomllib.loads(config["data"]["relay.toml"])
    relay, limits = table["relay"], table["limits"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    mounts = {one["mountPath"]: volumes[one["name"]] for one in container["volumeMounts"]}
    writable = {one["mountPath"] for one in container["volumeMounts"] if not one.get("readOnly")}

    def on(path: str, kind: str) -> bool:
        return kind in mounts.get(str(PurePosixPath(path).parent), {})

    if container.get("args") != ["serve", "/config/relay.toml"] or not on("/config/relay.toml", "configMap"):
        yield "the relay does not serve the ConfigMap's relay.toml"
    host, _, port = relay["listen"].rpartition(":")
    if host != "0.0.0.0":
        yield f"it listens on {host}, where no service reaches it"
    if [int(port)] != [one["containerPort"] for one in container["ports"]]:
        yield f"it listens on {port}, and the container's port is another"
    if relay.get("admin") != "127.0.0.1:9443":
        yield "probes ask 127.0.0.1:9443, where no admin port is"
    if pod.get("terminationGracePeriodSeconds", 30) <= limits.get("drain_s", 20):
        yield "it is killed while it ends its requests"
    for path in (relay["certificate"], *relay["client_authorities"]):
        if not on(path, "secret") or PurePosixPath(path).name not in secret:
            yield f"{path} is not in the Secret"
    key = relay["key"]
    if not on(key, "emptyDir") or mounts[str(PurePosixPath(key).parent)]["emptyDir"].get("medium") != "Memory":
        yield f"{key} is not in memory"
    elif str(PurePosixPath(key).parent) in writable:
        yield "the relay may write to its key"
    script = first["command"][-1]
    if not script.startswith("umask 077\n") or f"cat /secret/relay.key > {key}" not in script.splitlines():
        yield "the key is not copied so that only the relay reads it"
    if "relay.key" not in secret:
        yield "relay.key is not in the Secret"
    for path in (relay["roster"], relay["store"]):
        if not on(path, "persistentVolumeClaim") or str(PurePosixPath(path).parent) not in writable:
            yield f"{path} is not on the volume that outlives the pod"
