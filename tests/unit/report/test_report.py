"""The report holds everything itself, says the same every time, and takes no text on trust."""

from __future__ import annotations

import builtins
import json
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from fedhpc.app.telemetry import PARTS
from fedhpc.cli.report import report
from fedhpc.errors import ConfigError, DataError, StorageError
from fedhpc.report.report import finished_rounds, mean_by_round, read_run, write_report

HOSTILE = "<script>alert(1)<script> $x^ \"'&_"
CONFIG = 'name = "heart"\n[secure]\nmode = "pairwise <b>"\n# </pre><script src="http://evil">\n'


def record(n: int, rounds: int = 3, **changes) -> dict:
    return {
        "version": 1,
        "round": n,
        "rounds": rounds,
        "time": f"2026-01-02T03:04:{n:02}.000+00:00",
        "site": "a",
        "metrics": {"loss": 1 / n, "accuracy": 1 - 1 / n, "auc": None},
        "train_loss": 0.9 / n,
        "seconds": {**dict.fromkeys(PARTS, 0.5), "total": 5.0},
        "bytes_up": 4_000_000,
        "bytes_down": 3_000_000,
        "sites": ["a", "b"],
        "model_sha256": f"{n:064x}",
        **changes,
    }


def make(path: Path, records: dict[str, list[dict]], config: str | None = CONFIG) -> Path:
    path.mkdir(exist_ok=True)
    if config is not None:
        (path / "federation.toml").write_text(config)
    for site, rows in records.items():
        (path / site).mkdir()
        (path / site / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


class Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text())


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    rows = [record(n) for n in (1, 2, 3)]
    rows.append({"version": 1, "round": 3, "rounds": 3, "final": True, "metrics": {"loss": 0.25, "accuracy": 0.8125}})
    run = make(tmp_path_factory.mktemp("run") / "run", {"a": rows, HOSTILE: rows})
    write_report(run)
    return run


def test_the_page_loads_nothing_and_runs_nothing(full):
    page = Page((full / "report" / "report.html").read_text())
    assert "script" not in page.tags
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert len(sources) == 4
    assert all(s.startswith("data:image/png;base64,") for s in sources)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes
    html = (full / "report" / "report.html").read_text()
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_hostile_names_and_configuration_are_escaped(full):
    html = (full / "report" / "report.html").read_text()
    assert "<script" not in html
    assert "<b>" not in html
    text = "".join(Page(html).text)
    assert HOSTILE in text
    assert CONFIG in text


def test_the_facts_are_told(full):
    text = " ".join(" ".join(page_of(full).text).split())
    assert "heart" in text
    assert "3 of 3: complete" in text
    assert "Sites in the last round 2: a, b" in text
    assert f"{3:064x}" in text
    assert "Final metrics accuracy 0.8125, loss 0.25" in text
    assert "Masks pairwise <b>" in text
    assert read_run(full).config_sha256 in text
    assert "2026-01-02T03:04:01.000+00:00 – 2026-01-02T03:04:03.000+00:00" in text
    assert "Sent 12.0 MB (mean of the sites)" in text
    assert "disagree" not in text


def test_rounds_without_metrics_say_why(tmp_path):
    rows = [record(1), record(2, metrics={}, no_metrics="not all sites were in this round's sum"), record(3)]
    text = " ".join(" ".join(page_of(make(tmp_path / "run", {"a": rows})).text).split())
    assert "Without metrics 1 of 3 records: not all sites were in this round's sum" in text
    assert "Without metrics" not in " ".join(page_of(make(tmp_path / "whole", {"a": rows[:1]})).text)


def test_the_figures_are_png_files_beside_the_page(full):
    files = sorted(p.name for p in (full / "report").iterdir())
    assert files == ["bytes.png", "loss.png", "metrics.png", "report.html", "time.png"]
    for file in (full / "report").glob("*.png"):
        data = file.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert width > 600
        assert height > 300


def test_the_same_records_give_the_same_bytes(full, tmp_path):
    write_report(full, tmp_path / "again")
    for file in (full / "report").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_a_user_s_matplotlib_settings_change_nothing(full, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 9, "text.usetex": True, "figure.facecolor": "red"}):
        write_report(full, tmp_path / "again")
    assert (full / "report" / "loss.png").read_bytes() == (tmp_path / "again" / "loss.png").read_bytes()


