"""ReFrame's configuration for this machine, and for the inside of a Slurm job (`fedhpc submit --shape bench`).

A cluster that has a configuration of its own, such as one of EESSI's test suite, does not need it.
"""

from __future__ import annotations

import os

from benchmarks.partition.node_memory import job_memory_mib, node_memory_mib, number

_PLATFORMS = [{"type": "Apptainer"}, {"type": "Singularity"}]


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
            "partitions": [_partition("cores", "local", mem_per_node=node_memory_mib())],
        },
        {
            "name": "allocation",
            "descr": "the nodes of the job that this runs in",
            "hostnames": ["-"],  # only by its name
            "partitions": [
                _partition(
                    "nodes",
                    os.environ.get("FEDHPC_SUITE_LAUNCHER", "srun"),
                    mem_per_node=job_memory_mib(os.environ),
                    nodes=number(os.environ, "SLURM_JOB_NUM_NODES") or 1,
                    cores=number(os.environ, "SLURM_TASKS_PER_NODE") or os.cpu_count() or 1,
                    cpus_of_task=number(os.environ, "SLURM_CPUS_PER_TASK") or 1,
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
