"""One federation, the same local updates: `mpi` and `https` give the same model, state and metrics to the last bit.

Every federation.toml is the very same file in both, since the words of stochastic rounding follow from its hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from harness import call
from tiny_federations import ENVIRONMENT, Tiny, relay_of, results, run_sites, words
from user_scripts import expected_sums

SITES = ("aa", "bb", "cc")
STRATEGIES = ("fedavg", "fedprox", "fedadam", "fedyogi", "fedadagrad", "diloco")
LARGE = {"weight": (900_001,), "scalar": (), "bias": (7,)}  # 3.4 blocks of 2^20 bytes

TRAINED: dict[str, dict[str, Any]] = {
    **{name: {"strategy": {"name": name}} for name in STRATEGIES},
    "diloco uniform": {"strategy": {"name": "diloco", "weights": "uniform"}, "secure": {"bound": 2.0}},
    "declared": {"strategy": {"name": "fedadam", "weights": "declared"}, "samples": (20, 50, 11)},
    "off": {"strategy": {"name": "diloco"}, "secure": {"mode": "off"}},
    "64": {"secure": {"lane_bits": 64}},
    "64 bound": {"secure": {"lane_bits": 64, "bound": 2.0}, "strategy": {"weights": "uniform"}},
    "bound": {"secure": {"bound": 2.0}},
    "stochastic": {"secure": {"rounding": "stochastic"}},
    "stochastic 64": {"secure": {"rounding": "stochastic", "bound": 2.0, "lane_bits": 64}},
    "blake3": {"secure": {"bound": 2.0, "suite": "blake3"}},
    "quorum": {"cohort": {"policy": "quorum"}, "secure": {"bound": 2.0}},
    "large": {"strategy": {"name": "diloco", "weights": "uniform"}, "secure": {"bound": 2.0}},
    "large blake3": {
        "strategy": {"name": "diloco", "weights": "uniform"},
        "secure": {"bound": 2.0, "suite": "blake3"},
    },
    "large stochastic": {
        "secure": {"rounding": "stochastic", "bound": 2.0},
        "strategy": {"weights": "uniform"},
        "rounds": 1,
    },
}
SCRIPTS = {
    "sums": {"secure": {"rounding": "nearest"}},
    "sums off": {"secure": {"mode": "off"}},
    "sync": {"strategy": {"name": "diloco"}, "secure": {"lane_bits": 64}},
    "sync bound": {"strategy": {"name": "fedadam"}, "secure": {"bound": 8.0}},
}
# Over the relay with 2, 1 and 3 ranks; the others with one each, and in the MPI job all sites have one.
RANKS = {
    f"{name} of ranks": (TRAINED | SCRIPTS)[name]
    for name in ("large", "large blake3", "large stochastic", "diloco", "sums")
}


def options(name: str) -> dict[str, Any]:
    if name.startswith(("sums", "sync")):
        return {"what": name.split()[0]}
    return {"shapes": LARGE} if name.startswith("large") else {}


def facts(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "site"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    made = Tiny.enrol(tmp_path_factory.mktemp("same-bits"), SITES)
    for name, settings in (TRAINED | SCRIPTS | RANKS).items():
        made.federation(name, **settings)
    with relay_of(made):
        yield made


@pytest.fixture(scope="module")
def in_one_job(tiny: Tiny) -> dict[str, dict[str, Any]]:
    """What the sites of an MPI job get, one rank each."""
    cases = [tiny.mpi_case(name, {}, **options(name)) for name in TRAINED | SCRIPTS | RANKS]
    found = results(call(words(cases, 3), timeout=180, env=ENVIRONMENT))
    return {f["case"]: facts(f) for f in found}


@pytest.fixture(scope="module")
def through_the_relay(tiny: Tiny) -> dict[str, dict[str, dict[str, Any]]]:
    """What each site gets over the relay, one process each: by site and case."""
    cases = {site: [tiny.case(name, site, **options(name)) for name in TRAINED | SCRIPTS] for site in SITES}
    return {site: {f["case"]: facts(f) for f in found} for site, found in run_sites(cases, timeout=240).items()}


@pytest.mark.mpi
@pytest.mark.parametrize("name", TRAINED | SCRIPTS)
def test_the_exchange_changes_nothing(
    name: str, in_one_job: dict[str, Any], through_the_relay: dict[str, dict[str, Any]]
) -> None:
    for site in SITES:
        assert through_the_relay[site][name] == in_one_job[name], site


@pytest.mark.mpi
def test_the_settings_that_matter_do_matter(in_one_job: dict[str, Any]) -> None:
    """Else equal hashes would show nothing."""
    hashes = {name: in_one_job[name]["sha256"] for name in TRAINED}
    assert hashes["off"] == hashes["diloco"]  # masks are not in the model
    assert hashes["quorum"] == hashes["bound"]  # nobody was lost
    assert hashes["blake3"] == hashes["bound"]  # nor is the suite
    assert hashes["large blake3"] == hashes["large"]
    assert in_one_job["blake3"]["state"] != in_one_job["bound"]["state"]
    same = ("off", "quorum", "fedprox", "stochastic 64", "blake3", "large blake3")
    different = [name for name in hashes if name not in same]
    assert [(a, b) for a in different for b in different if a < b and hashes[a] == hashes[b]] == []
    assert hashes["fedprox"] == hashes["fedavg"]  # it differs in local training only
    assert {in_one_job[name]["metrics"]["sites"] for name in TRAINED} == {3.0}


def test_sums_are_the_integer_sums(through_the_relay: dict[str, dict[str, Any]]) -> None:
    expected = expected_sums(len(SITES))
    for site in SITES:
        for case in ("sums", "sums off"):
            got = through_the_relay[site][case]
            assert {name: got[name] for name in expected} == expected
            assert got["sites"] == list(SITES)
            assert got["mean of ints"] == pytest.approx([2.0, 20.0], abs=2.0**-50)
            assert got["weighted"] == pytest.approx([(1 * 10 + 2 * 20 + 3 * 30) / 60], abs=2.0**-20)
        without_states = [{k: v for k, v in through_the_relay[site][c].items() if k != "state"} for c in SCRIPTS][:2]
        assert without_states[0] | {"case": ""} == without_states[1] | {"case": ""}


@pytest.mark.mpi
def test_ranks_rails_and_connections(tiny: Tiny, in_one_job: dict[str, Any]) -> None:
    """Sites of 2, 1 and 3 ranks: all rails or one, one connection or four, the same bits as three single ranks."""
    settings = {"aa": {"rails": 1, "connections": 1}, "bb": {"connections": 4}, "cc": {"connections": 3}}
    cases: dict[str, list[dict[str, Any]]] = {site: [] for site in SITES}
    for name in RANKS:
        for site in SITES:
            tiny.edit_exchange(name, site, **settings[site])
            cases[site].append(tiny.case(name, site, **options(name)))
    found = run_sites(cases, {"aa": 2, "cc": 3}, timeout=240)
    for site in SITES:
        assert [got["case"] for got in found[site]] == list(RANKS)
        for got in found[site]:
            assert facts(got) == in_one_job[got["case"]], (site, got["case"])


def test_nothing_of_a_site_lies_on_the_relay(tiny: Tiny, through_the_relay: dict[str, Any]) -> None:
    """The store of the relay afterwards: no vector but files to be written over, and only the last rounds."""
    assert set(through_the_relay) == set(SITES)
    store = tiny.base.relay.parent / "store"
    kept = [path.relative_to(store) for path in store.rglob("*") if path.is_file()]
    assert kept
    assert not [path for path in kept if "M3v" in str(path)]
    # Beside them lie the relay's lock and the spare files, which bear no names.
    configs = [path.name for path in store.iterdir() if len(path.name) == 64]
    assert {path.name for path in store.iterdir() if path.is_dir()} - {*configs} == {"spare"}
    assert len(configs) >= len(TRAINED | SCRIPTS)
    for config in configs:
        rounds = {int(path.parts[1]) for path in kept if path.parts[0] == config and path.parts[1].isdigit()}
        assert len(rounds - {0}) <= 2, config
