"""`python -m MODULE WORDS` or `python SCRIPT.py WORDS` in a process that has imported all already: torch takes seconds.

Run as a script with a path it is the parent: it listens there, and forks for every order a child that runs the module
with the sender's words, directory, umask, environment and open files. With `PATH MODULE WORDS` it is the sender, which
stands for the command, also as a rank under mpirun: it hands signals on, it ends as the child ends, and the child ends
when it is killed. Tests of how a process starts, and those that kill at a given write, start real ones.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys

LENGTH = struct.Struct("<I")
CODE = struct.Struct("<i")  # below 0: the signal that ended it
# torch imports its compiler, most of its modules, when it makes the first optimiser.
MODULES = (
    *("torch", "torch._inductor", "torch.distributed", "torch.nn.parallel", "h5py", "h11", "safetensors.numpy"),
    *(
        "fedhpc.cli",
        "fedhpc.app.run",
        "fedhpc.train.open_torch_trainer",
        "fedhpc.train.linear.open_numpy_trainer",
        "fedhpc.sums.in_job.mpi_exchange",
        "fedhpc.sums.over_relay.access",
        "fedhpc.sums.over_relay.masked_sum",
    ),
)
HANDED_ON = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGABRT)


def send(path: str, words: list[str]) -> int:
    """Give the order, with this process's files; the exit code."""
    umask = os.umask(0o077)
    os.umask(umask)
    order = json.dumps({"words": words, "cwd": os.getcwd(), "umask": umask, "env": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(path)
        files = array.array("i", [0, 1, 2]).tobytes()
        sock.sendmsg([LENGTH.pack(len(order))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        sock.sendall(order)
        (child,) = CODE.unpack(sock.recv(CODE.size, socket.MSG_WAITALL))

        def hand_on(number: int, frame: object) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)

        for number in HANDED_ON:
            signal.signal(number, hand_on)
        status = sock.recv(CODE.size, socket.MSG_WAITALL)
    code = CODE.unpack(status)[0] if status else 1
    if code < 0:
        with contextlib.suppress(OSError):  # not of SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def receive(sock: socket.socket) -> tuple[dict, list[int]]:
    data, rights, _, _ = sock.recvmsg(LENGTH.size, socket.CMSG_SPACE(12))
    files = array.array("i")
    files.frombytes(rights[0][2])
    left, parts = LENGTH.unpack(data)[0], []
    while left:
        parts.append(sock.recv(left))
        assert parts[-1]
        left -= len(parts[-1])
    return json.loads(b"".join(parts)), list(files)


def become(order: dict, files: list[int]) -> None:
    """In the child: what it ends with goes up to the interpreter, which ends as it would have without a parent."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(order["cwd"])
    os.umask(order["umask"])
    os.environ.clear()
    os.environ.update(order["env"])
    module, *words = order["words"]
    sys.argv = [module, *words]
    sys.path[:1] = ["", *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    if module.endswith(".py"):
        sys.path[0] = os.path.dirname(module)
        runpy.run_path(module, run_name="__main__")
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def attend(sock: socket.socket) -> None:
    """One order, in a process of its own between the parent and the child; it never returns, nor does the child."""
    order, files = receive(sock)
    os.setsid()
    child = os.fork()
    if child == 0:
        sock.close()
        become(order, files)
    with contextlib.suppress(OSError):
        sock.sendall(CODE.pack(child))
    for file in files:
        os.close(file)
    ended = os.pidfd_open(child)
    if ended not in select.select([sock, ended], [], [])[0]:  # the sender is gone
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with contextlib.suppress(OSError):
        sock.sendall(CODE.pack(code))
    os._exit(0)


def parent(path: str) -> None:
    for name in MODULES:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1  # a fork of several threads could inherit a held lock
    gc.freeze()  # a collection in a child would copy every page
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(64)
        print("ready", flush=True)
        while True:
            sock, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                attend(sock)
            sock.close()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        parent(sys.argv[1])
    else:
        sys.exit(send(sys.argv[1], sys.argv[2:]))
