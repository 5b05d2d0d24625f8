"""``jobq serve`` runs the REST interface in one process, or in several that share a port. ``jobq key`` makes keys."""

from __future__ import annotations

import asyncio
import errno
import gc
import secrets
import sys
from typing import TYPE_CHECKING

from jobq.cli import render
from jobq.cli.session import loaded, on_stop_signals, run
from jobq.cli.supervisor import Supervisor, follow_supervisor
from jobq.cli.target import load_target
from jobq.engine.log import get_logger
from jobq.engine.queue.queue import Queue
from jobq.errors import SettingsError
from jobq.http import auth
from jobq.http import serve as server
from jobq.http.app import create_app
from jobq.logging import configure

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from jobq.settings import Settings

CLOSING = 15.0
"""Seconds that running requests get before a process is killed."""

YOUNG = 5000
"""New objects after which the garbage collector looks for cycles among them. With 700, as usual, it looks at the
objects of the requests in hand again and again, a twentieth of an enqueue's work; decision 63 has the figures."""

log = get_logger("jobq.serve")


def serve(args: argparse.Namespace, settings: Settings) -> int:
    """Serve the target's queues and those named with --queue, or the queue "default"."""
    configure(settings)
    supervised = follow_supervisor(grace=CLOSING)
    queues = load_target(args.target) if args.target else []
    queues += [Queue(name, settings=settings) for name in args.queue]
    queues = queues or [Queue(settings=settings)]
    check_bind(settings)
    if supervised or args.processes < 2:
        return run(_serve(queues, settings, reuse_port=supervised))
    names = [f"--queue={name}" for name in args.queue]
    target = [args.target] if args.target else []
    words = [sys.executable, "-m", "jobq", "serve", *target, *names]
    # Every process must accept the sessions of the others.
    env = {"JOBQ_SESSION_SECRET": settings.session_secret or secrets.token_hex(32)}
    return run(_supervise(words, args.processes, env))


def key(args: argparse.Namespace, _: Settings) -> None:
    """``jobq key``: print the secret for the owner, and the entry for JOBQ_API_KEYS."""
    scope = auth.Scope[args.scope.upper()]
    secret, made = auth.new_key(args.name, scope, args.queue or ("*",))
    render.say(f"key for {args.name}, shown this once:", f"  {secret}", "entry for JOBQ_API_KEYS:", f"  {made.entry()}")


def check_bind(settings: Settings) -> None:
    """Check the address and the keys before anything starts.

    :raises SettingsError: other machines could reach this server and there is no key, or a key cannot be read.
    """
    auth.check_bind(settings.http_host, auth.parse_keys(settings.api_keys or ""))


async def listen(
    queues: Sequence[Queue],
    settings: Settings,
    stop: asyncio.Event,
    started: Callable[[str, int], None],
    *,
    reuse_port: bool = False,
) -> None:
    """Serve the queues until ``stop``.

    :raises SettingsError: the address cannot be bound.
    """
    host, port = settings.http_host, settings.http_port
    app = create_app(*queues, settings=settings)
    try:
        await server.serve(app, host, port, stop=stop, started=started, reuse_port=reuse_port)
    except ConnectionError:
        raise  # This error is about Redis and not about the address.
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(f"port {port} of {host} is taken: choose another with --port") from None
        raise SettingsError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


async def _serve(queues: list[Queue], settings: Settings, *, reuse_port: bool) -> int:
    stop = asyncio.Event()
    on_stop_signals(stop.set)

    def started(host: str, port: int) -> None:
        loaded()
        gc.set_threshold(YOUNG)
        log.info("serving", url=url(host, port), queues=[queue.name for queue in queues])

    await listen(queues, settings, stop, started, reuse_port=reuse_port)
    return 0


async def _supervise(words: list[str], processes: int, env: dict[str, str]) -> int:
    supervisor = Supervisor(words, processes, name="server", env=env, grace=CLOSING)
    on_stop_signals(supervisor.stop)
    return await supervisor.run()


def url(host: str, port: int) -> str:
    """The address as a URL; IPv6 in its brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
