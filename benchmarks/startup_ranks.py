"""How long `fedhpc run` takes to its first local step, beyond the import of torch. Every rank runs this.

python benchmarks/startup.py        starts the ranks and prints JSON
"""

import json
import sys
import time

begun = time.perf_counter()
import torch  # noqa: E402

imported = time.perf_counter()

from pathlib import Path  # noqa: E402

from fedhpc.app.run import run_federation  # noqa: E402
from fedhpc.train.trainer import TorchTrainer  # noqa: E402

first_step: list[float] = []
plain_train = TorchTrainer.train


def timed_train(self, *arguments):  # type: ignore[no-untyped-def]
    first_step.append(time.perf_counter())
    return plain_train(self, *arguments)


TorchTrainer.train = timed_train  # type: ignore[method-assign]
directory = Path(sys.argv[1])
ran = run_federation(directory / "federation.toml", sites=directory / "sites", site=None, out=None)
if ran.first:
    print(
        json.dumps(
            {
                "import_torch_s": imported - begun,
                "start_to_first_step_s": first_step[0] - imported,
                "versions": {"torch": torch.__version__},
            }
        )
    )
