"""The REST interface. ``create_app`` makes an aiohttp application that serves queues, ``asgi`` an ASGI application."""

from jobq.http.app import create_app
from jobq.http.bridge import asgi

__all__ = ["asgi", "create_app"]
