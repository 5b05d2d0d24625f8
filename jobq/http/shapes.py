"""What a type of a request takes at a place, for the texts of problems."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from msgspec import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator

_type = lru_cache(maxsize=64)(inspect.type_info)


def fields_at(struct: type | None, path: str) -> list[str]:
    """The names of the fields that an object at this place can have. Empty if it is not known."""
    found = [one for one in _at(struct, path) if isinstance(one, inspect.StructType)]
    return [field.encode_name for field in found[0].fields] if found else []


def choices_at(struct: type | None, path: str) -> list[str]:
    """The texts that are allowed at this place. Empty if it is not known."""
    words: list[str] = []
    for one in _at(struct, path):
        if isinstance(one, inspect.LiteralType):
            words += map(str, one.values)
        elif isinstance(one, inspect.EnumType):
            words += (str(member.value) for member in one.cls)
    return words


def _at(struct: type | None, path: str) -> list[Any]:
    """The types that a place can have. ``path``: as msgspec writes it, such as "rate[0].count"."""
    found: list[Any] = [] if struct is None else [_type(struct)]
    for name in path.replace("[", ".[").split(".") if path else ():
        if name:
            found = [inner for one in found for inner in _inside(one, name)]
    return found


def _inside(kind: Any, name: str) -> Iterator[Any]:
    if isinstance(kind, inspect.StructType):
        for field in kind.fields:
            if field.encode_name == name:
                yield from _options(field.type)
    elif name.startswith("["):
        yield from _options(getattr(kind, "item_type", None) or getattr(kind, "value_type", None))


def _options(kind: Any) -> Iterator[Any]:
    if isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from _options(one)
    elif isinstance(kind, inspect.Metadata):
        yield from _options(kind.type)
    elif kind is not None:
        yield kind
