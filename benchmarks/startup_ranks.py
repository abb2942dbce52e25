"""When a rank of `fedhpc run` began, and when it took its first local step. Every rank runs this and prints a line.

python benchmarks/startup.py        starts the ranks and prints JSON
"""

import json
import os
import sys
import time
from pathlib import Path

from fedhpc.app.programs import training
from fedhpc.app.run import run_federation

plain_opener = training.open_trainer


def process_began() -> float:
    """Seconds since the machine's start, to the hundredth, as the kernel counts them."""
    after_name = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(after_name[19]) / os.sysconf("SC_CLK_TCK")


def timed_opener(*arguments, **more):  # type: ignore[no-untyped-def]
    trainer = plain_opener(*arguments, **more)
    plain_train = trainer.train

    def timed_train(*call):  # type: ignore[no-untyped-def]
        stepped, cpu_s = time.clock_gettime(time.CLOCK_BOOTTIME), time.process_time()
        said = {"begun": process_began(), "stepped": stepped, "cpu_s": cpu_s, "torch": "torch" in sys.modules}
        sys.stdout.write(json.dumps(said) + "\n")
        return plain_train(*call)

    trainer.train = timed_train
    return trainer


training.open_trainer = timed_opener
directory = Path(sys.argv[1])
run_federation(directory / "federation.toml", sites=directory / "sites", site=None, out=None)
