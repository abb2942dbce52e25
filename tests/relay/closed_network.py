"""A network of its own, as between real sites: a relay and sites behind a router that lets sites dial the relay only.

    closed_network.py FOLDER PORT SUMS    in it the relay.toml, federation.toml and site files that the test wrote
    closed_network.py --hold              only makes the network, says so, and waits

To be run by `in_namespaces`: as root of network, process and mount namespaces that end with it. The host's network is
never touched. Every party has a namespace with one link to the router; the router forwards, and nftables decides:

    site --\\                    sites may open connections to the relay's port,
    site ---- router -- relay    whatever belongs to those passes,
    site --/                     all else is dropped, and counted if it begins something
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from sum_site import finish_sites, site_command, site_environment

TOOLS = ("ip", "nft", "unshare", "nsenter")
SITES = ("s1", "s2", "s3")
PARTIES = ("relay", *SITES)
OTHER_PORT = 9  # something else that listens at the relay and at a site, and could be reached
OTHER_SERVER = """
import socket, sys, time
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
print("listening", flush=True)
time.sleep(600)
"""
PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def why_not() -> str:
    """Why this machine cannot make such a network; '' if it can."""
    missing = [tool for tool in TOOLS if shutil.which(tool, path=PATH) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: apt-get install iproute2 nftables util-linux)"
    command = in_namespaces(["nft", "list", "ruleset"])
    tried = subprocess.run(command, capture_output=True, text=True, env=_environment())
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def in_namespaces(command: Sequence[str]) -> list[str]:
    """`command` as root of namespaces of its own; all that it starts is killed with it."""
    mapped = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", *mapped, "--net", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL", *command]


def address(party: str) -> str:
    return f"10.77.{PARTIES.index(party)}.2"


class Network:
    """The namespaces and the router, which is the calling process's own namespace. They end with this process."""

    def __init__(self) -> None:
        self._holders: dict[str, int] = {}
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        for number, party in enumerate(PARTIES):
            self._holders[party] = self._namespace()
            link = f"link add to-{party} type veth peer name eth0 netns {self._pid(party)}"
            self._do("ip", *link.split())
            self._do("ip", "address", "add", f"10.77.{number}.1/24", "dev", f"to-{party}")
            self._do("ip", "link", "set", f"to-{party}", "up")
            for words in (
                f"address add {address(party)}/24 dev eth0",
                "link set lo up",
                "link set eth0 up",
                f"route add default via 10.77.{number}.1",
            ):
                self._do(*self.inside(party, "ip", *words.split()))

    def close_to(self, port: int) -> None:
        """From now on sites may dial the relay's `port`, and nothing else passes."""
        sites = ", ".join(address(site) for site in SITES)
        rules = f"""
            table ip closed {{
                counter opened {{ }}
                counter refused {{ }}
                chain forward {{
                    type filter hook forward priority 0; policy drop;
                    ct state established,related accept
                    ip saddr {{ {sites} }} ip daddr {address("relay")} tcp dport {port} \\
                        ct state new counter name opened accept
                    meta l4proto tcp tcp flags & (syn | ack) != syn drop
                    counter name refused drop
                }}
            }}"""
        self._do("nft", "-f", "-", stdin=rules)

    def count(self, counter: str) -> int:
        """Packets that a rule has seen."""
        found = json.loads(self._do("nft", "-j", "list", "counters"))["nftables"]
        counters = [entry["counter"] for entry in found if "counter" in entry]
        return int(next(entry["packets"] for entry in counters if entry["name"] == counter))

    def inside(self, party: str, *command: str) -> list[str]:
        """`command` in the namespace of `party`."""
        return ["nsenter", f"--target={self._pid(party)}", "--net", *command]

    def dial(self, party: str, to: str, port: int) -> str:
        """`open`, or what a connection from `party` ends with."""
        script = (
            "import socket, sys\n"
            "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), 1.0); print('open')\n"
            "except OSError as error: print(type(error).__name__)\n"
        )
        return self._do(*self.inside(party, sys.executable, "-c", script, address(to), str(port))).strip()

    def listens(self, party: str) -> int:
        """How many TCP sockets listen in the namespace of `party`."""
        table = self._do(*self.inside(party, "cat", "/proc/net/tcp", "/proc/net/tcp6"))
        return sum(line.split()[3] == "0A" for line in table.splitlines() if ": " in line and "rem_address" not in line)

    def _namespace(self) -> int:
        holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], env=_environment())
        own = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
            assert holder.poll() is None
            time.sleep(0.005)
        return holder.pid

    def _pid(self, party: str) -> str:
        return str(self._holders[party])

    def _do(self, *command: str, stdin: str = "") -> str:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=_environment(), timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout


def _environment() -> dict[str, str]:
    return site_environment() | {"PATH": PATH}


def attempts(network: Network, port: int) -> dict[str, str]:
    """Connections that are none of a site to the relay's port, and one that is."""
    found = {f"{a} to {b}": network.dial(a, b, OTHER_PORT) for a, b in (("relay", "s1"), ("s2", "s1"), ("s1", "relay"))}
    return found | {"s1 to the relay's port": network.dial("s1", "relay", port)}


def main(folder: Path, port: int, sums: int) -> dict[str, Any]:
    """Dial about in the open network and in the closed one, sum in the closed one; what happened."""
    network = Network()
    for party in ("relay", "s1"):
        server = network.inside(party, sys.executable, "-c", OTHER_SERVER, str(OTHER_PORT))
        listening = subprocess.Popen(server, stdout=subprocess.PIPE, text=True, env=_environment())
        assert listening.stdout is not None
        assert listening.stdout.readline()
    relay_file = str(folder / "relay" / "relay.toml")
    serve = network.inside("relay", sys.executable, "-m", "fedhpc", "relay", "serve", relay_file)
    relay = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=_environment())
    assert relay.stdout is not None
    assert "listening" in relay.stdout.readline()
    result: dict[str, Any] = {"open": attempts(network, port)}
    network.close_to(port)
    result["closed"] = attempts(network, port)
    result["refused"] = network.count("refused")
    listening_before = {site: network.listens(site) for site in SITES}
    sites = []
    for site in SITES:
        command = site_command(folder / "federation.toml", folder / site / "site.toml", folder / "run", sums)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        sites.append(subprocess.Popen(network.inside(site, *command), text=True, env=_environment(), **pipes))
    seen = 0
    result["listening"] = 0
    while any(process.poll() is None for process in sites):
        more = [network.listens(site) - listening_before[site] for site in SITES]
        result["listening"], seen = max(result["listening"], *more), seen + 1
    result["looks"] = seen
    result["sums"] = [[(c["low"], c["high"]) for c in costs] for costs in finish_sites(sites)]
    result["refused while summing"] = network.count("refused") - result["refused"]
    result["opened"] = network.count("opened")
    result["closed after"] = attempts(network, port)
    relay.terminate()
    relay.wait(30)
    return result


if __name__ == "__main__":
    if sys.argv[1] == "--hold":
        Network()
        print(os.readlink("/proc/self/ns/net"), flush=True)
        time.sleep(600)
    else:
        print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
