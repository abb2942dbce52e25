"""Section 8.2 by exhaustion on a tiny ring: what the relay and t sites hold opens the sum over the honest, no more.

The graph of masks is the real one: real attempts are run, every stream is named by its real key, and a key is known to
the adversary if a colluder has it or if enough real answers were released to open it. Then one lane over Z_3 is
exhausted: all honest inputs × all values of all unknown streams, and the views of the adversary are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from protocol_fakes import Attempt, Crash, World, audit

from fedhpc.errors import PeersError
from fedhpc.secure import labels
from fedhpc.secure.keys import AttemptKey, derive
from fedhpc.secure.opening import edge_key

RING = 3


class Adversary:
    """The relay with the colluding sites: what they see of all attempts of a round."""

    def __init__(self, world: World, colluders: tuple[int, ...]) -> None:
        assert len(colluders) <= world.thresholds.colluders
        self.world, self.colluders = world, colluders
        self.honest = [u for u in world.numbers if u not in colluders]
        self.vectors: list[tuple[int, tuple[tuple[bytes, int], ...]]] = []  # honest site, the streams on its vector
        self.known: set[bytes] = set()
        self.opened: list[tuple[int, ...]] = []
        self._sites: dict[tuple[int, int], object] = {}

    def watch(self, attempt: Attempt, *, forced: bool = False) -> None:
        """Take what this attempt gives away. `forced`: as if the sites had answered, to test the test."""
        for u in attempt.everybody:
            plan = attempt.everybody[u].machine._plan
            if plan is None:
                continue
            if u in self.colluders:
                self.known |= {key for key, _ in plan.streams}
            else:
                self.vectors.append((u, plan.streams))
        answers = {u for u in attempt.relay.messages("M5") if u in self.honest}
        if forced or len(answers) + len(self.colluders) >= self.world.tau:
            u3 = attempt.relay.u3
            assert u3 is not None
            self.opened.append(u3)
            self._open(attempt, u3)

    def _open(self, attempt: Attempt, u3: tuple[int, ...]) -> None:
        machine = attempt.everybody[u3[0]].machine
        for w in machine.u2:
            secrets = attempt.everybody[w].machine._secrets
            if w in u3:
                self.known.add(derive(machine._t2, secrets.self_, labels.KEY_SELF, w))
            else:
                a = AttemptKey(secrets.mask)
                for v in machine.u2:
                    if v != w:
                        self.known.add(edge_key(machine._t2, a.shared(machine._keys[v].mask, "v"), w, v))

    def views(self) -> dict[tuple[int, ...], np.ndarray]:
        """How often each view occurs, for every choice of the honest sites' inputs."""
        unknown = sorted({key for _, streams in self.vectors for key, _ in streams} - self.known)
        place = {key: i for i, key in enumerate(unknown)}
        mixing = np.zeros((len(self.vectors), len(unknown)), dtype=np.int64)
        for row, (_, streams) in enumerate(self.vectors):
            for key, sign in streams:
                if key in place:
                    mixing[row, place[key]] += sign
        values = np.array(list(product(range(RING), repeat=len(unknown))), dtype=np.int64).reshape(-1, len(unknown))
        noise = values @ mixing.T
        weights = RING ** np.arange(len(self.vectors))
        found = {}
        for x in product(range(RING), repeat=len(self.honest)):
            column = np.array([x[self.honest.index(u)] for u, _ in self.vectors])
            codes = ((noise + column) % RING) @ weights
            found[x] = np.bincount(codes, minlength=RING ** len(self.vectors))
        return found

    def learns_only(self, sums: list[set[int]]) -> bool:
        """Whether the views depend on the inputs through the sums over these sets of honest sites alone."""
        by_sum: dict[tuple[int, ...], np.ndarray] = {}
        for x, counts in self.views().items():
            key = tuple(sum(x[self.honest.index(u)] for u in s) % RING for s in sums)
            if key in by_sum and not (by_sum[key] == counts).all():
                return False
            by_sum.setdefault(key, counts)
        different = list(by_sum.values())
        return all((a != b).any() for i, a in enumerate(different) for b in different[:i])


