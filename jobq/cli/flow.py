"""The parser of the commands of flow control (limits, circuit breakers, groups), of partitions and of events."""

from __future__ import annotations

import argparse

from jobq.cli import values
from jobq.cli.menu import Menu, command
from jobq.engine.model.limits import OVERS


def add_limits(menu: Menu) -> None:
    of_limits = Menu(
        menu.add("limits", "", "'limits ls', 'show', 'keys', 'set', 'reset', 'rm', 'close', 'open': how many jobs run")
    )
    command(of_limits, "ls", "limits:ls", "list the rules of limits", shown=True, queue=True)

    show = command(of_limits, "show", "limits:show", "show a rule and its keys", shown=True, queue=True)
    show.add_argument("rule", metavar="RULE", help="the rule")

    keys = command(
        of_limits, "keys", "limits:keys", "list the keys of a rule, most held jobs first", shown=True, queue=True
    )
    keys.add_argument("rule", metavar="RULE", help="the rule")
    keys.add_argument("--limit", type=values.whole(1), default=50, metavar="N", help="at most N keys (default: 50)")

    set_ = command(
        of_limits, "set", "limits:set_", "set a whole rule, in place of what code declares", shown=True, queue=True
    )
    set_.add_argument("rule", metavar="RULE", help="the rule")
    set_.add_argument(
        "--concurrency", dest="most", type=values.whole(0), metavar="N", help="jobs that run at once; 0 holds all"
    )
    set_.add_argument(
        "--rate", type=values.rate, action="append", dest="bands", metavar="COUNT/TIME[/BURST[/UNIT]]",
        help="jobs that start in a time, and how many at once: 100/1m/20; or what they cost: 90000/1m/9000/tokens",
    )  # fmt: skip
    set_.add_argument(
        "--over", choices=OVERS, default="wait", help="what happens to a job that has no room (default: wait)"
    )
    set_.add_argument("--dry-run", action="store_true", help="only say how many jobs it would hold now")

    reset = command(of_limits, "reset", "limits:reset", "return to the rule that code declares", shown=True, queue=True)
    reset.add_argument("rule", metavar="RULE", help="the rule")

    rm = command(of_limits, "rm", "limits:rm", "remove a rule that no code declares now", shown=True, queue=True)
    rm.add_argument("rule", metavar="RULE", help="the rule")

    close = command(
        of_limits, "close", "limits:close", "start no job of a limit key for a time", shown=True, queue=True
    )
    close.add_argument("key", metavar="KEY", help="a limit key, such as tenant:a, or queue for the whole queue")
    close.add_argument("time", type=values.seconds, metavar="TIME", help="how long: 30s, 5m, 1h")
    open_ = command(of_limits, "open", "limits:open_", "open a closed limit key at once", shown=True, queue=True)
    open_.add_argument("key", metavar="KEY", help="the limit key, or queue")


def add_breakers(menu: Menu) -> None:
    of_breakers = Menu(menu.add("breakers", "", "'breakers ls', 'trip', 'reset' and 'rm': types that fail too often"))
    command(of_breakers, "ls", "breakers:ls", "list the circuit breakers of types", shown=True, queue=True)
    trip = command(of_breakers, "trip", "breakers:trip", "start no job of a type for a time", shown=True, queue=True)
    trip.add_argument("type", metavar="TYPE", help="the type")
    trip.add_argument("--time", type=values.seconds, metavar="TIME", help="how long (default: as its task declares)")
    reset = command(of_breakers, "reset", "breakers:reset", "close the breaker of a type", shown=True, queue=True)
    reset.add_argument("type", metavar="TYPE", help="the type")
    rm = command(of_breakers, "rm", "breakers:rm", "remove the breaker of a type without code", shown=True, queue=True)
    rm.add_argument("type", metavar="TYPE", help="the type")


