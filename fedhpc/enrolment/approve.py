"""Describes what a site is asked to sign, and checks it before anybody is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fedhpc.agreement.approvals import configuration, difference
from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.site_file import SiteFile
from fedhpc.agreement.start_settings import StartSettings
from fedhpc.config import parse_toml
from fedhpc.enrolment.draft import read_complete
from fedhpc.enrolment.fingerprints import fingerprint
from fedhpc.enrolment.site import SiteFolder, SiteKeys
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.ledger.home import home_of, known_federation
from fedhpc.ledger.stores import store_mark
from fedhpc.secure import labels
from fedhpc.secure.epochs import check_follows
from fedhpc.secure.home_ledger import ALWAYS_ASKED, Difference
from fedhpc.secure.ledger import UNKNOWN


@dataclasses.dataclass(frozen=True)
class Review:
    """A configuration that this site can sign."""

    agreement: Agreement
    number: int
    keys: SiteKeys
    changes: str  # since the one this site approved last; empty for the first
    done: bool  # approved already
    shown: tuple[Difference, ...] = ()  # what sums of this roster would reveal together with those in the ledger

    def lines(self) -> list[str]:
        """What will be signed, as lines for a terminal."""
        a = self.agreement
        written = parse_toml(a.source, "federation.toml")
        lines = [
            f"federation {a.federation.name}, epoch {a.federation.epoch}, {a.federation.rounds} rounds",
            f"sha256 {a.hash.hex()}",
            f"relay key {a.relay.tls}",
            "sites, with the fingerprints of their keys:",
        ]
        width = max(len(name) for name in a.names)
        lines += [f"  {u:2} {e.name:{width}}  {fingerprint(e.name, e.sign, e.tls)}" for u, e in enumerate(a.roster, 1)]
        thresholds = a.secure.thresholds(len(a.roster))
        if thresholds is None:
            lines.append("privacy: NONE, the sites see each other's numbers")
        else:
            n, t, tau, d = thresholds.sites, thresholds.colluders, thresholds.threshold, thresholds.losses
            lines += [
                f"privacy: {_table(written.get('secure', {}))}",
                f"  t = {t}, τ = {tau}, d = {d}: a sum opens when {tau} of the {n} sites answer, so {d} may be lost;",
                f"  {t} may pool what they know, with the relay too, and see only sums over at least {tau - t} others",
            ]
        if a.start.from_ or a.start.model:
            lines.append(f"begins from: {_begins(a.start)}")
        lines += [
            f"cohort: {_table({'policy': a.cohort.policy} | dict(written.get('cohort', {})))}",
            f"strategy: {_table(written.get('strategy', {}))}",
            f"task: {_table(a.task)}",
            f"train: {_table(a.train)}",
        ]
        if a.images:
            lines.append("containers: every site runs in one of these images, by the SHA-256 of the file:")
            lines += [f"  {name}  {sha256}" for name, sha256 in a.images.names.items()]
        lines += [f"changed since the last approval: {self.changes}"] if self.changes else []
        return lines + [f"sums of the class '{d.category}' were opened {d.words()}" for d in self.shown]

    def sign(self, folder: SiteFolder, accepted: Collection[str] = ()) -> bytes:
        """Sign and keep it [message]. `accepted`: classes whose differences this site's operator accepts.

        Raises PolicyError if the ledger has sums that would reveal something which is not accepted.
        """
        self.refuse_differences(accepted)
        return folder.approvals.approve(self.keys.identity, self.number, self.agreement)

    def refuse_differences(self, accepted: Collection[str]) -> None:
        """Raise PolicyError unless the file and this site's operator accept all that would be revealed."""
        in_file = self.agreement.secure.accept_difference
        missing = [d for d in self.shown if d.category not in in_file]
        unsaid = [d for d in self.shown if d.category not in accepted]
        for found, how in (
            (missing, "the coordinator says so in the next epoch: `fedhpc federation next"),
            (unsaid, "this site's operator says so: `fedhpc site approve"),
        ):
            if found:
                flags = " ".join(f"--accept-difference {d.category}" for d in found)
                told = "; ".join(f"'{d.category}' was opened {d.words()}" for d in found)
                raise PolicyError(f"not approved: {told}", f"nothing was signed; if that is accepted, {how} {flags}`")


