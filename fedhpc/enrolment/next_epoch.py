"""What the next epoch begins from, and what changes with it: seed, rounds, [start], weights, accepted differences.

Another roster must not get the old sums again: a difference of two sums over rosters that differ in one site is
that site's numbers. So an epoch continues from the newest model, with a new seed, and W stays with its own roster.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fedhpc.agreement.federation_file import PROTOCOL_NAME
from fedhpc.agreement.start_settings import MOST_EPOCHS
from fedhpc.config import read_bytes, read_section
from fedhpc.enrolment.draft import Draft
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.files import write_whole
from fedhpc.train.settings import TaskSettings, TrainSettings, depends_on_seed

_WAS_SAMPLES = "  # was samples: W over another roster is neither taken over nor summed again unasked"
_SEED_BITS = 53

Entries = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Beginning:
    """How the next epoch begins, as the coordinator chose."""

    kind: Literal["previous", "model", "again", "scratch"] = "previous"
    model: str = ""
    """model: SHA-256 of its tensors, hex."""
    rounds: int | None = None
    accept: tuple[str, ...] = ()
    """Classes of sums whose difference to those over the old roster all sites accept by signing."""


@dataclass(frozen=True)
class Following:
    """The text of the next epoch, and notes about it for people."""

    draft: Draft
    notes: tuple[str, ...]


def following(draft: Draft, kept: Sequence[bytes], entries: Entries, beginning: Beginning) -> Following:
    """The epoch after `draft`, with the roster `entries`. `kept`: the epochs before `draft`, oldest first.

    Raises ConfigError (--again with another roster, nothing to follow), PolicyError (--from-scratch where the old sums
    would come again).
    """
    earlier = [Draft.adopt(source) for source in kept]
    notes: list[str] = []
    spoken = draft.table["federation"].get("protocol", "that of fedhpc 0.1.0")
    if beginning.kind == "previous" and spoken != PROTOCOL_NAME:
        raise ConfigError(
            f"epoch {draft.epoch} spoke another protocol ({spoken}), and {PROTOCOL_NAME} cannot go on from its states",
            "give the model as a file: `fedhpc export RUN model.safetensors`, then "
            "`fedhpc federation next --from-model model.safetensors`; after runs of fedhpc 0.1.0 every site also runs "
            "`fedhpc site ledger adopt RUN`",
        )
    after = draft.next_epoch().with_value("federation", "seed", secrets.randbelow(1 << _SEED_BITS))
    after = after.with_value("federation", "protocol", PROTOCOL_NAME)
    if beginning.rounds is not None:
        after = after.with_value("federation", "rounds", beginning.rounds)
    after = after.with_roster(list(entries.values()), {})
    changed = _set(after) != _set(draft)
    others = [before for before in (*earlier, draft) if _set(before) != _set(after)]
    if beginning.kind == "again" and others:
        raise ConfigError(
            f"the roster is not that of epoch {others[-1].epoch}, so this is not the same again",
            "`fedhpc federation next` goes on from the newest model; --from-scratch begins anew",
        )
    if beginning.kind == "scratch" and others:
        _refuse_old_sums(after, others[-1].epoch)
    start: dict[str, str | list[str]] = {}
    if beginning.kind == "model":
        start = {"model": beginning.model}
    elif beginning.kind == "previous":
        start = _goes_on(draft, [*earlier, draft], after)
    after = after.with_roster(list(entries.values()), start)
    if changed:
        after = _other_roster(after, beginning, notes)
    elif "weights" in beginning.accept and _WAS_SAMPLES in after.source.decode():
        after = after.with_value("strategy", "weights", "samples", "  # by training rows, which stay private")
        notes.append('weights = "samples" again: a new W is summed over this roster')
    after = _accepting(after, beginning, changed=changed)
    if others:
        _tell_classes(after, beginning, others[-1].epoch, notes)
    return Following(after, tuple(notes))


def _set(draft: Draft) -> frozenset[str]:
    return frozenset(draft.identities.values())


def _goes_on(draft: Draft, epochs: Sequence[Draft], after: Draft) -> dict[str, str | list[str]]:
    """[start] of an epoch that continues from the newest model.

    Nobody here knows which epochs have run. So [start] names all that may have, and as its sites those that have the
    model whichever it is: they were there before the last epoch too, if that one went on from another.
    """
    start, now = draft.table.get("start", {}), set(after.identities.values())
    sites = list(draft.identities.values())
    if not sites:
        raise ConfigError(
            "nobody has signed this federation.toml yet: its roster has no keys", "change the file as it is"
        )
    certain = [site for site in sites if site in start.get("sites", sites)]
    if not now & set(certain):
        certain = sites
    if not now & set(certain):
        raise ConfigError(
            "no site of the new roster was in the old one, so nobody has its model",
            "give it as a file: `fedhpc federation next --from-model`",
        )
    hashes = [epoch.hash for epoch in reversed(epochs)][:MOST_EPOCHS]
    return {"from": "previous", "epochs": hashes, "sites": certain}


def _other_roster(after: Draft, beginning: Beginning, notes: list[str]) -> Draft:
    """Shares of an old W over another roster do not add up to 1, and two Ws are one site's size."""
    if after.table.get("strategy", {}).get("weights", "samples") != "samples" or "weights" in beginning.accept:
        return after
    declared = all(entry.get("samples", 0) > 0 for entry in after.roster.values())
    weights = "declared" if declared else "uniform"
    why = "by the roster's samples" if declared else "not every site of the roster declares its samples"
    notes.append(
        f'weights = "{weights}" now ({why}): W belongs to the old roster; `--accept-difference weights` lets it be '
        "summed again"
    )
    return after.with_value("strategy", "weights", weights, _WAS_SAMPLES)


