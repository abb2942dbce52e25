"""What operators see of a running relay: its page, /status.json, /metrics; `fedhpc relay status` from both sides."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from relay_process import CONFIG, MIB, OTHER_CONFIG, ROOT, Relay, World, until
from round_sites import Sites

from fedhpc.enrolment.one_machine import Enrolled, enrol, running_relay
from fedhpc.relay.http.server import RelayServer
from fedhpc.relay.settings import read_settings
from fedhpc.relay.status.style import HEADERS


@pytest.fixture
def running(world: World, tmp_path: Path) -> Iterator[Relay]:
    """A relay that runs rounds."""
    folder = tmp_path / "relay"
    folder.mkdir()
    relay = Relay(world, folder).start()
    yield relay
    if relay.process is not None and relay.process.poll() is None:
        relay.stop()


def fetch(relay: Relay, path: str, host: str = "", method: str = "GET") -> tuple[int, dict[str, str], str]:
    """(status, headers, body) from the admin port."""
    connection = http.client.HTTPConnection("127.0.0.1", relay.admin, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()


def status(relay: Relay) -> dict[str, Any]:
    """/status.json of CONFIG's federation, with the relay's own fields."""
    found: dict[str, Any] = json.loads(fetch(relay, "/status.json")[2])
    (mine,) = [f for f in found["federations"] if f["config"] == CONFIG]
    return found | mine


def command(*words: str | Path) -> tuple[int, str, str]:
    """`fedhpc relay status …`: exit code, stdout, stderr."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "130", "http_proxy": "http://127.0.0.1:9", "NO_COLOR": "1"}
    line = [sys.executable, "-m", "fedhpc", "relay", "status", *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=env)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


# --- the port


def test_the_page_follows_a_round(running: Relay) -> None:
    sites = Sites(running)
    sites.ready(1, 2, 3)
    code, headers, html = fetch(running, "/")
    assert code == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert {name: headers[name] for name in HEADERS} == HEADERS
    assert "http-equiv" in html
    words = re.sub(r"<[^>]*>", " ", html)
    assert re.search(r"Sum 1,\s+train.*collecting for", words, re.S)
    assert re.search(r"Waits for\s+site 4", words)
    assert "http-equiv" not in fetch(running, "/?paused")[2]
    sites.ready(4)
    sites.play()
    words = re.sub(r"<[^>]*>", " ", fetch(running, "/")[2])
    assert "Sum 1 is the last that is done." in words
    assert "4 sites" in words
    for secret in (CONFIG, *(s.pin().hex() for s in running.world.sites.values())):
        assert secret not in words


