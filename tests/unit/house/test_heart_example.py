"""What `--seed` of `fedhpc new` changes in the heart example, and what `seed` in its federation.toml does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedhpc.agreement.federation_file import Agreement, read_agreement
from fedhpc.config import read_section
from fedhpc.demo.heart.federation import write_heart_federation
from fedhpc.mpi.collectives import SerialGroup
from fedhpc.train.open_trainer import open_trainer
from fedhpc.train.settings import ComputeSettings, TaskSettings, TrainSettings


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Agreement]:
    directory = tmp_path_factory.mktemp("heart")
    file = write_heart_federation(directory, seed=7)
    return directory / "data" / "cleveland.h5", read_agreement(file.read_bytes(), str(file))


def trained(data: Path, agreement: Agreement, seed: int, split_seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One site's weights after a round [13], and the rows that it held out."""
    task = replace(read_section(TaskSettings, agreement.task, "task"), split_seed=split_seed)
    train = read_section(TrainSettings, agreement.train, "train")
    compute = ComputeSettings(device="cpu")
    with open_trainer(
        task, train, compute, data=data, source=None, group=SerialGroup("a"), site="a", seed=seed
    ) as trainer:
        trainer.train(0, trainer.tensors())
        return trainer.tensors()["network.weight"], trainer.held_out_rows


def test_the_seed_given_is_that_of_the_split(example: tuple[Path, Agreement]) -> None:
    _, agreement = example
    assert (agreement.federation.seed, agreement.task["split_seed"]) == (7, 7)


def test_another_seed_in_the_file_changes_only_last_bits_and_another_split_more(
    example: tuple[Path, Agreement],
) -> None:
    weights, held_out = trained(*example, seed=7, split_seed=7)
    same, same_rows = trained(*example, seed=8, split_seed=7)
    other, other_rows = trained(*example, seed=7, split_seed=8)
    largest = np.abs(weights).max()
    assert largest > 0.1
    assert np.abs(weights - same).max() < 1e-5 * largest
    assert np.abs(weights - other).max() > 1e-4 * largest
    np.testing.assert_array_equal(held_out, same_rows)
    assert not np.array_equal(held_out, other_rows)
