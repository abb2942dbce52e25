#!/usr/bin/env bash
# Horovod averages the same ten small tensors over three ranks forty times. One expects the same bits each time: the
# numbers, the ranks and the MPI are the same. By default they differ from one time to the next, because Horovod joins
# into one allreduce what happens to be ready in the same millisecond, and MPI's order of additions depends on the length
# of a message and on the place in it. All ranks agree each time, so nothing looks wrong; but a step that is repeated
# after a restart is another one. With HOROVOD_FUSION_THRESHOLD=0 (no joining) the bits repeat. Two ranks never show it.
#
# Versions: horovod 0.28.1 built with MPI only, torch 2.13.0, Open MPI 5.0.11 (printed). PYTHON is one that has them,
# with mpirun beside it: that of a checkout after `make horovod`. Source: horovod/common/controller.cc (FuseResponses);
# Open MPI's coll/tuned chooses the algorithm of an allreduce by its size.
set -euo pipefail
python=${PYTHON:-$(dirname "$0")/../.venv/bin/python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/averages.py" <<'PYTHON'
import hashlib
import random
import time

from mpi4py import MPI
import torch
import horovod.torch as hvd

hvd.init(comm=MPI.COMM_WORLD)
torch.set_num_threads(1)
torch.manual_seed(hvd.rank())
tensors = [torch.randn(n) for n in (3, 17, 64, 100, 257, 1000, 33, 4096, 5000, 12)]
draw = random.Random(hvd.rank())
seen = set()
for _ in range(40):
    averages = [tensor.clone() for tensor in tensors]
    handles = []
    for number, tensor in enumerate(averages):
        handles.append(hvd.allreduce_async_(tensor, name=str(number), op=hvd.Average))
        time.sleep(0.004 * draw.random() * (draw.random() < 0.3))  # as long as a backward pass may take between two
    for handle in handles:
        hvd.synchronize(handle)
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in averages)).hexdigest()
    assert len(set(MPI.COMM_WORLD.allgather(digest))) == 1, "ranks differ"
    seen.add(digest)
if hvd.rank() == 0:
    print(len(seen))
hvd.shutdown()
PYTHON
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1
results() {
    "$(dirname "$python")/mpirun" -n 3 --map-by :OVERSUBSCRIBE --bind-to none "$python" "$folder/averages.py"
}
"$python" - <<'PYTHON'
from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in ("horovod", "torch", "mpi4py")), sep=", ")
PYTHON
"$(dirname "$python")/mpirun" --version | head -n 1
unset HOROVOD_FUSION_THRESHOLD
fused=$(results)
alone=$(HOROVOD_FUSION_THRESHOLD=0 results)
echo "different results of 40   by default: expected 1, seen $fused   HOROVOD_FUSION_THRESHOLD=0: expected 1, seen $alone"
if [ "$fused" -le 1 ] || [ "$alone" -ne 1 ]; then
    echo "this has changed" >&2
    exit 1
fi
