"""Support for types of other libraries. Without such a library it costs one lookup in ``sys.modules`` for each task."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


def decode_hook() -> Callable[[type, Any], Any] | None:
    """The function that msgspec calls for types that it does not know. None if pydantic is not loaded."""
    if "pydantic" not in sys.modules:
        return None
    from jobq.engine.task import pydantic

    return pydantic.decode


def schema_of(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """JSON Schema of a payload.

    :raises TypeError: a type has no JSON Schema.
    """
    if "pydantic" not in sys.modules:
        return msgspec.json.schema(struct)
    from jobq.engine.task import pydantic

    return pydantic.schema(struct)
