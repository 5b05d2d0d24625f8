"""What the command line takes. Nothing is imported here that a command needs only when it runs."""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, get_args

from jobq.cli import values
from jobq.engine.model.job import Durability, State

if TYPE_CHECKING:
    from typing import Any

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]

STATES = [str(state) for state in State]

EPILOG = """\
TARGET is package.module:name or path/file.py:name, a queue or a list of queues.
A job's id is printed as queue:id and taken so; the plain id does where --queue says which queue.
Without --queue it is the only queue there is, else "default".
Every JOBQ_* variable but the session secret has a flag; the flag wins. Without a Redis URL an embedded server is used.
Exit codes: 0 done, 1 failed, 2 used wrongly."""


def build_parser() -> argparse.ArgumentParser:
    """The parser; ``args.run`` is "module:function" in this package."""
    parser = argparse.ArgumentParser(
        prog="jobq",
        description="Background jobs over Redis or Valkey.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jobq {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_processes(commands)
    _add_looking(commands)
    _add_moving(commands)
    return parser


def _version() -> str:
    try:
        return version("jobq")
    except PackageNotFoundError:
        return "(not installed)"


def _add_processes(commands: Commands) -> None:
    dev = _command(commands, "dev", "dev:dev", "everything at once: server, REST, workers")
    dev.add_argument("target", metavar="TARGET", help="the queue(s) to serve and run")
    dev.add_argument("--processes", type=values.whole(0), default=2, help="worker processes (default: 2)")
    _http_settings(dev)
    _worker_settings(dev)

    serve = _command(commands, "serve", "serve:serve", "the REST interface")
    serve.add_argument("target", metavar="TARGET", nargs="?", help="the queue(s) to serve")
    serve.add_argument("--queue", action="append", default=[], metavar="NAME", help="serve a queue by name")
    serve.add_argument("--processes", type=values.whole(0), default=1, help="on one port (default: 1)")
    _http_settings(serve)

    work = _command(commands, "work", "work:work", "run jobs")
    work.add_argument("target", metavar="TARGET", help="the queue(s) to run")
    work.add_argument(
        "--processes",
        type=values.whole(0),
        default=1,
        help="supervised worker processes (default: 1); 0: run in this process, for a debugger",
    )
    work.add_argument(
        "--weight",
        type=values.weight,
        action="append",
        default=[],
        metavar="QUEUE=N",
        help="claim N times as often from this queue; may be repeated",
    )
    _worker_settings(work)

    bench = _command(commands, "bench", "bench:bench", "measure this machine; 'jobq bench -- --help' says how")
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="of the benchmark")

    key = commands.add_parser("key", help="make an API key", description="Make an API key for JOBQ_API_KEYS.")
    key.set_defaults(run="serve:key")
    key.add_argument("name", metavar="NAME", help="whose key it is")
    key.add_argument("--scope", choices=["read", "write", "admin"], default="write", help="default: write")
    key.add_argument("--queue", action="append", metavar="PATTERN", help="only these queues; may be repeated")


def _add_looking(commands: Commands) -> None:
    queues = _command(commands, "queues", "look:queues", "list queues with their jobs and workers", shown=True)
    queues.add_argument("queue", metavar="QUEUE", nargs="?", help="name or TARGET (default: all queues)")

    stats = _command(commands, "stats", "look:stats", "counts, rates and latencies", shown=True)
    stats.add_argument("queue", metavar="QUEUE", nargs="?", help="name or TARGET (default: all queues)")

    top = _command(commands, "top", "top:top", "the same, live; q quits")
    top.add_argument("queue", metavar="QUEUE", nargs="?", help="name or TARGET (default: all queues)")
    top.add_argument("--interval", type=values.seconds, default=1.0, help="seconds between looks (default: 1)")

    workers = _command(commands, "workers", "look:workers", "the worker processes", shown=True)
    workers.add_argument("queue", metavar="QUEUE", nargs="?", help="name or TARGET (default: all queues)")

    ls = _command(commands, "ls", "look:ls", "list jobs", shown=True, queue=True)
    ls.add_argument("--state", choices=STATES, help="default: all states")
    ls.add_argument("--type", help="only jobs of this type")
    ls.add_argument("--limit", type=values.whole(1), default=20, help="how many (default: 20)")
    ls.add_argument("--all", action="store_true", help="no limit")

    show = _command(commands, "show", "look:show", "all there is to know of a job", shown=True, queue=True)
    show.add_argument("id", metavar="ID", help="the job")

    logs = _command(commands, "logs", "look:logs", "what a job's handler logged", shown=True, queue=True)
    logs.add_argument("id", metavar="ID", help="the job")
    logs.add_argument("-f", "--follow", action="store_true", help="wait for more lines until the job is finished")
    logs.add_argument(
        "--interval", type=values.seconds, default=0.5, metavar="TIME", help="with -f: between looks (500ms)"
    )