@pytest.mark.parametrize(
    "rows",
    [
        [record(1, 9)],
        [{"round": 1}],
        [record(1, metrics={}, seconds={}, sites=[], bytes_up=None, bytes_down=None, train_loss=None)],
        [record(n, metrics={"loss": None, "auc": None}) for n in (1, 2)],
        [record(1, metrics="x", seconds=[1], sites="a", bytes_up="2", time=3, model_sha256=None, rounds="many")],
        [record(1, metrics={"_hidden": 0.5, "$\\frac{$": 7.0, "$\\sqrt{$": 0.5, "x" * 300: -1.0, "": 2.0})],
        [
            record(n, metrics={f"m{i}": i + n / 7 for i in range(20)} | {f"s{i}": i / 20 for i in range(20)})
            for n in (1, 2)
        ],
        [record(1, bytes_up=0, bytes_down=0, seconds=dict.fromkeys(PARTS, 0.0))],
        [record(1, metrics={"loss": 1e308, "n": 10**400}, seconds=dict.fromkeys(PARTS, 1e308), bytes_up=10**300)],
    ],
    ids=["one round", "only a number", "empty", "nulls", "wrong types", "odd names", "many metrics", "zeros", "huge"],
)
def test_poor_records_still_give_a_page(tmp_path, rows):
    run = make(tmp_path / "run", {"a": rows})
    page = page_of(run)
    assert "table" in page.tags
    assert page.tags.count("img") == len(list((run / "report").glob("*.png")))


def cells_of(page: str) -> list[list[str]]:
    """The table of all rounds, head first."""
    rows = page[page.index('<table class="rounds">') :].split("<tr>")[1:]
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in rows]


def test_without_held_out_rows_the_training_loss_has_the_column(tmp_path):
    nothing = {"loss": None, "accuracy": None, "auc": None, "auc_half_width": None}
    rows = [record(n, 2, metrics=nothing) for n in (1, 2)] + [
        {"round": 2, "rounds": 2, "final": True, "metrics": nothing}
    ]
    page = write_report(make(tmp_path / "run", {"a": rows})).read_text()
    head, *cells = cells_of(page)
    assert head == ["round", "training loss", "seconds", "MB sent", "MB received", "sites"]
    assert [row[:2] for row in cells] == [["1", "0.9"], ["2", "0.45"], ["final", "–"]]
    assert "<th scope='row'>Held-out rows</th><td>none at any site" in page
    assert "auc" not in page.replace("federation.toml", "")


def test_half_widths_stand_beside_their_values_and_around_the_curves(tmp_path):
    def metrics(n: int, half_width: float) -> dict:
        return {"auc": 0.7 + n / 100, "auc_half_width": half_width, "calibration_slope": 40.0 / n, "loss": 1 / n}

    wide = make(tmp_path / "wide", {"a": [record(n, metrics=metrics(n, 0.02)) for n in (1, 2, 3)]})
    head, *cells = cells_of(write_report(wide).read_text())
    assert head[1:4] == ["auc", "calibration_slope", "loss"]
    assert cells[0][1:4] == ["0.71 ± 0.0200", "40", "1"]
    text = " ".join("".join(page_of(wide).text).split())
    assert "auc 0.73 ± 0.0200, calibration_slope 13.333, loss 0.33333" in text
    assert "Shaded: what the bins of the scores leave open. Some metrics are in the table only." in text
    small = make(tmp_path / "small", {"a": [record(n, metrics=metrics(n, 0.0005)) for n in (1, 2, 3)]})
    assert cells_of(write_report(small).read_text())[1][1] == "0.71"
    assert "Shaded" not in "".join(page_of(small).text)


def test_many_rounds_and_sites_give_a_page(tmp_path):
    rows = [record(n, 100) for n in range(1, 101)]
    assert page_of(make(tmp_path / "run", {f"s{i}": rows for i in range(12)})).tags.count("img") == 4


