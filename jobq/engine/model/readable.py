"""A repr for structs that hold encoded JSON."""

from __future__ import annotations

from typing import Final

import msgspec

SHOWN: Final = 200
"""Characters of a payload, progress or result that a repr shows."""


def readable(self: msgspec.Struct) -> str:
    """A repr that shows encoded JSON as text, and leaves out fields with their default values."""
    shown: list[str] = []
    for field in msgspec.structs.fields(self):
        value = getattr(self, field.name)
        if field.required or value != field.default:
            if isinstance(value, msgspec.Raw):
                text = bytes(memoryview(value)[: 4 * SHOWN]).decode(errors="replace")
                value = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
            if not (isinstance(value, list | dict) and not value):
                shown.append(f"{field.name}={value!r}")
    return f"{type(self).__name__}({', '.join(shown)})"
