"""A loop of one's own over a model that FSDP2 deals out over the ranks of each site."""

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import binary_cross_entropy_with_logits

import fedhpc
from fedhpc.data.store import SiteStore

with fedhpc.join("federation.toml", sites="sites/") as fed:
    backend = fedhpc.site_backend(fed)  # torch's process group over the ranks of this site
    with SiteStore.open(f"data/{fed.site}.h5") as store:
        x, y = torch.from_numpy(store.features()), torch.from_numpy(store.labels()).float()
    x, y = x[fed.rank :: fed.ranks].to(backend.device), y[fed.rank :: fed.ranks].to(backend.device)

    torch.manual_seed(0)  # the same first model at every site
    layers = [torch.nn.Linear(x.shape[1], 600), torch.nn.ReLU(), torch.nn.Linear(600, 600), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(600, 1)).to(backend.device)
    if fed.ranks > 1:  # from here on each rank has some rows of every parameter
        fully_shard(model[2])
        fully_shard(model)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sync = fed.sync(model, optimizer, every=2, weight=len(y) * fed.ranks)
    for _ in range(6):
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(model(x)[:, 0], y).backward()
        optimizer.step()
        sync.step()
    sha256 = sync.model_sha256  # all ranks of a site ask for it: none of them holds the model
    if fed.rank == 0:
        print(f"{fed.site} {sha256}")
    del model, optimizer, sync  # before the process group goes
    backend.close()
