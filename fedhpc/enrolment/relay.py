"""What the relay's operator does: let a federation in, and out again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from fedhpc.agreement.federation_file import Agreement
from fedhpc.enrolment.draft import read_complete
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.relay.roster_file import drop_federation, federation_sites, put_federation
from fedhpc.relay.settings import DISK, REVOKED, read_settings
from fedhpc.sums.over_relay.access import thresholds_of
from fedhpc.wire.pins import pin_of, read_certificate

BYTES, OBJECTS = 64 << 30, 100_000


def admit(
    federation: Path, relay: Path, *, quota_bytes: int, objects: int, unmasked: bool = False, durable: str = DISK
) -> tuple[Agreement, bool]:
    """Let the federation of federation.toml in; also returns whether the roster file changed.

    `unmasked`: also one that hides nothing, for benchmarks. `durable`: whether its vectors are synced, see settings.py.

    Raises ConfigError without TLS pins or masks, or where the package of its suite is missing here, PolicyError if the
    federation names another relay.
    """
    agreement = read_complete(federation)
    settings, _ = read_settings(relay)
    own = pin_of(read_certificate(settings.certificate)).hex()
    without = [entry.name for entry in agreement.roster if not entry.tls]
    if without or not agreement.relay.tls:
        raise ConfigError(
            f"{federation} has no TLS pin for {', '.join(without) or 'the relay'}",
            "sites are admitted with `fedhpc federation admit`; `tls` then stands at every [[site]] and under [relay]",
        )
    if agreement.relay.tls != own:
        raise PolicyError(f"{federation} is for the relay with the key {agreement.relay.tls}; this one has {own}")
    pins = {str(number): entry.tls for number, entry in enumerate(agreement.roster, start=1)}
    thresholds = thresholds_of(agreement)
    if agreement.secure.mode == "off" and not unmasked:
        raise ConfigError(f'{federation} has [secure] mode = "off"', "over a relay numbers are always masked")
    served = federation_sites(settings.roster, agreement.hash.hex())
    lost = [number for number in pins if served.get(number) == REVOKED]
    if lost:
        raise PolicyError(
            f"the key of site {', '.join(agreement.names[int(u) - 1] for u in lost)} was revoked at this relay",
            "admit the next epoch instead; to serve this one with that key again, drop it first",
        )
    cohort = {
        f.name: v for f in dataclasses.fields(agreement.cohort) if (v := getattr(agreement.cohort, f.name)) is not None
    }
    table: dict[str, Any] = {
        "bytes": quota_bytes,
        "objects": objects,
        "threshold": thresholds.threshold,
        "suite": agreement.secure.tree.name,
        "durable": durable,
        "sites": pins,
        "cohort": cohort,
    }
    return agreement, put_federation(settings.roster, agreement.hash.hex(), table)


def drop(config: str, relay: Path) -> None:
    """Stop serving the federation; its objects stay until the relay cleans up. Raises ConfigError."""
    settings, _ = read_settings(relay)
    drop_federation(settings.roster, config)
