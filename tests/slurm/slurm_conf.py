"""slurm.conf of a small cluster whose nodes are namespaces of one machine: root runs it all, and everything is quick.

CPUs are declared, not found (config_overrides), so that a job of several ranks fits on a machine with two cores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CPUS, MEMORY_MB, GPUS = 8, 16000, 2  # of each node, as slurmctld believes
CONTROLLER_PORT, FIRST_NODE_PORT = 6817, 6818


def slurm_conf(name: str, controller: str, nodes: Mapping[str, str], folder: Path) -> str:
    """`controller`: address of slurmctld; `nodes`: name -> address; `folder`: the cluster's, without spaces."""
    lines = [
        f"""\
ClusterName={name}
SlurmctldHost={name}-control({controller})
SlurmctldPort={CONTROLLER_PORT}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# Each node sees a directory of its own here: two nodes of one machine would use the same files of PMIx.
TmpFS={folder}/local

ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=pmix
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu

SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,bf_min_age_reserve=0
ReturnToService=2
JobRequeue=1
MinJobAge=3600
KillWait=10
InactiveLimit=0
BatchStartTimeout=20
CompleteWait=0
UnkillableStepTimeout=15
SlurmctldTimeout=30
SlurmdTimeout=30
MessageTimeout=20
TCPTimeout=5
"""
    ]
    for port, (node, address) in enumerate(nodes.items(), FIRST_NODE_PORT):
        lines.append(
            f"NodeName={node} NodeAddr={address} NodeHostname={node} Port={port} CPUs={CPUS}"
            f" RealMemory={MEMORY_MB} Gres=gpu:{GPUS} State=UNKNOWN"
        )
    everywhere = f"Nodes={','.join(nodes)} State=UP DefMemPerNode=1000"
    lines += [
        f"PartitionName=gpu {everywhere} Default=YES MaxTime=1-00:00:00 DefaultTime=10",
        f"PartitionName=cpu {everywhere} MaxTime=1-00:00:00 DefaultTime=10",
        f"PartitionName=short {everywhere} MaxTime=2 DefaultTime=1",
    ]
    return "\n".join(lines) + "\n"


# Two GPUs that are any two devices: Slurm counts and hands them out, and looks no further.
GRES_CONF = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
