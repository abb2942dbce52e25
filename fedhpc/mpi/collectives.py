"""The one checked door to MPI communication.

Everything that crosses ranks goes through a `Group`. Before MPI sees a buffer its dtype, contiguity and count are
checked, because MPI itself does not: a bfloat16 sum is silently wrong on libraries without that type, and more than
2^31 elements fail on MPI 3.1 hosts. Nothing is pickled: messages are bytes, vectors are NumPy arrays.

`SerialGroup` is the null object: one process, no MPI, the same calls.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedhpc.errors import DataError, InternalError

if TYPE_CHECKING:
    from mpi4py import MPI

MAX_COUNT = 1 << 28  # elements in one MPI call; larger counts overflow on MPI 3.1 libraries
MAX_EXCHANGE_BYTES = 1 << 30  # of one rank in one alltoall; MPI counts them in 32 bits
MAX_MESSAGE_BYTES = 64 << 20  # a control message; a vector never travels as one

SUMMABLE = ("int32", "uint32", "int64", "uint64", "float32", "float64")
MOVABLE = (*SUMMABLE, "uint8")

_SMALL = 1020  # bytes of a message that fits the first, fixed-size allgather
_HEADER = 4

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 50e-6, 10e-3  # between two looks at a message that is long in coming


class Group(Protocol):
    """A set of ranks that talk to each other, as seen from one of them."""

    rank: int
    size: int
    label: str

    def sum(self, array: NDArray[Any]) -> None:
        """Add `array` [any shape] over all ranks, in place; unsigned integers wrap mod 2^k.

        Raises DataError for a dtype outside SUMMABLE or a buffer that is not C-contiguous.
        """
        ...

    def broadcast(self, array: NDArray[Any], root: int = 0) -> None:
        """Copy `array` of `root` into the same array of every rank, in place."""
        ...

    def broadcast_bytes(self, data: bytes | None, root: int = 0) -> bytes:
        """The bytes `root` gave, on every rank; other ranks give None. At most 64 MiB."""
        ...

    def await_bytes(self, data: bytes | None) -> bytes:
        """The bytes rank 0 gave, on every rank, as broadcast_bytes; for a message that may take hours to come.

        A waiting rank sleeps: MPI's own broadcast would keep its core busy all the time.
        """
        ...

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """The bytes of every rank, in rank order, on every rank. At most 64 MiB together."""
        ...

    def gather_parts(self, buffer: NDArray[np.uint8], bounds: Sequence[tuple[int, int]]) -> None:
        """Complete `buffer` [n] on every rank, in place: rank i holds bytes bounds[i] = (start, stop) of it."""
        ...

    def alltoall(
        self,
        sent: NDArray[np.uint8],
        sent_bytes: Sequence[int],
        received: NDArray[np.uint8],
        received_bytes: Sequence[int],
    ) -> None:
        """Every rank sends bytes to every rank: `sent` holds those for rank 0, then those for rank 1, …

        `received` gets those of rank 0, then those of rank 1, … Both counts [ranks] are of this rank; what rank i sends
        to rank j must be what j expects of i. At most 1 GiB each.
        """
        ...

    def barrier(self) -> None:
        """Return when every rank has come here."""
        ...


class SerialGroup:
    """One process without MPI: every collective is the identity."""

    rank = 0
    size = 1

    def __init__(self, label: str = "serial") -> None:
        self.label = label

    def sum(self, array: NDArray[Any]) -> None:
        """Check `array` as MPI's door does; the sum over one rank is itself."""
        check_buffer(array, SUMMABLE, "sum", self)

    def broadcast(self, array: NDArray[Any], root: int = 0) -> None:
        """Check `array` as MPI's door does."""
        check_buffer(array, MOVABLE, "broadcast", self)

    def broadcast_bytes(self, data: bytes | None, root: int = 0) -> bytes:
        """`data` itself."""
        if data is None:
            raise InternalError(f"{self.label}: the root of a broadcast gave no bytes")
        return data

    def await_bytes(self, data: bytes | None) -> bytes:
        """`data` itself."""
        return self.broadcast_bytes(data)

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """`[data]`."""
        return [data]

    def gather_parts(self, buffer: NDArray[np.uint8], bounds: Sequence[tuple[int, int]]) -> None:
        """The buffer is already whole."""
        check_buffer(buffer, MOVABLE, "gather", self)

    def alltoall(
        self,
        sent: NDArray[np.uint8],
        sent_bytes: Sequence[int],
        received: NDArray[np.uint8],
        received_bytes: Sequence[int],
    ) -> None:
        """What this rank sends to itself."""
        _check_alltoall(sent, sent_bytes, received, received_bytes, self)
        received[:] = sent

    def barrier(self) -> None:
        """There are no other ranks to wait for."""