def _add_moving(commands: Commands) -> None:
    enqueue = _command(commands, "enqueue", "enqueue:enqueue", "add a job", shown=True, queue=True)
    enqueue.add_argument("type", metavar="TYPE", help="the job's type")
    enqueue.add_argument(
        "payload", metavar="JSON", nargs="?", type=values.payload, help="its arguments (default: {}); - reads stdin"
    )
    enqueue.add_argument("--create", action="store_true", help="--queue may name a queue that does not exist yet")
    times: dict[str, Any] = {"type": values.seconds, "metavar": "TIME"}
    enqueue.add_argument("--delay", **times, help="not before: 5 (seconds), 250ms, 10m, 2h, 7d")
    enqueue.add_argument("--priority", type=int, metavar="N", help="lower runs first (default: 0)")
    enqueue.add_argument("--attempts", type=int, metavar="N", help="total number of runs (default: 3)")
    enqueue.add_argument(
        "--backoff", type=values.backoff, metavar="SPEC", help="fixed:5s or exponential:1s:1h between attempts"
    )
    enqueue.add_argument("--timeout", **times, help="for one run")
    enqueue.add_argument("--lifo", action="store_true", default=None, help="before all others of its priority")
    enqueue.add_argument("--key", help="while a job with this key is unfinished, it is the answer")
    enqueue.add_argument("--key-ttl", **times, help="the key holds this long instead")
    enqueue.add_argument("--retention", **times, help="how long the finished job stays")
    enqueue.add_argument(
        "--durability", choices=get_args(Durability), help="confirmed before the id is printed (default: the queue's)"
    )
    enqueue.add_argument("--metadata", type=values.json_object, metavar="JSON", help="an object of your own")
    enqueue.add_argument("--wait", **times, help="wait for its end and print its result")

    retry = _command(commands, "retry", "move:retry", "finished jobs run again", shown=True, queue=True)
    _ids(retry)
    _bulk(retry, "all jobs of the state", state="failed", states=["failed", "completed"])

    for name, words in (
        ("kill", "unfinished jobs go to failed; running handlers are stopped"),
        ("promote", "delayed jobs run now"),
    ):
        verb = _command(commands, name, f"move:{name}", words, shown=True, queue=True)
        _ids(verb)

    rm = _command(commands, "rm", "move:rm", "remove jobs and all that is known of them", shown=True, queue=True)
    _ids(rm)
    _bulk(rm, "all jobs of the state given by --state", states=[s for s in STATES if s != "active"])

    for name, words in (
        ("pause", "no worker claims from now on; running jobs go on"),
        ("resume", "claims go on"),
    ):
        verb = _command(commands, name, f"move:{name}", words, shown=True)
        verb.add_argument("queue", metavar="QUEUE", nargs="?", help="name or TARGET")

    verbs = _command(commands, "queue", "", "do something to a whole queue: 'jobq queue rm NAME'", settings=False)
    of_queues: Commands = verbs.add_subparsers(title="commands", metavar="COMMAND", required=True)
    drop = _command(of_queues, "rm", "move:queue_rm", "remove a queue that has no jobs and no workers", shown=True)
    drop.add_argument("queue", metavar="QUEUE", help="name or TARGET")
    drop.add_argument("--force", action="store_true", help="remove its jobs too, and do not ask for living workers")


def _command(
    commands: Commands,
    name: str,
    run: str,
    words: str,
    *,
    shown: bool = False,
    queue: bool = False,
    settings: bool = True,
) -> argparse.ArgumentParser:
    """A command with the settings that all have. ``shown``: it prints data, as JSON on request."""
    parser = commands.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
    parser.set_defaults(run=run, json=False)
    if shown:
        parser.add_argument("--json", action="store_true", help="one JSON document a line")
    if queue:
        parser.add_argument("--queue", metavar="QUEUE", help="name or TARGET")
    if not settings:
        return parser
    group = parser.add_argument_group("settings")
    group.add_argument("--redis", dest="redis_url", metavar="URL", help="redis://, rediss://, unix://, valkey://")
    group.add_argument("--data-dir", metavar="PATH", help="of the embedded server")
    group.add_argument("--prefix", help='of all keys in Redis (default: "jobq")')
    group.add_argument("--log-level", choices=["debug", "info", "warning", "error"], help="default: info")
    group.add_argument("--log-format", choices=["auto", "console", "json"], help="default: console on a terminal")
    return parser


def _http_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("REST")
    group.add_argument("--host", dest="http_host", help="address to listen on (default: 127.0.0.1)")
    group.add_argument("--port", dest="http_port", type=values.whole(1), help="default: 7800")
    group.add_argument("--api-keys", metavar="KEYS", help="name:sha256:scope[:queues[:expires]],...")
    group.add_argument("--allowed-hosts", metavar="NAMES", help="that the Host header may say, comma separated")
    group.add_argument("--rate", type=float, metavar="N", help="calls a second for each key; default: no limit")
    group.add_argument("--max-payload", type=values.whole(1), metavar="BYTES", help="default: 1 MiB")


def _worker_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--concurrency", type=values.whole(1), metavar="N", help="jobs at a time in each process (default: 100)"
    )
    group.add_argument("--lease", type=values.seconds, metavar="TIME", help="a dead worker's jobs wait (30s)")
    group.add_argument("--grace", type=values.seconds, metavar="TIME", help="running jobs get at a stop (25s)")


def _ids(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", metavar="ID", nargs="*", help="the jobs")


def _bulk(parser: argparse.ArgumentParser, words: str, *, states: list[str], state: str | None = None) -> None:
    default = f" (default: {state})" if state else ""
    parser.add_argument("--all", action="store_true", help=words)
    parser.add_argument("--state", choices=states, default=state, help=f"with --all{default}")
    parser.add_argument("--older-than", type=values.seconds, metavar="TIME", help="with --all: 1h, 7d ...")
    parser.add_argument("--limit", type=values.whole(1), metavar="N", help="with --all: at most so many")
