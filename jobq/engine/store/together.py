"""Calls of several queues of one server in one write, and questions about all of them in one command.

A worker of many queues would otherwise make a trip for each of them every few seconds.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from jobq.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.store.calls import Call
    from jobq.engine.store.sender import Sender

CALLS_PER_WRITE: Final = 100
"""The most calls of several queues in one write. Other clients are served between two writes."""
KEYS_PER_COMMAND: Final = 500


async def send_together(parts: Sequence[tuple[Sender, Sequence[Call[Any]]]]) -> list[list[Any]]:
    """Send calls of several queues of one server, many in one write. Returns the answers of each queue. A
    ``StoreError`` stands in the place of an answer, also if none came, so one queue does not stop the others.

    In a cluster each queue's calls go to its own node.
    """
    if parts and parts[0][0].connection.in_cluster:
        return list(await asyncio.gather(*(_send_alone(store, calls) for store, calls in parts)))
    answers: list[list[Any]] = []
    page: list[tuple[Sender, Sequence[Call[Any]]]] = []
    size = 0
    for store, calls in parts:
        if page and size + len(calls) > CALLS_PER_WRITE:
            answers += await _send_page(page)
            page, size = [], 0
        page.append((store, calls))
        size += len(calls)
    return answers + (await _send_page(page) if page else [])


async def _send_alone(store: Sender, calls: Sequence[Call[Any]]) -> list[Any]:
    try:
        return await store.trip(*calls)
    except StoreError as error:
        return [error] * len(calls)


async def _send_page(parts: Sequence[tuple[Sender, Sequence[Call[Any]]]]) -> list[list[Any]]:
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
        own = flat[at : at + len(some)]
        at += len(some)
        try:
            answers.append(await store.read(some, own, [], 0.0))
        except StoreError as error:
            answers.append([error] * len(some))
    return answers


async def having(stores: Sequence[Sender], *columns: str) -> list[int]:
    """The places of the queues that have one of these columns. All are on one server.

    If none has, which is what idle queues are like, one command says so for hundreds of them. In a cluster each queue
    counts as having them, because one command asks about one slot only. So does a queue whose keys may not be read: its
    next call gets the error.

    :raises StoreUnavailable: no answer.
    """
    if stores and stores[0].connection.in_cluster:
        return list(range(len(stores)))
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
    """Put the tokens of these queues of one server back: they were taken by a worker that cannot use them.

    :raises StoreUnavailable: no answer.
    """
    await stores[0].commands(*((b"ZADD", store.keys["wake"], 0, b"t") for store in stores))