def test_a_run_that_has_not_finished_says_so(tmp_path):
    run = make(tmp_path / "run", {"a": [record(1, 9), record(2, 9)]})
    with (run / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"round": 3, "torn')
    text = "".join(page_of(run).text)
    assert "2 of 9: " in text
    assert "still going, or broken off" in text
    assert "Metrics after 1 rounds" in text


def test_sites_that_disagree_are_named(tmp_path):
    run = make(tmp_path / "run", {"a": [record(1, model_sha256="aa")], "b": [record(1, model_sha256="bb")]})
    text = " ".join("".join(page_of(run).text).split())
    assert "model_sha256 after round 1the sites disagree" in text
    assert "a aa" in text
    assert "b bb" in text


@pytest.mark.parametrize("config", [None, "name = ", "\x00", "name = 3\n"])
def test_a_missing_or_broken_configuration_is_no_obstacle(tmp_path, config):
    run = make(tmp_path / "run", {"a": [record(1)]}, config)
    assert "not stated in federation.toml" in "".join(page_of(run).text)


def test_what_is_no_run_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing", Path(__file__)):
        with pytest.raises(ConfigError, match="is not a run directory") as raised:
            write_report(path)
        assert "metrics.jsonl" in raised.value.hint


def test_a_run_without_records_is_refused(tmp_path):
    run = make(tmp_path / "run", {"a": []})
    with pytest.raises(DataError, match="no finished round") as raised:
        write_report(run)
    assert "metrics.jsonl" in raised.value.hint
    assert not (run / "report").exists()


def test_an_out_that_is_a_file_is_refused(full, tmp_path):
    (tmp_path / "file").write_text("keep")
    with pytest.raises(StorageError, match="cannot write the report"):
        write_report(full, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "keep"


def test_without_matplotlib_the_hint_says_what_to_install(full, tmp_path, monkeypatch):
    real = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(ConfigError, match="matplotlib is not installed") as raised:
        write_report(full, tmp_path / "out")
    assert raised.value.hint == "pip install 'fedhpc[report]'"
    assert not (tmp_path / "out").exists()


def test_means_are_over_the_sites_that_have_the_round(tmp_path):
    final = {"round": 2, "final": True, "bytes_up": 10**9}
    rows = {"a": [record(1, bytes_up=10), record(2, bytes_up=20), final], "b": [record(1, bytes_up=30)]}
    assert mean_by_round(read_run(make(tmp_path / "run", rows)), "bytes_up") == {1: 20.0, 2: 20.0}


def test_metrics_are_placed_by_the_model_they_describe():
    assert finished_rounds({"round": 1}) == 0
    assert finished_rounds({"round": 3, "rounds": 3, "final": True}) == 3
    assert finished_rounds({"round": 4, "rounds": 3, "final": True}) == 3


def test_the_command_prints_where_the_page_is(full, tmp_path):
    result = CliRunner().invoke(report, [str(full), "--out", str(tmp_path / "o")], catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output == f"{tmp_path}/o/report.html\n"
    assert (tmp_path / "o" / "report.html").is_file()


def two_runs(path: Path) -> tuple[Path, Path]:
    path.mkdir(exist_ok=True)
    more = {"best_metric": "auc", "best_round": 2, "best_value": 0.75}
    one = make(path / "one", {"a": [record(n) for n in (1, 2, 3)], "b": [record(n) for n in (1, 2)]})
    two = make(
        path / "two",
        {"a": [record(n, metrics={"loss": 0.1, "loss_half_width": 0.0}, **more) for n in (1, 2)]},
        CONFIG + "[train]\nlr = 0.5\n",
    )
    return one, two


def test_runs_side_by_side(tmp_path: Path) -> None:
    one, two = two_runs(tmp_path)
    done = CliRunner().invoke(report, [str(one), str(two), "--json"], catch_exceptions=False)
    found = json.loads(done.output)
    assert found["version"] == 1
    assert found["settings"] == {"train.lr": [None, 0.5]}
    first, second = found["runs"]
    assert (first["round"], first["rounds"], first["measured_round"], first["sites"]) == (3, 3, 2, 2)
    assert first["metrics"] == {"loss": pytest.approx(1 / 3), "accuracy": pytest.approx(2 / 3), "auc": None}
    assert first["seconds"] == 15.0
    assert first["bytes_up_per_site"] == 10_000_000
    assert (second["best_round"], second["best_value"], first["best_round"]) == (2, 0.75, None)
    lines = CliRunner().invoke(report, [str(one), str(two)], catch_exceptions=False).output.splitlines()
    rows = [re.split(r" {2,}", line) for line in lines]
    assert ["round", "3 of 3", "2 of 3"] in rows
    assert ["loss", "0.3333", "0.1000"] in rows
    assert ["auc", "n/a", "n/a"] in rows
    assert ["best round", "–", "2: auc 0.7500"] in rows
    assert ["train.lr", "–", "0.5"] in rows
    assert not [row for row in rows if "half_width" in row[0]]


def test_words_that_do_not_go_together(tmp_path: Path) -> None:
    one, two = two_runs(tmp_path)
    for words in (
        [str(one), "--json"],
        [str(one), str(two), "--out", str(tmp_path / "x")],
        [str(one), str(tmp_path / "no")],
    ):
        assert isinstance(CliRunner().invoke(report, words).exception, ConfigError)
