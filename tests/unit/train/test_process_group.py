"""The ranks of a site meet at their leader's store."""

from __future__ import annotations

import socket

import pytest
from thread_ranks import ThreadGroup, run_ranks

from fedhpc.train.backends.process_group import _meet


@pytest.mark.parametrize("ipv6", [True, False], ids=["ipv6", "kernel without ipv6"])
@pytest.mark.parametrize("one_host", [True, False], ids=["one host", "hosts"])
def test_the_ranks_of_a_site_meet(ipv6: bool, one_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if ipv6 and not socket.has_dualstack_ipv6():
        ipv6 = False  # then both cases are this machine's
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: ipv6)
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")

    def meet(group: ThreadGroup) -> str:
        store = _meet(group, one_host)
        store.set(f"rank {group.rank}", f"{group.rank}")
        value: bytes = store.get(f"rank {(group.rank + 1) % group.size}")
        group.barrier()  # the leader's store serves the others
        return value.decode()

    assert run_ranks(3, meet) == ["1", "2", "0"]