class MpiGroup(Group):
    """A communicator behind the checks. `label` names it in errors, for example `site hungary`."""

    def __init__(self, comm: MPI.Comm, label: str) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = comm
        self.label = label
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()

    @override
    def sum(self, array: NDArray[Any]) -> None:
        check_buffer(array, SUMMABLE, "sum", self)
        for piece in _pieces(array):
            self._comm.Allreduce(self._mpi.IN_PLACE, piece, op=self._mpi.SUM)

    @override
    def broadcast(self, array: NDArray[Any], root: int = 0) -> None:
        check_buffer(array, MOVABLE, "broadcast", self)
        for piece in _pieces(array):
            self._comm.Bcast(piece, root=root)

    @override
    def broadcast_bytes(self, data: bytes | None, root: int = 0) -> bytes:
        length = np.array([-1 if data is None else len(data)], dtype=np.int64)
        self._comm.Bcast(length, root=root)
        count = int(length[0])
        if not 0 <= count <= MAX_MESSAGE_BYTES:
            raise InternalError(f"{_who(self)}: a message of {count} bytes; at most {MAX_MESSAGE_BYTES}")
        buffer = np.empty(count, dtype=np.uint8)
        if self.rank == root:
            assert data is not None
            buffer[:] = np.frombuffer(data, dtype=np.uint8)
        self._comm.Bcast(buffer, root=root)
        return buffer.tobytes()

    @override
    def await_bytes(self, data: bytes | None) -> bytes:
        request = self._comm.Ibarrier()
        pause = _SHORTEST_PAUSE_S
        while not request.Test():
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        return self.broadcast_bytes(data)

    @override
    def gather_bytes(self, data: bytes) -> list[bytes]:
        """One call for messages up to 1020 bytes, two for longer ones."""
        if len(data) > MAX_MESSAGE_BYTES:
            raise InternalError(f"{_who(self)}: a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES}")
        mine = np.zeros(_HEADER + _SMALL, dtype=np.uint8)
        mine[:_HEADER] = np.frombuffer(len(data).to_bytes(_HEADER, "little"), dtype=np.uint8)
        head = data[:_SMALL]
        mine[_HEADER : _HEADER + len(head)] = np.frombuffer(head, dtype=np.uint8)
        all_ = np.empty((self.size, _HEADER + _SMALL), dtype=np.uint8)
        self._comm.Allgather(mine, all_)
        lengths = [int.from_bytes(row[:_HEADER].tobytes(), "little") for row in all_]
        if max(lengths) <= _SMALL:
            return [row[_HEADER : _HEADER + n].tobytes() for row, n in zip(all_, lengths, strict=True)]
        if sum(lengths) > MAX_MESSAGE_BYTES:
            raise InternalError(f"{_who(self)}: messages of {sum(lengths)} bytes together")
        joined = np.empty(sum(lengths), dtype=np.uint8)
        self._comm.Allgatherv(np.frombuffer(data, dtype=np.uint8), [joined, lengths])
        ends = np.cumsum(lengths)
        return [joined[e - n : e].tobytes() for e, n in zip(ends, lengths, strict=True)]

    @override
    def gather_parts(self, buffer: NDArray[np.uint8], bounds: Sequence[tuple[int, int]]) -> None:
        check_buffer(buffer, MOVABLE, "gather", self)
        for root, (start, stop) in enumerate(bounds):
            if stop > start:
                self.broadcast(buffer[start:stop], root)

    @override
    def alltoall(
        self,
        sent: NDArray[np.uint8],
        sent_bytes: Sequence[int],
        received: NDArray[np.uint8],
        received_bytes: Sequence[int],
    ) -> None:
        _check_alltoall(sent, sent_bytes, received, received_bytes, self)
        self._comm.Alltoallv([sent, list(sent_bytes)], [received, list(received_bytes)])

    @override
    def barrier(self) -> None:
        self._comm.Barrier()

    def lend(self) -> MPI.Comm:
        """The communicator itself, for fedhpc.mpi.lent only."""
        return self._comm


def check_buffer(array: Any, allowed: Sequence[str], operation: str, group: Group) -> None:
    """Raise DataError, with the group and rank, for what MPI would sum wrongly or refuse obscurely."""
    if not isinstance(array, np.ndarray):
        kind = f"{type(array).__module__}.{type(array).__name__}"
        raise DataError(
            f"{_who(group)}: {operation} takes NumPy arrays, not {kind} of {getattr(array, 'dtype', '?')}",
            "convert on the host first, for example tensor.detach().float().cpu().numpy()",
        )
    if array.dtype.name not in allowed or not array.dtype.isnative:
        raise DataError(
            f"{_who(group)}: {operation} refuses dtype {array.dtype}",
            f"MPI adds only {', '.join(allowed)} reliably (bfloat16 would be summed byte by byte)",
        )
    if not array.flags.c_contiguous or not array.flags.writeable:
        state = "read-only" if array.flags.c_contiguous else "not C-contiguous"
        raise DataError(
            f"{_who(group)}: {operation} of a buffer that is {state}", "use np.ascontiguousarray or .copy()"
        )


def _check_alltoall(
    sent: NDArray[np.uint8],
    sent_bytes: Sequence[int],
    received: NDArray[np.uint8],
    received_bytes: Sequence[int],
    group: Group,
) -> None:
    for array, counts in ((sent, sent_bytes), (received, received_bytes)):
        check_buffer(array, ("uint8",), "alltoall", group)
        if len(counts) != group.size or min(counts) < 0 or sum(counts) != array.size:
            raise InternalError(f"{_who(group)}: alltoall of {array.size} bytes as {list(counts)}")
        if array.size > MAX_EXCHANGE_BYTES:
            raise InternalError(f"{_who(group)}: alltoall of {array.size} bytes; at most {MAX_EXCHANGE_BYTES}")
    if sent_bytes[group.rank] != received_bytes[group.rank]:
        raise InternalError(f"{_who(group)}: alltoall sends itself other bytes than it expects")


def _pieces(array: NDArray[Any]) -> list[NDArray[Any]]:
    """Views of `array` of at most MAX_COUNT elements each."""
    flat = array.reshape(-1)
    return [flat[i : i + MAX_COUNT] for i in range(0, flat.size, MAX_COUNT)]


def _who(group: Group) -> str:
    return f"{group.label}, rank {group.rank} of {group.size}"
