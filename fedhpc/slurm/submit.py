"""Puts one link into the queue, and never twice.

The record is on disk before sbatch is called. If sbatch did not say whether it took the job, the queue is searched
for the name before another try. A job that turns up later all the same finds its name taken and ends at once
(jobs/templates/link.sh).
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from fedhpc.errors import ConfigError, PeersError
from fedhpc.federation.life import Stage
from fedhpc.files import write_whole
from fedhpc.slurm.image import Image
from fedhpc.slurm.plan import Plan
from fedhpc.slurm.queue import DoubtError, Found, NoAnswerError, Queue, named_cluster
from fedhpc.slurm.records import Record, Records, job_name
from fedhpc.slurm.scripts import Shape, job_script

PAUSES_S = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0)


@dataclass(frozen=True)
class Submitter:
    """Submits links of one plan."""

    plan: Plan
    shape: Shape = field(default_factory=Shape)
    queue: Queue = field(default_factory=Queue)
    pause: Callable[[float], None] = time.sleep
    python: str = sys.executable
    image: Image | None = None
    """What the jobs run in; None: the host's own Python."""

    @property
    def records(self) -> Records:
        """The site's records."""
        return Records(self.plan.jobs)

    @property
    def _container(self) -> str:
        return self.image.recorded if self.image else ""

    def cluster(self) -> str:
        """The cluster that a new chain goes to; empty: the one of this machine. ConfigError if it is not one."""
        return self.plan.settings.cluster or named_cluster(self.queue.environment)

    def stage(self, link: int) -> Stage:
        """What link number `link` (from 1) does: `detached` exchanges and trains in turn.

        An exchange comes first: it makes the first model, or finds at once that there is something to train.
        """
        if self.plan.life.kind != "detached" or self.shape.kind != "site":
            return "all"
        return "exchange" if link % 2 else "train"

    def name(self, chain: str, link: int) -> str:
        """The name of a link."""
        return job_name(self.plan.agreement.federation.name, self.plan.site, chain, link, self.stage(link))

    def script(self, chain: str, link: int, after: Record | None) -> str:
        """The batch script of a link. Raises ConfigError for what a script cannot hold."""
        return job_script(
            self.plan,
            self.shape,
            self.name(chain, link),
            self.stage(link),
            python=self.python,
            after=after.job if after else None,
            image=self.image,
        )

    def submit(self, chain: str, link: int, after: Record | None) -> Record:
        """Make sure that this link is in the queue; returns its record. The caller holds the records' lock.

        Raises ConfigError if sbatch refuses, PeersError if the queue cannot be reached.
        """
        name = self.name(chain, link)
        record = self.records.get(name)
        if record is not None and record.job:
            return record
        text = self.script(chain, link, after)
        script = self.plan.jobs / f"{name}.sbatch"
        known = record is not None
        if record is None:
            record = Record(
                name=name,
                chain=chain,
                link=link,
                stage=self.stage(link),
                life=self.plan.life.kind,
                profile=self.plan.profile.name,
                state="intended",
                after=after.name if after else "",
                cluster=self.cluster() if after is None else after.cluster,
                container=self._container,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            )
        elif record.container != self._container:  # as the script that is now written
            record = dataclasses.replace(record, container=self._container)
        write_whole(script, text.encode(), mode=0o600)
        self.records.put(record)
        try:
            job, cluster = self._until_known(record, looking=known)
        except ConfigError as error:
            self.records.put(dataclasses.replace(record, state="refused", words=error.what))
            raise
        return self.records.put(dataclasses.replace(record, state="submitted", job=job, cluster=cluster, words=""))

    def _until_known(self, record: Record, *, looking: bool) -> tuple[str, str]:
        """Call sbatch until the job has an id and a cluster. `looking`: an earlier call may have succeeded."""
        words = ""
        script = self.plan.jobs / f"{record.name}.sbatch"
        for pause_s in (*PAUSES_S, None):
            try:
                if looking and (found := self._find(record)) is not None:
                    return found.job, found.cluster
                return self.queue.submit(script, record.cluster)
            except (DoubtError, NoAnswerError) as error:
                words, looking = str(error), True
            if pause_s is not None:
                self.pause(pause_s)
        if (found := self._find_or_none(record)) is not None:
            return found.job, found.cluster
        raise PeersError(
            f"the queue did not say whether it took the job {record.name}: {words}",
            "the same command looks for the job before it submits again",
        )

    def _find(self, record: Record) -> Found | None:
        return self.queue.named([record.name], record.cluster).get(record.name)

    def _find_or_none(self, record: Record) -> Found | None:
        try:
            return self._find(record)
        except NoAnswerError:
            return None
