"""The network between the two clusters: a router with a firewall, one bridge per cluster, and a relay elsewhere.

    alpha   login 10.81.0.2, nodes .11 .12                 \\
                                                            router --- relay 10.80.0.2
    beta    login 10.82.0.2, transfer .3, nodes .11 .12    /

Within a cluster everybody reaches everybody. Through the router goes only what is dialled to the relay's address from
alpha (its nodes and its login node) and from beta's transfer node, with the answers. Nobody dials into a cluster, and
beta's nodes and login node have no way out, unless a test opens one.
"""

from __future__ import annotations

import subprocess
import sys

from places import Place

RELAY = "10.80.0.2"
PREFIX = {"alpha": "10.81.0", "beta": "10.82.0"}
_LAST = {"control": 2, "login": 3, "transfer": 4, "1": 11, "2": 12}

_DIAL = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])).close()
    print("open")
except OSError as error:
    print(type(error).__name__)
"""


def hosts() -> str:
    """Text of /etc/hosts: every name there is, since no place has a name server to ask."""
    names = [(RELAY, "relay"), ("127.0.0.1", "localhost")]
    for cluster in PREFIX:
        roles = ("control", "login", "transfer") if cluster == "beta" else ("control", "login")
        names += [(address(cluster, role), f"{cluster}-{role}") for role in roles]
        names += [(address(cluster, number), f"{cluster[0]}{number}") for number in ("1", "2")]
    return "".join(f"{number} {name}\n" for number, name in names)


def address(cluster: str, role: str) -> str:
    """Of a role in a cluster: 'control', 'login', 'transfer', or a node's number '1' or '2'."""
    return f"{PREFIX[cluster]}.{_LAST[role]}"


class Router:
    """The router's place, and the links of all others to it."""

    def __init__(self) -> None:
        self.place = Place("router")
        for number, (cluster, prefix) in enumerate(PREFIX.items()):
            # Without one of its own a bridge takes the lowest of its ports' addresses, and changes it when that node
            # goes: to the others the router is then out of reach until they ask for its address again.
            own = f"02:00:00:00:00:{number:02x}"
            self.place.do("ip", "link", "add", f"br-{cluster}", "address", own, "type", "bridge")
            self.place.do("ip", "address", "add", f"{prefix}.1/24", "dev", f"br-{cluster}")
            self.place.do("ip", "link", "set", f"br-{cluster}", "up")
        self.place.do("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        self._rules()

    def join(self, place: Place, cluster: str, role: str) -> None:
        """Give `place` an address in a cluster, which becomes its only way to anywhere."""
        self._link(place, f"{cluster}-{role}")
        self.place.do("ip", "link", "set", f"{cluster}-{role}", "master", f"br-{cluster}")
        self._configure(place, address(cluster, role), f"{PREFIX[cluster]}.1")

    def join_relay(self, place: Place) -> None:
        """Give `place` the relay's address."""
        self._link(place, "to-relay")
        self.place.do("ip", "address", "add", RELAY.rsplit(".", 1)[0] + ".1/24", "dev", "to-relay")
        self._configure(place, RELAY, RELAY.rsplit(".", 1)[0] + ".1")

    def let(self, *addresses: str) -> None:
        """From now on these may dial the relay, too."""
        self.place.do("nft", "add", "element", "ip", "walls", "may_dial", "{", ", ".join(addresses), "}")

    def forbid(self, *addresses: str) -> None:
        """From now on these may not."""
        self.place.do("nft", "delete", "element", "ip", "walls", "may_dial", "{", ", ".join(addresses), "}")

    def _link(self, place: Place, name: str) -> None:
        # The peer of a place that has ended goes with its namespace, but only some time after its processes.
        subprocess.run(self.place.inside("ip", "link", "delete", name), capture_output=True, check=False)
        words = f"link add {name} type veth peer name eth0 netns {place.pid}"
        self.place.do("ip", *words.split())
        self.place.do("ip", "link", "set", name, "up")

    def _configure(self, place: Place, own: str, router: str) -> None:
        steps = (
            f"address add {own}/24 dev eth0",
            "link set lo up",
            "link set eth0 up",
            f"route add default via {router}",
        )
        place.do("ip", "-batch", "-", stdin="\n".join(steps) + "\n")

    def _rules(self) -> None:
        may = [address("alpha", role) for role in ("login", "1", "2")] + [address("beta", "transfer")]
        within = "\n".join(f"ip saddr {prefix}.0/24 ip daddr {prefix}.0/24 accept" for prefix in PREFIX.values())
        self.place.do(
            "nft",
            "-f",
            "-",
            stdin=f"""
            table ip walls {{
                set may_dial {{ type ipv4_addr; elements = {{ {", ".join(may)} }} }}
                chain input {{ type filter hook input priority 0; policy drop; }}
                chain forward {{
                    type filter hook forward priority 0; policy drop;
                    ct state established,related accept
                    # Seen here only where the kernel shows a bridge's own frames to the firewall (br_netfilter).
                    {within}
                    ip saddr @may_dial ip daddr {RELAY} tcp flags & (syn | ack) == syn ct state new accept
                }}
            }}""",
        )


def dial(place: Place, to: str, port: int, seconds: float = 1.0) -> str:
    """'open', or the name of the error with which a connection from `place` ends."""
    return place.do(sys.executable, "-ISc", _DIAL, to, str(port), str(seconds)).strip()
