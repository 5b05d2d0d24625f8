"""The routes of limits: what they take, what they answer and what they do."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from jobq.engine.model.job import DELAY_MAX_MS
from jobq.engine.model.limits import (
    BANDS_MAX,
    COUNT_MAX,
    PERIOD_MAX_MS,
    Band,
    LimitKeyRow,
    LimitRow,
    Over,
    Rule,
)
from jobq.engine.queue.limits import KEYS_PAGE
from jobq.errors import UnknownRule
from jobq.http import schema
from jobq.http.call import ApiCall, decode, reply
from jobq.http.problems import RULE_NOT_FOUND, HttpProblem

if TYPE_CHECKING:
    from collections.abc import Generator

    from aiohttp import web


class RateBand(schema.In):
    """``count`` jobs start in ``per`` ms, and up to ``burst`` of them at once."""

    count: Annotated[int, Meta(ge=1, le=COUNT_MAX)]
    per: Annotated[int, Meta(ge=1, le=PERIOD_MAX_MS, description="ms")]
    burst: Annotated[int, Meta(ge=1, le=COUNT_MAX)] = 1
    unit: Annotated[str, Meta(pattern="^[A-Za-z0-9_]{0,32}$", description="Counts costs in this unit, not jobs.")] = ""


class SetLimit(schema.In):
    """A rule: a concurrency, rates, or both. It replaces what code declares."""

    concurrency: Annotated[int, Meta(ge=0, le=COUNT_MAX, description="Jobs that run at once; 0 holds all.")] | None = (
        None
    )
    rate: Annotated[tuple[RateBand, ...], Meta(max_length=BANDS_MAX)] = ()
    over: Annotated[Over, Meta(description="What happens to a job that has no room.")] = "wait"


class SetLimitQuery(schema.In):
    """Whether to set the rule, or only to say what it would do."""

    dry_run: Literal[0, 1] = 0


class ResetLimitQuery(schema.In):
    """Whether to remove what code declares, too."""

    declared: Literal[0, 1] = 0


class LimitKeysQuery(schema.In):
    """Which keys of a rule, and in which order."""

    sort: Literal["held", "active", "key"] = "held"
    limit: schema.PageSize = KEYS_PAGE


class Limits(msgspec.Struct, frozen=True):
    """The rules of limits of the queue."""

    limits: list[LimitRow]


class LimitKeys(msgspec.Struct, frozen=True):
    """Keys of a rule that hold or count jobs now."""

    keys: list[LimitKeyRow]


class LimitSet(msgspec.Struct, frozen=True):
    """The rule that was set; with ``dry_run``, ``would_hold`` says how many jobs it would hold now."""

    rule: str
    concurrency: int | None
    rate: tuple[Band, ...]
    over: Over
    would_hold: int | None = None


class LimitReset(msgspec.Struct, frozen=True):
    """What code declares of the rule; null: no code does, so the rule is gone.

    ``returns``: workers or servers that run list the rule, and declare it again within 30 seconds.
    """

    rule: str
    declared: Rule | None
    returns: bool = False


class CloseLimit(schema.In):
    """For how long the key or the queue is closed from now on."""

    time: Annotated[int, Meta(ge=1, le=DELAY_MAX_MS, description="ms")]


class LimitClosed(msgspec.Struct, frozen=True):
    """A limit key, or the queue, and for how many ms it is closed from now on (0: it is open)."""

    key: str
    closed_ms: int


_rule = msgspec.json.Decoder(SetLimit)
_close = msgspec.json.Decoder(CloseLimit)


async def limits(call: ApiCall) -> web.Response:
    return reply(Limits(await call.queue.limits()))


@contextmanager
def _named_by_path() -> Generator[None]:
    """A job that lists an unknown rule is a 422. A path that names one is a 404."""
    try:
        yield
    except UnknownRule as error:
        raise HttpProblem(RULE_NOT_FOUND, str(error), rule=error.rule, known=error.known) from None


async def show_limit(call: ApiCall) -> web.Response:
    with _named_by_path():
        return reply(await call.queue.limit(call.request.match_info["rule"]))


async def limit_keys(call: ApiCall) -> web.Response:
    query = call.query(LimitKeysQuery)
    rule = call.request.match_info["rule"]
    with _named_by_path():
        return reply(LimitKeys(await call.queue.limit_keys(rule, sort=query.sort, limit=query.limit)))


async def set_limit(call: ApiCall) -> web.Response:
    query, queue, rule = call.query(SetLimitQuery), call.queue, call.request.match_info["rule"]
    body = decode(_rule, await call.body())
    bands = [Band(band.count, band.per, band.burst, band.unit) for band in body.rate]
    if query.dry_run:
        held = await queue.would_hold(rule, concurrency=body.concurrency, rate=bands)
        return reply(LimitSet(rule, body.concurrency, tuple(bands), body.over, held))
    new = await queue.set_limit(rule, concurrency=body.concurrency, rate=bands, over=body.over)
    call.audit("set limit", queue, rule=rule, limit=new.text())
    return reply(LimitSet(rule, new.concurrency, new.rate, new.over))


async def reset_limit(call: ApiCall) -> web.Response:
    query, queue, rule = call.query(ResetLimitQuery), call.queue, call.request.match_info["rule"]
    if query.declared:
        with _named_by_path():
            returns = await queue.remove_limit(rule)
        call.audit("remove limit", queue, rule=rule)
        return reply(LimitReset(rule, None, returns))
    with _named_by_path():
        declared = await queue.reset_limit(rule)
    call.audit("reset limit", queue, rule=rule)
    return reply(LimitReset(rule, declared))


async def close_limit(call: ApiCall) -> web.Response:
    queue, key = call.queue, call.request.match_info["key"]
    body = decode(_close, await call.body())
    with _named_by_path():
        await queue.close_limit(key, body.time / 1000)
    call.audit("close limit", queue, limit_key=key, ms=body.time)
    return reply(LimitClosed(key, body.time))


async def open_limit(call: ApiCall) -> web.Response:
    queue, key = call.queue, call.request.match_info["key"]
    with _named_by_path():
        await queue.open_limit(key)
    call.audit("open limit", queue, limit_key=key)
    return reply(LimitClosed(key, 0))
