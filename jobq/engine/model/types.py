"""What workers and servers publish of the types that they know, for producers and people without their code."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from jobq.engine.model.job import PLAIN, Options
from jobq.engine.model.options import check
from jobq.errors import InvalidJob

ROW_BYTES: Final = 8192
"""Bytes of a published row. A schema that does not fit is left out; options that do not fit are not published."""


class Published(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one publisher says of a type: the default options of its jobs, and the JSON Schema of their payload."""

    options: Options = PLAIN
    schema: dict[str, Any] | None = None


class Variant(msgspec.Struct, frozen=True):
    """What a publisher says that differs from what counts. ``seen``: when it said so last, unix ms."""

    publisher: str
    seen: int
    options: Options
    schema: dict[str, Any] | None


class TypeRow(msgspec.Struct, frozen=True):
    """A type of a queue, as its workers and servers publish it. ``options``: the defaults of its jobs, times in ms.

    ``publisher``: who said so, at ``seen`` (unix ms). What counts is what the publisher says that started last.
    ``differing``: what other publishers, which are still alive, say instead; empty when all agree.
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
    """A row. None: the options are too large to be published."""
    for shown in (schema, None):
        row = _encode(Published(options, shown))
        if len(row) <= ROW_BYTES:
            return row
    return None


def read_published(row: bytes) -> Published | None:
    """A row of any version of jobq. None: this version cannot read it, or could not enqueue with its options."""
    try:
        published = _decode(row)
        check(published.options)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidJob):
        return None
    return published


def read_type(name: str, stored: bytes) -> TypeRow | None:
    """What publish.lua wrote of a type. None: this version cannot read what counts."""
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
    """In which options two rows differ, in words, ours first; "their schemas" when it is only these."""
    mine, other = read_published(ours), read_published(theirs)
    if mine is None or other is None:
        return "one of them cannot be read by this version of jobq"
    found = [
        f"{name} {getattr(mine.options, name)!r:.80} against {getattr(other.options, name)!r:.80}"
        for name in Options.__struct_fields__
        if getattr(mine.options, name) != getattr(other.options, name)
    ]
    if mine.schema != other.schema:
        found.append("their schemas")
    return ", ".join(found)
