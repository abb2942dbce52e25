"""What an institution has put into which sums, over all its federations: the fifth rule (docs/protocol.md section 5).

The four rules of ledger.py keep the sums of one federation apart. The same numbers in the sums of two federations, or
in two rounds of one, show what lies between their sets; so here sets are lists of who the sites are, not of numbers.

5a. A vector with numbers of its own (training, or a statistic that may lack sites) is refused where the sets opened for
    these numbers isolate t + 1 sites or fewer.
5b. A statistic over everybody, and training on the same data, is asked about by its class where another roster was
    opened before and the two isolate t + 1 sites or fewer; the configuration that all sites signed must accept it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedhpc.errors import PolicyError
from fedhpc.secure import labels
from fedhpc.secure.isolation import UnclearError, isolated
from fedhpc.secure.ledger import NO_VECTOR, UNKNOWN, ZERO_VALUE, LedgerEntry, RoundLedger

EXEMPT = frozenset(
    {labels.CLASS_SCALE, labels.CLASS_START}
)  # which site has what is not in them, or everybody knows it
ALWAYS_ASKED = frozenset({labels.CLASS_WEIGHTS, labels.CLASS_STANDARDISE, labels.CLASS_MEASURED})
_HOLD_ROWS = frozenset({labels.CLASS_WEIGHTS, labels.CLASS_STANDARDISE})  # the same number of rows is in both
_MOST_NAMES = 8


@dataclass(frozen=True)
class KnownFederation:
    """One configuration, as its ledger must keep it forever."""

    config: bytes  # [32]
    name: str
    epoch: int
    number: int  # this site's
    colluders: int  # t
    names: tuple[str, ...]  # of all sites, in the order of the roster
    identities: tuple[bytes, ...]  # of all sites [32 each]

    def as_json(self) -> dict[str, Any]:
        """As it stands in the ledger's file."""
        return {
            "colluders": self.colluders,
            "config": self.config.hex(),
            "epoch": self.epoch,
            "name": self.name,
            "number": self.number,
            "roster": [[name, who.hex()] for name, who in zip(self.names, self.identities, strict=True)],
        }

    @property
    def own(self) -> bytes:
        """Who this site is in it [32]."""
        return self.identities[self.number - 1]

    @cached_property
    def roster(self) -> frozenset[bytes]:
        """All other sites."""
        return frozenset(self.identities) - {self.own}

    def others(self, cohort: Iterable[int]) -> frozenset[bytes]:
        """The other sites of a cohort."""
        return frozenset(self.identities[u - 1] for u in cohort if 1 <= u <= len(self.identities)) - {self.own}


