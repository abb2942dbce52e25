"""The folder of a federation whose sites all run in one job, as `fedhpc new` writes it: epochs without enrolment.

Such a folder has no invitations and no signatures, so a site that leaves is only taken out of the roster.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedhpc.agreement.federation_file import read_agreement
from fedhpc.config import read_bytes
from fedhpc.enrolment.coordinator import Coordinator, Granted
from fedhpc.enrolment.draft import Draft
from fedhpc.enrolment.next_epoch import Beginning, Entries, Epochs, following
from fedhpc.errors import ConfigError, FedhpcError, StorageError
from fedhpc.files import write_whole

LEFT = ".left"  # behind the name of the site file of a site that left


class Rehearsal:
    """federation.toml and sites/ in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.federation = folder / "federation.toml"
        self._epochs = Epochs(folder / "epochs")

    def next_epoch(self, beginning: Beginning) -> Granted:
        """As Coordinator.next_epoch."""
        draft = Draft.adopt(read_bytes(self.federation))
        return self._write(draft, draft.roster, beginning)

    def leave(self, name: str, accept: Sequence[str]) -> Granted:
        """The next epoch without site `name`, whose site file is set aside. Raises ConfigError for an unknown name."""
        draft = Draft.adopt(read_bytes(self.federation))
        if name not in draft.roster:
            raise ConfigError(f"no site '{name}' is in the roster", f"it lists {', '.join(draft.roster)}")
        rest = {other: entry for other, entry in draft.roster.items() if other != name}
        granted = self._write(draft, rest, Beginning(accept=tuple(accept)))
        path = self.folder / "sites" / f"{name}.toml"
        try:
            if path.exists():
                path.replace(path.with_name(path.name + LEFT))
        except OSError as error:
            raise StorageError(f"cannot set {path} aside: {error.strerror}", "move it away by hand") from None
        return granted

    def _write(self, draft: Draft, entries: Entries, beginning: Beginning) -> Granted:
        after = following(draft, self._epochs.sources(), entries, beginning)
        self._epochs.keep(draft)
        write_whole(self.federation, after.draft.source)
        problem = ""
        try:
            read_agreement(after.draft.source, str(self.federation))
        except FedhpcError as error:
            problem = error.what
        return Granted((), after.draft.epoch, after.draft.hash, True, problem, after.notes)


def open_folder(folder: Path) -> Coordinator | Rehearsal:
    """The coordinator's folder, or that of a rehearsal. Raises ConfigError if it is neither."""
    if (folder / "federation.toml").exists() and not (folder / "invitations.toml").exists():
        return Rehearsal(folder)
    return Coordinator(folder)
