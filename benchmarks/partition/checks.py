"""The checks of the ReFrame suite: each runs one `fedhpc bench` command and reads its lines.

    reframe -C SITE.py -c benchmarks/partition/checks.py --exec-policy=serial -t own -r

The launcher of the partition starts the ranks. Where it is ReFrame's `local`, or a measurement has processes of other
kinds than ranks, `fedhpc bench` starts them itself, on one machine.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import statistics
import sys
from pathlib import Path

import reframe as rfm
import reframe.utility.typecheck as typ
from reframe.core.backends import getlauncher
from reframe.core.builtins import (
    parameter,
    performance_function,
    run_after,
    run_before,
    sanity_function,
    variable,
)
from reframe.core.exceptions import SanityError

from fedhpc.secure.thresholds import choose_thresholds

from . import arrived, layout

LINES = "lines.jsonl"
_ENDED = "exit status:"
_GPU_FEATURES = {"gpu", "always_request_gpus"}


class Measurement(rfm.RunOnlyRegressionTest):
    """One `fedhpc bench` command: `words` and `layout_in` are each check's own."""

    valid_systems = ["*"]  # noqa: RUF012 - a ReFrame variable
    valid_prog_environs = ["*"]  # noqa: RUF012
    time_limit = "30m"
    keep_files = [LINES]  # noqa: RUF012

    repeat = variable(int, value=5)
    interpreter = variable(str, value=os.environ.get("FEDHPC_SUITE_PYTHON") or shlex.quote(sys.executable))
    """Words of shell that start Python, and lead into an image where they must."""
    before = variable(typ.List[str], value=[])
    """Lines of shell before the launcher: modules, an environment."""
    image = variable(str, value="")
    """An image that the partition's container platform runs."""
    image_python = variable(str, value="/opt/fedhpc/bin/python")
    node_memory_mib = variable(float, value=0.0)
    """Where the configuration does not say: without it nothing is left out for lack of memory."""

    left_out = variable(str, value="")
    """Why it did not run: ReFrame's report keeps variables, and no reason."""

    own_processes = False
    """It starts processes of several kinds, on one node."""

    def words(self) -> list[str]:
        """After `fedhpc bench`."""
        raise NotImplementedError

    def layout_in(self, place: layout.Place) -> layout.Layout:
        """Where its ranks go."""
        raise NotImplementedError

    def tagged(self, *, smoke: bool, own: bool) -> None:
        """`own`: a laptop does it in a minute. `smoke`: the smallest of its kind. Its own name is a tag, too."""
        self.tags |= {type(self).__name__, "own" if own else "large"} | ({"smoke"} if smoke else set())

    def leave_out(self, sentence: str) -> None:
        """Skip it."""
        self.left_out = sentence
        if listed := os.environ.get("FEDHPC_SUITE_SKIPPED"):
            with Path(listed).open("a") as file:
                file.write(f"{self.display_name} on {self.current_partition.fullname}: {sentence}\n")
        self.skip(sentence)

    @run_after("init")
    def enter_image(self) -> None:
        if self.image:
            self.container_platform.image = self.image

    @run_after("setup")
    def lay_out(self) -> None:
        partition = self.current_partition
        scheduled = not partition.scheduler.is_local
        here = not scheduled and partition.launcher_type.registered_name == "local"
        extras = dict(partition.extras)
        if self.node_memory_mib:
            extras["mem_per_node"] = self.node_memory_mib
        # Two hardware threads of a core would share it; a job has a core's threads all the same.
        cpus = partition.processor.num_cpus
        cores = partition.processor.num_cores or cpus
        place = layout.place_of(partition.features, extras, cores, one_machine=here)
        self.place, self.laid = place, self.layout_in(place)
        # Processes of its own share the cores of their node.
        fitting = dataclasses.replace(place, cores=None) if self.own_processes else place
        for sentence in layout.obstacles(fitting, self.laid):
            self.leave_out(sentence)
        laid = self.laid
        self.num_tasks, self.num_tasks_per_node = laid.ranks, laid.ranks_of_node
        if self.own_processes:
            self.num_tasks = self.num_tasks_per_node = 1
        if (whole := cpus or place.cores) and scheduled:
            self.num_cpus_per_task = max(1, whole // self.num_tasks_per_node)
        elif "cpus_of_task" in extras and not self.own_processes:
            self.num_cpus_per_task = int(extras["cpus_of_task"])  # srun no longer takes those of the job by itself
        if scheduled and _GPU_FEATURES & set(partition.features) and "cpu" not in partition.features:
            # Such a partition takes no job without a GPU; a sum uses none.
            self.num_gpus_per_node = max((device.num_devices for device in partition.devices), default=1)
        if scheduled and "memory" in partition.resources:
            self.extra_resources = {"memory": {"size": f"{int(laid.mib_of_node)}M"}}

    @run_before("run")
    def name_the_words(self) -> None:
        # An image has a working directory of its own, and a container platform of ReFrame's a name for this one.
        lines = LINES if self.image else str(Path(self.stagedir) / LINES)
        given = ["-m", "mpi4py", "-m", "fedhpc", "bench", *self.words(), "--json", "--lines", shlex.quote(lines)]
        if self.image:
            self.container_platform.command = " ".join([self.image_python, *given])
        self.executable, self.executable_opts = self.interpreter, given
        here = self.current_partition.scheduler.is_local
        # ReFrame kills the whole session once its shell has ended, which would be before the ranks.
        self.prerun_cmds = [*self.before, *(["trap : TERM"] if here else [])]
        self.postrun_cmds = [f'echo "{_ENDED} $?"']
        if self.own_processes:
            self.job.launcher = getlauncher("local")()
        elif here:
            # Within an allocation there is no sbatch that would have been told.
            self.job.launcher.options += self._placed(self.job.launcher.registered_name)

    def _placed(self, launcher: str) -> list[str]:
        """Words by which a launcher puts the ranks where they were laid out."""
        laid = self.laid
        if launcher == "srun":
            return [
                *(f"--nodes={laid.nodes}", f"--ntasks={laid.ranks}", f"--ntasks-per-node={laid.ranks_of_node}"),
                *("--kill-on-bad-exit=1", "--export=ALL"),
            ]
        # By itself it fills the slots of one node before it takes the next.
        return ["--map-by", f"ppr:{laid.ranks_of_node}:node"] if launcher == "mpirun" else []

    @sanity_function
    def all_arrived(self) -> bool:
        told = Path(str(self.stdout)).read_text(errors="replace")
        ended = [line for line in told.splitlines() if line.startswith(_ENDED)]
        if ended != [f"{_ENDED} 0"]:
            error = Path(str(self.stderr)).read_text(errors="replace").strip()
            raise SanityError(f"{ended or 'no exit status'}: {error[-2000:]}")
        found = list(arrived.faults(arrived.read(Path(LINES)), self.laid.nodes))
        if found:
            raise SanityError("; ".join(found))
        return True

    def _median(self, name: str) -> float:
        return statistics.median(record[name] for record in arrived.read(Path(LINES)))

    @performance_function("s")
    def wall_s(self) -> float:
        return self._median("wall_s")

    @performance_function("s")
    def cpu_s(self) -> float:
        return self._median("cpu_s")

    @performance_function("B")
    def peak_bytes(self) -> float:
        return self._median("peak_bytes")


def _sum_words(check: Measurement, sites: int, params: int, *more: str, ranks_of_site: int = 1) -> list[str]:
    own = ["--sites", str(sites), "--params", str(params), "--ranks-per-site", str(ranks_of_site)]
    return ["sum", *own, "--repeat", str(check.repeat), *more]


@rfm.simple_test
class SumOverSites(Measurement):
    """More sites, the same vector."""

    sites = parameter([2, 4, 8, 16, 32, 64])
    params = parameter([1_000_000, 10_000_000])

    @run_after("init")
    def choose(self) -> None:
        self.tagged(smoke=(self.sites, self.params) == (2, 1_000_000), own=self.sites * self.params <= 40_000_000)

    def words(self) -> list[str]:
        return _sum_words(self, self.sites, self.params)

    def layout_in(self, place: layout.Place) -> layout.Layout:
        return layout.over_nodes(place, self.sites, layout.rank_mib(self.params))


@rfm.simple_test
class SumOverSizes(Measurement):
    """Longer vectors, in lanes of both widths."""

    params = parameter([1_000_000, 10_000_000, 100_000_000, 1_000_000_000])
    lane_bits = parameter([32, 64])

    @run_after("init")
    def choose(self) -> None:
        self.tagged(smoke=(self.lane_bits, self.params) == (64, 1_000_000), own=self.params <= 10_000_000)

    def words(self) -> list[str]:
        return _sum_words(self, 4, self.params, "--lane-bits", str(self.lane_bits))

    def layout_in(self, place: layout.Place) -> layout.Layout:
        return layout.over_nodes(place, 4, layout.rank_mib(self.params, self.lane_bits))


@rfm.simple_test
class SumOverRanks(Measurement):
    """Two sites on one node: more ranks for the same vector (strong), or for as much at each rank (weak)."""

    scaling = parameter(["strong", "weak"])
    ranks_of_site = parameter([1, 2, 4, 8])
    params = parameter([1_000_000, 10_000_000, 100_000_000])

    @run_after("init")
    def choose(self) -> None:
        own = self.params <= 10_000_000 and self.ranks_of_site <= 4
        self.tagged(smoke=False, own=own)
        self.whole = self.params * (self.ranks_of_site if self.scaling == "weak" else 1)

    def words(self) -> list[str]:
        return _sum_words(self, 2, self.whole, ranks_of_site=self.ranks_of_site)

    def layout_in(self, place: layout.Place) -> layout.Layout:
        ranks = 2 * self.ranks_of_site
        return layout.Layout(1, ranks, ranks * layout.rank_mib(self.whole, 32, self.ranks_of_site))


@rfm.simple_test
class SumOverNodes(Measurement):
    """Two sites over whole nodes: more nodes for the same vector (strong), or for as much at each node (weak)."""

    scaling = parameter(["strong", "weak"])
    nodes = parameter([1, 2, 4, 8, 16])
    params = parameter([1_000_000, 10_000_000, 100_000_000, 1_000_000_000])
    most_ranks_of_node = variable(int, value=64)
    """A node has as many ranks as cores, up to these."""

    @run_after("init")
    def choose(self) -> None:
        smoke = self.params == 1_000_000 and self.nodes <= 2 and self.scaling == "strong"
        self.tagged(smoke=smoke, own=self.params <= 10_000_000 and self.nodes <= 2)
        self.whole = self.params * (self.nodes if self.scaling == "weak" else 1)

    def words(self) -> list[str]:
        return _sum_words(self, 2, self.whole, ranks_of_site=self.laid.ranks // 2)

    def layout_in(self, place: layout.Place) -> layout.Layout:
        each = max(2, min(place.cores or 2, self.most_ranks_of_node)) // 2 * 2
        ranks = self.nodes * each
        return layout.Layout(self.nodes, each, each * layout.rank_mib(self.whole, 32, ranks // 2))


@rfm.simple_test
class RelayedSum(Measurement):
    """Over a relay on the same node, also with a site that is lost."""

    params = parameter([1_000_000, 10_000_000, 100_000_000])
    lost = parameter([0, 1])
    own_processes = True

    @run_after("init")
    def choose(self) -> None:
        # A lost site is waited for, half a minute in each repeat.
        self.tagged(
            smoke=(self.params, self.lost) == (1_000_000, 0),
            own=self.params <= (1_000_000 if self.lost else 10_000_000),
        )

    def words(self) -> list[str]:
        lost = ["--lost", str(self.lost)] if self.lost else []
        return _sum_words(self, 4, self.params, "--exchange", "https", *lost)

    def layout_in(self, place: layout.Place) -> layout.Layout:
        return layout.Layout(1, 4, layout.RELAY_MIB + 4 * layout.rank_mib(self.params))


@rfm.simple_test
class RelayedSumFar(Measurement):
    """Over a relay at the end of a long line, and of a long and narrow one, which a proxy makes."""

    params = parameter([1_000_000, 10_000_000, 100_000_000])
    latency_ms = parameter([20, 80])
    mbit_s = parameter([0, 100])
    own_processes = True

    @run_after("init")
    def choose(self) -> None:
        own = self.params == 1_000_000
        self.tagged(smoke=own and (self.latency_ms, self.mbit_s) == (20, 100), own=own)

    def words(self) -> list[str]:
        line = ["--latency-ms", str(self.latency_ms), *(["--mbit-s", str(self.mbit_s)] if self.mbit_s else [])]
        return _sum_words(self, 4, self.params, "--exchange", "https", *line)

    def layout_in(self, place: layout.Place) -> layout.Layout:
        return layout.Layout(1, 4, layout.RELAY_MIB + 4 * layout.rank_mib(self.params))


@rfm.simple_test
class SparseSum(Measurement):
    """Many sites, each with no more mask partners than are safe."""

    sites = parameter([8, 16, 32, 64])
    params = parameter([1_000_000, 10_000_000])

    @run_after("init")
    def choose(self) -> None:
        self.tagged(smoke=(self.sites, self.params) == (8, 1_000_000), own=self.sites * self.params <= 40_000_000)

    def words(self) -> list[str]:
        thresholds = choose_thresholds(self.sites)
        fewest = thresholds.colluders + thresholds.losses + 1
        return _sum_words(self, self.sites, self.params, "--degree", str(fewest + fewest % 2))

    def layout_in(self, place: layout.Place) -> layout.Layout:
        return layout.over_nodes(place, self.sites, layout.rank_mib(self.params))


@rfm.simple_test
class Latency(Measurement):
    """Sums of one number, one after the other."""

    sites = parameter([4, 16, 64])

    @run_after("init")
    def choose(self) -> None:
        self.tagged(smoke=self.sites == 4, own=self.sites <= 16)

    def words(self) -> list[str]:
        return ["latency", "--sites", str(self.sites), "--repeat", str(40 * self.repeat)]

    def layout_in(self, place: layout.Place) -> layout.Layout:
        return layout.over_nodes(place, self.sites, layout.RANK_MIB)


@rfm.simple_test
class Masks(Measurement):
    """Mask streams and encoding alone, on one core."""

    params = parameter([1_000_000, 10_000_000, 100_000_000])
    own_processes = True

    @run_after("init")
    def choose(self) -> None:
        self.tagged(smoke=self.params == 1_000_000, own=self.params <= 10_000_000)

    def words(self) -> list[str]:
        return ["masks", "--sites", "2,8,32", "--params", str(self.params), "--repeat", str(self.repeat)]

    def layout_in(self, place: layout.Place) -> layout.Layout:
        # The vector, and the same again to compare with.
        return layout.Layout(1, 1, 2 * layout.rank_mib(self.params))


@rfm.simple_test
class Data(Measurement):
    """A site reads its store: one that is kept in memory, and one that is larger than what may be kept."""

    rows = parameter([50_000, 2_000_000])
    own_processes = True

    @run_after("init")
    def choose(self) -> None:
        small = self.rows == 50_000
        self.tagged(smoke=small, own=small)

    def words(self) -> list[str]:
        return ["data", "--rows", str(self.rows), "--columns", "64", "--repeat", str(self.repeat)]

    def layout_in(self, place: layout.Place) -> layout.Layout:
        return layout.Layout(1, 1, 1024.0)


@rfm.simple_test
class Round(Measurement):
    """Whole training rounds of the digits example, a site on each node, or all sites on one."""

    nodes = parameter([1, 2, 4])

    @run_after("init")
    def choose(self) -> None:
        self.tagged(smoke=self.nodes == 1, own=self.nodes == 1)

    def words(self) -> list[str]:
        return ["round", "--sites", str(self.laid.ranks), "--rounds", "5", "--repeat", str(self.repeat)]

    def layout_in(self, place: layout.Place) -> layout.Layout:
        each = 1 if self.nodes > 1 else 2
        return layout.Layout(self.nodes, each, 600.0 * each)


@rfm.simple_test
class Backend(Measurement):
    """How a site trains with each backend, on one node."""

    backend = parameter(["serial", "ddp", "fsdp", "mpi"])
    params = parameter([1_000_000, 100_000_000])
    own_processes = True

    @run_after("init")
    def choose(self) -> None:
        small = self.params == 1_000_000
        self.tagged(smoke=small and self.backend == "serial", own=small)

    def words(self) -> list[str]:
        count = ["--ranks", "2", "--params", str(self.params), "--steps", "4", "--alternations", str(self.repeat)]
        return ["backends", "--backends", self.backend, *count]

    def layout_in(self, place: layout.Place) -> layout.Layout:
        # Model, gradient, two moments, base and what DiLoCo keeps, at each of two ranks, and the other site's.
        return layout.Layout(1, 3, 3 * 500 + 3 * 8 * 4 * self.params / 2**20)
