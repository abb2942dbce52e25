"""Where a relay stands, asked from its admin port by its operator, or from its public port by a site."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.site_file import SiteFile
from fedhpc.errors import ConfigError, PeersError, PolicyError
from fedhpc.relay.settings import split_address
from fedhpc.relay.status.snapshot import KIND
from fedhpc.sums.over_relay.access import relay_access
from fedhpc.sums.over_relay.exchange import RelayExchange
from fedhpc.transport.https.client import RelayClient
from fedhpc.transport.https.retry import Patience

_MOST_BYTES = 16 << 20
_PATIENCE_S = 5.0


def ask_admin(address: str) -> dict[str, Any]:
    """/status.json of the admin port at `address`, host:port. Raises ConfigError, PeersError."""
    try:
        host, port = split_address(address, "--admin")
    except ConfigError as error:
        raise ConfigError(error.what, "write it as 127.0.0.1:9443") from None
    elsewhere = "give the address that relay.admin names; the relay says its port when it starts"
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE_S)  # never through a proxy
    try:
        connection.request("GET", "/status.json")
        response = connection.getresponse()
        data = response.read(_MOST_BYTES + 1)
    except ConnectionRefusedError:
        raise PeersError(
            f"nothing listens on {address}", "start the relay with relay.admin in relay.toml, or give --admin"
        ) from None
    except (http.client.HTTPException, ConnectionResetError):
        raise PeersError(f"what listens on {address} is not a relay's admin port", elsewhere) from None
    except OSError as error:
        raise PeersError(f"the admin port {address} does not answer: {error.strerror or error}", elsewhere) from None
    finally:
        connection.close()
    if response.status == 421:
        hint = "from another machine: ssh -L 9443:127.0.0.1:9443 RELAY, then --admin 127.0.0.1:9443"
        raise PeersError(f"the relay at {address} answers its own machine only", hint)
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if response.status != 200 or not isinstance(found, dict) or found.get("kind") != KIND:
        raise PeersError(f"what listens on {address} is not a relay's admin port", elsewhere)
    return found


class SiteView:
    """What a site of a federation may know about its relay."""

    def __init__(self, site: Path, federation: Path) -> None:
        """`site`: site.toml or its folder. Raises ConfigError, PolicyError."""
        mine = SiteFile.open(site)
        self._agreement = Agreement.open(federation)
        if mine.exchange.kind == "mpi":
            raise ConfigError(f"{mine.file} uses no relay", 'its [exchange] kind is not "https"')
        number = self._agreement.number_of(mine.site.name)
        self._name = mine.site.name
        access = relay_access(self._agreement, mine, number)
        client = RelayClient(access, 1, Patience(_PATIENCE_S, 0.2, 1.0))
        self._exchange = RelayExchange(client, self._agreement.hash, number)

    def ask(self) -> dict[str, Any]:
        """The relay's answer with the federation's names. Raises PeersError, PolicyError."""
        config = self._agreement.hash.hex()
        try:
            found = self._exchange.standing(quiet=True)
        except PolicyError as error:
            if "forbidden" not in error.what:
                raise
            hint = f"the relay's operator admits a federation.toml with `fedhpc relay admit`; this one is {config}"
            raise PolicyError(f"the relay does not know {self._name} as a site of this federation", hint) from None
        seen = found.get("seen_s")
        heard = seen if isinstance(seen, dict) else {}
        return found | {
            "kind": "fedhpc-federation",
            "config": config,
            "name": self._agreement.federation.name,
            "policy": self._agreement.cohort.policy,
            "members": [
                {"site": u, "name": name, "seen_s": heard.get(str(u))}
                for u, name in enumerate(self._agreement.names, start=1)
            ],
        }
