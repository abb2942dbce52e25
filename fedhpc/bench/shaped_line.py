"""A TCP proxy that makes a line of a chosen length and width: delay and bytes a second, in order, per direction.

It changes nothing and drops nothing, so what runs over it, TLS included, sees a far relay. One thread, any number of
connections, which share the width.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from typing import Self

_PIECE = 64 << 10
_MOST_AHEAD_S = 1.0  # of bytes held back by a slow line: who sends more waits, as with a full buffer


class Line:
    """Listens on a loopback port of its own and carries every connection to `host:port`."""

    def __init__(self, port: int, delay_s: float = 0.0, bytes_per_s: float = 0.0, host: str = "127.0.0.1") -> None:
        """`delay_s`: of each direction. `bytes_per_s`: of each direction, for all connections together; 0: no limit."""
        self.delay_s, self.bytes_per_s = delay_s, bytes_per_s
        self.connections = 0
        self._target = (host, port)
        self._free = {"there": 0.0, "back": 0.0}  # when the line can take the next byte of a direction
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._carry, sock=self._listener))
        self._loop.run_forever()
        for task in (tasks := asyncio.all_tasks(self._loop)):
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _carry(self, near_in: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            far_in, far_out = await asyncio.open_connection(*self._target)
        except OSError:
            near_out.close()
            return
        for writer in (near_out, far_out):
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.gather(self._one_way(near_in, far_out, "there"), self._one_way(far_in, near_out, "back"))
        except (OSError, asyncio.CancelledError):  # one end has gone, or the proxy ends
            pass
        finally:
            for writer in (near_out, far_out):
                writer.close()

    async def _one_way(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, way: str) -> None:
        """Every piece leaves `delay_s` after it came, or when the line is free, whichever is later."""
        clock = self._loop.time
        waiting: deque[tuple[float, bytes]] = deque()
        changed = asyncio.Event()

        async def deliver() -> None:
            while True:
                while not waiting:
                    changed.clear()
                    await changed.wait()
                due, data = waiting.popleft()
                await asyncio.sleep(max(0.0, due - clock()))
                if not data:
                    sink.write_eof()
                    return
                sink.write(data)
                await sink.drain()

        delivery = asyncio.create_task(deliver())
        try:
            while not delivery.done():
                try:
                    data = await source.read(_PIECE)
                except ConnectionError:
                    data = b""
                now = clock()
                free = max(now, self._free[way]) + (len(data) / self.bytes_per_s if self.bytes_per_s else 0.0)
                self._free[way] = free
                waiting.append((free + self.delay_s, data))
                changed.set()
                if not data:
                    break
                await asyncio.sleep(max(0.0, free - now - _MOST_AHEAD_S))
            await delivery
        finally:
            delivery.cancel()