def _accepting(after: Draft, beginning: Beginning, *, changed: bool) -> Draft:
    """Differences accepted for one roster are not accepted for the next."""
    before = [] if changed else [str(name) for name in after.table.get("secure", {}).get("accept_difference", [])]
    accepted = list(dict.fromkeys([*before, *beginning.accept]))
    if accepted:
        return after.with_value("secure", "accept_difference", accepted)
    if "accept_difference" in after.table.get("secure", {}):
        return after.without_value("secure", "accept_difference")
    return after


def _tell_classes(after: Draft, beginning: Beginning, epoch: int, notes: list[str]) -> None:
    """Which sums reveal something by their difference to those over the other roster."""
    anew = beginning.kind in ("again", "scratch")
    asked = ["train", "measured"]
    if anew and after.table.get("task", {}).get("standardise"):
        asked.append("standardise")
    if after.table.get("strategy", {}).get("weights", "samples") == "samples":
        asked.append("weights")
    open_ = [name for name in asked if name not in after.table.get("secure", {}).get("accept_difference", [])]
    if open_:
        notes.append(
            f"another roster than in epoch {epoch}: sums of the class {', '.join(open_)} show what differs. A "
            "site that was in both refuses them until that is accepted: `--accept-difference CLASS` here, and by each "
            "site in `fedhpc site approve`"
        )


def _refuse_old_sums(after: Draft, epoch: int) -> None:
    """From the same first model with the same batches, the first update of a site is the old one, over another set."""
    task = read_section(TaskSettings, after.table.get("task", {}), "task")
    train = read_section(TrainSettings, after.table.get("train", {}), "train")
    rows = min((entry.get("samples", 0) for entry in after.roster.values()), default=0)
    if not depends_on_seed(task, train, rows):
        raise PolicyError(
            f"from scratch, the first sum would be that of epoch {epoch} over other sites: it does not depend on the "
            "seed, and the difference of the two sums is a site's numbers",
            "`fedhpc federation next` goes on from the newest model; or set train.batch_size below every site's rows",
        )


@dataclass(frozen=True)
class Epochs:
    """The federation.toml of earlier epochs, kept in a folder: a site that missed one approves it first."""

    folder: Path

    def sources(self) -> list[bytes]:
        """Those kept, oldest first. Raises StorageError."""
        numbered = [(int(path.stem), path) for path in self.folder.glob("*.toml") if path.stem.isdecimal()]
        return [read_bytes(path) for _, path in sorted(numbered)]

    def keep(self, draft: Draft) -> None:
        """Keep the file of an epoch that another one follows."""
        path = self.folder / f"{draft.epoch}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, draft.file)
