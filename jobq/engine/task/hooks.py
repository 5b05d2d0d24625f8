"""Where other libraries' types come in. Without such a library this costs a look at ``sys.modules`` for each task."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


def decode_hook() -> Callable[[type, Any], Any] | None:
    """What msgspec calls for types that it does not know. An annotation can only name a model if pydantic is loaded."""
    if "pydantic" not in sys.modules:
        return None
    from jobq.engine.task import pydantic

    return pydantic.decode


def schema_of(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """JSON Schema of a payload.

    :raises TypeError: a type has none.
    """
    if "pydantic" not in sys.modules:
        return msgspec.json.schema(struct)
    from jobq.engine.task import pydantic

    return pydantic.schema(struct)