def run(world: World, hook: Callable[[str, str, int], None] | None = None, cohort: list[int] | None = None) -> Attempt:
    attempt = world.attempt(cohort)
    attempt.hostile = True
    attempt.everybody = dict(attempt.live)
    if hook is not None:
        attempt.hook = hook
    try:
        attempt.run()
    except PeersError:
        assert hook is not None
    audit(world)
    return attempt


def dies(step: str, *victims: int) -> Callable[[str, str, int], None]:
    def hook(at: str, when: str, u: int) -> None:
        if (at, when) == (step, "before") and u in victims:
            raise Crash

    return hook


COALITIONS = [(4, ()), (4, (1,)), (4, (4,)), (5, (2,))]


@pytest.mark.parametrize(("sites", "colluders"), COALITIONS)
def test_a_whole_attempt_opens_the_sum_over_the_honest(sites: int, colluders: tuple[int, ...]) -> None:
    world = World(sites)
    adversary = Adversary(world, colluders)
    adversary.watch(run(world))
    # Without a colluder nobody can read an answer: the relay learns nothing at all.
    adversary_sum = [set(adversary.honest)] if colluders else []
    if not colluders:
        adversary.known.clear()
    assert adversary.learns_only(adversary_sum)


@pytest.mark.parametrize("colluders", [(1,), (3,)])
def test_a_late_vector_of_a_lost_site_stays_hidden(colluders: tuple[int, ...]) -> None:
    """Site 2 masks, is declared lost, and its vector reaches the relay all the same."""
    world = World(4)
    attempt = run(world, dies("M3v", 2))
    assert attempt.relay.u3 == (1, 3, 4)
    adversary = Adversary(world, colluders)
    adversary.watch(attempt)
    assert len(adversary.vectors) == 3
    assert adversary.learns_only([{u for u in (1, 3, 4) if u not in colluders}])


@pytest.mark.parametrize("step", ["M4", "M5"])
def test_an_aborted_attempt_and_its_repetition_open_one_sum(step: str) -> None:
    """Two sites die before M4 or M5: fewer than τ answers. The same vectors are masked anew and opened."""
    world = World(4)
    adversary = Adversary(world, (1,))
    first = run(world, dies(step, 2, 3))
    adversary.watch(first)
    assert adversary.opened == []
    assert adversary.learns_only([])
    adversary.watch(run(world))
    assert adversary.opened == [(1, 2, 3, 4)]
    assert adversary.learns_only([{2, 3, 4}])


def test_a_second_set_would_open_a_site_and_the_exhaustion_sees_it() -> None:
    """The test of the test: had the sites answered over {1,2,3} as well as over all, site 4 would lie open."""
    world = World(4)
    whole = run(world)
    adversary = Adversary(world, (1,))
    adversary.watch(whole)
    refused = run(world, lambda at, when, u: None, cohort=[1, 2, 3])
    assert {u: at for u, (at, _) in refused.refused.items()} == {1: "M4", 2: "M4", 3: "M4"}
    adversary.watch(refused)
    assert adversary.learns_only([{2, 3, 4}])
    forced = Adversary(world, (1,))
    forced.watch(whole)
    forced.watch(refused, forced=True)
    assert not forced.learns_only([{2, 3, 4}])
    assert forced.learns_only([{2, 3}, {4}])


def test_a_sparse_graph_hides_as_well() -> None:
    """Circulant graph of degree 4 on seven sites with thresholds that allow it; two colluders."""
    world = World(7, degree=6)
    adversary = Adversary(world, (2, 5))
    attempt = run(world, dies("M3v", 7))
    adversary.watch(attempt)
    unknown = {key for _, streams in adversary.vectors for key, _ in streams} - adversary.known
    assert len(unknown) == 6 + 1  # the edges among the honest survivors, and the late site's self mask
    assert adversary.learns_only([{1, 3, 4, 6}])
