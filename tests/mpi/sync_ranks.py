"""Runs on 4 ranks of test_federation_api.py: `fed.sync` in a user's own loop; sites of 1, 1 and 2 ranks (DDP)."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from harness import table
from torch.nn.parallel import DistributedDataParallel

import fedhpc


class Net(torch.nn.Module):
    """A submodule called `module` must not be taken for a wrapper; a counter must stay local."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(4, 8)
        self.norm = torch.nn.BatchNorm1d(8)
        self.module = torch.nn.Linear(8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(torch.relu(self.norm(self.head(x))))[:, 0]


def train(fed: fedhpc.Federation, wrapped: bool, keep: bool) -> tuple[str, Net]:
    torch.manual_seed(5)
    net = Net()
    model = DistributedDataParallel(net) if wrapped and fed.ranks > 1 else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x, y = map(torch.from_numpy, table(fed.site, 32))
    # Each rank gives another weight: the leader's counts.
    share = slice(fed.rank, None, fed.ranks) if wrapped else slice(None)
    sync = fed.sync(model, optimizer, every=4, weight=32 * (1 + fed.rank), keep_optimizer_state=keep)
    meetings = []
    for _ in range(12):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(x[share]), y[share].float()).backward()
        optimizer.step()
        meetings.append(sync.step())
        assert bool(optimizer.state) is (keep or not meetings[-1])
    assert [i for i, met in enumerate(meetings) if met] == [3, 7, 11]
    assert net.norm.num_batches_tracked == 12
    return sync.model_sha256, net


directory = Path(sys.argv[1])
with fedhpc.join(directory / "federation.toml", sites=directory / "sites") as fed:
    if fed.ranks > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = dist.FileStore(str(directory / "rendezvous"), fed.ranks)
        dist.init_process_group("gloo", store=store, rank=fed.rank, world_size=fed.ranks)
    for wrapped, keep in ((True, True), (False, False)):
        fingerprint, net = train(fed, wrapped, keep)
        # The model that the loop goes on with is the one the fingerprint is of, on every rank of every site.
        shared = [t for t in net.state_dict().values() if t.is_floating_point()]
        assert len(shared) == 8
        digest = hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in shared)).hexdigest()
        assert digest == fingerprint
        number = int(digest[:12], 16)
        assert int(fed.sum(number)) == len(fed.sites) * number, "the sites hold different models"
        same = fed.session.party.site.gather_bytes(digest.encode())
        assert len(set(same)) == 1, "the ranks of a site hold different models"
        if fed.rank == 0:
            print(f"{wrapped} {fingerprint}")
    if fed.ranks > 1:
        dist.destroy_process_group()
