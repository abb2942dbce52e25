"""What the text federation is compared with: each site alone, and all texts in one place. The texts are public.

    python -m fedhpc.demo.text.baselines DIRECTORY alone|pooled

Plain PyTorch with the federation's own model, optimiser, number of steps and held-out documents. Where the texts are in
one place a step takes the batches of all sites together. The last line is JSON: name -> score.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedhpc.agreement.federation_file import Agreement
from fedhpc.config import read_section
from fedhpc.demo.text.federation import STORES
from fedhpc.train.batches import Batches, Rows, derive_key
from fedhpc.train.evaluate import summarise
from fedhpc.train.settings import TaskSettings, TrainSettings
from fedhpc.train.tasks import transformer
from fedhpc.train.tasks.texts import Batch, TextDataset


@dataclass(frozen=True)
class Texts:
    """A site's windows."""

    dataset: TextDataset
    train: Rows
    held_out: Rows


class Baselines:
    """Trains on some sites' texts, and scores on the held-out texts of all."""

    def __init__(self, directory: Path) -> None:
        """`directory`: as write_text_federation left it."""
        self._agreement = Agreement.open(directory / "federation.toml")
        self._task = read_section(TaskSettings, self._agreement.task, "task")
        self._train = read_section(TrainSettings, self._agreement.train, "train")
        self.texts = {site: self._open(directory / STORES / f"{site}.h5", site) for site in self._agreement.names}

    def _open(self, path: Path, site: str) -> Texts:
        dataset = transformer.dataset(path, self._task.options)
        return Texts(dataset, *dataset.held_out_split(self._task.held_out, self._task.split_seed, site))

    @property
    def steps(self) -> int:
        """Of each site, in all rounds."""
        return self._agreement.federation.rounds * self._train.local_steps

    def alone(self) -> dict[str, dict[str, Any]]:
        """Each site on its own texts."""
        return {site: self.score(self.fit([site])) for site in self.texts}

    def pooled(self) -> dict[str, dict[str, Any]]:
        """All texts in one place."""
        return {"pooled": self.score(self.fit(list(self.texts)))}

    def fit(self, sites: list[str]) -> torch.nn.Module:
        """A model trained on the texts of `sites`: a step takes a batch of each."""
        model, settings = self.first_model(), self._train
        batches = {
            s: Batches(self.texts[s].train, settings.batch_size, self._agreement.federation.seed, s) for s in sites
        }
        first, second = settings.betas
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.lr, betas=(first, second), weight_decay=settings.weight_decay
        )
        model.train()
        for _ in range(self.steps):
            optimizer.zero_grad()
            loss = transformer.loss(model, join([self.texts[s].dataset.rows(batches[s].next()) for s in sites]))
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm or math.inf)
            optimizer.step()
        return model

    def first_model(self) -> torch.nn.Module:
        """Drawn as the federation's first one is."""
        model = transformer.model(self._task.options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                key = derive_key("first model of a baseline", name)
                generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
                parameter.copy_(transformer.fill(name, tuple(parameter.shape), generator))
        return model

    def score(self, model: torch.nn.Module) -> dict[str, Any]:
        """Metrics over the held-out texts of all sites, and `perplexity_at` each site's own."""
        at_sites = {site: _sums(model, texts) for site, texts in self.texts.items()}
        everywhere = {name: sum(s[name] for s in at_sites.values()) for name in next(iter(at_sites.values()))}
        at = {site: summarise(sums)["perplexity"] for site, sums in at_sites.items()}
        return {**summarise({name: np.asarray(value) for name, value in everywhere.items()}), "perplexity_at": at}


def join(parts: list[Batch]) -> Batch:
    """Several batches as one."""
    x, y, nbytes = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return x, y, nbytes


def _sums(model: torch.nn.Module, texts: Texts) -> Mapping[str, Any]:
    model.eval()
    total: dict[str, Any] = {}
    step = texts.dataset.measure_rows
    with torch.no_grad():
        for start in range(0, texts.held_out.size, step):
            found = transformer.sums(model, texts.dataset.rows(texts.held_out[start : start + step]))
            for name, value in found.items():
                total[name] = total.get(name, 0) + value.double().numpy()
    return total


if __name__ == "__main__":
    torch.set_num_threads(1)
    baselines = Baselines(Path(sys.argv[1]))
    print(json.dumps(baselines.alone() if sys.argv[2] == "alone" else baselines.pooled()))
