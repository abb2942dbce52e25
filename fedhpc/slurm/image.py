"""The image that a site's jobs run in: where it is, and the SHA-256 of its file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedhpc.agreement.images import AgreedImages
from fedhpc.errors import ConfigError, StorageError
from fedhpc.slurm.plan import Plan

FOLDER = "folder"


@dataclass(frozen=True)
class Image:
    """An image as it was seen when its job was submitted."""

    path: Path
    sha256: str
    """Of its file, in hex; '' for a folder, which has none."""

    @property
    def recorded(self) -> str:
        """What the job's record says of it."""
        return self.sha256 or FOLDER


def image_of(plan: Plan, known: str = "") -> Image | None:
    """The image of the plan's jobs; None where they run outside containers.

    `known`: its SHA-256 by an earlier job of the chain, which the next job's script compares; else the file is read.
    Raises ConfigError, StorageError.
    """
    section = plan.settings.inside
    if not section.image:
        return None
    path = plan.site_file.path(Path(section.image))
    if not path.exists():
        raise ConfigError(f"the image {path} is not there", "build or copy it; paths start at the site file")
    if not path.is_dir():
        return Image(path, known if known not in ("", FOLDER) else sha256_of(path))
    if section.runtime == "apptainer":
        raise ConfigError(f"the image {path} is a folder", "`apptainer build IMAGE.sif FOLDER/` makes a file of it")
    return Image(path, "")


def require_agreed(image: Image | None, agreed: Iterable[AgreedImages]) -> None:
    """Raise PolicyError for an image, or for none, where a federation.toml lists others."""
    for images in agreed:
        if image is None:
            images.require_here({})
        else:
            images.require(image.sha256 or "none, as folders have", f"the image {image.path}")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises StorageError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}", "check its owner and mode") from None
