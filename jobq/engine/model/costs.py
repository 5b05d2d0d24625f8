"""What a job costs under rates that do not count jobs, but tokens, bytes, credits: any unit."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.model.job import CostBy
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

COST_MAX: Final = 1_000_000_000
COSTS_MAX: Final = 8
"""Units of one job."""
_UNIT = re.compile(r"[A-Za-z0-9_]{1,32}")


def check_unit(unit: Any) -> str:
    """Check and return a unit.

    :raises InvalidJob: it is not 1 to 32 letters, digits or underscores.
    """
    if not isinstance(unit, str) or not _UNIT.fullmatch(unit):
        raise InvalidJob(f"unit {unit!r:.80}: it takes 1 to 32 letters, digits or '_'")
    return unit


def cost(what: str, value: Any) -> int:
    """A cost as it is charged. A fraction is rounded up.

    :raises InvalidJob: it is not a number from 0 to ``COST_MAX``.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= COST_MAX:
        raise InvalidJob(f"{what} is {value!r:.80}: a cost takes a number from 0 to {COST_MAX}")
    return math.ceil(value)


def check_costs(costs: Mapping[str, int]) -> None:
    """Check the costs of a job, by their units.

    :raises InvalidJob: one of them does not fit, or they are too many.
    """
    if len(costs) > COSTS_MAX:
        raise InvalidJob(f"costs has {len(costs)} units: it takes {COSTS_MAX} at most")
    for unit, value in costs.items():
        whole: Any = value
        cost(f"the cost in {check_unit(unit)}", whole)
        if not isinstance(whole, int):
            raise InvalidJob(f"the cost in {unit} is {value!r:.80}: it takes a whole number")


def cost_by(unit: str, field: str, arguments: Mapping[str, Any], type: str) -> CostBy:
    """The cost that an argument of the handler gives.

    :raises InvalidJob: the handler has no such argument.
    """
    if field not in arguments:
        raise InvalidJob(
            f"cost={field!r:.80} names no argument of {type!r}; there are {', '.join(arguments) or 'none'}"
        )
    try:
        return CostBy(unit, field, cost(field, arguments[field]))
    except InvalidJob:
        return CostBy(unit, field)  # the argument has no default, or none that is a number


def costs_of(costs: Mapping[str, int], by: Sequence[CostBy], payload: bytes | msgspec.Raw) -> dict[str, int]:
    """What a job costs, by unit.

    :raises InvalidJob: an argument that gives a cost is not a number that can be charged.
    """
    found = dict(costs)
    if by:
        try:
            fields = msgspec.json.decode(payload, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidJob(f"the payload has no arguments that give a cost: {error}") from None
        for one in by:
            value = fields.get(one.field)
            found[one.unit] = one.default if value is None else cost(one.field, value)
    return found


def weight_row(slots: int, costs: Mapping[str, int]) -> str:
    """A row of the column ``weights``; empty if the job has one slot and no costs."""
    if slots == 1 and not costs:
        return ""
    return "\n".join([str(slots), *(f"{unit} {amount}" for unit, amount in costs.items())])


def read_costs(row: bytes | None) -> dict[str, int]:
    """The costs in a row of ``weights``: what the last run really cost, or else the estimate."""
    costs: dict[str, int] = {}
    for line in (row or b"").decode(errors="replace").split("\n")[1:]:
        unit, *numbers = line.split(" ")
        if numbers and numbers[-1].isdecimal():
            costs[unit] = int(numbers[-1])
    return costs
