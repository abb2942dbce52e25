"""The Flower app that both engines run: a node moves the vector by a number of its own, and the server averages.

A round begins when the server's strategy begins to configure it, and ends when the strategy has the average. What the
strategy is asked for besides, the check and the change to an array that can be checked, comes after.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server import LegacyContext, ServerConfig
from flwr.server import strategy as legacy
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from vectors import STRIDE, exactness, first_vector, largest_error, move

QUANTUM = 2 * 8.0 / 4194304  # SecAgg+ with its default clipping range and quantisation range
FULL_WEIGHT = 1000  # SecAgg+ is most precise where each node's weight is the largest that it allows
ECHO_ARRAYS = 10
LOOK_S = 0.25  # between two looks for replies, in place of Flower's 3 s in a deployment, which no setting changes


def tolerance(work: str, rounds: int, sites: int) -> float:
    """Float32 is exact for these numbers where dividing by the sites is; SecAgg+ rounds each number to its grid."""
    return rounds * (QUANTUM + 1e-6) if work == "secure" else exactness(rounds, sites)


class Book:
    """When each round began and ended, and how far its result was off; at the end a file, for the script."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.sites, self.params = int(settings["sites"]), int(settings["params"])
        self.file = Path(settings["report"])
        self.found: dict[str, Any] = {"pid": os.getpid(), "rounds": [], "errors": [], "done": False}

    def begin(self) -> None:
        self.found["rounds"].append([time.monotonic()])

    def end(self) -> None:
        """Before anything else is done with the result: the check is no part of the round."""
        self.found["rounds"][-1].append(time.monotonic())

    def check(self, vector: np.ndarray) -> None:
        self.found["errors"].append(largest_error(vector, self.params, len(self.found["rounds"]), self.sites))

    def close(self, failure: str = "") -> None:
        self.found |= {"done": True, "failure": failure}
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.found))
        part.rename(self.file)


class TimedFedAvg(FedAvg):
    """FedAvg as it is, with the book's entries."""

    def __init__(self, book: Book) -> None:
        sites = book.sites
        super().__init__(fraction_evaluate=0.0, min_train_nodes=sites, min_available_nodes=sites)
        self.book = book

    def configure_train(self, *arguments: Any, **named: Any) -> Any:
        while len(list(arguments[3].get_node_ids())) < self.book.sites:  # nodes that are not there yet are no round
            time.sleep(0.2)
        self.book.begin()
        return super().configure_train(*arguments, **named)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        result = super().aggregate_train(server_round, replies)
        self.book.end()
        good = sum(not reply.has_error() for reply in replies)
        if good < self.book.sites or result[0] is None:
            raise RuntimeError(f"round {server_round} had {good} good replies of {self.book.sites} nodes")
        self.book.check(result[0].to_numpy_ndarrays()[0])
        return result


class TimedLegacyFedAvg(legacy.FedAvg):
    """The strategy that SecAgg+ works with; the vector stays float32 between rounds, as the nodes hold it."""

    def __init__(self, book: Book, params: int) -> None:
        sites = book.sites
        super().__init__(
            fraction_evaluate=0.0,
            min_fit_clients=sites,
            min_available_clients=sites,
            initial_parameters=ndarrays_to_parameters([first_vector(params)]),
        )
        self.book = book

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        client_manager.wait_for(self.book.sites)
        self.book.begin()
        return super().configure_fit(server_round, parameters, client_manager)

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        if len(results) < self.book.sites or failures:
            raise RuntimeError(f"round {server_round} had {len(results)} results of {self.book.sites} nodes")
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        self.book.end()
        vector = parameters_to_ndarrays(parameters)[0].astype(np.float32, copy=False)
        self.book.check(vector)
        return ndarrays_to_parameters([vector]), metrics


def plain(grid: Grid, context: Context, book: Book, settings: dict[str, Any]) -> None:
    """FedAvg over Flower's messages."""
    first = ArrayRecord({"vector": Array(first_vector(int(settings["params"])))})
    TimedFedAvg(book).start(grid=grid, initial_arrays=first, num_rounds=int(settings["rounds"]))


