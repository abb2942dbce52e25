"""docs/quickstart-relay.md does what it says: every block is typed in, word for word, and nothing is left running."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from harness import ROOT, alive, until
from pages import play

PAGE = ROOT / "docs" / "quickstart-relay.md"
PORTS = ("PORT", "ADMIN")


@pytest.mark.timeout(600)
def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = {name: str(s.getsockname()[1]) for name, s in zip(PORTS, (one, other), strict=True)}
    found, left = play(PAGE.read_text(), tmp_path, ports, timeout=540)
    assert not found, found
    assert left == [], "the page leaves processes running"
    for port in ports.values():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("```bash\necho a\n```\n\n```text\nb\n```\n", "line 1: printed\na\n"),
        ("# x\n\n```bash\ntrue\nfalse\necho a\n```\n", "line 3: a command failed"),
        ("```bash\ntrue\n```\n\n```bash\nexit 0\n```\n\n```bash\ntrue\n```\n", "2 of 3 blocks ran"),
    ],
)
def test_the_reader_can_fail(page: str, told: str, tmp_path: Path) -> None:
    assert play(page, tmp_path, {}, timeout=60)[0].startswith(told)


def test_what_is_left_running_is_found_and_ended(tmp_path: Path) -> None:
    found, (pid,) = play("```bash\nsleep 600 &\n```\n\n```bash\necho a\n```\n\n```text\n...\n```\n", tmp_path, {}, 60)
    assert not found
    until(lambda: not alive(pid), 10, "the process that was left")
