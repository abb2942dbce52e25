"""ReFrame's configuration for this machine, and for the inside of a Slurm job (`fedhpc submit --shape bench`).

A cluster that has a configuration of its own, such as one of EESSI's test suite, does not need it.
"""

from __future__ import annotations

import os

_MEMORY_MIB = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
_PLATFORMS = [{"type": "Apptainer"}, {"type": "Singularity"}]


def _number(name: str, otherwise: float) -> float:
    """Slurm's number in the environment; of several groups of nodes, as in 8(x2), the first."""
    text = os.environ.get(name, "").partition("(")[0].partition(",")[0]
    return float(text) if text.isdigit() and int(text) else otherwise


def _partition(name: str, launcher: str, **extras: float) -> dict[str, object]:
    return {
        "name": name,
        "scheduler": "local",
        "launcher": launcher,
        "environs": ["as-it-is"],
        "features": ["cpu"],
        "container_platforms": _PLATFORMS,
        "max_jobs": 1,  # measurements beside one another would measure one another
        "extras": extras,
    }


site_configuration = {
    "systems": [
        {
            "name": "machine",
            "descr": "this machine; fedhpc starts its own ranks",
            "hostnames": [".*"],
            "partitions": [_partition("cores", "local", mem_per_node=_MEMORY_MIB)],
        },
        {
            "name": "allocation",
            "descr": "the nodes of the job that this runs in",
            "hostnames": ["-"],  # only by its name
            "partitions": [
                _partition(
                    "nodes",
                    os.environ.get("FEDHPC_SUITE_LAUNCHER", "srun"),
                    mem_per_node=_number("SLURM_MEM_PER_NODE", _MEMORY_MIB),
                    nodes=_number("SLURM_JOB_NUM_NODES", 1),
                    cores=_number("SLURM_TASKS_PER_NODE", os.cpu_count() or 1),
                    cpus_of_task=_number("SLURM_CPUS_PER_TASK", 1),
                )
            ],
        },
    ],
    "environments": [{"name": "as-it-is", "features": ["mpi"]}],
    "logging": [
        {
            "handlers$": [{"type": "stream", "name": "stdout", "level": "info", "format": "%(message)s"}],
            "handlers": [
                {
                    "type": "file",
                    "name": os.environ.get("FEDHPC_SUITE_LOG", "reframe.log"),
                    "level": "debug",
                    "format": "[%(asctime)s] %(levelname)s: %(check_info)s: %(message)s",
                }
            ],
        }
    ],
}