def add_groups(menu: Menu) -> None:
    of_groups = Menu(
        menu.add(
            "groups",
            "",
            "'groups ls', 'show', 'set', 'pause', 'resume', 'reset', 'charge': tenants that share the workers fairly",
        )
    )
    ls = command(of_groups, "ls", "groups:ls", "list the groups, most held jobs first", shown=True, queue=True)
    ls.add_argument("--sort", choices=("waiting", "oldest", "name"), default="waiting", help="the order (waiting)")
    ls.add_argument("--limit", type=values.whole(1), default=20, metavar="N", help="at most N groups (default: 20)")
    show = command(of_groups, "show", "groups:show", "show a group", shown=True, queue=True)
    show.add_argument("group", metavar="GROUP", help="the group")
    set_ = command(
        of_groups, "set", "groups:set_", "change settings of a group; the others stay", shown=True, queue=True
    )
    set_.add_argument("group", metavar="GROUP", help="the group")
    set_.add_argument("--weight", type=values.number, metavar="N", help="its share, compared with others (at first 1)")
    set_.add_argument(
        "--paused", action=argparse.BooleanOptionalAction, default=None, help="whether none of its jobs starts"
    )
    set_.add_argument(
        "--max-queued",
        dest="most",
        type=values.whole_or_any,
        metavar="N",
        help="refuse more queued jobs; 'any': no bound",
    )
    for verb, words in (("pause", "start no job of a group"), ("resume", "start jobs of a paused group again")):
        switch = command(of_groups, verb, f"groups:{verb}", words, shown=True, queue=True)
        switch.add_argument("group", metavar="GROUP", help="the group")
    reset = command(of_groups, "reset", "groups:reset", "remove the settings of a group", shown=True, queue=True)
    reset.add_argument("group", metavar="GROUP", help="the group")
    charge = command(
        of_groups, "charge", "groups:charge", "show or set what a turn of a group costs", shown=True, queue=True
    )
    charge.add_argument("charge", choices=("count", "actual"), nargs="?", help="one job, or the time that its jobs run")


def add_partitions(menu: Menu) -> None:
    of = menu.add("partitions", "", "'partitions show', 'set': one queue over many slots")
    of.epilog = (
        "A queue of several partitions is spread over several slots of a cluster, so several nodes execute\n"
        "its scripts. Below about 50,000 jobs a second one partition is enough.\n\n"
        "More partitions get jobs at once, and no job moves. Fewer: those beyond the number get no new jobs, and\n"
        "workers drain them. Jobs with keys, limits or groups stay in the first ones, so there cannot be fewer."
    )
    of_partitions = Menu(of)
    command(
        of_partitions,
        "show",
        "partitions:show",
        "show the partitions of a queue",
        shown=True,
        queue=True,
    )
    set_ = command(
        of_partitions,
        "set",
        "partitions:set_",
        "set over how many partitions a queue is spread, while it is in use",
        shown=True,
        queue=True,
    )
    set_.add_argument("partitions", type=values.whole(1), metavar="N", help="the partitions that get new jobs")


def add_webhooks(menu: Menu) -> None:
    words = "'webhooks ls', 'show', 'set', 'rm', 'rotate', 'test', 'deliveries': addresses that are told"
    of = Menu(menu.add("webhooks", "", words))
    command(of, "ls", "webhooks:ls", "list the webhooks", shown=True, queue=True)
    set_ = command(of, "set", "webhooks:set_", "make or change a webhook", shown=True, queue=True)
    set_.add_argument("name", metavar="NAME", help="its name")
    set_.add_argument(
        "url", metavar="URL", help="http or https, without user and password; its address is checked at each delivery"
    )
    set_.add_argument(
        "--events", type=lambda word: word.split(","), metavar="NAMES", help="such as completed,failed (default: ends)"
    )
    set_.add_argument("--types", type=lambda word: word.split(","), metavar="TYPES", help="only jobs of these types")
    set_.add_argument(
        "--enabled", action=argparse.BooleanOptionalAction, default=True, help="whether it is told of events"
    )
    for verb, words in (
        ("show", "show a webhook"),
        ("rm", "remove a webhook"),
        ("rotate", "make a new secret; the earlier one also signs for 24 hours"),
        ("test", "deliver a test event"),
    ):
        command(of, verb, f"webhooks:{verb}", words, shown=True, queue=True).add_argument(
            "name", metavar="NAME", help="the webhook"
        )
    last = command(of, "deliveries", "webhooks:deliveries", "list its last deliveries", shown=True, queue=True)
    last.add_argument("name", metavar="NAME", help="the webhook")
    last.add_argument("--limit", type=values.whole(1), default=20, metavar="N", help="how many (default: 20)")


def add_events(menu: Menu) -> None:
    events = command(menu, "events", "events:events", "show what happens to jobs, live", shown=True, queue=True)
    events.add_argument("--job", metavar="ID", help="only events of this job, until it has ended")
    events.add_argument(
        "--since", type=values.since, metavar="CURSOR", help="also earlier ones: behind this cursor, or a time ago (5m)"
    )
    events.add_argument(
        "--names", type=lambda word: word.split(","), metavar="NAMES", help="only these, such as completed,failed"
    )
    events.add_argument(
        "--tell", choices=("outcomes", "all"), help="set what the queue tells; all: also each start and each progress"
    )
