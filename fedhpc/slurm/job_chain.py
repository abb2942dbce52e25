"""Chains: the links of one submission, each waiting in the queue for the end of the one before."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fedhpc.errors import ConfigError, PeersError, PolicyError
from fedhpc.slurm.queue import Found, NoAnswerError
from fedhpc.slurm.records import Record, new_chain
from fedhpc.slurm.submit import Submitter


@dataclass(frozen=True)
class Shown:
    """A record with the current state of its job in the queue."""

    record: Record
    found: Found | None

    @property
    def state(self) -> str:
        """The queue's word, or the record's once the queue no longer knows the job."""
        return self.found.state if self.found else self.record.state

    @property
    def alive(self) -> bool:
        """Whether the job waits or runs."""
        return self.found is not None and self.found.alive


@dataclass(frozen=True)
class Chains:
    """All chains of one site in its run directory."""

    submitter: Submitter

    def begin(self, links: int) -> list[Record]:
        """Submit a chain of `links` links, or the rest of one whose submission was cut short.

        Raises ConfigError if a job of this site waits or runs already, or sbatch refuses; PeersError.
        """
        records = self.submitter.records
        with records.locked():
            self._refuse_second()
            cut = [r for r in records.all() if r.state == "intended"]
            chain = cut[-1].chain if cut else new_chain()
            return self._extend(chain, links)

    def _refuse_second(self) -> None:
        alive = [s for s in self.shown() if s.alive]
        if alive:
            one = alive[0]
            assert one.found is not None
            raise ConfigError(
                f"site {self.submitter.plan.site} already has the job {one.record.name} "
                f"({one.found.job}{_on(one.found.cluster)}, {one.state.lower()})",
                "`fedhpc jobs list` shows it, `fedhpc jobs cancel` takes it out of the queue",
            )

    def follow(self, name: str, links: int) -> list[Record]:
        """Make sure that `links` links after `name` are in the queue; returns the new ones.

        Raises PolicyError if the chain was cancelled or is at its end; ConfigError, PeersError.
        """
        records = self.submitter.records
        with records.locked():
            before = records.get(name)
            if before is None:
                raise ConfigError(f"no job {name} was submitted from {records.folder}")
            alive = {s.record.name for s in self.shown() if s.alive}
            later = [r for r in records.chain(before.chain) if r.link > before.link]
            # A link cannot end before the one that it waits for, unless somebody took it out of the queue.
            if any(r.state == "cancelled" or (r.job and r.name not in alive) for r in later) or (
                before.state == "cancelled"
            ):
                raise PolicyError(f"the chain of {name} was cancelled", "`fedhpc submit` begins another")
            most = self.submitter.plan.settings.max_links
            if before.link + links > most:
                raise PolicyError(f"the chain of {name} would be longer than [slurm] max_links = {most}")
            made = self._extend(before.chain, before.link + links, first=before.link + 1)
            return [r for r in made if r not in later]

    def _extend(self, chain: str, last: int, first: int = 1) -> list[Record]:
        """Links `first` to `last`; those that were submitted before stay as they are."""
        after = self.submitter.records.get(self.submitter.name(chain, first - 1)) if first > 1 else None
        made = []
        for link in range(first, last + 1):
            after = self.submitter.submit(chain, link, after)
            made.append(after)
        return made

    def shown(self) -> list[Shown]:
        """All records with their jobs' states. Raises PeersError if the queue cannot be asked."""
        records = self.submitter.records.all()
        known: dict[str, Found] = {}
        for cluster in dict.fromkeys(r.cluster for r in records if r.state != "refused"):
            known |= self._ask(cluster, [r for r in records if r.cluster == cluster and r.state != "refused"])
        named = self.submitter.plan.settings.cluster
        # Jobs of version 0.1 may be in a cluster that their records do not name.
        old = [r for r in records if not r.cluster and r.job and r.name not in known]
        if named and old:
            known |= self._ask(named, old)
        return [Shown(r, known.get(r.name)) for r in records]

    def _ask(self, cluster: str, records: list[Record]) -> dict[str, Found]:
        try:
            return self.submitter.queue.named([r.name for r in records], cluster)
        except NoAnswerError as error:
            gone = f"if {cluster} is gone for good, move its records out of {self.submitter.records.folder}"
            raise PeersError(
                f"the queue{_on(cluster)} cannot be asked: {error}",
                f"try again later; {gone}" if cluster else "try again later",
            ) from None

    def cancel(self, *, name: str | None = None, after: str | None = None) -> list[Record]:
        """Cancel one job, the later links of a chain, or all jobs of this site in the queue; returns those cancelled.

        Raises ConfigError for an unknown name, PeersError.
        """
        records = self.submitter.records
        if not records.folder.is_dir():
            return []
        with records.locked():
            for asked in (name, after):
                if asked is not None and records.get(asked) is None:
                    raise ConfigError(f"no job {asked} was submitted from {records.folder}", "see `fedhpc jobs list`")
            ends = [s for s in self.shown() if s.alive and self._meant(s.record, name, after)]
            found = [s.found for s in ends if s.found]
            for cluster in dict.fromkeys(f.cluster for f in found):
                self.submitter.queue.cancel([f.job for f in found if f.cluster == cluster], cluster)
            return [records.put(dataclasses.replace(s.record, state="cancelled")) for s in ends]

    def _meant(self, record: Record, name: str | None, after: str | None) -> bool:
        if name is not None:
            return record.name == name
        if after is not None:
            before = self.submitter.records.get(after)
            return before is not None and record.chain == before.chain and record.link > before.link
        return True


def _on(cluster: str) -> str:
    return f" on cluster {cluster}" if cluster else ""
