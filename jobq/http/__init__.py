"""The REST interface: ``create_app`` makes an aiohttp application of queues."""

from jobq.http.app import create_app

__all__ = ["create_app"]