def review(path: Path, folder: SiteFolder) -> Review:
    """Check that this site can sign the file. Raises ConfigError, PolicyError that say what does not fit."""
    agreement = read_complete(path)
    if not agreement.relay.tls or not all(entry.tls for entry in agreement.roster):
        raise ConfigError(
            f"{path} has no pin for the relay or for a site",
            "a federation over a relay needs [relay] tls and tls of every site",
        )
    agreement.secure.require_here()
    number = agreement.number_of(folder.name)
    entry, keys = agreement.roster[number - 1], folder.keys()
    for what, theirs, ours in (("sign", entry.sign, keys.sign), ("tls", entry.tls, keys.tls)):
        if theirs != ours:
            raise PolicyError(
                f"{path} has another key for this site: {what} = {theirs[:16]}…, here it is {ours[:16]}…",
                "the coordinator must admit your current request first: `fedhpc site request`",
            )
    pin = folder.relay_pin()
    if pin and pin != agreement.relay.tls:
        raise PolicyError(
            f"{path} has another key for the relay: {agreement.relay.tls}, the coordinator gave this site {pin}",
            "ask by telephone; if the relay has a new key, write it into relay.pin",
        )
    folder.approvals.restore(agreement)
    present, following = folder.approvals.present(), configuration(agreement)
    before = folder.approvals.present_source()
    changes = difference(before, agreement.source) if before is not None else ""
    try:
        check_follows(present, following)
    except PolicyError as error:
        if present is None:
            raise
        hashes = f"approved {present.hash.hex()}, given {following.hash.hex()}; they differ in {changes}"
        hint = "the coordinator runs `fedhpc federation next` before changing a file that sites have approved"
        raise PolicyError(f"{error.what}; {hashes}", hint if following.epoch == present.epoch else error.hint) from None
    done = present == following
    shown = () if done else differences(agreement, number, folder.file)
    return Review(agreement, number, keys, "" if done else changes, done, shown)


def differences(agreement: Agreement, number: int, file: SiteFile) -> tuple[Difference, ...]:
    """What the sums of this configuration would reveal together with those in this site's ledger, class by class.

    Of statistics with a name of their own, and without, the ledger asks when they are summed; here of those that the
    file accepts beforehand, so that this site's operator does too.
    """
    home = home_of(file)
    known = home.look()
    if not known.federations or agreement.secure.thresholds(len(agreement.roster)) is None:
        return ()
    opens = [labels.CLASS_TRAIN]
    opens += [labels.CLASS_WEIGHTS] if agreement.strategy.weights == "samples" else []
    fresh = agreement.start.from_ is None and not agreement.start.model
    opens += [labels.CLASS_STANDARDISE] if fresh and agreement.task.get("standardise") is True else []
    opens += [labels.CLASS_MEASURED] if "name" in agreement.task else []
    own = {labels.CLASS_TRAIN, *ALWAYS_ASKED}
    opens += [name for name in agreement.secure.accept_difference if name not in own]
    path = file.data.get("path")
    data = store_mark(home.key(), file.path(Path(path))) if isinstance(path, str) else UNKNOWN
    federation = known_federation(agreement, number)
    found = (known.difference(federation, name, data if name == labels.CLASS_TRAIN else UNKNOWN) for name in opens)
    return tuple(difference for difference in found if difference is not None)


def _begins(start: StartSettings) -> str:
    if start.model:
        return f"a model that every site is given as a file; the SHA-256 of its tensors is {start.model}"
    return "the newest model of the epochs before, which all sites learn in the first sum"


def _table(table: Mapping[str, Any]) -> str:
    text = ", ".join(f"{key} {value}" for key, value in table.items()) or "the default of fedhpc"
    return "".join(c if c.isprintable() else "?" for c in text)