def secure(grid: Grid, context: Context, book: Book, settings: dict[str, Any]) -> None:
    """FedAvg under SecAgg+, which Flower offers as a workflow."""
    sites = book.sites
    old = LegacyContext(
        context=context,
        config=ServerConfig(num_rounds=int(settings["rounds"])),
        strategy=TimedLegacyFedAvg(book, int(settings["params"])),
    )
    DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(num_shares=sites, reconstruction_threshold=sites - 1))(grid, old)
    if len(book.found["errors"]) < int(settings["rounds"]):
        raise RuntimeError(f"SecAgg+ ended after {len(book.found['errors'])} rounds")


def echo(grid: Grid, context: Context, book: Book, settings: dict[str, Any]) -> None:
    """Ten arrays to one node and back, with one low-level message in place of a strategy."""
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    size = int(settings["params"]) // ECHO_ARRAYS
    random = np.random.default_rng(14)
    sent = {str(i): random.integers(-(2**31), 2**31, size, dtype=np.int32) for i in range(ECHO_ARRAYS)}
    for _ in range(int(settings["rounds"])):
        book.begin()
        record = ArrayRecord({name: Array(array) for name, array in sent.items()})
        message = Message(RecordDict({"arrays": record}), nodes[0], "query")
        del record
        waited = list(grid.push_messages([message]))
        del message
        # One node is asked, so looking even more often costs little.
        while not (replies := list(grid.pull_messages(waited))):
            time.sleep(0.02)
        if replies[0].has_error():
            raise RuntimeError(f"the node answered with an error: {replies[0].error}")
        back = {name: array.numpy() for name, array in replies[0].content["arrays"].items()}
        book.end()
        del replies
        for array in sent.values():
            array[::STRIDE] += 1  # the node did the same, and the next round has new contents
        book.found["errors"].append(differs(back, sent))
        sent = back


def differs(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """1 where any number differs, or there is none, otherwise 0."""
    alike = one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    return float(not one or not alike)


class Often:
    """Flower's grid, whose `send_and_receive` looks often; by its own low-level calls, which an app may use."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        """The replies; those that are not there after `timeout` seconds are left out."""
        waited, found = set(self.grid.push_messages(messages)), list[Message]()
        until = None if timeout is None else time.monotonic() + timeout
        while waited and (until is None or time.monotonic() < until):
            news = list(self.grid.pull_messages(waited))
            waited -= {reply.metadata.reply_to_message_id for reply in news}
            found += news
            if waited and not news:
                time.sleep(LOOK_S)
        return found


WORKS = {"plain": plain, "secure": secure, "echo": echo}


def serve(grid: Grid, context: Context, settings: dict[str, Any]) -> None:
    """One run; the book says how it went, also where it failed."""
    book = Book(settings)
    try:
        WORKS[str(settings["work"])](grid, context, book, settings)
    except BaseException as error:
        book.close(f"{type(error).__name__}: {error}")
        raise
    book.close()


server_app = ServerApp()
client_app = ClientApp()


@server_app.main()
def deployed(grid: Grid, context: Context) -> None:
    serve(cast(Grid, Often(grid)), context, dict(context.run_config))


def number_of(context: Context) -> int:
    """Of this node, counted from 0."""
    return int(context.node_config["partition-id"])


@client_app.train()
def train(message: Message, context: Context) -> Message:
    vector = message.content["arrays"]["vector"].numpy()
    move(vector, number_of(context))
    arrays = ArrayRecord({"vector": Array(vector)})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


@client_app.query()
def answer(message: Message, context: Context) -> Message:
    """Echo, with every 1024th number one higher, so that no stretch is known to the store from the way there."""
    arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
    for array in arrays.values():
        array[::STRIDE] += 1
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return Message(RecordDict({"arrays": record}), reply_to=message)


class Adding(NumPyClient):
    """A node under SecAgg+."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fit(self, parameters: Any, config: Any) -> Any:
        move(parameters[0], self.number)
        return parameters, FULL_WEIGHT, {}


secure_client_app = ClientApp(client_fn=lambda context: Adding(number_of(context)).to_client(), mods=[secaggplus_mod])
