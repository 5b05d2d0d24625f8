"""Clients for applications on real sockets, over the session's real server."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from jobq import Connection, Queue
from jobq.http.app import create_app

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from rest import Client, NewClient


@pytest.fixture
async def new_client(connection: Connection) -> AsyncIterator[NewClient]:
    """``await new_client(*queues, **options of create_app)``; without queues, one called "main" without tasks."""
    async with AsyncExitStack() as stack:

        async def make(*queues: Queue, **options: Any) -> Client:
            app = create_app(*(queues or (Queue("main", connection),)), **options)
            return await stack.enter_async_context(TestClient(TestServer(app)))

        yield make


@pytest.fixture
async def client(new_client: NewClient) -> Client:
    """A client of the default application."""
    return await new_client()
