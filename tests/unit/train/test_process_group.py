"""The ranks of a site meet at their leader's store."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from thread_ranks import ThreadGroup, run_ranks

from fedhpc.train.backends.process_group import _meet


def refuse_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python sees of a kernel that was started without IPv6."""
    create = socket.create_server

    def create_server(address: tuple[str, int], *, family: int = socket.AF_INET, **how: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return create(address, family=family, **how)

    monkeypatch.setattr(socket, "create_server", create_server)
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)


@pytest.mark.parametrize("ipv6", [True, False], ids=["ipv6", "kernel without ipv6"])
@pytest.mark.parametrize("one_host", [True, False], ids=["one host", "hosts"])
def test_the_ranks_of_a_site_meet(ipv6: bool, one_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not ipv6:
        refuse_ipv6(monkeypatch)
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")

    def meet(group: ThreadGroup) -> str:
        store = _meet(group, one_host)
        store.set(f"rank {group.rank}", f"{group.rank}")
        value: bytes = store.get(f"rank {(group.rank + 1) % group.size}")
        group.barrier()  # the leader's store serves the others
        return value.decode()

    assert run_ranks(3, meet) == ["1", "2", "0"]
