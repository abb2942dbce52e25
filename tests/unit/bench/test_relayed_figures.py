"""The figures of a sum over a relay: medians over all repeats, and nothing that was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedhpc.bench import disk_rate
from fedhpc.bench.disk_rate import store_of, written_bytes_per_s
from fedhpc.bench.relayed_sum import PATIENCE_S, Case, Floor, _joined, _result
from fedhpc.bench.relayed_sum_site import LateSiteError, _saying_late
from fedhpc.bench.tls_pair import Pair
from fedhpc.federation.party import RoundOverError

OF_SOCKETS = {
    *("plain_s", "masked_over_plain", "tls_socket_bytes_per_s"),
    *("exchange_over_tls_socket", "masked_exchange_over_tls_socket"),
    *("cpu_tls_s", "cpu_all_over_tls", "disk_bytes_s"),
}


def of_site(number: int, *, vanished: bool = False) -> dict[str, Any]:
    """What a site reports of one repeat, the `number`th."""
    taken = {"cpu_s": 1.0, "peak_bytes": 10, "verified": True, "relay_cpu_s": 0.5}
    report: dict[str, Any] = {
        "verified": True,
        "peak_bytes": 10,
        "baseline_bytes": 5,
        "spans": {"off": [(0.0, 1.0)], "masked": [] if vanished else [(0.0, float(number))]},
        "repeats": {"off": [taken], "masked": [] if vanished else [taken]},
    }
    if not vanished:
        turn = {"round_trips": number, "round_trips_exposed": number, "bytes_up": number}
        report |= {"settles": [float(number)], "turns": [turn | {"stages_s": {"encode": float(number)}}]}
    return report


def floor_of(*rates: float) -> Floor:
    """Bare sockets that move so many bytes a second, for a tenth of a processor second each."""
    return Floor("disk", [Pair(1000, 1000 / rate, 0.1) for rate in rates], [2.0 * rate for rate in rates])


def of_all(case: Case, numbers: list[int], floor: Floor) -> dict[str, Any]:
    reports: list[dict[str, Any]] = []
    for number in numbers:
        found = [of_site(number, vanished=site >= case.sites - case.lost) for site in range(case.sites)]
        reports = [_joined(*two) for two in zip(reports, found, strict=True)] if reports else found
    return _result(case, reports, floor, 1)


def test_with_lost_sites_all_repeats_count() -> None:
    case = Case(ranks=[1, 1, 1, 1], params=8, lane_bits=32, repeat=3, degree=0, lost=1)
    result = of_all(case, [9, 1, 2], floor_of())
    names = ["masked_s", "compare_results_s", "round_trips", "round_trips_exposed", "bytes_up_per_site"]
    assert [result[name] for name in names] == [2, 2, 2, 2, 2]
    assert result["stages_s"] == {"encode": 2.0}
    assert [repeat["wall_s"] for repeat in result["repeats"]] == [9.0, 1.0, 2.0]


@pytest.mark.parametrize("how", [{"latency_ms": 5.0}, {"mbit_s": 8.0}, {"lost": 1}])
def test_bare_sockets_are_compared_with_a_bare_line_only(how: dict[str, Any]) -> None:
    case = Case(ranks=[1, 1, 1, 1], params=8, lane_bits=32, repeat=1, degree=0, **how)
    assert not case.is_bare
    assert not OF_SOCKETS & set(of_all(case, [1], floor_of()))
    bare = Case(ranks=[1, 1, 1, 1], params=8, lane_bits=32, repeat=1, degree=0)
    assert bare.is_bare
    assert set(of_all(bare, [1], floor_of(100.0))) >= OF_SOCKETS


def test_processor_time_of_all_processes_stands_beside_that_of_bare_sockets() -> None:
    case = Case(ranks=[1, 1, 1, 1], params=8, lane_bits=32, repeat=3, degree=0)
    result = of_all(case, [9, 1, 2], floor_of(50.0, 100.0, 400.0))
    assert result["cpu_all_s"] == 4 * 1.0 + 0.5  # of the sites, of the relay once
    assert result["cpu_tls_s"] == pytest.approx(0.1)
    assert result["cpu_all_over_tls"] == pytest.approx(45)
    assert (result["tls_socket_bytes_per_s"], result["disk_bytes_s"]) == (pytest.approx(100), 200)
    assert result["minima"] == {"unmasked_s": 1.0, "masked_s": 1.0, "cpu_all_s": 4.5}
    assert result["store"] == "disk"


def test_what_the_disk_takes_is_measured_and_nothing_is_left(tmp_path: Path) -> None:
    for nbytes in (1, 3 * (1 << 20) + 5):
        assert written_bytes_per_s(tmp_path, nbytes) > 0
    assert not list(tmp_path.iterdir())


def test_a_folder_in_memory_is_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounts").write_text(f"/dev/sda / ext4 rw 0 0\ntmpfs {tmp_path}/a tmpfs rw 0 0\n")
    monkeypatch.setattr(disk_rate, "_TABLE", tmp_path / "mounts")
    (tmp_path / "a").mkdir()
    assert store_of(tmp_path / "a" / "later") == "memory"
    assert store_of(tmp_path) == "disk"


def test_how_long_lost_sites_are_waited_for() -> None:
    case = Case(ranks=[1] * 4, params=1_000_000, lane_bits=32, repeat=1, degree=0, lost=1)
    assert case.upload_s == PATIENCE_S + 0.8
    assert Case(ranks=[1] * 4, params=1, lane_bits=32, repeat=1, degree=0, lost=1, patience_s=7.0).upload_s == 7.0


def test_a_live_site_that_is_late_is_said_plainly() -> None:
    said = "site2 is there, and its vector came later than upload_s = 30"
    with pytest.raises(LateSiteError, match=said) as late, _saying_late("site2", 30.0):
        raise RoundOverError(3, "round 3 is over")
    assert "--patience-s" in late.value.hint
    with pytest.raises(RoundOverError), _saying_late("site2", None):
        raise RoundOverError(3, "round 3 is over")
