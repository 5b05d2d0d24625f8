"""Calls of several queues of one server in one write, and questions about all of them in one command.

A worker of many queues would otherwise make a trip for each of them every few seconds. In a cluster the calls for the
queues of one node go in one write, and the nodes say when the answer to a question changes (see tracking.py).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from jobq.engine.store.cluster import is_refusal
from jobq.engine.store.tracking import trackers_of
from jobq.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jobq.engine.store.calls import Call
    from jobq.engine.store.link import Connection
    from jobq.engine.store.packing import Argument
    from jobq.engine.store.sender import Sender

    Part = tuple[Sender, Sequence[Call[Any]]]
    """Calls of one queue."""

CALLS_PER_WRITE: Final = 100
"""The most calls of several queues in one write. Other clients are served between two writes."""
KEYS_PER_COMMAND: Final = 500


async def send_together(parts: Sequence[Part]) -> list[list[Any]]:
    """Send calls of several queues of one server or cluster, many in one write. Returns the answers of each queue. A
    ``StoreError`` stands in the place of an answer, also if none came, so one queue does not stop the others.
    """
    if not parts or not parts[0][0].connection.in_cluster:
        answers: list[list[Any]] = []
        for page in _pages(parts):
            answers += await _send_page(page)
        return answers
    try:
        await parts[0][0].connection.know_nodes()
    except StoreError as error:
        return [[error] * len(calls) for _, calls in parts]
    by_node: dict[Connection, list[int]] = {}
    for place, (store, _) in enumerate(parts):
        by_node.setdefault(store.node, []).append(place)
    # Side by side, so that a node that does not answer does not keep the others waiting.
    found = await asyncio.gather(*(_send_to_node([parts[place] for place in places]) for places in by_node.values()))
    answer_of = {
        place: answer
        for places, some in zip(by_node.values(), found, strict=True)
        for place, answer in zip(places, some, strict=True)
    }
    return [answer_of[place] for place in range(len(parts))]


def _pages(parts: Sequence[Part]) -> list[list[Part]]:
    pages: list[list[Part]] = []
    size = 0
    for store, calls in parts:
        if not pages or size + len(calls) > CALLS_PER_WRITE:
            pages.append([])
            size = 0
        pages[-1].append((store, calls))
        size += len(calls)
    return pages


async def _send_to_node(parts: Sequence[Part]) -> list[list[Any]]:
    answers: list[list[Any]] = []
    for page in _pages(parts):
        answers += await _send_page_to_node(page)
    return answers


async def _send_page_to_node(parts: Sequence[Part]) -> list[list[Any]]:
    """One write to the node that has the first queue. What it refuses or does not answer is sent again queue by queue,
    so that a queue whose slot is on the move does not keep the others waiting."""
    first = parts[0][0].connection
    deadline = time.monotonic() + first.timeout
    pieces = [store.packed(call) for store, calls in parts for call in calls]
    try:
        node = await parts[0][0].current()
        flat: list[Any] | None = await node.trip(b"".join(pieces), len(pieces))
    except StoreUnavailable:
        flat = None
        for _, calls in parts:
            for call in calls:
                call.send_again()
    answers: list[Any] = []
    at = 0
    for store, calls in parts:
        own = flat[at : at + len(calls)] if flat is not None else None
        at += len(calls)
        if own is None or any(is_refusal(answer) for answer in own):
            answers.append(_send_alone(store, calls, deadline))
        else:
            answers.append(_read(store, calls, own))
    return await asyncio.gather(*answers)


async def _send_alone(store: Sender, calls: Sequence[Call[Any]], deadline: float) -> list[Any]:
    """A call that the node executed already is harmless when it is repeated."""
    try:
        return await store.trip(*calls, within=max(0.05, deadline - time.monotonic()))
    except StoreError as error:
        return [error] * len(calls)


async def _read(store: Sender, calls: Sequence[Call[Any]], answers: list[Any]) -> list[Any]:
    try:
        return await store.read(calls, answers, [], 0.0)
    except StoreError as error:
        return [error] * len(calls)


async def _send_page(parts: Sequence[Part]) -> list[list[Any]]:
    calls = [call for _, some in parts for call in some]
    store_of = {call: store for store, some in parts for call in some}

    def packed(call: Call[Any]) -> bytes:
        return store_of[call].packed(call)

    try:
        flat = await parts[0][0].send([packed(call) for call in calls], calls, packed)
    except StoreError as error:
        return [[error] * len(some) for _, some in parts]
    answers: list[list[Any]] = []
    at = 0
    for store, some in parts:
        answers.append(await _read(store, some, flat[at : at + len(some)]))
        at += len(some)
    return answers


async def send_each(stores: Sequence[Sender], command: Callable[[Sender], tuple[Argument, ...]]) -> list[Any]:
    """Send one plain command for each queue of one server, in one write. In a cluster each goes its own way. A
    command's own error stands in its place.

    :raises StoreUnavailable: the server does not answer. In a cluster this error stands in its place, too.
    """
    if not stores[0].connection.in_cluster:
        return await stores[0].commands(*map(command, stores))

    async def one(store: Sender) -> Any:
        try:
            return await store.command(*command(store))
        except StoreError as error:
            return error

    return list(await asyncio.gather(*map(one, stores)))


async def having(stores: Sequence[Sender], *columns: str) -> list[int]:
    """The places of the queues that have one of these columns. All are on one server or cluster.

    If none has, which is what idle queues are like, one command says so for hundreds of them. A cluster is asked only
    about queues in which something has changed since the last time. A queue whose keys may not be read counts as having
    them: its next call gets the error.

    :raises StoreUnavailable: no answer.
    """
    if stores and stores[0].connection.in_cluster:
        return await trackers_of(stores[0].connection).having(stores, columns)
    keys = [[store.keys[column] for column in columns] for store in stores]
    step = max(1, KEYS_PER_COMMAND // len(columns))
    found: list[int] = []
    for first in range(0, len(keys), step):
        page = keys[first : first + step]
        (count,) = await stores[0].commands((b"EXISTS", *(key for some in page for key in some)))
        if count == 0:
            continue
        answers = await stores[0].commands(*((b"EXISTS", *some) for some in page))
        found += [first + place for place, answer in enumerate(answers) if answer != 0]
    return found


async def give_wakes_back(stores: Sequence[Sender]) -> None:
    """Put the tokens of these queues of one server or cluster back: they were taken by a worker that cannot use them.

    :raises StoreUnavailable: no answer.
    """
    await send_each(stores, lambda store: (b"ZADD", store.keys["wake"], 0, b"t"))