def test_status_json_and_metrics_tell_what_happened(running: Relay) -> None:
    sites = Sites(running, lanes=MIB // 4)
    assert [m["certificate_left_s"] for m in status(running)["members"]] == [None] * 4
    sites.ready()
    sites.play()
    running.client(3).put(sites.name(0, "READY/3").__class__(CONFIG, 2, 0, "READY/3"), _ready())
    # The answer to a put does not wait until the relay's rounds have looked at what came.
    until(lambda: len(status(running)["times"]) == 2)
    found = status(running)
    assert (found["kind"], found["done"], found["connections"]["most"]) == ("fedhpc-relay", 1, 512)
    assert found["sums"][0]["late"] == [1, 2, 4]
    assert [(t["sum"], t["done"], t["sites"]) for t in found["times"]] == [(1, True, [1, 2, 3, 4]), (2, False, [])]
    assert set(found["times"][0]["seconds"]) == {"ready", "keys", "shares", "masked", "sum", "answers", "results"}
    assert found["share"] == {"bytes": 2 << 30, "objects": 250}
    assert found["stored"]["bytes"] == found["relay_bytes"] + sum(m["bytes"] for m in found["members"])
    assert found["relay_bytes"] >= MIB, "the sum"
    assert all(0 < m["certificate_left_s"] < 3 * 86400 and m["seen_s"] < 60 for m in found["members"])
    assert found["received_bytes"] >= 4 * MIB, "counted while connections are open"
    assert found["memory_bytes"] > 0
    read = {f.name.removeprefix("fedhpc_relay_"): f for f in text_string_to_metric_families(running.metrics())}
    assert read["received_bytes"].samples[0].value >= 4 * MIB
    counts = {s.labels["phase"]: s.value for s in read["phase_duration_seconds"].samples if s.name.endswith("_count")}
    assert counts == dict.fromkeys(found["times"][0]["seconds"], 1)
    assert {s.labels["federation"] for s in read["last_sum_done"].samples} == {CONFIG[:16], OTHER_CONFIG[:16]}


def _ready() -> bytes:
    from round_sites import LAYOUT, STATE

    from fedhpc.secure.transcript import canon

    own = {"base": STATE.hex(), "everyone": 0, "layout": LAYOUT.hex(), "purpose": "train", "state": STATE.hex()}
    return canon(own | {"tensors": [[32, 20]]})


def test_a_roster_that_cannot_be_read_is_told(running: Relay) -> None:
    good = (running.folder / "roster.toml").read_text()
    (running.folder / "roster.toml").write_text(good.replace("sites", "sights"))
    assert running.process is not None
    running.process.send_signal(signal.SIGHUP)
    until(lambda: "sights" in status(running)["roster_error"])
    assert "The roster was not read" in fetch(running, "/")[2]
    assert "fedhpc_relay_roster_readable 0\n" in running.metrics()
    (running.folder / "roster.toml").write_text(good)
    running.process.send_signal(signal.SIGHUP)
    until(lambda: not status(running)["roster_error"])


def test_only_this_machine_and_only_reading(running: Relay) -> None:
    for path in ("/", "/status.json", "/metrics", "/healthz"):
        assert fetch(running, path)[0] == 200
        assert fetch(running, path, host="evil.example")[0] == 421
        assert fetch(running, path, host=f"evil.example:{running.admin}")[0] == 421
        assert fetch(running, path, host=f"localhost:{running.admin}")[0] == 200
        assert fetch(running, path, host=f"[::1]:{running.admin}")[0] == 200
        assert fetch(running, path, method="POST")[0] == 501
    for path in ("/?paused=1", "/status.json?x", "/%2e%2e/etc/passwd"):
        assert fetch(running, path)[0] == 404


def test_silent_connections_do_not_take_the_admin_port_away(running: Relay) -> None:
    assert running.process is not None
    tasks = Path(f"/proc/{running.process.pid}/task")
    own = 6  # main, admin, sweep, roster, a worker for each federation
    held = [socket.create_connection(("127.0.0.1", running.admin), 10) for _ in range(40)]
    until(lambda: len(list(tasks.iterdir())) >= own + 16)
    client = running.client()
    assert client.health() == "ok"
    client.close()
    assert len(list(tasks.iterdir())) <= own + 16 + 1
    for connection in held:
        connection.close()
    assert fetch(running, "/healthz")[0] == 200


# --- fedhpc relay status at the relay's machine


def test_the_command_shows_what_the_admin_port_says(running: Relay) -> None:
    sites = Sites(running)
    sites.ready()
    sites.play()
    code, out, err = command("--admin", f"127.0.0.1:{running.admin}")
    assert (code, err) == (0, "")
    assert re.search(rf"federation {CONFIG[:16]}: 4 sites, threshold 3, sync, vectors on disk; sum 1 is done", out)
    assert re.search(r"(?m)^1 +train +4 ", out)
    code, out, _ = command("--admin", f"127.0.0.1:{running.admin}", "--json")
    assert code == 0
    assert json.loads(out)["kind"] == "fedhpc-relay"
    assert out.count("\n") == 1


def test_watching_goes_on_while_the_relay_is_away(running: Relay) -> None:
    line = [sys.executable, "-m", "fedhpc", "relay", "status", "--admin", f"127.0.0.1:{running.admin}", "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*line, "--watch"], stdout=subprocess.PIPE, text=True, env=env) as watch:
        assert watch.stdout is not None
        assert json.loads(watch.stdout.readline())["kind"] == "fedhpc-relay"
        assert json.loads(watch.stdout.readline())["kind"] == "fedhpc-relay"
        running.stop()
        answers = iter(watch.stdout.readline, "")
        assert any("nothing listens" in json.loads(answer).get("error", "") for answer in answers)
        watch.send_signal(signal.SIGINT)
        assert watch.wait(90) == 0


def test_the_command_says_what_is_wrong(running: Relay) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert command("--admin", f"127.0.0.1:{port}") == (
        69,
        "",
        f"error: nothing listens on 127.0.0.1:{port}\n"
        "hint: start the relay with relay.admin in relay.toml, or give --admin\n",
    )
    for other in (running.port, _start_web_server()):
        code, out, err = command("--admin", f"127.0.0.1:{other}")
        assert (code, out) == (69, "")
        assert f"error: what listens on 127.0.0.1:{other} is not a relay's admin port\nhint: " in err
    assert command("--admin", "here")[0] == 64
    assert command("federation.toml")[0] == 64
    assert command("--site", "site.toml")[0] == 64


def _start_web_server() -> int:
    """Something else that speaks HTTP and JSON."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"kind": "web"}')

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


# --- and at a site


@pytest.fixture(scope="module")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Enrolled]:
    folder = tmp_path_factory.mktemp("enrolled")
    data = dict.fromkeys(("aa", "bb", "cc", "dd"), folder / "data.h5")
    made = enrol(folder / "fed", "heart", '[cohort]\npolicy = "quorum"\n[task]\nname = "logistic"\n', data)
    with (folder / "relay.log").open("w") as log, running_relay(made.relay, log):
        yield made


def test_a_site_sees_its_federation_by_names(enrolled: Enrolled) -> None:
    code, out, err = command("--site", enrolled.site_file("bb"), enrolled.federation)
    assert (code, err) == (0, "")
    assert "federation heart " in out
    assert "4 sites, threshold 3, quorum; no sum is done yet" in out
    assert re.search(r"(?m)^2 bb +not yet +- *$", out)
    assert "stored" not in out, "that is the operator's"


def test_asking_is_no_sign_that_the_site_runs(enrolled: Enrolled) -> None:
    found = [json.loads(command("--site", enrolled.site_file("aa").parent, enrolled.federation, "--json")[1])]
    found.append(json.loads(command("--site", enrolled.site_file("bb"), enrolled.federation, "--json")[1]))
    assert [f["seen_s"] for f in found] == [{}, {}]
    assert found[0]["name"] == "heart"
    assert [m["name"] for m in found[0]["members"]] == ["aa", "bb", "cc", "dd"]


def test_a_site_of_another_federation_is_told_so(enrolled: Enrolled, tmp_path: Path) -> None:
    other = tmp_path / "federation.toml"
    other.write_text(enrolled.federation.read_text() + "\n# agreed later\n")
    code, out, err = command("--site", enrolled.site_file("bb"), other)
    assert (code, out) == (77, "")
    assert "the relay does not know bb as a site of this federation" in err
    assert "fedhpc relay admit" in err


def test_a_relay_that_is_away_is_told_of(enrolled: Enrolled, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = enrolled.site_file("bb").read_text().replace(str(enrolled.port), str(port))
    (enrolled.site_file("bb").parent / "away.toml").write_text(text)
    code, out, err = command("--site", enrolled.site_file("bb").parent / "away.toml", enrolled.federation)
    assert (code, out) == (69, "")
    assert "error: " in err
    assert "hint: " in err


def test_memory_of_the_admin_port_is_that_of_one_snapshot(running: Relay) -> None:
    """Many requests leave nothing behind."""
    for _ in range(20):
        fetch(running, "/")
    before = running.peak_bytes()
    for _ in range(200):
        fetch(running, "/")
    assert running.peak_bytes() - before < 8 * MIB


def test_an_admin_port_that_is_taken_is_told(running: Relay) -> None:
    settings = running.folder / "relay.toml"
    other = running.folder / "other.toml"
    text = settings.read_text().replace(f'"127.0.0.1:{running.port}"', '"127.0.0.1:0"')
    other.write_text(
        text.replace('admin = "127.0.0.1:0"', f'admin = "127.0.0.1:{running.admin}"').replace('"store"', '"s2"')
    )
    line = [sys.executable, "-m", "fedhpc", "relay", "serve", str(other)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 64
    assert f"cannot listen on the admin port 127.0.0.1:{running.admin}" in done.stderr
    assert "hint: give relay.admin another port" in done.stderr


# --- signals


def test_signals_that_interrupt_each_other_take_no_lock(running: Relay, tmp_path: Path) -> None:
    """A handler may run while another one of the same thread holds an Event's lock: it must not wait for that."""
    text = (running.folder / "relay.toml").read_text()
    (tmp_path / "roster.toml").write_text("")
    (tmp_path / "relay.toml").write_text(text.replace(f'"127.0.0.1:{running.port}"', '"127.0.0.1:0"'))
    server = RelayServer(*read_settings(tmp_path / "relay.toml"))

    def handlers() -> None:
        with server._look._cond, server._stopping._cond, server.routes.stopping._cond:  # type: ignore[attr-defined]
            server.reload()
            server.stop()

    inner = threading.Thread(target=handlers, daemon=True)
    inner.start()
    inner.join(10)
    assert not inner.is_alive()
    server.serve()
    assert server.routes.stopping.is_set()


def test_many_signals_at_once_stop_the_relay_in_order(running: Relay) -> None:
    assert running.process is not None
    for _ in range(2000):
        running.process.send_signal(signal.SIGHUP)
    assert fetch(running, "/healthz")[0] == 200
    assert running.client().health() == "ok"
    assert running.stop(signal.SIGTERM) == 0
