"""Published types: workers and servers publish the types that they know, for programs without their code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from jobq.engine.model.job import PLAIN, Options
from jobq.engine.model.options import check
from jobq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Iterator

ROW_BYTES: Final = 8192
"""Bytes of a published row. A schema that does not fit is left out. Options that do not fit are not published."""


class Published(msgspec.Struct, frozen=True, omit_defaults=True):
    """A type as one program publishes it: the default options of its jobs, and the JSON Schema of their payload."""

    options: Options = PLAIN
    schema: dict[str, Any] | None = None


class Variant(msgspec.Struct, frozen=True):
    """How the row of another publisher differs. ``seen``: when it did so last, unix ms."""

    publisher: str
    seen: int
    options: Options
    schema: dict[str, Any] | None


class TypeRow(msgspec.Struct, frozen=True):
    """A type of a queue, as its workers and servers publish it. ``options``: the defaults of its jobs, with times in
    ms.

    The row of the ``publisher`` that started last counts. It published it last at ``seen`` (unix ms).
    ``differing``: the different rows of other publishers that are still alive. Empty if all agree.
    """

    type: str
    publisher: str
    seen: int
    options: Options
    schema: dict[str, Any] | None
    differing: list[Variant] = []


_encode = msgspec.json.Encoder(order="sorted").encode
_decode = msgspec.json.Decoder(Published).decode


def encode_published(options: Options, schema: dict[str, Any] | None) -> bytes | None:
    """Encode a row. Returns None if the options are too large to be published."""
    for shown in (schema, None):
        row = _encode(Published(options, shown))
        if len(row) <= ROW_BYTES:
            return row
    return None


def read_published(row: bytes) -> Published | None:
    """Read a row of any version of jobq. Returns None if this version cannot read it, or cannot use its options."""
    try:
        published = _decode(row)
        check(published.options)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidJob):
        return None
    return published


def read_type(name: str, stored: bytes) -> TypeRow | None:
    """Read what publish.lua wrote of a type. Returns None if this version cannot read the row that counts."""
    variants: list[Variant] = []
    for line in stored.split(b"\n"):
        seen, _, rest = line.partition(b"\t")
        publisher, _, row = rest.partition(b"\t")
        published = read_published(row)
        if published is None or not seen.isdigit():
            if not variants:
                return None
            continue
        variants.append(Variant(publisher.decode(errors="replace"), int(seen), published.options, published.schema))
    first, *others = variants
    return TypeRow(name, first.publisher, first.seen, first.options, first.schema, others)


def difference(ours: bytes, theirs: bytes) -> str:
    """The options in which two rows differ, as a text, ours first, and whether their schemas differ."""
    mine, other = read_published(ours), read_published(theirs)
    if mine is None or other is None:
        return "one of them cannot be read by this version of jobq"
    found = list(_differing("", mine.options, other.options))
    if mine.schema != other.schema:
        found.append("their schemas")
    return ", ".join(found)


def _differing(name: str, mine: Any, other: Any) -> Iterator[str]:
    """The fields that differ. Options of several fields are compared field by field, because their texts are long."""
    if mine == other:
        return
    if isinstance(mine, msgspec.Struct) and type(mine) is type(other):
        for field in mine.__struct_fields__:
            yield from _differing(f"{name}.{field}" if name else field, getattr(mine, field), getattr(other, field))
    else:
        yield f"{name} {mine!r:.120} against {other!r:.120}"
