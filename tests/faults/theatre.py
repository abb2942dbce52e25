"""Plays the cells of real processes, a few at once, and counts them."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nursery import Nursery
from relayed_cells import Cell
from relayed_world import TRAINING, Kind, Templates, World

AT_ONCE = 5  # most of a cell is waiting for deadlines
CELLS: Counter[tuple[str, str, str, str]] = Counter()
"""(who, fate, point, outcome) of the cells of real processes that were played."""


class Theatre:
    """Plays cells in processes of their own, several at once, each with its own relay and folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.nursery = Nursery()
        self._templates, self._lock = Templates(folder / "templates"), threading.Lock()
        self._run_lock = threading.Lock()
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._begun: dict[str, Future[str]] = {}
        self._unbroken = ""

    def begin(self, cell: Cell) -> Future[str]:
        """Play a cell soon; once."""
        if cell.name not in self._begun:
            self._begun[cell.name] = self._pool.submit(self._play, cell)
        return self._begun[cell.name]

    def world(self, kind: Kind, name: str) -> World:
        """A federation of its own for a test."""
        with self._lock:
            template = self._templates.get(kind)
        return World.make(self.nursery, template, kind, self._folder / name)

    def unbroken(self) -> str:
        """The final hash of a run of the main loop without faults."""
        with self._run_lock:
            if not self._unbroken:
                with self.world(TRAINING, "unbroken") as world:
                    world.start_relay()
                    world.finish(world.start_sites(world.numbers, "rounds"))
                    self._unbroken = world.final()
            return self._unbroken

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self.nursery.close()

    def _play(self, cell: Cell) -> str:
        with self.world(cell.kind, cell.name) as world:
            world.unbroken = self.unbroken
            outcome = cell.play(cell, world)
        CELLS[cell.who, cell.fate, cell.point, outcome] += 1
        return outcome
