"""Checks that a server is fit for jobs: once per connection, when the first queue on it is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

from jobq.engine.log import get_logger
from jobq.errors import DurabilityRefused, StoreRefused
from jobq.redact import redact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobq.engine.store.link import Connection

log = get_logger("jobq.store")

REDIS_FLOOR: Final = (7, 0)
"""The first version in which scripts can declare flags (allow-oom)."""
VALKEY_FLOOR: Final = (7, 2)
WAITAOF_FLOOR: Final = (7, 2)

QUESTIONS: Final = (
    (b"INFO", b"server"),
    (b"INFO", b"persistence"),
    (b"INFO", b"replication"),
    (b"INFO", b"cluster"),
    (b"CONFIG", b"GET", b"maxmemory-policy"),
    (b"CONFIG", b"GET", b"maxmemory"),
    (b"CONFIG", b"GET", b"save"),
)
"""The commands that are asked, one by one. A user without the right to one of them may still use the others."""


def _version(text: str) -> tuple[int, int]:
    numbers = [int(part) if part.isdigit() else 0 for part in text.split(".")]
    return (*numbers, 0, 0)[0], (*numbers, 0, 0)[1]


def facts_of(answers: Sequence[Any], questions: Sequence[tuple[bytes, ...]] = QUESTIONS) -> dict[str, str]:
    """The server's facts by name, without those that this user may not read or that the server does not report."""
    facts: dict[str, str] = {}
    for question, answer in zip(questions, answers, strict=True):
        if isinstance(answer, bytes):
            lines = answer.decode(errors="replace").splitlines()
            facts |= {name: value for name, colon, value in (line.partition(":") for line in lines) if colon}
        elif question[0] == b"CONFIG" and isinstance(answer, list):
            pairs = [cast("bytes", word).decode(errors="replace") for word in cast("list[Any]", answer)]
            facts |= dict(zip(pairs[::2], pairs[1::2], strict=False))
    return facts


def is_of_cluster(answers: Sequence[Any]) -> bool:
    """Whether the server is a node of a cluster. ``answers``: replies to QUESTIONS."""
    return facts_of(answers).get("cluster_enabled") == "1"


def check_fitness(answers: Sequence[Any], connection: Connection, durability: str) -> None:
    """Refuse a server that would lose jobs, and log warnings for its operator. ``answers``: replies to QUESTIONS.

    :raises StoreRefused: it is too old, evicts keys, or cannot give the ``durability`` asked for.
    """
    facts = facts_of(answers)
    refuse_unfit(facts, durability)
    if not connection.looked_at:
        connection.looked_at = True
        for doubt in doubts(facts, durability):
            log.warning(doubt, server=redact(connection.url))


def refuse_unfit(facts: dict[str, str], durability: str) -> None:
    """Refuse an unusable server.

    :raises StoreRefused: the message says what to change.
    """
    version = _version(facts.get("valkey_version") or facts.get("redis_version") or "")
    name = "Valkey" if "valkey_version" in facts else "Redis"
    floor = VALKEY_FLOOR if "valkey_version" in facts else REDIS_FLOOR
    if (0, 0) < version < floor:
        raise StoreRefused(
            f"this is {name} {'.'.join(map(str, version))}: jobq needs Redis 7.0 or Valkey 7.2, or newer"
        )
    policy = facts.get("maxmemory-policy", "")
    if policy.startswith("allkeys-") and facts.get("maxmemory", "0") != "0":
        raise StoreRefused(
            f"maxmemory-policy is {policy}: the server would delete jobs when memory runs out;"
            " set maxmemory-policy noeviction"
        )
    if durability == "fsynced":
        if "valkey_version" not in facts and (0, 0) < version < WAITAOF_FLOOR:
            raise DurabilityRefused(
                f"durability='fsynced' needs WAITAOF, which this Redis {version[0]}.{version[1]} does not have:"
                " use Redis 7.2, any Valkey, or durability='replicated'"
            )
        if facts.get("aof_enabled") == "0":
            raise DurabilityRefused("durability='fsynced' needs the append-only file: set appendonly yes")


def doubts(facts: dict[str, str], durability: str) -> list[str]:
    """Warnings for the log about a server that works but may lose jobs."""
    found: list[str] = []
    if facts.get("aof_enabled") == "0":
        if facts.get("save") == "":
            found.append(
                "Redis keeps nothing on disk (no append-only file, no snapshots): a restart loses every job."
                " Set appendonly yes"
            )
        elif "save" in facts:
            found.append("Redis keeps snapshots only: a crash loses the jobs since the last one. Set appendonly yes")
    if facts.get("maxmemory-policy", "").startswith("allkeys-"):
        found.append(
            f"maxmemory-policy is {facts['maxmemory-policy']}: if maxmemory is set one day, Redis will delete jobs."
            " Set maxmemory-policy noeviction"
        )
    if durability == "replicated" and facts.get("connected_slaves") == "0":
        found.append(
            "durability='replicated', but no replica is connected: enqueues wait for one, then fail. Connect a replica"
        )
    return found
