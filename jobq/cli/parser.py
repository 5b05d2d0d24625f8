"""The parser of the command line. It imports nothing that a command needs only when it runs."""

from __future__ import annotations

import argparse
from importlib.metadata import PackageNotFoundError, version
from typing import Any, get_args

from jobq.cli import flow, values
from jobq.cli.menu import Menu, Parser, command
from jobq.cli.parser_schedules import SCHEDULES, add_schedules
from jobq.engine.model.job import Conflict, Durability, State, While

STATES = [str(state) for state in State]

EPILOG = """\
'jobq COMMAND --help' describes a command.

TARGET   package.module:name or path/file.py:name, a queue or a list of queues in your code.
QUEUE    the name of a queue, or a TARGET. The default is the only queue there is, else "default".
ID       a job, as queue:id. The id alone is enough with --queue, or if there is only one queue.
TIME     5s, 250ms, 10m, 2h or 7d. A number without a unit is seconds.

Every setting is a flag and an environment variable (JOBQ_REDIS_URL, JOBQ_LEASE, ...); the flag wins.
Without a Redis URL an embedded server is used.
Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Errors are one line on stderr."""


def build_parser() -> argparse.ArgumentParser:
    """The parser. It sets ``args.run`` to "module:function" in this package."""
    parser = Parser(
        prog="jobq",
        description="Background jobs over Redis or Valkey.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"jobq {_version()}")
    menu = Menu(parser)
    menu.group("Processes")
    _add_processes(menu)
    menu.group("Look")
    _add_looking(menu)
    menu.group("Jobs")
    _add_jobs(menu)
    menu.group("Queues")
    _add_queues(menu)
    menu.group("Limits")
    flow.add_limits(menu)
    flow.add_breakers(menu)
    flow.add_groups(menu)
    menu.group("Schedules")
    add_schedules(Menu(menu.add("schedules", "", SCHEDULES)))
    menu.group("Access")
    _add_access(menu)
    return parser


def _version() -> str:
    try:
        return version("jobq")
    except PackageNotFoundError:
        return "(not installed)"


def _add_processes(menu: Menu) -> None:
    dev = command(menu, "dev", "dev:dev", "run server, REST and workers together, for development")
    dev.add_argument("target", metavar="TARGET", help="the queues to serve and run")
    dev.add_argument("--processes", type=values.whole(0), default=2, metavar="N", help="worker processes (default: 2)")
    _reload(dev, "restart everything when the code changes")
    _http_settings(dev)
    _worker_settings(dev)

    work = command(menu, "work", "work:work", "run jobs")
    work.add_argument("target", metavar="TARGET", help="the queues whose jobs to run")
    work.add_argument(
        "--processes",
        type=values.whole(0),
        default=1,
        metavar="N",
        help="supervised worker processes (default: 1); 0 runs in this process, for a debugger",
    )
    work.add_argument(
        "--weight",
        type=values.weight,
        action="append",
        default=[],
        metavar="QUEUE=N",
        help="claim N times as often from this queue; may be repeated",
    )
    work.add_argument(
        "--burst",
        action="store_true",
        help="end when no job is waiting, held, active or due (paused queues and groups do not count)",
    )
    _reload(work, "restart the workers gracefully when the code changes")
    _worker_settings(work)

    serve = command(menu, "serve", "serve:serve", "serve REST and the dashboard")
    serve.add_argument("target", metavar="TARGET", nargs="?", help="the queues to serve")
    serve.add_argument(
        "--queue", action="append", default=[], metavar="NAME", help="serve a queue by its name; may be repeated"
    )
    serve.add_argument(
        "--processes", type=values.whole(0), default=1, metavar="N", help="processes that share the port (default: 1)"
    )
    _http_settings(serve)

    bench = command(menu, "bench", "bench:bench", "measure jobq on this machine, in about ten seconds", shown=True)
    bench.add_argument(
        "--seconds",
        type=values.positive_seconds,
        default=2.0,
        metavar="TIME",
        help="length of each of two measurements (2s)",
    )
    bench.add_argument("--concurrency", type=values.whole(1), default=100, metavar="N", help="jobs at a time (100)")


def _add_looking(menu: Menu) -> None:
    for name, run, words in (
        ("queues", "look:queues", "list queues with their jobs and workers"),
        ("stats", "look:stats", "show counts, waiting times and run times of queues"),
        ("workers", "look:workers", "list worker processes"),
    ):
        look = command(menu, name, run, words, shown=True)
        look.add_argument("queue", metavar="QUEUE", nargs="?", help="only this queue (default: all)")
        if name == "stats":
            look.add_argument("--window", metavar="WINDOW", help="show each type in the last 1h, 24h or 7d instead")
        if name == "queues":
            look.add_argument("--types", action="store_true", help="list the types that workers and servers publish")

    doctor = command(menu, "doctor", "doctor:doctor", "say what is wrong with the server and the queues", shown=True)
    doctor.add_argument("queue", metavar="QUEUE", nargs="?", help="only this queue (default: all)")

    top = command(menu, "top", "top:top", "watch queues and workers live; q quits")
    top.add_argument("queue", metavar="QUEUE", nargs="?", help="only this queue (default: all)")
    top.add_argument(
        "--interval", type=values.positive_seconds, default=1.0, metavar="TIME", help="time between two updates (1s)"
    )

    ls = command(menu, "ls", "look:ls", "list jobs", shown=True, queue=True)
    ls.add_argument("--state", choices=STATES, help="only jobs of this state (default: all)")
    ls.add_argument("--type", help="only jobs of this type")
    ls.add_argument("--group", help="only jobs of this group")
    ls.add_argument("--limit", type=values.whole(1), default=20, metavar="N", help="at most N jobs (default: 20)")
    ls.add_argument("--all", action="store_true", help="no limit")

    show = command(menu, "show", "look:show", "show everything about a job", shown=True, queue=True)
    show.add_argument("id", metavar="ID", help="the job")

    why = command(
        menu, "why", "why:why", "say why a job does not run, or why a queue runs none", shown=True, queue=True
    )
    why.add_argument("id", metavar="ID", nargs="?", help="the job (default: the queue, or all queues)")
    flow.add_events(menu)
    flow.add_webhooks(menu)

    check = command(menu, "check", "check:check", "say which jobs of a queue some code could not run", shown=True)
    check.add_argument("target", metavar="TARGET", help="the code, as its workers name it")
    check.add_argument(
        "--state",
        choices=STATES,
        action="append",
        help="only jobs of this state; may be repeated (default: unfinished)",
    )
    check.add_argument("--limit", type=values.whole(1), metavar="N", help="read at most N jobs of each queue")

    logs = command(menu, "logs", "look:logs", "show the log lines of a job", shown=True, queue=True)
    logs.add_argument("id", metavar="ID", help="the job")
    logs.add_argument("-f", "--follow", action="store_true", help="wait for more lines until the job is finished")
    logs.add_argument(
        "--interval",
        type=values.positive_seconds,
        default=0.5,
        metavar="TIME",
        help="with -f: time between two reads (500ms)",
    )


def _add_jobs(menu: Menu) -> None:
    enqueue = command(menu, "enqueue", "enqueue:enqueue", "add a job and print its id", shown=True, queue=True)
    enqueue.add_argument("type", metavar="TYPE", help="the type of the job, which is the name of its handler")
    enqueue.add_argument(
        "payload",
        metavar="JSON",
        nargs="?",
        type=values.payload,
        help="the handler's arguments, a JSON object (default: {}); - reads it from stdin",
    )
    enqueue.add_argument("--create", action="store_true", help="let --queue name a queue that does not exist yet")
    time: dict[str, Any] = {"type": values.seconds, "metavar": "TIME"}
    enqueue.add_argument("--delay", **time, help="run it after this time at the earliest")
    enqueue.add_argument(
        "--run-at",
        type=values.moment,
        metavar="WHEN",
        help="run it at this time at the earliest: 2030-01-31T08:00:00+01:00",
    )
    enqueue.add_argument("--id", help="an id of your own; the same job with the same id is added once")
    enqueue.add_argument("--priority", type=values.integer, metavar="N", help="lower numbers run first")
    enqueue.add_argument("--attempts", type=values.attempts, metavar="N", help="total number of runs, or unlimited")
    enqueue.add_argument(
        "--backoff", type=values.backoff, metavar="SPEC", help="between runs: fixed:5s, exponential:1s:1h or 1s,5s,1m"
    )
    enqueue.add_argument("--timeout", **time, help="limit of one run")
    late: dict[str, Any] = {"type": values.by_when, "metavar": "TIME"}
    enqueue.add_argument("--expires", **late, help="let it fail as expired unless it starts in this time (or by then)")
    enqueue.add_argument("--deadline", **late, help="let it fail unless it ends in this time (or by then)")
    enqueue.add_argument(
        "--lifo", action="store_true", default=None, help="run it before the other jobs of its priority"
    )
    enqueue.add_argument("--key", help="while a job with this key is unfinished, no other is added")
    enqueue.add_argument(
        "--by", action="append", metavar="FIELD", help="make the key of this field of the payload; may be repeated"
    )
    enqueue.add_argument("--key-ttl", **time, help="hold the key for this time, even if the job ends earlier")
    enqueue.add_argument(
        "--while", dest="unique_while", choices=get_args(While), help="a job in such a state holds the key"
    )
    enqueue.add_argument(
        "--for", dest="unique_for", **time, help="hold the key for this time; with --while unfinished, from the end"
    )
    enqueue.add_argument(
        "--on-conflict", choices=get_args(Conflict), help="what happens if the key is held (default: return)"
    )
    enqueue.add_argument("--unique-delay", **time, help="put off a job that waits with the key by this time")
    enqueue.add_argument("--max-wait", **time, help="but let it run at the latest so long after its first enqueue")
    enqueue.add_argument("--retention", **time, help="keep the finished job for this time")
    enqueue.add_argument(
        "--durability",
        choices=get_args(Durability),
        help="what must be confirmed before the command ends (default: the queue's)",
    )
    enqueue.add_argument(
        "--limits", action="append", metavar="KEY", help="a limit key, such as tenant:a; may be repeated"
    )
    enqueue.add_argument(
        "--cost",
        type=values.cost,
        action="append",
        dest="costs",
        metavar="UNIT=N",
        help="what it costs; may be repeated",
    )
    enqueue.add_argument("--group", metavar="GROUP", help="the group whose turns it takes, such as a tenant")
    enqueue.add_argument(
        "--slots", type=values.integer, metavar="N", help="count it as N jobs, for its worker and its limits"
    )
    _add_contents(enqueue)
    enqueue.add_argument("--wait", **time, help="wait this long for the result, and print it instead of the id")

    retry = command(menu, "retry", "move:retry", "run finished jobs again", shown=True, queue=True)
    _ids(retry)
    _bulk(retry, "all jobs of the state", state="failed", states=["failed", "completed"])

    kill = command(
        menu, "kill", "move:kill", "end unfinished jobs as failed and stop their handlers", shown=True, queue=True
    )
    _ids(kill)
    unfinished = [state for state in STATES if state not in ("completed", "failed")]
    _bulk(kill, "all jobs of the state given by --state", states=unfinished, aged=False)
    _add_rerun(menu)
    promote = command(menu, "promote", "move:promote", "run delayed jobs now", shown=True, queue=True)
    _ids(promote)
    _bulk(promote, "all delayed jobs", state="delayed", states=["delayed"], aged=False)

    priority = command(
        menu, "priority", "move:priority", "give jobs that have not started another priority", shown=True, queue=True
    )
    priority.add_argument("priority", type=values.integer, metavar="N", help="the priority; lower numbers run first")
    _ids(priority)
    _bulk(
        priority, "all jobs of the state given by --state", states=[s for s in unfinished if s != "active"], aged=False
    )

    rm = command(menu, "rm", "move:rm", "remove jobs that are not running", shown=True, queue=True)
    _ids(rm)
    _bulk(rm, "all jobs of the state given by --state", states=[s for s in STATES if s != "active"])


def _add_contents(enqueue: argparse.ArgumentParser) -> None:
    enqueue.add_argument("--partition-by", metavar="TEXT", help="jobs with the same text are in one partition")
    enqueue.add_argument(
        "--payload-version",
        type=values.whole(1),
        dest="version",
        metavar="N",
        help="the version of the payload, if it is older than the task's",
    )
    enqueue.add_argument("--metadata", type=values.json_object, metavar="JSON", help="an object that the job carries")
    enqueue.add_argument(
        "--each",
        type=values.payloads,
        metavar="FILE",
        help="add a job for each line of the file, which is its payload; - reads stdin",
    )
    enqueue.add_argument(
        "--spread",
        type=values.seconds,
        metavar="TIME",
        help="with --each: spread the due times of the jobs over this time",
    )


def _add_queues(menu: Menu) -> None:
    for name, words in (
        ("pause", "let no worker start jobs of a queue; running jobs continue"),
        ("resume", "let workers start jobs again"),
    ):
        verb = command(menu, name, f"move:{name}", words, shown=True)
        verb.add_argument("queue", metavar="QUEUE", nargs="?", help="the queue")

    aging = command(
        menu, "aging", "move:aging", "set how much waiting a step of priority is worth", shown=True, queue=True
    )
    aging.add_argument(
        "time", type=values.seconds_or_off, metavar="TIME", help="60s, 5m; 'off': priorities are absolute"
    )

    flow.add_partitions(menu)
    of_queues = Menu(menu.add("queue", "", "'queue rm NAME' removes a queue"))
    rm = command(of_queues, "rm", "move:queue_rm", "remove a queue that has no jobs and no workers", shown=True)
    rm.add_argument("queue", metavar="QUEUE", help="the queue")
    rm.add_argument("--force", action="store_true", help="remove it with its jobs, even if workers are alive")


def _add_access(menu: Menu) -> None:
    key = menu.add("key", "serve:key", "make an API key for JOBQ_API_KEYS")
    key.add_argument("name", metavar="NAME", help="name of the key's owner")
    key.add_argument("--scope", choices=["read", "write", "admin"], default="write", help="default: write")
    key.add_argument("--queue", action="append", metavar="PATTERN", help="only for these queues; may be repeated")


def _http_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("REST")
    group.add_argument("--host", dest="http_host", help="address to listen on (default: 127.0.0.1)")
    group.add_argument("--port", dest="http_port", type=values.whole(1), metavar="PORT", help="default: 7800")
    group.add_argument("--api-keys", metavar="KEYS", help="name:sha256:scope[:queues[:expires]],...")
    group.add_argument("--allowed-hosts", metavar="NAMES", help="names that the Host header may have, comma separated")
    group.add_argument(
        "--rate", type=values.number, metavar="N", help="calls per second for each key (default: no limit)"
    )
    group.add_argument("--max-payload", type=values.whole(1), metavar="BYTES", help="largest payload (default: 1 MiB)")


def _reload(parser: argparse.ArgumentParser, words: str) -> None:
    parser.add_argument("--reload", action="store_true", help=f"{words}: the Python files that the target imports")


def _worker_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("workers")
    group.add_argument(
        "--concurrency", type=values.whole(1), metavar="N", help="jobs at a time in each process (default: 100)"
    )
    group.add_argument("--reserve", metavar="CONDITION=N", help="keep N of these for urgent jobs: priority<0=20")
    group.add_argument(
        "--lease", type=values.seconds, metavar="TIME", help="jobs of a dead worker run again after this time (30s)"
    )
    group.add_argument(
        "--grace", type=values.seconds, metavar="TIME", help="running jobs get this long when a worker stops (25s)"
    )
    group.add_argument(
        "--metrics-port",
        type=values.whole(0),
        metavar="PORT",
        help="serve the numbers of each worker to Prometheus; the second process takes the next port, and so on",
    )
    group.add_argument("--metrics-host", metavar="HOST", help="the address for that (default: 127.0.0.1)")


def _add_rerun(menu: Menu) -> None:
    rerun = command(menu, "rerun", "move:rerun", "run a job again as a new job", shown=True, queue=True)
    rerun.add_argument("id", metavar="ID", help="the job")
    rerun.add_argument(
        "--payload", type=values.payload, metavar="JSON", help="in place of its own; - reads it from stdin"
    )
    rerun.add_argument("--priority", type=values.integer, metavar="N", help="in place of its own")
    rerun.add_argument("--delay", type=values.seconds, metavar="TIME", help="run it after this time")


def _ids(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", metavar="ID", nargs="*", help="the jobs")


def _bulk(
    parser: argparse.ArgumentParser, words: str, *, states: list[str], state: str | None = None, aged: bool = True
) -> None:
    default = f" (default: {state})" if state else ""
    parser.add_argument("--all", action="store_true", help=words)
    parser.add_argument("--state", choices=states, default=state, help=f"with --all: of this state{default}")
    if aged:
        parser.add_argument(
            "--older-than",
            type=values.seconds,
            metavar="TIME",
            help="with --all: only jobs that finished, or were due, longer ago than this",
        )
    parser.add_argument("--group", metavar="GROUP", help="with --all: only jobs of this group")
    parser.add_argument("--limit", type=values.whole(1), metavar="N", help="with --all: at most N jobs")