def federation_from_json(value: Any) -> KnownFederation:
    """What `KnownFederation.as_json` gave. Raises ValueError for any other form."""
    try:
        found = KnownFederation(
            bytes.fromhex(value["config"]),
            str(value["name"]),
            int(value["epoch"]),
            int(value["number"]),
            int(value["colluders"]),
            tuple(str(name) for name, _ in value["roster"]),
            tuple(bytes.fromhex(who) for _, who in value["roster"]),
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a federation: {error}") from None
    if found.as_json() != value or not 1 <= found.number <= len(found.names):
        raise ValueError("not a federation of a ledger")
    return found


@dataclass(frozen=True)
class Difference:
    """What a sum would show together with sums of before."""

    category: str
    before: tuple[str, ...]  # sites of the nearest set that was opened
    now: tuple[str, ...]
    shown: tuple[str, ...]  # whose numbers; empty where it cannot be told

    def words(self) -> str:
        """For people."""
        whose = f"those of {_names(self.shown)}" if self.shown else "those of single sites"
        return f"over {_names(self.before)} before and now over {_names(self.now)}: together they show {whose}"


class HomeLedger:
    """All entries of one institution, oldest first."""

    def __init__(self) -> None:
        self.federations: dict[bytes, KnownFederation] = {}
        self.refused: list[dict[str, Any]] = []
        self._ledgers: dict[bytes, RoundLedger] = {}
        self._by_value: dict[bytes, set[tuple[bytes, int]]] = {}
        self._by_class: dict[str, dict[bytes, set[bytes]]] = {}  # class -> configuration -> stores

    def of(self, config: bytes) -> RoundLedger:
        """The rounds of one federation."""
        return self._ledgers.setdefault(config, RoundLedger())

    def know(self, federation: KnownFederation) -> bool:
        """Take in a configuration; whether it is new. Raises ValueError if it is known otherwise."""
        known = self.federations.setdefault(federation.config, federation)
        if known != federation:
            raise ValueError("another site or roster of this configuration is in the ledger")
        return known is federation

    def entries(self) -> list[LedgerEntry]:
        """What is known of every round, federation by federation."""
        return [entry for config in self.federations for entry in self.of(config).entries()]

    def classes(self) -> dict[str, list[KnownFederation]]:
        """Every class of sums that was begun, and the federations in which it was."""
        return {name: [self.federations[c] for c in configs] for name, configs in sorted(self._by_class.items())}

    def add(self, entry: LedgerEntry) -> None:
        """Take in an `entry` that was checked and is durable. Raises ValueError for one of an unknown federation."""
        if entry.config not in self.federations:
            raise ValueError("an entry of a federation that is not in the ledger")
        ledger, at = self.of(entry.config), (entry.config, entry.round_)
        before = ledger.entry_of(entry.round_)
        if before is not None:
            self._by_value.get(before.value, set()).discard(at)
        ledger.add(entry)
        merged = ledger.entry_of(entry.round_)
        if merged is None or merged.fingerprint == NO_VECTOR:
            return
        if merged.value not in (UNKNOWN, ZERO_VALUE):
            self._by_value.setdefault(merged.value, set()).add(at)
        # Version 1 had what sites measure in each training sum; its entries know no value.
        measured = merged.category == labels.CLASS_TRAIN and merged.value == UNKNOWN
        for category in (merged.category, labels.CLASS_MEASURED if measured else ""):
            if category:
                self._by_class.setdefault(category, {}).setdefault(entry.config, set()).add(merged.data)

    def check(self, entry: LedgerEntry, accepted: Iterable[str] = ()) -> bool:
        """As RoundLedger.check, and the fifth rule; `accepted`: classes that the signed configuration accepts."""
        ledger = self.of(entry.config)
        known = ledger.entry_of(entry.round_)
        if not ledger.check(entry):
            return False
        if entry.fingerprint == NO_VECTOR:
            return True
        if known is not None and not entry.category:
            entry = dataclasses.replace(
                entry, category=known.category, value=known.value, everyone=known.everyone, data=known.data
            )
        if not entry.category or entry.category in EXEMPT:
            return True
        federation = self.federations[entry.config]
        if known is None:
            self._ask(federation, entry, accepted)
        if entry.cohort and (known is None or not known.cohort):
            self._refuse_near(federation, entry)
        return True

    def difference(self, federation: KnownFederation, category: str, data: bytes = UNKNOWN) -> Difference | None:
        """What a sum of a class that is always asked about would show: `train` (of `data`) and ALWAYS_ASKED."""
        past = [
            self.federations[config]
            for alike in (_HOLD_ROWS if category in _HOLD_ROWS else {category})
            for config, stores in self._by_class.get(alike, {}).items()
            if category != labels.CLASS_TRAIN or any(_same(data, store) for store in stores)
        ]
        return self._between(category, [(f, f.roster) for f in past], federation, federation.roster)

    # --- the two halves of the rule

    def _ask(self, federation: KnownFederation, entry: LedgerEntry, accepted: Iterable[str]) -> None:
        """5b, before anything of the vector leaves."""
        if entry.data in self._by_class.get(entry.category, {}).get(entry.config, set()) and (
            entry.category == labels.CLASS_TRAIN or entry.category in ALWAYS_ASKED
        ):
            return  # this roster was asked about when the class was first opened here
        found: Difference | None = None
        if entry.category == labels.CLASS_TRAIN or (entry.everyone and entry.category in ALWAYS_ASKED):
            found = self.difference(federation, entry.category, entry.data)
        if found is None and entry.everyone:  # the same numbers may have had another class
            found = self._between(entry.category, self._opened(entry), federation, federation.roster)
        if found is not None and entry.category not in accepted:
            raise PolicyError(
                f"sums of the class '{entry.category}' were opened {found.words()} ('{entry.purpose}', round "
                f"{entry.round_})",
                "nothing was sent; where all sites accept that, the coordinator says so in the next epoch: `fedhpc "
                f"federation next --accept-difference '{entry.category}'`, and each site with `fedhpc site approve "
                f"--accept-difference '{entry.category}'`",
            )

    def _refuse_near(self, federation: KnownFederation, entry: LedgerEntry) -> None:
        """5a, before this site answers over a set."""
        if entry.category != labels.CLASS_TRAIN and entry.everyone:
            return
        found = self._between(entry.category, self._opened(entry), federation, federation.others(entry.cohort))
        if found is None:
            return
        hint = "sum it over the same sites, or over all of them (everyone=True)"
        if entry.category == labels.CLASS_TRAIN:
            hint = (
                "nothing was opened; meet again over the same sites, or begin the next epoch: `fedhpc federation next "
                "--again` draws a new seed, `fedhpc federation next` goes on from the present model (a full batch "
                "repeats its update: change the batch or the rate there)"
            )
        raise PolicyError(
            f"round {entry.round_} ('{entry.purpose}') holds the same numbers as an earlier sum, opened "
            f"{found.words()}",
            hint,
        )

    def _opened(self, entry: LedgerEntry) -> list[tuple[KnownFederation, frozenset[bytes]]]:
        """The sets that were opened for the numbers of `entry`, in other rounds and federations."""
        if entry.value in (UNKNOWN, ZERO_VALUE):
            return []
        found = []
        for config, round_ in self._by_value.get(entry.value, set()) - {(entry.config, entry.round_)}:
            known, federation = self.of(config).entry_of(round_), self.federations[config]
            if known is not None and known.category not in EXEMPT and (known.cohort or known.everyone):
                found.append((federation, federation.others(known.cohort) if known.cohort else federation.roster))
        return found

    def _between(
        self,
        category: str,
        opened: list[tuple[KnownFederation, frozenset[bytes]]],
        federation: KnownFederation,
        new: frozenset[bytes],
    ) -> Difference | None:
        at_most = 1 + max([f.colluders for f, _ in opened] + [federation.colluders])
        try:
            shown = isolated({s for _, s in opened}, new, at_most)
        except UnclearError:  # refused as if it did, and nobody can be named
            whose: frozenset[bytes] = frozenset()
        else:
            if shown is None:
                return None
            whose = shown or frozenset({federation.own})
        known = [*self.federations.values(), federation]
        names = {who: name for f in known for name, who in zip(f.names, f.identities, strict=True)}
        nearest = min((s for _, s in opened), key=lambda s: (len(s ^ new), sorted(s)))
        before, now, told = (tuple(sorted(names[who] for who in sites)) for sites in (nearest, new, whose))
        return Difference(category, before, now, told)


def _same(one: bytes, other: bytes) -> bool:
    """Whether two stores may be the same data: an unknown one may be any."""
    return UNKNOWN in (one, other) or one[:32] == other[:32] or one[32:] == other[32:]


def _names(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def refusal(entry: LedgerEntry, why: str, when: int) -> Mapping[str, Any]:
    """What the ledger keeps of a refusal: no numbers, and text that canonical JSON can hold."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "?" for c in why)
    facts = {"category": entry.category, "config": entry.config.hex(), "purpose": entry.purpose, "round": entry.round_}
    return facts | {"reason": plain, "when": when}
