"""Pydantic models as arguments and results of handlers. Imported only if pydantic is loaded, see ``hooks.py``."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from pydantic import BaseModel, ValidationError

ERRORS_SHOWN: Final = 3
"""How many of the errors in one value are named."""

_encode = msgspec.json.Encoder().encode


def decode(kind: type, value: Any) -> Any:
    """Validate a value that msgspec has read, as pydantic validates JSON.

    :raises ValueError: the value does not fit the model. The text names fields, but no values, which may be secret.
    :raises NotImplementedError: the type is not a model.
    """
    if not issubclass(kind, BaseModel):
        raise NotImplementedError(f"type {kind!r} is neither msgspec's nor pydantic's")
    try:
        return kind.model_validate_json(_encode(value))
    except ValidationError as error:
        raise ValueError(_short(error)) from None


def schema(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """JSON Schema of a struct with models in it. Their definitions are beside the struct's own.

    :raises TypeError: a type has no JSON Schema.
    """
    inner: dict[str, Any] = {}

    def hook(kind: type) -> dict[str, Any]:
        if not issubclass(kind, BaseModel):
            raise NotImplementedError
        name = kind.__name__
        shape = kind.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        inner.update({f"{name}.{part}": one for part, one in shape.pop("$defs", {}).items()})
        # A model that refers to itself is among its own definitions.
        return shape

    described = msgspec.json.schema(struct, schema_hook=hook)
    return described | {"$defs": described.get("$defs", {}) | inner} if inner else described


def _short(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{'.'.join(map(str, one['loc'])) or 'value'}: {one['msg']}" for one in found[:ERRORS_SHOWN]]
    more = len(found) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more else "")
