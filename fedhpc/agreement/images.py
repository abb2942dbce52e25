"""The [container] section of federation.toml: the images that sites may run in, by name and SHA-256 of the file.

Every site signs the list with the rest of the file. A job's own words are believed: the list keeps a site from running
another image by mistake, and not one that means to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedhpc.agreement.roster import check_name
from fedhpc.errors import ConfigError, PolicyError

SHA256_VARIABLE = "FEDHPC_CONTAINER_SHA256"
"""What the batch script tells its ranks: the SHA-256 of the image file that they run in, in hex."""
MOST_IMAGES = 64

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class AgreedImages:
    """[container]. Without it nothing is required, and a site may run outside any container."""

    names: Mapping[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of the image file, in hex."""

    def __bool__(self) -> bool:
        return bool(self.names)

    def name_of(self, sha256: str) -> str:
        """The name of the image with this digest; '' if it is not listed."""
        return next((name for name, listed in self.names.items() if listed == sha256), "")

    def require(self, sha256: str, what: str) -> None:
        """Raise PolicyError unless the image with this digest may be used; `what` names it for people."""
        if self and not self.name_of(sha256):
            raise PolicyError(
                f"{what} has the SHA-256 {sha256}, which federation.toml does not list",
                f"use one of [container]: {self.words()}; another image is a new epoch: `fedhpc federation next`",
            )

    def require_here(self, environment: Mapping[str, str] = os.environ) -> None:
        """Raise PolicyError unless this process runs in an image of the list, by what the job says of it."""
        said = environment.get(SHA256_VARIABLE, "")
        if self and not _HEX.fullmatch(said):
            raise PolicyError(
                "federation.toml lists the images that sites run in, and this would run in none of them: "
                f"{SHA256_VARIABLE} is {'no SHA-256' if said else 'not set'}",
                f"`fedhpc submit --container IMAGE` sets it, by hand `export {SHA256_VARIABLE}=` with what sha256sum "
                f"prints; listed: {self.words()}",
            )
        self.require(said, "the image of this process")

    def words(self) -> str:
        """The list for people, on one line."""
        return ", ".join(f"{name} sha256:{sha256}" for name, sha256 in self.names.items())


def read_images(table: Mapping[str, Any] | None) -> AgreedImages:
    """The images in [container]; none if there is no such table. Raises ConfigError."""
    if table is None:
        return AgreedImages()
    if not isinstance(table, Mapping):
        raise ConfigError("container must be a table", "write it as [container]")
    if not table:
        raise ConfigError(
            "[container] lists no image", 'cpu = "sha256:…", or leave the table out: then any may be used'
        )
    if len(table) > MOST_IMAGES:
        raise ConfigError(f"[container] lists {len(table)} images", f"at most {MOST_IMAGES}")
    names: dict[str, str] = {}
    for name, value in table.items():
        check_name(name, "container: the name")
        digest = _DIGEST.fullmatch(value) if isinstance(value, str) else None
        if digest is None:
            raise ConfigError(
                f"container.{name} is not the digest of an image",
                '"sha256:" and the 64 lower-case hex digits that `sha256sum IMAGE.sif` prints',
            )
        # One image has one name, so that the name in a record says which entry was meant.
        other = next((n for n, listed in names.items() if listed == digest[1]), "")
        if other:
            raise ConfigError(f"container: {other} and {name} are the same image", "leave one of them out")
        names[name] = digest[1]
    return AgreedImages(names)
