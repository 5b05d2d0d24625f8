"""What ``limits=[...]`` of a task or a queue declares: rules, the keys of its jobs, and what its jobs cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from jobq.engine.model.costs import cost as cost_number
from jobq.engine.model.costs import cost_by
from jobq.engine.model.job import LimitBy
from jobq.engine.model.limits import (
    QUEUE_RULE,
    Concurrency,
    Rate,
    Rule,
    check_limit_key,
    check_queue_rule,
    check_rule,
    check_rule_name,
    value_text,
)
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from jobq.engine.model.job import CostBy
    from jobq.engine.model.limits import Band, Over


def limits_given(limits: Any) -> Sequence[Any]:
    """What ``limits=`` of a task or queue holds.

    :raises InvalidJob: it is not a list.
    """
    if limits is None:
        return ()
    if isinstance(limits, str) or not isinstance(limits, Sequence):
        raise InvalidJob(f"limits is {limits!r:.80}: it takes a list, such as limits=[{limits!r:.80}]")
    return cast("Sequence[Any]", limits)


def queue_rule(limits: Sequence[Concurrency | Rate]) -> dict[str, Rule]:
    """The rule of a whole queue, under its name; empty if there are no limits.

    :raises InvalidJob: an entry has a ``by``, a ``name`` or a ``unit``, or is not a limit.
    """
    for limit in limits_given(limits):
        if isinstance(limit, str) or getattr(limit, "by", None) is not None or getattr(limit, "name", None) is not None:
            raise InvalidJob(
                f"limits of a queue hold {limit!r:.80}: a queue takes Concurrency and Rate without by= and name="
            )
    return check_queue_rule(declared_rules(limits, QUEUE_RULE, {}, of_queue=True)[0])


def declared_costs(given: Sequence[Any], type: str, arguments: dict[str, Any]) -> tuple[dict[str, int], list[CostBy]]:
    """What ``limits=[...]`` of a task says of the costs of its jobs: numbers, and arguments that give them.

    :raises InvalidJob: ``cost`` names no argument, or one unit has two costs.
    """
    costs: dict[str, int] = {}
    by: dict[str, CostBy] = {}
    seen: dict[str, Any] = {}
    for limit in given:
        if not isinstance(limit, Rate) or limit.cost is None:
            continue
        unit = limit.band.unit
        if seen.setdefault(unit, limit.cost) != limit.cost:
            raise InvalidJob(f"the cost in {unit} is given twice, as {seen[unit]!r:.80} and as {limit.cost!r:.80}")
        if isinstance(limit.cost, str):
            by[unit] = cost_by(unit, limit.cost, arguments, type)
        else:
            costs[unit] = cost_number("cost", limit.cost)
    return costs, list(by.values())


def declared_rules(
    given: Sequence[Any], type: str, arguments: dict[str, Any], *, of_queue: bool = False
) -> tuple[dict[str, Rule], tuple[str, ...], tuple[LimitBy, ...]]:
    """What ``limits=[...]`` of a task declares: its rules, the keys of its jobs, and the keys that arguments complete.

    ``arguments``: the handler's arguments, with their defaults or ``inspect.Parameter.empty``.

    :raises InvalidJob: ``by`` names no argument, two entries give one rule two numbers, or an entry is not a limit.
    """
    parts: dict[str, tuple[list[int], list[Band]]] = {}
    overs: dict[str, Over] = {}
    keys: dict[str, None] = {}
    by: dict[tuple[str, str], LimitBy] = {}
    for limit in given:
        if isinstance(limit, str):
            check_limit_key(limit)
            keys[limit] = None
            continue
        if not isinstance(limit, Concurrency | Rate):
            raise InvalidJob(f"limits holds {limit!r:.80}: it takes Concurrency(...), Rate(...) or the key of a rule")
        name = check_rule_name(limit.name or (f"{type}.{limit.by}" if limit.by else type))
        if name == QUEUE_RULE and not of_queue:
            raise InvalidJob("the rule 'queue' is that of the whole queue: give the limit another name=")
        counts, bands = parts.setdefault(name, ([], []))
        if limit.over is not None and overs.setdefault(name, limit.over) != limit.over:
            raise InvalidJob(
                f"rule {name!r} is given two actions, {overs[name]!r} and {limit.over!r}: give one a name="
            )
        if isinstance(limit, Concurrency):
            counts.append(limit.count)
        else:
            bands.append(limit.band)
        if limit.by is None:
            keys[name] = None
        elif limit.by not in arguments:
            raise InvalidJob(
                f"by={limit.by!r:.80} names no argument of {type!r}; there are {', '.join(arguments) or 'none'}"
            )
        else:
            default = arguments[limit.by]
            try:
                text = value_text(default)
            except (TypeError, ValueError):
                text = "null"  # the argument has no default
            by[name, limit.by] = LimitBy(name, limit.by, text)
    for name, (counts, _) in parts.items():
        if len(counts) > 1:
            raise InvalidJob(f"rule {name!r} is given two concurrencies, {counts[0]} and {counts[1]}: give one a name=")
    rules = {
        name: check_rule(Rule(counts[0] if counts else None, tuple(bands), overs.get(name, "wait")))
        for name, (counts, bands) in parts.items()
    }
    return rules, tuple(keys), tuple(by.values())
