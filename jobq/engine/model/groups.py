"""Groups: jobs of one tenant, customer or sender, which share the workers fairly with other groups."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from jobq.engine.model.job import GroupBy
from jobq.engine.model.limits import VALUE_MAX, unfit, value_text
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Mapping

WEIGHT_MIN: Final = 0.001
WEIGHT_MAX: Final = 1000.0
QUEUED_MAX: Final = 1_000_000_000

Charge = Literal["count", "actual"]
"""What a turn of a group costs: one job, or the time that its jobs run."""

TEMPLATES: Final = {"group": "group_by", "partition_by": "partition_from"}
"""The options of a job that a template or a function of its task may name -> where the template is kept."""

_FIELD = re.compile(r"\{([^{}]*)\}")


class Group(msgspec.Struct, frozen=True, omit_defaults=True):
    """The settings of a group. ``weight``: its share of the workers, compared with other groups.

    ``paused``: none of its jobs starts. ``max_queued``: an enqueue is refused while it holds so many jobs; None: no
    bound.
    """

    weight: float = 1.0
    paused: bool = False
    max_queued: int | None = None

    def text(self) -> str:
        """As the scripts read it: weight, paused and the bound, with ``-`` for no bound."""
        return f"{self.weight:g} {int(self.paused)} {'-' if self.max_queued is None else self.max_queued}"


def parse_group(text: str) -> Group:
    """The settings of a stored text. What cannot be read has its default, as in the scripts."""
    words = text.split(" ")
    try:
        weight, paused, most = words
        return Group(float(weight), paused == "1", None if most == "-" else int(most))
    except ValueError:
        return Group()


class GroupRow(msgspec.Struct, frozen=True):
    """A group as operators see it. ``held``: its jobs that are held; ``active``: jobs that run or are about to.

    ``oldest``: when the first of the held jobs was enqueued, unix ms.
    """

    group: str
    held: int
    active: int
    weight: float = 1.0
    paused: bool = False
    max_queued: int | None = None
    oldest: int | None = None


def check_group_name(name: str) -> str:
    """Check and return the name of a group.

    :raises InvalidJob: it is empty, longer than 200 bytes, or has control characters.
    """
    return check_option_name("group", name)


def check_option_name(option: str, name: str) -> str:
    """Check and return what one of ``TEMPLATES`` names.

    :raises InvalidJob: it is empty, longer than 200 bytes, or has control characters.
    """
    if not isinstance(name, str) or not name or unfit(name):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidJob(f"{option} {name!r:.80}: it takes 1 to {VALUE_MAX} bytes without control characters")
    return name


def check_charge(charge: str) -> Charge:
    """Return what a turn of a group costs.

    :raises InvalidJob: it is another word.
    """
    if charge not in ("count", "actual"):
        raise InvalidJob(f"charge is {charge!r:.80}: it takes 'count' or 'actual'")
    return charge


def check_group(group: Group) -> Group:
    """Return the settings.

    :raises InvalidJob: a number is out of its range.
    """
    weight: Any = group.weight
    most: Any = group.max_queued
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise InvalidJob(f"weight is {weight!r:.80}: it takes a number from {WEIGHT_MIN} to {WEIGHT_MAX:g}")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or not 0 <= most <= QUEUED_MAX):
        raise InvalidJob(f"max_queued is {most!r:.80}: it takes a whole number from 0 to {QUEUED_MAX}, or None")
    return group


def changed_row(weight: float | UnsetType, paused: bool | UnsetType, max_queued: int | UnsetType | None) -> str:
    """Settings as group.lua reads them, with ``=`` for what stays as it is.

    :raises InvalidJob: a number is out of its range.
    """
    given = {"weight": weight, "paused": paused, "max_queued": max_queued}
    new: Any = {name: value for name, value in given.items() if value is not UNSET}
    words = check_group(Group(**new)).text().split(" ")
    return " ".join(word if name in new else "=" for name, word in zip(given, words, strict=True))


def name_by(option: str, template: str, type: str, arguments: Mapping[str, Any]) -> GroupBy | str:
    """What ``group="..."`` or ``partition_by="..."`` of a task declares: a template over the handler's arguments, or a
    name as it stands.

    ``arguments``: the handler's arguments, with their defaults or ``inspect.Parameter.empty``.

    :raises InvalidJob: the template names no argument, or has a brace too many.
    """
    names = _FIELD.findall(template)
    if not names and not set("{}") & set(template):
        return check_option_name(option, template)
    if set("{}") & set(_FIELD.sub("", template)):
        raise InvalidJob(f"{option}={template!r:.80}: a brace is too many; a template is such as '{{tenant}}'")
    defaults: dict[str, str] = {}
    for name in names:
        if name not in arguments:
            raise InvalidJob(
                f"{option}={template!r:.80} names no argument of {type!r}; there are {', '.join(arguments) or 'none'}"
            )
        try:
            defaults[name] = value_text(arguments[name])
        except (TypeError, ValueError):
            defaults[name] = "null"  # the argument has no default
    return GroupBy(template, defaults)


def name_of(by: GroupBy, payload: bytes | msgspec.Raw) -> str | None:
    """What a template names for a job. A long name is replaced by its hash. A template of one argument that is null
    names nothing.

    :raises InvalidJob: the payload is not an object, so it has no arguments.
    """
    try:
        fields = msgspec.json.decode(payload, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJob(f"the payload has no arguments for {by.template!r:.80}: {error}") from None

    def value(match: re.Match[str]) -> str:
        name = match[1]
        return value_text(fields[name]) if name in fields else by.defaults[name]

    name = _FIELD.sub(value, by.template)
    return None if name == "null" and _FIELD.fullmatch(by.template) and _is_null(by, fields) else value_text(name)


def _is_null(by: GroupBy, fields: Mapping[str, Any]) -> bool:
    name = by.template[1:-1]
    return fields[name] is None if name in fields else by.defaults[name] == "null"
